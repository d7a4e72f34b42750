//! The kernels of the proving ground: Debian's, one per series.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result};

use super::apt::Apt;
use super::fetch;

/// A kernel series, the Debian suite that offers it, and the flavour it is built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Series {
    name: &'static str,
    suite: &'static str,
    flavour: &'static str,
}

/// Small, quick to fetch and to boot.
const CLOUD: &str = "cloud-amd64";

/// What most machines run. It has zswap, which the cloud kernels have not.
const FULL: &str = "amd64";

/// From our floor to the newest; 6.18 is a long-term kernel as 6.1 and 6.12 are.
pub(crate) const KNOWN: [Series; 4] = [
    Series { name: "6.1", suite: "bookworm", flavour: CLOUD },
    Series { name: "6.12", suite: "trixie", flavour: FULL },
    Series { name: "6.18", suite: "trixie-backports", flavour: CLOUD },
    Series { name: "7.3", suite: "trixie-backports", flavour: CLOUD },
];

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = KNOWN.map(|series| series.name).join(", ");
        let found = KNOWN.into_iter().find(|series| series.name == name);
        found.ok_or_else(|| format!("unknown kernel {name:?}; known are {known} and all"))
    }
}

/// What `--kernel` chooses: one series or every known one.
#[derive(Debug, Clone)]
pub(crate) struct Choice(pub(crate) Vec<Series>);

impl FromStr for Choice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name == "all" { Ok(Self(KNOWN.to_vec())) } else { Ok(Self(vec![name.parse()?])) }
    }
}

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) series: Series,
    /// As `uname -r` says it.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    /// The folder `lib/modules/RELEASE`.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    pub(crate) fn prepare(home: &Path, series: Series, refresh: bool) -> Result<Self> {
        let Series { name, suite, flavour } = series;
        let tree = fetch::tree(home, &format!("linux-{name}-{flavour}"), refresh, || {
            let apt = Apt::of(home, &[suite])?;
            let pattern = format!("^linux-(image|binary|modules)-[0-9].*-{flavour}$");
            let offered = apt.names(&pattern)?;
            let packages = newest(name, flavour, &offered).with_context(|| {
                format!("{suite} offers no kernel {name}; it has {}", offered.join(", "))
            })?;
            let debs = apt.alone(&packages)?;
            Ok((apt, debs))
        })?;
        Self::in_tree(series, &tree)
    }

    /// Finds the kernel in both layouts: `/boot` and `/lib`, or all of it under `/usr/lib`.
    fn in_tree(series: Series, tree: &Path) -> Result<Self> {
        let all = ["usr/lib/modules", "lib/modules"].map(|modules| tree.join(modules));
        let mut releases = all.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        let found = releases.find(|entry| entry.path().join("kernel").is_dir());
        let found = found.with_context(|| format!("no kernel modules in {}", tree.display()))?;
        let (release, modules) = (found.file_name(), found.path());
        let release = release.to_string_lossy().into_owned();
        let images = [tree.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
        let image = images.into_iter().find(|image| image.is_file());
        let image = image.with_context(|| format!("no kernel image in {}", tree.display()))?;
        Ok(Self { series, release, image, modules })
    }
}

/// The packages of the newest kernel of a series. From 7.x on the image package is empty and
/// depends on one with the image and one with the modules.
fn newest(series: &str, flavour: &str, offered: &[String]) -> Option<Vec<String>> {
    let suffix = format!("-{flavour}");
    let parsed = offered.iter().filter_map(|name| {
        let (kind, version) = name.strip_prefix("linux-")?.split_once('-')?;
        let version = version.strip_suffix(&suffix)?;
        // `amd64` alone would take `6.12.9-cloud-amd64` and `-rt-amd64` for versions.
        let is_version = !version.contains("-cloud") && !version.contains("-rt");
        let of_series = version.strip_prefix(series)?.starts_with('.');
        (of_series && is_version && !version.starts_with("unsigned")).then_some((kind, version))
    });
    let parsed: Vec<(&str, &str)> = parsed.collect();
    let version = parsed.iter().map(|(_, version)| *version).max_by_key(|it| numbers(it))?;
    let has = |kind: &str| parsed.contains(&(kind, version));
    let kinds = match (has("binary") && has("modules"), has("image")) {
        (true, _) => vec!["binary", "modules"],
        (false, true) => vec!["image"],
        (false, false) => return None,
    };
    Some(kinds.into_iter().map(|kind| format!("linux-{kind}-{version}{suffix}")).collect())
}

/// The numbers in a version, in order: `6.12.90+deb12.1` is after `6.12.9`.
fn numbers(version: &str) -> Vec<u64> {
    let parts = version.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered() -> Vec<String> {
        let names = "linux-image-6.1.0-47-cloud-amd64 linux-image-6.1.0-50-cloud-amd64 \
            linux-image-6.1.0-50-cloud-amd64-dbg linux-image-6.16.3+deb13-cloud-amd64 \
            linux-image-6.12.9+deb12-cloud-amd64 linux-image-6.12.90+deb12-cloud-amd64 \
            linux-image-6.12.90+deb12.1-cloud-amd64 linux-image-6.12.91+deb12-rt-amd64 \
            linux-image-6.12.90+deb12-amd64 linux-image-6.12.90+deb12-cloud-amd64-unsigned \
            linux-image-7.3.4+deb13-cloud-amd64 linux-binary-7.3.4+deb13-cloud-amd64 \
            linux-binary-unsigned-7.3.4+deb13-cloud-amd64 linux-modules-7.3.4+deb13-cloud-amd64";
        names.split_whitespace().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn the_newest_of_exactly_the_series() {
        let newest = |series| newest(series, CLOUD, &offered()).unwrap();
        assert_eq!(newest("6.1"), ["linux-image-6.1.0-50-cloud-amd64"]);
        assert_eq!(newest("6.12"), ["linux-image-6.12.90+deb12.1-cloud-amd64"]);
    }

    #[test]
    fn the_full_flavour_is_none_of_the_special_ones() {
        assert_eq!(newest("6.12", FULL, &offered()).unwrap(), ["linux-image-6.12.90+deb12-amd64"]);
    }

    #[test]
    fn a_split_kernel_is_two_packages() {
        let expected =
            ["linux-binary-7.3.4+deb13-cloud-amd64", "linux-modules-7.3.4+deb13-cloud-amd64"];
        assert_eq!(newest("7.3", CLOUD, &offered()).unwrap(), expected);
    }

    #[test]
    fn a_series_nobody_offers_is_none() {
        assert_eq!(newest("6.2", CLOUD, &offered()), None);
    }

    #[test]
    fn an_unknown_name_lists_the_known() {
        let error = "5.10".parse::<Choice>().unwrap_err();
        assert_eq!(error, "unknown kernel \"5.10\"; known are 6.1, 6.12, 6.18, 7.3 and all");
        assert_eq!("all".parse::<Choice>().unwrap().0.len(), KNOWN.len());
    }
}
