//! The measurements, one function each. Every one compares all filesystems in turns within the same minutes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use lxcfs_tests::bench::{First, Rate, Timing};

use super::reading::{self, Place};
use super::results::{BySubject, Cold, Cost, Crowd};
use super::stats::median;
use super::subjects::{BELOW, FLOOR, KERNEL, OURS, Subject};
use super::{process, subjects, syscalls};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    pub(super) rounds: u32,
    pub(super) readings: u32,
    pub(super) cold_containers: u32,
    pub(super) slice_ms: u64,
    pub(super) slices: u32,
    pub(super) cost_readings: u32,
}

/// The names of those who have `file`, and where it is: the floor first, the kernel last.
pub(super) fn places(subjects: &[Subject], file: &str) -> (Vec<String>, Vec<PathBuf>) {
    let own =
        subjects.iter().filter_map(|subject| Some((subject.name.clone(), subject.path(file)?)));
    let kernel = (KERNEL.to_owned(), PathBuf::from(format!("/{file}")));
    let below = subjects::below(file).map(|path| (BELOW.to_owned(), path));
    own.chain(below).chain([kernel]).unzip()
}

/// The time of one file in `mode`, for everybody who has it.
pub(super) fn timing(
    place: &Place,
    subjects: &[Subject],
    file: &str,
    mode: &str,
    effort: Effort,
) -> Result<BySubject<Timing>> {
    let (names, paths) = places(subjects, file);
    let arguments = reading::rounds(mode, effort.rounds, effort.readings);
    let timings: Vec<Timing> = place.measure(&arguments, &paths)?;
    Ok(names.into_iter().zip(timings).collect())
}

/// The first reading in containers that are new.
pub(super) fn cold(place: &Place, subjects: &[Subject], effort: Effort) -> Result<BySubject<Cold>> {
    let (names, paths) = places(subjects, "proc/loadavg");
    let mut firsts = vec![Vec::new(); names.len()];
    for container in 0..effort.cold_containers as usize {
        // Who comes first pays for what all of them share.
        let turn = container % names.len();
        let mut order: Vec<_> = (0..names.len()).collect();
        order.rotate_left(turn);
        let files: Vec<_> = order.iter().map(|&at| paths[at].clone()).collect();
        let found: Vec<First> = place.measure(&["first".to_owned()], &files)?;
        order.into_iter().zip(found).for_each(|(at, first)| firsts[at].push(first));
    }
    let cold = |firsts: Vec<First>| {
        let of = |value: fn(&First) -> f64| median(firsts.iter().map(value));
        Cold {
            first_ns: of(|first| first.first_ns as f64),
            warm_ns: of(|first| first.warm_ns as f64),
            over_warm_ns: of(|first| first.first_ns as f64 - first.warm_ns as f64),
        }
    };
    Ok(names.into_iter().zip(firsts.into_iter().map(cold)).collect())
}

/// Many readers of `file` at once, where `place` is.
pub(super) fn crowd(
    place: &Place,
    subjects: &[Subject],
    file: &str,
    readers: u32,
    effort: Effort,
) -> Result<Crowd> {
    let (names, paths) = places(subjects, file);
    let numbers = [
        ("--readers", readers.to_string()),
        ("--rounds", effort.slices.to_string()),
        ("--slice-ms", effort.slice_ms.to_string()),
    ];
    let numbers = numbers.into_iter().flat_map(|(name, number)| [name.to_owned(), number]);
    let arguments: Vec<_> = std::iter::once("crowd".to_owned()).chain(numbers).collect();
    let rates: Vec<Rate> = place.measure(&arguments, &paths)?;
    let rates = rates
        .into_iter()
        .map(|rate| rate.rounds_per_second.into_iter().map(|rate| rate as f64).collect());
    let per_second = names.into_iter().zip(rates).collect();
    Ok(Crowd { file: file.to_owned(), readers, pinned: false, per_second })
}

/// What a reading of `file` costs each daemon.
pub(super) fn costs(
    place: &Place,
    subjects: &[Subject],
    file: &str,
    effort: Effort,
) -> Result<BySubject<Cost>> {
    let mut costs = BTreeMap::new();
    for subject in subjects {
        let Some(path) = subject.path(file) else { continue };
        let read = |readings: u32| -> Result<()> {
            let _: Vec<Timing> = place
                .measure(&reading::rounds("cycle", 1, readings), std::slice::from_ref(&path))?;
            Ok(())
        };
        let spent = |readings: u32| -> Result<u64> {
            let before = process::cpu_ns(subject.pid())?;
            read(readings)?;
            Ok(process::cpu_ns(subject.pid())?.saturating_sub(before))
        };
        // A new container costs something once: what more readings take is the readings'.
        let few = effort.cost_readings / 10;
        let more = f64::from(effort.cost_readings - few);
        let cpu_ns = spent(effort.cost_readings)?.saturating_sub(spent(few)?) as f64 / more;
        let calls = syscalls::of_one_reading(subject.pid(), &read)?;
        ensure!(
            subject.name != OURS && subject.name != FLOOR || calls.fuse > 0.0,
            "strace sees nothing"
        );
        costs.insert(
            subject.name.clone(),
            Cost {
                cpu_s_per_million: cpu_ns / 1_000.0,
                fuse_calls: calls.fuse,
                other_calls: calls.other,
            },
        );
    }
    Ok(costs)
}
