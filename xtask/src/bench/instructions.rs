//! Instructions for each page, counted by callgrind: the same on every machine of an architecture, however busy it is.
//!
//! What is counted is the unoptimised program, as the other tests run it. Its number says nothing of speed, but a page
//! that does more than it did shows in it, and no second build is waited for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::check::regressions;

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
    let worse = regressions(&stored, &now);
    ensure!(worse.is_empty(), "more instructions than before:\n{}", worse.join("\n"));
    println!("> instructions: {} pages take no more than they did", now.len());
    Ok(())
}

/// Counts, and keeps the numbers.
pub(super) fn store() -> Result<()> {
    let text = serde_json::to_string_pretty(&count()?)? + "\n";
    fs::write(stored_at(), text).context("write the stored counts")
}

/// Instructions for one page of each file.
fn count() -> Result<BTreeMap<String, f64>> {
    crate::cargo(&["build", "--quiet", "--package", "lxcfs-user", "--example", "pages"])?;
    let program = lxcfs_tests::program("examples").join("pages");
    let each = |file: &&str| {
        let more = collected(&program, file, MANY)?.saturating_sub(collected(&program, file, FEW)?);
        Ok(((*file).to_owned(), (more as f64 / f64::from(MANY - FEW)).round()))
    };
    FILES.iter().map(each).collect()
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
