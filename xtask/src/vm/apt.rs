//! Debian packages through apt with a configuration of our own.
//!
//! The machine's apt configuration is read (mirror, keys, proxy), never written: lists, cache and
//! the (empty) package state live under `target/vm/apt/NAME`. Because that state is empty, apt
//! resolves every library a package needs, and the result runs on any machine.

mod parse;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::shell;
pub(crate) use parse::Deb;

/// A private apt that knows the packages of some suites.
#[derive(Debug)]
pub(crate) struct Apt {
    suites: Vec<String>,
    conf: PathBuf,
}

impl Apt {
    /// Writes the configuration and reads the lists of `suites`; the last suite is preferred.
    pub(crate) fn of(home: &Path, suites: &[&str]) -> Result<Self> {
        let dir = home.join("apt").join(suites.join("+"));
        for part in ["sources", "lists/partial", "cache/archives/partial", "state"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
        }
        let machine = machine_sources()?;
        let Some(ours) = parse::sources(&machine, &codename()?, suites) else {
            bail!(
                "no Debian source in /etc/apt names this machine's release with component main; \
                 hint: kernels and QEMU come from Debian's archive"
            );
        };
        for (name, text) in ours {
            let path = dir.join("sources").join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        let conf = dir.join("apt.conf");
        let acquire = shell::output(Command::new("apt-config").arg("dump"))?;
        fs::write(dir.join("status"), "").context("write the empty package state")?;
        fs::write(&conf, parse::configuration(&acquire, &dir))
            .with_context(|| format!("write {}", conf.display()))?;
        let apt = Self { suites: suites.iter().map(ToString::to_string).collect(), conf };
        apt.update()?;
        Ok(apt)
    }

    /// The suite of this machine alone.
    pub(crate) fn of_machine(home: &Path) -> Result<Self> {
        Self::of(home, &[&codename()?])
    }

    fn update(&self) -> Result<()> {
        let suites = self.suites.join(", ");
        eprintln!("vm: reading the package lists of {suites}");
        let mut update = self.command("apt-get");
        update.args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]);
        shell::output(&mut update).with_context(|| {
            format!("fetch the package lists of {suites}; hint: is the network there?")
        })?;
        Ok(())
    }

    /// The packages whose name matches the extended regular expression `pattern`.
    pub(crate) fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let found = shell::output(self.command("apt-cache").args(["-n", "search", pattern]))?;
        Ok(parse::names(&found))
    }

    /// The versions of one package, newest first.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let found = shell::output(self.command("apt-cache").args(["madison", package]))?;
        let version = |line: &str| line.split('|').nth(1).map(|field| field.trim().to_owned());
        Ok(found.lines().filter_map(version).collect())
    }

    /// Just these packages.
    pub(crate) fn alone<S: AsRef<OsStr>>(&self, packages: &[S]) -> Result<Vec<Deb>> {
        let mut ask = self.command("apt-get");
        ask.args(["-qq", "download", "--print-uris"]).args(packages);
        parse::debs(&shell::output(&mut ask)?)
    }

    /// These packages and everything they depend on.
    pub(crate) fn with_dependencies<S: AsRef<OsStr>>(&self, packages: &[S]) -> Result<Vec<Deb>> {
        let mut ask = self.command("apt-get");
        ask.args(["-qq", "-y", "--no-install-recommends", "--print-uris", "-t"]);
        ask.args(self.suites.last()).arg("install").args(packages);
        parse::debs(&shell::output(&mut ask)?)
    }

    /// Brings `debs` into `folder`; those that are there already, with the right sum, stay.
    pub(crate) fn fetch(&self, debs: &[Deb], folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let missing: Vec<&Deb> = debs
            .iter()
            .filter(|deb| verify(&folder.join(&deb.file), &deb.sha256).is_err())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let bytes: u64 = missing.iter().map(|deb| deb.size_bytes).sum();
        let what = match missing.as_slice() {
            [one] => one.file.clone(),
            many => format!("{} packages", many.len()),
        };
        eprintln!("vm: downloading {what} ({} kB)", bytes / 1000);
        for deb in &missing {
            // A broken file of the same name would be taken for a finished download.
            let _ = fs::remove_file(folder.join(&deb.file));
        }
        let mut download = self.command("apt-get");
        download.args(["-q", "download"]).args(missing.iter().map(|deb| deb.specification()));
        shell::output(download.current_dir(folder)).with_context(|| {
            format!("download {what}; hint: is the network there, is the disk full?")
        })?;
        for deb in missing {
            verify(&folder.join(&deb.file), &deb.sha256)?;
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.conf).env("LC_ALL", "C");
        command
    }
}

/// Unpacks `deb` into `tree`.
pub(crate) fn unpack(deb: &Path, tree: &Path) -> Result<()> {
    shell::output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(tree))
        .with_context(|| format!("unpack {} (is the disk full?)", deb.display()))?;
    Ok(())
}

/// Fails unless the SHA-256 sum of the file is `expected`.
fn verify(path: &Path, expected: &str) -> Result<()> {
    ensure!(path.is_file(), "{}: not there", path.display());
    let line = shell::output(Command::new("sha256sum").arg("--zero").arg(path))?;
    let found = line.split(' ').next().unwrap_or_default();
    ensure!(
        found == expected,
        "{}: the sha256 is {found}, the archive says {expected}",
        path.display()
    );
    Ok(())
}

/// The release of this machine, as `bookworm`.
fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    parse::codename(&text).context("/etc/os-release has no VERSION_CODENAME: is this Debian?")
}

/// Every source file of the machine, by name.
fn machine_sources() -> Result<Vec<(String, String)>> {
    let mut paths = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(parts) = fs::read_dir("/etc/apt/sources.list.d") {
        paths.extend(parts.flatten().map(|entry| entry.path()));
    }
    paths.sort();
    let mut sources = Vec::new();
    for path in paths {
        let known = path.extension().is_some_and(|kind| kind == "list" || kind == "sources");
        if known && path.is_file() {
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            sources.push((path.to_string_lossy().into_owned(), text));
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_sum_passes() {
        let path = std::env::temp_dir().join(format!("xtask-sum-{}", std::process::id()));
        fs::write(&path, "abc").unwrap();
        let right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        verify(&path, right).unwrap();
        let error = verify(&path, &right.replace('b', "c")).unwrap_err().to_string();
        fs::remove_file(&path).unwrap();
        assert!(error.contains(right), "{error}");
        assert!(verify(&path, right).unwrap_err().to_string().contains("not there"));
    }
}
