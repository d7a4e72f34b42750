//! The root tests on this machine, and the table of every suite on every machine they ran on.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::vm::{KernelReport, SuiteReport};

/// Runs the binaries one after the other, printing what they print.
pub(super) fn run_here(
    binaries: &[(String, PathBuf)],
    directory: &Path,
) -> Result<Vec<SuiteReport>> {
    binaries.iter().map(|(name, binary)| run(name, binary, directory)).collect()
}

fn run(name: &str, binary: &Path, directory: &Path) -> Result<SuiteReport> {
    println!("> {name}, on this machine");
    let began = Instant::now();
    let mut suite = Command::new(binary)
        .current_dir(directory)
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", binary.display()))?;
    let mut output = Vec::new();
    let mut lines = BufReader::new(suite.stdout.take().context("stdout is piped")?);
    loop {
        let start = output.len();
        if lines.read_until(b'\n', &mut output)? == 0 {
            break;
        }
        std::io::stdout().write_all(&output[start..])?;
    }
    let status = suite.wait().with_context(|| format!("wait for {name}"))?;
    Ok(SuiteReport::here(name, status, &output, began.elapsed()))
}

/// Rows of suite x machine, the first with the names of the machines.
pub(super) fn rows(here: &[SuiteReport], guests: &[KernelReport]) -> Result<Vec<Vec<String>>> {
    let mut names: Vec<&str> = here.iter().map(|suite| suite.name.as_str()).collect();
    for suite in guests.iter().flat_map(|guest| &guest.suites) {
        if !names.contains(&suite.name.as_str()) {
            names.push(&suite.name);
        }
    }
    let mut first = vec!["suite".to_owned()];
    if !here.is_empty() {
        first.push(this_machine()?);
    }
    first.extend(guests.iter().map(guest));
    let cell = |suites: &[SuiteReport], name: &str| {
        let suite = suites.iter().find(|suite| suite.name == name);
        suite.map_or_else(|| "-".to_owned(), SuiteReport::cell)
    };
    let mut rows = vec![first];
    for name in names {
        let mut row = vec![name.to_owned()];
        if !here.is_empty() {
            row.push(cell(here, name));
        }
        row.extend(guests.iter().map(|guest| cell(&guest.suites, name)));
        rows.push(row);
    }
    Ok(rows)
}

/// What the tests that failed said, machine by machine: the table's last word, for whoever reads only the end.
pub(super) fn failures(here: &[SuiteReport], guests: &[KernelReport]) -> Result<String> {
    let mut text = String::new();
    let mut add = |machine: &str, suites: &[SuiteReport]| {
        for suite in suites.iter().filter(|suite| !suite.passed()) {
            text += &format!("\n{} failed, {machine}:\n{}\n", suite.name, suite.failures);
        }
    };
    add(&this_machine()?, here);
    for report in guests {
        add(&guest(report), &report.suites);
    }
    Ok(text)
}

fn this_machine() -> Result<String> {
    let layout = if lxcfs_tests::cgroup::is_pure_v2()? { "v2" } else { "v1/hybrid" };
    let release =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").context("read osrelease")?;
    let kernel = release.split(['.', '-']).take(2).collect::<Vec<_>>().join(".");
    Ok(format!("here, {kernel} {layout}"))
}

fn guest(report: &KernelReport) -> String {
    format!("guest, {} v2", report.series)
}
