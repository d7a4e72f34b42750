//! The regression guard: how long our files take, and what system calls, against what they took when that was kept in the
//! repository.
//!
//! Two programs that never change are the measure: the null file and Debian's lxcfs. A ratio to the null file alone goes up
//! too where work has become dearer than round trips, as between two machines, or on one with memory in small pieces: then
//! all our files go up together, by about the same, and Debian's too. So one file is slower where it has gone up by more than
//! our files have in the middle and Debian's agrees, and all are slower where Debian's say so in the middle. System calls
//! are the same on every machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::results::{BySubject, Cost, Results};
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

/// What is compared, of one run or of the middle of some.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Measured {
    times: Ratios,
    /// System calls of our daemon for a reading, by file.
    calls: BTreeMap<String, f64>,
}

impl Measured {
    fn of(results: &Results) -> Self {
        let calls = |(file, costs): (&String, &BySubject<Cost>)| {
            let ours = costs.get(OURS)?;
            Some((file.clone(), ours.fuse_calls + ours.other_calls.values().sum::<f64>()))
        };
        Self { times: ratios(results), calls: results.costs.iter().filter_map(calls).collect() }
    }

    /// The middle of some runs, file by file.
    fn middle(runs: &[Self]) -> Self {
        let times = runs.first().into_iter().flat_map(|run| run.times.keys()).map(|file| {
            let all = || runs.iter().filter_map(|run| run.times.get(file));
            let debian: Vec<_> = all().filter_map(|times| times.debian).collect();
            let debian = (!debian.is_empty()).then(|| median(debian));
            (file.clone(), Times { null: median(all().map(|times| times.null)), debian })
        });
        let calls = runs.first().into_iter().flat_map(|run| run.calls.keys()).map(|file| {
            (file.clone(), median(runs.iter().filter_map(|run| run.calls.get(file).copied())))
        });
        Self { times: times.collect(), calls: calls.collect() }
    }
}

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

/// Keeps what is compared of a run.
pub(super) fn store(results: &Results) -> Result<()> {
    if let Some(why) = unusable(results) {
        anyhow::bail!("ratios of this run are not worth keeping: {why}");
    }
    let round = |number: f64| (number * 100.0).round() / 100.0;
    let mut kept = Measured::of(results);
    for times in kept.times.values_mut() {
        *times = Times { null: round(times.null), debian: times.debian.map(round) };
    }
    kept.calls.values_mut().for_each(|calls| *calls = round(*calls));
    let text = serde_json::to_string_pretty(&kept)? + "\n";
    fs::write(stored_at(), text).context("write the stored ratios")
}

/// Fails where a file is slower than it was, by the middle of `runs`.
pub(super) fn check(runs: &[Results]) -> Result<()> {
    let text = fs::read_to_string(stored_at()).context("read the stored ratios")?;
    let stored: Measured = serde_json::from_str(&text)?;
    let now = Measured::middle(&runs.iter().map(Measured::of).collect::<Vec<_>>());
    let worse = worse(&stored, &now);
    // A failure on a machine that nobody can ask later has to explain itself.
    println!("{}\n{}", table(runs, &stored.times, &now.times), calls(runs));
    ensure!(worse.is_empty(), "slower than before:\n{}", worse.join("\n"));
    println!("{} files are no slower than they were", now.times.len());
    Ok(())
}

/// What is worse than it was.
fn worse(stored: &Measured, now: &Measured) -> Vec<String> {
    let (null, debian) = growth(&stored.times, &now.times);
    let mut worse = Vec::new();
    if debian.is_some_and(|debian| is_worse(debian, 1.0)) {
        worse.push(format!(
            "all files: {null:.2} of what they took by the null file, in the middle"
        ));
    }
    // Where nobody can say that it is the machine, it is us.
    let machine = if debian.is_some() { null.max(1.0) } else { 1.0 };
    let slower = |now: &Times, before: &Times| slower(now, before, machine);
    worse.extend(regressions(&stored.times, &now.times, slower));
    worse.extend(regressions(&stored.calls, &now.calls, more_calls));
    worse
}

