//! The regression guard: how long our files take, against how long they took when the ratios in the repository were kept.
//!
//! Two programs that never change are the measure: the null file and Debian's lxcfs. A ratio to the null file alone goes up
//! too where work has become dearer than round trips, as between two machines; then Debian's files go up with ours. So a
//! file is slower where both say it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::results::{Cost, Results};
use super::stats::{median, ratio};
use super::subjects::{DEBIAN, FLOOR, KERNEL, OURS};
use super::targets::{against, unusable};

/// So much worse than the stored ratio is a regression.
const TOLERANCE: f64 = 0.20;

/// What stands for Debian's where it does not have the file.
const SHORTEST: &str = "proc/loadavg";

/// How long a file of ours takes, as times what never changes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Times {
    null: f64,
    /// Of Debian's file, or of its `loadavg` where it has none. `None`: Debian's is not there.
    debian: Option<f64>,
}

type Ratios = BTreeMap<String, Times>;

fn stored_at() -> PathBuf {
    crate::root().join("xtask/bench-ratios.json")
}

fn ratios(results: &Results) -> Ratios {
    let of = |file: &String| {
        let null = against(results, file, FLOOR)?;
        let debian = against(results, file, DEBIAN).or_else(|| {
            let theirs = results.cycle.get(SHORTEST)?;
            Some(null / ratio(theirs.get(DEBIAN)?, theirs.get(FLOOR)?))
        });
        Some((file.clone(), Times { null, debian }))
    };
    results.cycle.keys().filter_map(of).collect()
}

/// Keeps the ratios of a run.
pub(super) fn store(results: &Results) -> Result<()> {
    if let Some(why) = unusable(results) {
        anyhow::bail!("ratios of this run are not worth keeping: {why}");
    }
    let round = |ratio: f64| (ratio * 100.0).round() / 100.0;
    let rounded: Ratios = ratios(results)
        .into_iter()
        .map(|(file, times)| {
            (file, Times { null: round(times.null), debian: times.debian.map(round) })
        })
        .collect();
    let text = serde_json::to_string_pretty(&rounded)? + "\n";
    fs::write(stored_at(), text).context("write the stored ratios")
}

/// Fails where a file is slower than it was, by the middle of `runs`.
pub(super) fn check(runs: &[Results]) -> Result<()> {
    let text = fs::read_to_string(stored_at()).context("read the stored ratios")?;
    let stored: Ratios = serde_json::from_str(&text)?;
    let now = middle(&runs.iter().map(ratios).collect::<Vec<_>>());
    let worse = regressions(&stored, &now, slower);
    // A failure on a machine that nobody can ask later has to explain itself.
    println!("{}\n{}", table(runs, &stored, &now), calls(runs));
    ensure!(worse.is_empty(), "slower than before:\n{}", worse.join("\n"));
    println!("{} files are no slower than they were", now.len());
    Ok(())
}

/// File by file the middle of some runs.
fn middle(runs: &[Ratios]) -> Ratios {
    let files = runs.first().into_iter().flat_map(BTreeMap::keys);
    let of = |file: &String| {
        let all = || runs.iter().filter_map(|run| run.get(file));
        let debian: Vec<_> = all().filter_map(|times| times.debian).collect();
        let debian = (!debian.is_empty()).then(|| median(debian));
        (file.clone(), Times { null: median(all().map(|times| times.null)), debian })
    };
    files.map(of).collect()
}

/// Whether a number has grown by more than is borne.
pub(super) fn is_worse(now: f64, before: f64) -> bool {
    now > before * (1.0 + TOLERANCE)
}

/// What of `stored` is missing from `now`, and what `says` of the rest.
pub(super) fn regressions<T>(
    stored: &BTreeMap<String, T>,
    now: &BTreeMap<String, T>,
    says: impl Fn(&T, &T) -> Option<String>,
) -> Vec<String> {
    let worse = stored.iter().filter_map(|(name, before)| match now.get(name) {
        None => Some(format!("{name} was not measured")),
        Some(now) => says(now, before).map(|said| format!("{name}: {said}")),
    });
    worse.collect()
}

