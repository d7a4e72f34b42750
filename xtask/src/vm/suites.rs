//! Test binaries in guests, and the table of what they said.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::guest::{End, Guest, Report, Step, StepReport};
use super::kernel::Series;
use super::{Options, run};

/// A libtest binary.
#[derive(Debug, Clone)]
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) binary: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// Where it runs: cargo runs a test in its package's folder.
    pub(crate) directory: PathBuf,
    pub(crate) timeout: Duration,
    /// With these kernels, if they are among those that guests are run with.
    pub(crate) kernels: Vec<Series>,
}

/// The counts of libtest's last line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) ok: bool,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

/// A suite on a kernel.
#[derive(Debug, Clone)]
pub(crate) struct SuiteReport {
    pub(crate) name: String,
    pub(crate) end: End,
    /// None when the binary did not come to its last line.
    pub(crate) counts: Option<Counts>,
    /// What the failed tests said, each after a line with its name.
    pub(crate) failures: String,
    pub(crate) took: Duration,
}

/// All suites on a kernel.
#[derive(Debug)]
pub(crate) struct KernelReport {
    pub(crate) series: Series,
    /// An error is a guest that could not be started at all.
    pub(crate) guest: Result<Report>,
    pub(crate) suites: Vec<SuiteReport>,
}

impl SuiteReport {
    /// Of a binary that ran on this machine.
    pub(crate) fn here(
        name: &str,
        status: std::process::ExitStatus,
        output: &[u8],
        took: Duration,
    ) -> Self {
        use std::os::unix::process::ExitStatusExt as _;

        let code = |code: i32| u8::try_from(code).unwrap_or(u8::MAX);
        let end = match (status.code(), status.signal()) {
            (Some(status), _) => End::Exit(code(status)),
            (None, Some(signal)) => End::Signal(code(signal)),
            (None, None) => End::Unfinished,
        };
        Self::new(name, end, &String::from_utf8_lossy(output), took)
    }

    fn of(step: &StepReport) -> Self {
        let StepReport { name, end, took, output } = step;
        Self::new(name, *end, &String::from_utf8_lossy(output), *took)
    }

    fn new(name: &str, end: End, output: &str, took: Duration) -> Self {
        let (counts, failures) = (counts(output), failures(output));
        Self { name: name.to_owned(), end, counts, failures, took }
    }

    pub(crate) fn passed(&self) -> bool {
        self.end == End::Exit(0) && self.counts.is_some_and(|counts| counts.ok)
    }

    /// As `12 passed 3.1s`, `11 passed 1 failed 3.1s`, `no result (signal 6) 200ms`.
    pub(crate) fn cell(&self) -> String {
        let took = match self.took {
            Duration::ZERO => String::new(),
            took => format!(" {took:.1?}"),
        };
        let Some(Counts { passed, failed, ignored, .. }) = self.counts else {
            return format!("no result ({}){took}", self.end);
        };
        let mut cell = format!("{passed} passed");
        for (count, what) in [(failed, "failed"), (ignored, "ignored")] {
            if count > 0 {
                cell += &format!(" {count} {what}");
            }
        }
        if failed == 0 && self.end != End::Exit(0) {
            cell += &format!(" ({})", self.end);
        }
        cell + &took
    }
}

impl KernelReport {
    pub(crate) fn passed(&self) -> bool {
        let orderly = self.guest.as_ref().is_ok_and(|guest| guest.death.is_none());
        orderly && self.suites.iter().all(SuiteReport::passed)
    }
}

/// Runs every suite on its kernels, one boot per kernel; what else the guest needs (files,
/// packages, size) is in `guest`, whose own steps are not run.
pub(crate) fn run_suites(
    options: &Options,
    suites: &[Suite],
    guest: &Guest,
) -> Result<Vec<KernelReport>> {
    let steps = suites.iter().map(step).collect::<Result<Vec<_>>>()?;
    let of = |series: Series| {
        let steps = suites.iter().zip(&steps).filter(|(suite, _)| suite.kernels.contains(&series));
        let mut guest = guest.clone();
        guest.steps = steps.map(|(_, step)| step.clone()).collect();
        guest.files.extend(guest.steps.iter().map(|step| PathBuf::from(&step.argv[0])));
        guest
    };
    let reports = run(options, of)?.into_iter().map(|(series, guest)| {
        let steps = guest.as_ref().map(|guest| guest.steps.as_slice()).unwrap_or_default();
        KernelReport { series, suites: steps.iter().map(SuiteReport::of).collect(), guest }
    });
    Ok(reports.collect())
}

fn step(suite: &Suite) -> Result<Step> {
    let Suite { name, binary, arguments, directory, timeout, kernels: _ } = suite;
    let path = std::path::absolute(binary)
        .with_context(|| format!("find the test binary {}", binary.display()))?;
    let argv = [path.to_string_lossy().into_owned()].into_iter().chain(arguments.iter().cloned());
    let step = Step::new(name, argv.collect(), *timeout);
    Ok(Step { directory: directory.clone(), ..step })
}

