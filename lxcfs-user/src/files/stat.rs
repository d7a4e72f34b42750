//! `/proc/stat`: the container's CPU times and tasks (kernel: fs/proc/stat.c).
//!
//! Interrupts are counted for the machine only, and context switches too where no source counts them: their lines are the
//! host's, because programs do without a number of their own but not without the line. `btime` stays the host's too: `ps` adds it to a task's start
//! time, which counts from the host's boot.

use super::digits::{push, push_line};
use super::{View, required};
use crate::error::Result;
use crate::model::cpus::{CpuView, Cpus};
use crate::model::file::File;
use crate::model::lock::lock;
use crate::model::monotonic::{CpuHistory, CpuTimes};
use crate::source::sheet::Sheet;
use crate::source::{Cpu, Load, Text, parse};

#[derive(Debug)]
pub(super) struct Stat {
    /// `(shown number, times)`, ascending.
    cpus: Vec<(u32, CpuTimes)>,
    /// CPUs that were shown before and are not now: the total keeps their times, as the kernel's does.
    gone: Vec<CpuTimes>,
    ticks_per_second: u64,
    /// The host's page.
    host: Text,
    load: Option<Load>,
    /// Tasks ever made.
    made: u64,
    /// See [`super::Reader`].
    boottime_ahead_s: i64,
}

pub(super) fn gather(view: &View<'_>) -> Result<Stat> {
    let cpu_times = required(view.source.cpu(view.container)?, "cpu")?;
    let cpus = view.cpus()?;
    let up_ns = view.up_ns();
    let mut history = lock(&view.container.history.cpu);
    let rows = spread(&cpu_times, &cpus, view.policy.cpu_view, &mut history)
        .into_iter()
        .map(|(shown, times)| (shown, history.advance(shown, up_ns, times)))
        .collect();
    let gone = history.gone(&shown(&cpus), |cpu| match view.policy.cpu_view {
        CpuView::Quota => None,
        CpuView::Cpuset | CpuView::Host => own(&cpu_times, cpu),
    });
    drop(history);
    let load = view.source.load(view.container)?;
    let made = load.map_or(0, |load| view.container.history.made_by_now(made(&load)));
    Ok(Stat {
        cpus: rows,
        gone,
        ticks_per_second: view.machine.ticks_per_second(),
        host: view.host(File::Stat)?,
        boottime_ahead_s: view.reader.boottime_ahead_s,
        load,
        made,
    })
}

/// Tasks made as far as can be seen now: where they are not counted, in a pid namespace of its own the newest pid (until
/// pids wrap). It falls when that one ends.
fn made(load: &Load) -> u64 {
    load.forks.unwrap_or_else(|| load.tasks.last_pid.max(load.tasks.threads).into())
}

/// The times of each CPU shown: its own where they are known and the CPU is a real one, else an even share.
fn spread(cpu: &Cpu, cpus: &Cpus, view: CpuView, history: &mut CpuHistory) -> Vec<(u32, CpuTimes)> {
    let shares = history.deal(cpu.total, &shown(cpus));
    cpus.iter()
        .zip(shares)
        .map(|((shown, host), share)| match view {
            CpuView::Quota => (shown, share),
            CpuView::Cpuset | CpuView::Host => (shown, own(cpu, host).unwrap_or(share)),
        })
        .collect()
}

/// The times of the host's CPU `host`, where they are known.
fn own(cpu: &Cpu, host: u32) -> Option<CpuTimes> {
    cpu.per_cpu.as_ref()?.get(host as usize).copied()
}

/// The numbers shown.
fn shown(cpus: &Cpus) -> Vec<u32> {
    cpus.iter().map(|(shown, _)| shown).collect()
}

pub(super) fn render(stat: &Stat, page: &mut Vec<u8>) {
    let ticks = |ns: u64| {
        let ticks = u128::from(ns) * u128::from(stat.ticks_per_second) / 1_000_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    };
    // One tick of idle time more than there was: in a container's first hundredth of a second all columns would be 0,
    // which is how mpstat tells a CPU that is offline.
    let row = |times| {
        let mut row = columns(times).map(ticks);
        row[IDLE] = row[IDLE].saturating_add(1);
        row
    };
    let rows = stat.cpus.iter().map(|&(shown, times)| (shown, row(times)));
    let gone = stat.gone.iter().map(|&times| row(times));
    // The total is the sum of the lines and not of the times: rounding would make the two differ.
    let mut total = [0_u64; COLUMNS];
    for row in rows.clone().map(|(_, row)| row).chain(gone) {
        total.iter_mut().zip(row).for_each(|(total, ticks)| *total = total.saturating_add(ticks));
    }
    page.extend_from_slice(b"cpu ");
    write_row(page, total);
    for (shown, row) in rows {
        page.extend_from_slice(b"cpu");
        push(page, shown.into());
        write_row(page, row);
    }
    copy_line(page, &stat.host, "intr");
    match stat.load.and_then(|load| load.switches) {
        Some(switches) => {
            push_line(page, b"ctxt", switches);
        }
        None => copy_line(page, &stat.host, "ctxt"),
    }
    write_btime(page, stat);
    if let Some(Load { tasks, .. }) = stat.load {
        push_line(page, b"processes", stat.made);
        // The reader is running; a sample taken before it started may not know it.
        push_line(page, b"procs_running", tasks.running.max(1).into());
        push_line(page, b"procs_blocked", tasks.waiting_for_io.into());
    }
    copy_line(page, &stat.host, "softirq");
}

/// user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice.
const COLUMNS: usize = 10;
const IDLE: usize = 3;

