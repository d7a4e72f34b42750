//! A run as Markdown.

use std::fmt::Write as _;

use lxcfs_tests::bench::Timing;

use super::results::{BySubject, Results};
use super::stats::{median, ratio};
use super::subjects::{DEBIAN, FLOOR, KERNEL, OURS};
use super::targets;

/// The order of columns: those that are always there, and others between.
pub(super) fn names(results: &Results) -> Vec<String> {
    let known = [FLOOR, OURS, DEBIAN, KERNEL];
    let mut names: Vec<_> = [FLOOR, OURS, DEBIAN].map(str::to_owned).to_vec();
    for timings in results.cycle.values() {
        for name in timings.keys() {
            if !known.contains(&name.as_str()) && !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    names.push(KERNEL.to_owned());
    names
}

/// The whole report.
pub(super) fn markdown(results: &Results) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(results, &mut text);
    text
}

fn write_all(results: &Results, out: &mut String) -> std::fmt::Result {
    let machine = &results.machine;
    writeln!(out, "# Reading the files\n")?;
    writeln!(
        out,
        "{}, {} CPUs, Linux {}, {}; daemons and readers on CPU {}; CPU time and load from {}.",
        machine.processor,
        machine.cpus,
        machine.kernel,
        machine.cgroups,
        machine.pinned_to,
        machine.accounting
    )?;
    let (doubt, steal) = (results.noise.doubt * 100.0, results.noise.steal * 100.0);
    writeln!(out, "A ratio may be {doubt:.1} % off; steal {steal:.2} %.\n")?;
    writeln!(
        out,
        "`null`: a file that does nothing, on the same FUSE library: the floor. `debian`: Debian's lxcfs. "
    )?;
    writeln!(
        out,
        "`kernel`: the kernel's own file, for scale. us: p50 / p99; x: times the floor, median of rounds.\n"
    )?;
    for (name, why) in &results.absent {
        writeln!(out, "**{name}** was not measured to the end: {why}\n")?;
    }
    timings(results, "Open, read to the end, close", &results.cycle, out)?;
    timings(results, "Read of an open file from its start", &results.held, out)?;
    cold(results, out)?;
    crowds(results, out)?;
    costs(results, out)?;
    containers(results, out)?;
    idle(results, out)?;
    writeln!(out, "## Targets\n")?;
    if let Some(why) = targets::unusable(results) {
        return writeln!(out, "**This run is not usable**, and no verdict is given: {why}.");
    }
    writeln!(out, "| target | wanted | measured | |\n|---|---|---|---|")?;
    for target in &results.targets {
        let met = if target.met == Some(true) { "met" } else { "**not met**" };
        writeln!(out, "| {} | {} | {} | {met} |", target.what, target.wanted, target.measured)?;
    }
    Ok(())
}

fn header(out: &mut String, first: &str, names: &[String]) -> std::fmt::Result {
    writeln!(out, "| {first} | {} |", names.join(" | "))?;
    writeln!(out, "|---|{}", "---|".repeat(names.len()))
}

fn timings(
    results: &Results,
    title: &str,
    files: &std::collections::BTreeMap<String, BySubject<Timing>>,
    out: &mut String,
) -> std::fmt::Result {
    let names = names(results);
    writeln!(out, "## {title}\n")?;
    header(out, "us", &names)?;
    for (file, timings) in files {
        write!(out, "| /{file} |")?;
        for name in &names {
            let Some(timing) = timings.get(name) else {
                write!(out, " |")?;
                continue;
            };
            let us = |ns: u64| ns as f64 / 1_000.0;
            write!(out, " {:.1} / {:.0}", us(timing.p50_ns), us(timing.p99_ns))?;
            match timings.get(FLOOR).filter(|_| name != FLOOR) {
                Some(floor) => write!(out, ", {:.2}x |", ratio(timing, floor))?,
                None => write!(out, " |")?,
            }
        }
        writeln!(out)?;
    }
    writeln!(out)
}

fn cold(results: &Results, out: &mut String) -> std::fmt::Result {
    writeln!(out, "## First read of a new container\n")?;
    writeln!(out, "| us | first | warm | over warm |\n|---|---|---|---|")?;
    for name in names(results) {
        if let Some(cold) = results.cold.get(&name) {
            let us = [cold.first_ns, cold.warm_ns, cold.over_warm_ns].map(|ns| ns / 1_000.0);
            writeln!(out, "| {name} | {:.1} | {:.1} | {:.1} |", us[0], us[1], us[2])?;
        }
    }
    writeln!(out)
}

fn crowds(results: &Results, out: &mut String) -> std::fmt::Result {
    let names = names(results);
    writeln!(out, "## Many readers at once\n")?;
    header(out, "readings in a second", &names)?;
    for crowd in &results.crowds {
        let cpus = if crowd.pinned { "one CPU" } else { "all CPUs" };
        write!(out, "| /{}, {} readers, {cpus} |", crowd.file, crowd.readers)?;
        for name in &names {
            match crowd.per_second.get(name) {
                Some(rates) => write!(out, " {:.0} |", median(rates.iter().copied()))?,
                None => write!(out, " |")?,
            }
        }
        writeln!(out)?;
    }
    writeln!(out)
}

fn costs(results: &Results, out: &mut String) -> std::fmt::Result {
    writeln!(out, "## What a reading costs the daemon\n")?;
    writeln!(out, "| file | daemon | CPU s for 10^6 | calls on /dev/fuse | other system calls |")?;
    writeln!(out, "|---|---|---|---|---|")?;
    for (file, costs) in &results.costs {
        for (name, cost) in costs {
            let all: f64 = cost.other_calls.values().sum();
            let mut calls: Vec<_> = cost.other_calls.iter().collect();
            calls.sort_by(|a, b| b.1.total_cmp(a.1));
            let calls = calls.iter().take(6).map(|(name, each)| format!("{name} {each:.2}"));
            let calls = calls.collect::<Vec<_>>().join(", ");
            let (cpu_s, fuse) = (cost.cpu_s_per_million, cost.fuse_calls);
            writeln!(out, "| /{file} | {name} | {cpu_s:.1} | {fuse:.1} | {all:.1}: {calls} |")?;
        }
    }
    writeln!(out)
}

fn containers(results: &Results, out: &mut String) -> std::fmt::Result {
    writeln!(out, "## Many containers\n")?;
    writeln!(out, "| containers | file | {FLOOR} us | {OURS} us | x |\n|---|---|---|---|---|")?;
    for containers in &results.containers {
        for (file, timings) in &containers.timings {
            if let (Some(floor), Some(ours)) = (timings.get(FLOOR), timings.get(OURS)) {
                let us = |timing: &Timing| timing.p50_ns as f64 / 1_000.0;
                let (count, times) = (containers.count, ratio(ours, floor));
                let (floor, ours) = (us(floor), us(ours));
                writeln!(out, "| {count} | /{file} | {floor:.1} | {ours:.1} | {times:.2} |")?;
            }
        }
    }
    writeln!(out)
}

fn idle(results: &Results, out: &mut String) -> std::fmt::Result {
    let Some(idle) = &results.idle else { return Ok(()) };
    writeln!(out, "## {} containers that sleep, {} s\n", idle.containers, idle.seconds)?;
    writeln!(out, "| daemon | wake-ups | CPU ms | anonymous KiB | program KiB | eBPF maps KiB |")?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for (name, wakeups) in &idle.wakeups {
        let cpu_ms = idle.cpu_ns.get(name).copied().unwrap_or(0) as f64 / 1e6;
        let memory = idle.memory.get(name).copied().unwrap_or_default();
        let (own, program, maps) = (memory.anonymous, memory.program, memory.maps);
        writeln!(out, "| {name} | {wakeups} | {cpu_ms:.2} | {own} | {program} | {maps} |")?;
    }
    writeln!(out)
}