/// The rows of kernel x suite, the first with the names.
pub(crate) fn rows(reports: &[KernelReport]) -> Vec<Vec<String>> {
    let names = reports.iter().map(|report| &report.suites).find(|suites| !suites.is_empty());
    let names = names.into_iter().flatten().map(|suite| suite.name.clone());
    let width = names.clone().count();
    let mut rows = vec![["kernel".to_owned()].into_iter().chain(names).collect::<Vec<_>>()];
    rows[0].extend(["boots again", "time", "result"].map(ToOwned::to_owned));
    for report in reports {
        let mut row = vec![report.series.to_string()];
        row.extend(report.suites.iter().map(SuiteReport::cell));
        row.resize(1 + width, "not run".to_owned());
        row.extend(match &report.guest {
            Ok(guest) => [guest.reboots.to_string(), format!("{:.1?}", guest.total)],
            Err(_) => ["-".to_owned(), "-".to_owned()],
        });
        row.push(if report.passed() { "passed" } else { "FAILED" }.to_owned());
        rows.push(row);
    }
    rows
}

/// Reads libtest's `test result: ok. 3 passed; 0 failed; 0 ignored; ...`; the last one counts.
pub(crate) fn counts(output: &str) -> Option<Counts> {
    let line =
        output.lines().rev().find_map(|line| line.trim_end().strip_prefix("test result: "))?;
    let (verdict, rest) = line.split_once(". ")?;
    let mut counts = Counts { ok: verdict == "ok", ..Counts::default() };
    for part in rest.split("; ") {
        match part.split_once(' ') {
            Some((count, "passed")) => counts.passed = count.parse().ok()?,
            Some((count, "failed")) => counts.failed = count.parse().ok()?,
            Some((count, "ignored")) => counts.ignored = count.parse().ok()?,
            _ => {}
        }
    }
    Some(counts)
}

/// What libtest says of the failed tests between its two lines `failures:`; of a binary that did not come to them, its
/// last lines.
fn failures(output: &str) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim_end).collect();
    let mut marks = (0..lines.len()).filter(|&at| lines[at] == "failures:");
    let failures = match (marks.next(), marks.next_back()) {
        (Some(first), Some(last)) => &lines[first + 1..last],
        _ if counts(output).is_some() => &[],
        _ => &lines[lines.len().saturating_sub(LAST_LINES)..],
    };
    failures.join("\n").trim().to_owned()
}

/// Lines shown of a binary that did not come to its end.
const LAST_LINES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; \
                        2 filtered out; finished in 0.01s";

    fn suite(end: End, output: &str) -> SuiteReport {
        SuiteReport::of(&StepReport {
            name: "files".to_owned(),
            end,
            output: output.as_bytes().to_vec(),
            took: Duration::from_millis(1500),
        })
    }

    #[test]
    fn the_last_result_line_counts() {
        let failed = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured";
        let expected = Counts { ok: false, passed: 1, failed: 2, ignored: 0 };
        assert_eq!(counts(&format!("{LINE}\n{failed}\n")), Some(expected));
        let expected = Counts { ok: true, passed: 3, failed: 0, ignored: 1 };
        assert_eq!(counts(&format!("running 3 tests\n{LINE}\r\n\n")), Some(expected));
    }

    #[test]
    fn what_failed_is_what_the_tests_said() {
        let output = "test a ... FAILED\r\n\r\nfailures:\r\n\r\n---- a stdout ----\r\nError: no\r\n\r\n\r\n\
                      failures:\r\n    a\r\n\r\ntest result: FAILED. 0 passed; 1 failed; 0 ignored";
        assert_eq!(suite(End::Exit(101), output).failures, "---- a stdout ----\nError: no");
        assert_eq!(suite(End::Exit(0), LINE).failures, "");
    }

    #[test]
    fn a_binary_without_its_line_failed() {
        let silent = suite(End::Exit(0), "running 3 tests\n");
        assert_eq!(silent.failures, "running 3 tests");
        assert!(!silent.passed());
        assert_eq!(silent.cell(), "no result (exit 0) 1.5s");
        assert!(!suite(End::Signal(6), LINE).passed());
        assert!(suite(End::Exit(0), LINE).passed());
    }

    #[test]
    fn the_table_has_a_row_per_kernel_even_for_one_that_did_not_start() {
        let [first, second, ..] = super::super::kernel::KNOWN;
        let ran = Report {
            steps: Vec::new(),
            boot: None,
            total: Duration::from_millis(8200),
            reboots: 1,
            death: None,
        };
        let reports = [
            KernelReport { series: first, guest: Ok(ran), suites: vec![suite(End::Exit(0), LINE)] },
            KernelReport { series: second, guest: Err(anyhow::anyhow!("no")), suites: vec![] },
        ];
        let expected = [
            vec!["kernel", "files", "boots again", "time", "result"],
            vec!["6.1", "3 passed 1 ignored 1.5s", "1", "8.2s", "passed"],
            vec!["6.12", "not run", "-", "-", "FAILED"],
        ];
        assert_eq!(rows(&reports), expected);
    }
}