const fn columns(times: CpuTimes) -> [u64; COLUMNS] {
    let CpuTimes { user_ns, nice_ns, system_ns, idle_ns, iowait_ns, steal_ns } = times;
    // Interrupts are not charged to cgroups, and guest time is part of user time there.
    [user_ns, nice_ns, system_ns, idle_ns, iowait_ns, 0, 0, steal_ns, 0, 0]
}

/// The rest of a line of CPU times.
fn write_row(page: &mut Vec<u8>, row: [u64; COLUMNS]) {
    for ticks in row {
        page.push(b' ');
        push(page, ticks);
    }
    page.push(b'\n');
}

/// The host's boot time, moved by as much as the start times of processes are for this reader: their sum is the truth.
fn write_btime(page: &mut Vec<u8>, stat: &Stat) {
    let start = page.len();
    copy_line(page, &stat.host, "btime");
    let booted = parse::fields(&page[start..]).nth(1).and_then(parse::number);
    if let Some(booted_s) = booted.filter(|_| stat.boottime_ahead_s != 0) {
        page.truncate(start);
        let moved = booted_s.saturating_add_signed(stat.boottime_ahead_s.saturating_neg());
        push_line(page, b"btime", moved);
    }
}

/// Appends the host's line of that name, if it has one.
fn copy_line(page: &mut Vec<u8>, host: &Sheet, name: &str) {
    if let Some(line) = host.named(name.as_bytes()) {
        page.extend_from_slice(line);
        page.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::files::testing::Case;
    use crate::model::container::Tasks;
    use crate::model::cpus::{Bandwidth, CpuSet};
    use crate::source::fake::FakeSource;

    const HOST: &str = include_str!("../../testdata/host/stat");

    fn times(user_ns: u64, system_ns: u64) -> CpuTimes {
        CpuTimes { user_ns, system_ns, ..CpuTimes::default() }
    }

    fn case(cpu: Cpu) -> Case {
        let tasks = Tasks { running: 2, blocked: 1, waiting_for_io: 1, threads: 9, last_pid: 345 };
        let source = FakeSource {
            cpu: Some(cpu),
            cpuset: CpuSet::parse(b"1-2"),
            bandwidth: Some(Bandwidth { quota_us: 50_000, period_us: 100_000 }),
            load: Some(Load { tasks, ..Load::default() }),
            ..FakeSource::default()
        };
        Case::new(source, &[(File::CpuOnline, "0-3\n"), (File::Stat, HOST)])
    }

    fn per_cpu() -> Cpu {
        let per_cpu = [(1, 1), (30_000_000_000, 10_000_000_000), (5_500_000_000, 0), (0, 0)]
            .map(|(u, s)| times(u, s));
        Cpu { total: times(35_500_000_001, 10_000_000_001), per_cpu: Some(per_cpu.to_vec()) }
    }

    #[test]
    fn the_boot_moves_against_the_start_times_of_a_time_namespace() {
        let mut case = case(per_cpu());
        let btime = |case: &Case| -> u64 {
            let page = case.page(File::Stat).unwrap();
            page.lines().find_map(|line| line.strip_prefix("btime ")).unwrap().parse().unwrap()
        };
        let host = btime(&case);
        case.reader.boottime_ahead_s = 1_000;
        assert_eq!(btime(&case), host - 1_000);
        case.reader.boottime_ahead_s = -60;
        assert_eq!(btime(&case), host + 60);
    }

    #[test]
    fn v1_knows_each_cpu() {
        case(per_cpu()).golden(File::Stat, "stat/v1_two_of_four");
    }

    #[test]
    fn v2_spreads_the_total() {
        case(Cpu { per_cpu: None, ..per_cpu() }).golden(File::Stat, "stat/v2_two_of_four");
    }

    #[test]
    fn ask_239_556_562_587_642_673_half_a_cpu_of_quota_is_one_cpu() {
        let mut case = case(per_cpu());
        case.policy.cpu_view = CpuView::Quota;
        case.golden(File::Stat, "stat/quota_view");
    }

    fn rows(page: &str) -> Vec<Vec<u64>> {
        let cpus = page.lines().filter(|line| line.starts_with("cpu"));
        cpus.map(|row| row.split_whitespace().skip(1).map(|n| n.parse().unwrap()).collect())
            .collect()
    }

    #[test]
    fn a_cpu_that_goes_leaves_its_time_in_the_total() {
        for known in [true, false] {
            let mut case = case(per_cpu());
            case.source.cpu =
                Some(Cpu { per_cpu: per_cpu().per_cpu.filter(|_| known), ..per_cpu() });
            let before = rows(&case.page(File::Stat).unwrap());
            case.source.cpuset = CpuSet::parse(b"2");
            let after = rows(&case.page(File::Stat).unwrap());
            assert_eq!((&after[0], &after[1], after.len()), (&before[0], &before[2], 2));
            case.source.cpuset = CpuSet::parse(b"1-2");
            assert_eq!(rows(&case.page(File::Stat).unwrap()), before);
        }
    }

    proptest! {
        #[test]
        fn w17_the_total_is_the_sum_and_nothing_ever_falls(
            reads in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 1..12),
        ) {
            let mut case = case(per_cpu());
            let mut last: Option<Vec<Vec<u64>>> = None;
            for (user, system, known) in reads {
                let per_cpu = known.then(|| vec![times(user / 4, system / 4); 4]);
                case.source.cpu = Some(Cpu { total: times(user, system), per_cpu });
                let rows = rows(&case.page(File::Stat).unwrap());
                for column in 0..COLUMNS {
                    let sum = rows[1..].iter().fold(0_u64, |sum, row| sum.saturating_add(row[column]));
                    prop_assert_eq!(rows[0][column], sum);
                    if let Some(last) = &last {
                        prop_assert!(rows.iter().zip(last).all(|(now, then)| now[column] >= then[column]));
                    }
                }
                last = Some(rows);
            }
        }
    }
}