/// What is to be said of a file that is slower.
fn slower(now: &Times, before: &Times) -> Option<String> {
    let debian = now.debian.zip(before.debian);
    let agrees = debian.is_none_or(|(now, before)| is_worse(now, before));
    (is_worse(now.null, before.null) && agrees)
        .then(|| format!("{:.2} of the null file, and {:.2} before", now.null, before.null))
}

/// What the verdict follows from.
fn table(runs: &[Results], stored: &Ratios, now: &Ratios) -> String {
    let mut lines = vec![format!(
        "{:30} {:>8} {:>8} {:>8} {:>14} {:>16}",
        "", "null us", "kernel's", "Debian's", "ours (before)", "/Debian (before)"
    )];
    for (file, times) in now {
        let of_runs = |of: &dyn Fn(&Results) -> Option<f64>| median(runs.iter().filter_map(of));
        let null_us = of_runs(&|run| Some(run.cycle.get(file)?.get(FLOOR)?.p50_ns as f64 / 1e3));
        let times_null = |whom: &str| {
            of_runs(&|run| {
                let timings = run.cycle.get(file)?;
                Some(ratio(timings.get(whom)?, timings.get(FLOOR)?))
            })
        };
        let before = stored.get(file);
        let (null, debian) = (times.null, times.debian.unwrap_or(f64::NAN));
        let null_before = before.map_or(f64::NAN, |before| before.null);
        let debian_before = before.and_then(|before| before.debian).unwrap_or(f64::NAN);
        lines.push(format!(
            "{file:30} {null_us:8.1} {:8.2} {:8.2} {null:7.2} ({null_before:.2}) {debian:9.2} ({debian_before:.2})",
            times_null(KERNEL),
            times_null(DEBIAN),
        ));
    }
    lines.join("\n")
}

/// What the daemons did for a reading, which no processor changes.
fn calls(runs: &[Results]) -> String {
    let Some(last) = runs.last() else { return String::new() };
    let of = |file: &str, whom: &str, cost: &Cost| {
        let other: Vec<_> =
            cost.other_calls.iter().map(|(name, count)| format!("{name} {count:.1}")).collect();
        format!("{file} of {whom}: on /dev/fuse {:.1}, {}", cost.fuse_calls, other.join(", "))
    };
    let files = last.costs.iter().flat_map(|(file, costs)| {
        [FLOOR, OURS].into_iter().filter_map(move |whom| Some(of(file, whom, costs.get(whom)?)))
    });
    files.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worse(stored: &Ratios, now: &Ratios) -> usize {
        regressions(stored, now, slower).len()
    }

    fn stat(null: f64, debian: Option<f64>) -> Ratios {
        BTreeMap::from([("proc/stat".to_owned(), Times { null, debian })])
    }

    #[test]
    fn a_fifth_is_borne_and_more_is_not() {
        let stored = stat(1.5, Some(0.5));
        assert_eq!(worse(&stored, &stat(1.79, Some(0.61))), 0);
        assert_eq!(worse(&stored, &stat(1.81, Some(0.61))), 1);
        assert_eq!(worse(&stored, &BTreeMap::new()), 1);
    }

    #[test]
    fn where_debians_has_become_slower_too_it_is_the_machine() {
        assert_eq!(worse(&stat(1.5, Some(0.5)), &stat(1.9, Some(0.55))), 0);
        assert_eq!(worse(&stat(1.5, Some(0.5)), &stat(1.9, None)), 1);
    }

    #[test]
    fn one_run_of_three_that_is_far_off_changes_nothing() {
        let runs = [stat(1.5, Some(0.5)), stat(9.0, Some(4.0)), stat(1.6, None)];
        assert_eq!(middle(&runs), stat(1.6, Some(4.0)));
        let runs = [stat(1.5, Some(0.5)), stat(9.0, Some(4.0)), stat(1.6, Some(0.6))];
        assert_eq!(middle(&runs), stat(1.6, Some(0.6)));
    }
}
