//! Instructions for each page, counted by callgrind, and for finding who reads it, counted in steps: the same on every
//! machine of an architecture, however busy it is. The kernel's part of a lookup is not counted.
//!
//! What is counted is the unoptimised program, as the other tests run it. Its number says nothing of speed, but a page
//! that does more than it did shows in it, and no second build is waited for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::check::{is_worse, regressions};
use super::process::Guard;
use super::steps;

/// The files that have a page of their own.
const FILES: [&str; 11] = [
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "pressure/cpu",
    "slabinfo",
    "stat",
    "swaps",
    "uptime",
    "vmstat",
    "/sys/devices/system/cpu/online",
];

/// What the count of a reader's container is stored as.
const WHO_READS: &str = "who reads";

const FEW: u32 = 10;
const MANY: u32 = 60;

fn stored_at() -> PathBuf {
    crate::root().join("xtask/bench-instructions.json")
}

/// Counts, and fails where a page takes a fifth more than the stored number.
pub(crate) fn check() -> Result<()> {
    let now = count()?;
    let text = fs::read_to_string(stored_at()).context("read the stored counts")?;
    let stored: BTreeMap<String, f64> = serde_json::from_str(&text)?;
    let worse = regressions(&stored, &now, |now, before| {
        is_worse(*now, *before).then(|| format!("{now:.0}, and {before:.0} before"))
    });
    ensure!(worse.is_empty(), "more instructions than before:\n{}", worse.join("\n"));
    println!("> instructions: {} things take no more than they did", now.len());
    Ok(())
}

/// Counts, and keeps the numbers.
pub(super) fn store() -> Result<()> {
    let text = serde_json::to_string_pretty(&count()?)? + "\n";
    fs::write(stored_at(), text).context("write the stored counts")
}

/// Instructions for one page of each file, and for one lookup of a reader.
fn count() -> Result<BTreeMap<String, f64>> {
    const EXAMPLES: [&str; 4] = ["--example", "pages", "--example", "resolve"];

    crate::need_root("finding the container of a reader")?;
    crate::cargo(&[&["build", "--quiet", "--package", "lxcfs-user"], &EXAMPLES[..]].concat())?;
    let examples = lxcfs_tests::program("examples");
    let pages = examples.join("pages");
    let of_page =
        |file: &&str| Ok(((*file).to_owned(), one(|times| collected(&pages, file, times))?));
    let mut counts: BTreeMap<_, _> = FILES.iter().map(of_page).collect::<Result<_>>()?;
    let (resolve, reader) = (examples.join("resolve"), Reader::start()?);
    let find = |times: u32| {
        steps::count(Command::new(&resolve).args([reader.pid.to_string(), times.to_string()]))
    };
    counts.insert(WHO_READS.to_owned(), one(find)?);
    Ok(counts)
}

/// Instructions for one of the things that a run, of which `run` counts all, does as often as it is told.
fn one(run: impl Fn(u32) -> Result<u64>) -> Result<f64> {
    let more = run(MANY)?.saturating_sub(run(FEW)?);
    Ok((more as f64 / f64::from(MANY - FEW)).round())
}

/// Instructions of a whole run that makes `pages` pages.
fn collected(program: &Path, file: &str, pages: u32) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([file, &pages.to_string()])
        .output()
        .context("run valgrind; install it: apt-get install valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pages {file}: {said}");
    parse_collected(&said).with_context(|| format!("valgrind counted nothing: {said}"))
}

/// A process in namespaces of its own, as a container's init is. The kernel ends it with `unshare`: that is what
/// `--kill-child` asks for.
#[derive(Debug)]
struct Reader {
    unshare: Guard,
    pid: u32,
}

impl Reader {
    /// With a cgroup namespace, as today's runtimes make one; without, our own path among the cgroups would be counted.
    fn start() -> Result<Self> {
        let namespaces = ["--user", "--map-root-user", "--cgroup", "--pid", "--fork"];
        let unshare = Command::new("unshare")
            .args(namespaces)
            .args(["--kill-child", "sleep", "600"])
            .spawn()
            .context("run unshare; install it: apt-get install util-linux")?;
        let mut reader = Self { unshare: Guard(unshare), pid: 0 };
        let children = format!("/proc/{0}/task/{0}/children", reader.unshare.0.id());
        lxcfs_tests::wait_for("a process in namespaces of its own", || {
            // It is in them from its first instruction on.
            let text = fs::read_to_string(&children).unwrap_or_default();
            let pid = text.split_whitespace().next().and_then(|pid| pid.parse().ok());
            reader.pid = pid.unwrap_or_default();
            pid.is_some()
        });
        Ok(reader)
    }
}

/// The number in a line like `==12== Collected : 168513`.
fn parse_collected(said: &str) -> Option<u64> {
    let line = said.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found() {
        let said = "==12== \n==12== Events    : Ir\n==12== Collected : 168513\n";
        assert_eq!(parse_collected(said), Some(168_513));
        assert_eq!(parse_collected("==12== nothing"), None);
    }
}