/// How much our files have gone up in the middle of them all, by the null file and by Debian's.
fn growth(stored: &Ratios, now: &Ratios) -> (f64, Option<f64>) {
    let pairs = || now.iter().filter_map(|(file, now)| Some((now, stored.get(file)?)));
    let null = median(pairs().map(|(now, before)| now.null / before.null));
    let of_debian = |(now, before): (&Times, &Times)| Some(now.debian? / before.debian?);
    let debian: Vec<_> = pairs().filter_map(of_debian).collect();
    (null, (!debian.is_empty()).then(|| median(debian)))
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

/// What is to be said of a file that is slower, where all have gone up by `machine`.
fn slower(now: &Times, before: &Times, machine: f64) -> Option<String> {
    let debian = now.debian.zip(before.debian);
    let agrees = debian.is_none_or(|(now, before)| is_worse(now, before));
    (is_worse(now.null, before.null * machine) && agrees).then(|| {
        format!(
            "{:.2} of the null file, and {:.2} before, where all have gone up by {machine:.2}",
            now.null, before.null
        )
    })
}

/// What is to be said of a file whose reading takes more system calls. Some are made now and then, which is a part of a call
/// for each reading, and more on a slow machine.
fn more_calls(now: &f64, before: &f64) -> Option<String> {
    (*now > before + 0.75).then(|| format!("{now:.1} system calls, and {before:.1} before"))
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

    fn of(null: f64, debian: Option<f64>) -> Measured {
        files(&[(null, debian)])
    }

    /// Files with these times.
    fn files(times: &[(f64, Option<f64>)]) -> Measured {
        let times = times.iter().enumerate();
        let times = times.map(|(nth, &(null, debian))| (format!("{nth}"), Times { null, debian }));
        Measured { times: times.collect(), calls: BTreeMap::new() }
    }

    /// How many files are said to be slower where one of five has become so, and the others have gone up by `machine`.
    fn one_of_five(
        before: (f64, Option<f64>),
        now: (f64, Option<f64>),
        machine: (f64, Option<f64>),
    ) -> usize {
        let of_machine =
            (before.0 * machine.0, before.1.zip(machine.1).map(|(debian, by)| debian * by));
        let now = [of_machine, of_machine, now, of_machine, of_machine];
        worse(&files(&[before; 5]), &files(&now)).len()
    }

    #[test]
    fn a_fifth_is_borne_and_more_is_not() {
        let before = (1.5, Some(0.5));
        let quiet = (1.0, Some(1.0));
        assert_eq!(one_of_five(before, (1.79, Some(0.61)), quiet), 0);
        assert_eq!(one_of_five(before, (1.81, Some(0.61)), quiet), 1);
        assert_eq!(worse(&of(1.5, Some(0.5)), &Measured::default()).len(), 1);
    }

    #[test]
    fn where_debians_has_become_slower_too_it_is_the_machine() {
        assert_eq!(one_of_five((1.5, Some(0.5)), (1.9, Some(0.55)), (1.0, Some(1.0))), 0);
        assert_eq!(one_of_five((1.5, None), (1.9, None), (1.0, None)), 1);
    }

    #[test]
    fn what_all_files_went_up_by_is_not_held_against_one() {
        let (before, machine) = ((1.5, Some(0.5)), (1.3, Some(1.1)));
        assert_eq!(one_of_five(before, (2.0, Some(0.61)), machine), 0);
        assert_eq!(one_of_five(before, (2.4, Some(0.65)), machine), 1);
        // A file that is slower is found though the others have become faster, and takes no more for that.
        assert_eq!(one_of_five(before, (1.7, Some(0.55)), (0.8, Some(0.9))), 0);
        assert_eq!(one_of_five(before, (1.9, Some(0.61)), (0.8, Some(0.9))), 1);
    }

    #[test]
    fn all_files_are_slower_where_debians_say_so() {
        let before = (1.5, Some(0.5));
        assert_eq!(one_of_five(before, (1.9, Some(0.59)), (1.27, Some(1.18))), 0);
        assert_eq!(one_of_five(before, (1.9, Some(0.62)), (1.27, Some(1.24))), 1);
        // Nobody to say that it is the machine.
        assert_eq!(worse(&of(1.5, None), &of(1.9, None)).len(), 1);
    }

    #[test]
    fn a_system_call_more_is_told_on_any_machine() {
        let of = |calls: f64| Measured {
            calls: BTreeMap::from([("proc/stat".to_owned(), calls)]),
            ..Measured::default()
        };
        assert_eq!(worse(&of(13.1), &of(13.7)).len(), 0);
        assert_eq!(worse(&of(13.1), &of(14.1)).len(), 1);
        assert_eq!(worse(&of(13.1), &of(9.0)).len(), 0);
        assert_eq!(worse(&of(13.1), &Measured::default()).len(), 1);
    }

    #[test]
    fn one_run_of_three_that_is_far_off_changes_nothing() {
        let runs = [of(1.5, Some(0.5)), of(9.0, Some(4.0)), of(1.6, None)];
        assert_eq!(Measured::middle(&runs), of(1.6, Some(4.0)));
        let runs = [of(1.5, Some(0.5)), of(9.0, Some(4.0)), of(1.6, Some(0.6))];
        assert_eq!(Measured::middle(&runs), of(1.6, Some(0.6)));
    }
}
