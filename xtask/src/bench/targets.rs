//! The targets of the read path, and whether this run meets them.

use super::results::{BySubject, Results, Target};
use super::stats::{median, ratio};
use super::subjects::{BELOW, BELOW_FILES, DEBIAN, FLOOR, KERNEL, OURS};

/// Where the ratio of a file may be so far from the true one, no number of the run is to be trusted.
const LARGEST_DOUBT: f64 = 0.05;

/// More than this of the CPU time given to others by the hypervisor, likewise.
const LARGEST_STEAL: f64 = 0.02;

/// Files that say something about the container in a line.
const SHORT: [&str; 6] = [
    "proc/loadavg",
    "proc/uptime",
    "sys/devices/system/cpu/online",
    "proc/pressure/cpu",
    "proc/pressure/io",
    "proc/pressure/memory",
];

/// Files made from a page of the host's.
const LONG: [&str; 6] =
    ["proc/stat", "proc/meminfo", "proc/swaps", "proc/cpuinfo", "proc/vmstat", "proc/diskstats"];

/// Why the run is not to be used, if it is not.
pub(super) fn unusable(results: &Results) -> Option<String> {
    let noise = results.noise;
    if noise.doubt.is_nan() || noise.doubt > LARGEST_DOUBT {
        let (is, may) = (noise.doubt * 100.0, LARGEST_DOUBT * 100.0);
        return Some(format!("a ratio may be {is:.1} % off, more than {may:.0} %"));
    }
    if noise.steal > LARGEST_STEAL {
        let (is, may) = (noise.steal * 100.0, LARGEST_STEAL * 100.0);
        return Some(format!(
            "the hypervisor took {is:.1} % of the CPU time, more than {may:.0} %"
        ));
    }
    None
}

/// Every target, with what was measured.
pub(super) fn all(results: &Results) -> Vec<Target> {
    let mut targets = Vec::new();
    for (files, most) in [(SHORT, 1.20), (LONG, 1.60)] {
        for file in files {
            if let Some(measured) = against(results, file, FLOOR) {
                targets.push(at_most(&format!("/{file}: times the null file"), measured, most, 2));
            }
        }
    }
    for file in results.cycle.keys() {
        if let Some(measured) = against(results, file, DEBIAN) {
            targets.push(at_most(&format!("/{file}: times Debian's lxcfs"), measured, 0.35, 2));
        }
    }
    crowds(results, &mut targets);
    if let Some(cold) = results.cold.get(OURS) {
        let over_us = cold.over_warm_ns / 1_000.0;
        targets.push(at_most("first read of a container, us over a warm one", over_us, 120.0, 0));
    }
    for file in ["proc/loadavg", "proc/stat"] {
        if let Some(cost) = results.costs.get(file).and_then(|costs| costs.get(OURS)) {
            let calls = cost.other_calls.values().sum();
            let what = format!("/{file}: system calls of a warm read, without FUSE's");
            targets.push(at_most(&what, calls, 2.0, 2));
        }
    }
    containers(results, &mut targets);
    below(results, &mut targets);
    idle(results, &mut targets);
    targets
}

fn at_most(what: &str, measured: f64, most: f64, digits: usize) -> Target {
    Target {
        what: what.to_owned(),
        wanted: format!("<= {most:.digits$}"),
        measured: format!("{measured:.digits$}"),
        met: Some(measured <= most),
    }
}

/// How much longer our `file` takes than that of `whom`.
pub(super) fn against(results: &Results, file: &str, whom: &str) -> Option<f64> {
    let timings = results.cycle.get(file)?;
    Some(ratio(timings.get(OURS)?, timings.get(whom)?))
}

fn crowds(results: &Results, targets: &mut Vec<Target>) {
    for crowd in results.crowds.iter().filter(|crowd| crowd.readers == 16) {
        let (Some(ours), Some(debian)) = (crowd.per_second.get(OURS), crowd.per_second.get(DEBIAN))
        else {
            continue;
        };
        let times = median(ours.iter().zip(debian).map(|(ours, theirs)| ours / theirs));
        let cpus = if crowd.pinned { "one CPU" } else { "all CPUs" };
        targets.push(Target {
            what: format!("/{}: 16 readers on {cpus}, times Debian's throughput", crowd.file),
            wanted: ">= 4.0".to_owned(),
            measured: format!("{times:.1}"),
            met: Some(times >= 4.0),
        });
    }
}

fn containers(results: &Results, targets: &mut Vec<Target>) {
    let (Some(one), Some(many)) = (results.containers.first(), results.containers.last()) else {
        return;
    };
    let to_floor = |timings: &BySubject<_>| Some(ratio(timings.get(OURS)?, timings.get(FLOOR)?));
    for (file, timings) in &many.timings {
        let alone = one.timings.get(file).and_then(to_floor);
        if let (Some(alone), Some(among)) = (alone, to_floor(timings)) {
            let what = format!("/{file}: with {} containers, times with one", many.count);
            targets.push(at_most(&what, among / alone, 1.15, 2));
        }
    }
}

/// The files below FUSE, with one container and with many.
fn below(results: &Results, targets: &mut Vec<Target>) {
    let all = [results.containers.first(), results.containers.last()];
    let all = all.into_iter().flatten();
    for (containers, file) in all.flat_map(|some| BELOW_FILES.map(|file| (some, file))) {
        let Some(timings) = containers.timings.get(file) else { continue };
        for (whose, name, most) in
            [("the kernel's own", KERNEL, 1.25), ("the null file", FLOOR, 0.5)]
        {
            if let (Some(ours), Some(theirs)) = (timings.get(BELOW), timings.get(name)) {
                let what = format!(
                    "/{file} below FUSE with {} containers: times {whose}",
                    containers.count
                );
                targets.push(at_most(&what, ratio(ours, theirs), most, 2));
            }
        }
    }
}

fn idle(results: &Results, targets: &mut Vec<Target>) {
    let Some(idle) = &results.idle else { return };
    let during = format!("{} containers, {} s idle", idle.containers, idle.seconds);
    if let (Some(&wakeups), Some(&cpu_ns)) = (idle.wakeups.get(OURS), idle.cpu_ns.get(OURS)) {
        targets.push(at_most(&format!("{during}: wake-ups"), wakeups as f64, 0.0, 0));
        targets.push(at_most(&format!("{during}: ms of CPU time"), cpu_ns as f64 / 1e6, 0.0, 2));
    }
    if let Some(memory) = idle.memory.get(OURS) {
        let mib = memory.without_maps() as f64 / 1_024.0;
        let maps = memory.maps as f64 / 1_024.0;
        let what = format!(
            "{} containers read once: MiB resident ({maps:.1} of maps apart)",
            idle.containers
        );
        targets.push(at_most(&what, mib, 16.0, 1));
    }
}
