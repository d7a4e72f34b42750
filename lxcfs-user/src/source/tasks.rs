//! The fallback behind the load average: count the tasks of a container by looking at each, every 5 s.
//!
//! What LXCFS's sampler gets wrong and this one does not: it goes down any depth of cgroups; the clock is wall time and
//! missed periods are made up for; a container that is empty for a moment keeps its history; the newest pid is in the
//! container's own numbering; and a container in which nothing has run since the last sample costs one read.

use std::cmp::Reverse;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::time::ClockId;

use super::cgroup::hierarchy::{Cgroup, Hierarchies};
use super::host::{Host, clock_ns, read_whole};
use super::{Load, Machine, parse};
use crate::error::{Errno, Result};
use crate::model::container::{CgroupPaths, Container, LoadHistory, Tasks};
use crate::model::cpus::CpuSet;
use crate::model::file::File;
use crate::model::load::{LoadAverage, PERIOD_NS};
use crate::model::lock::lock;

/// Hierarchies to list a container's tasks by, best first. Runtimes put every task in all of those they use.
const BY_TASKS: [&str; 7] =
    ["cpuacct", "cpu", "memory", "pids", "freezer", "devices", "name=systemd"];

/// The load at the last sample, if there was one.
pub(super) fn last(container: &Container) -> Option<Load> {
    if !container.at_hand.is_sampled.load(Ordering::Relaxed) {
        return None;
    }
    let history = lock(&container.history.load);
    history.as_ref().map(|history| Load {
        average: history.average,
        tasks: history.tasks,
        ..Load::default()
    })
}

/// Takes a sample and advances the averages by the periods that have passed. `used_ns` is the CPU time the container has
/// used, if that is known. `Ok(None)`: the container has no cgroup of its own to count tasks in.
pub(super) fn sample(
    container: &Container,
    used_ns: Option<u64>,
    hierarchies: &Hierarchies,
    host: &Host,
) -> Result<Option<Load>> {
    let now_ns = clock_ns(ClockId::Monotonic);
    let before = lock(&container.history.load).clone();
    let is_sampled = container.at_hand.is_sampled.load(Ordering::Relaxed);
    let tasks = match &before {
        Some(before) if is_sampled && before.stands_still(used_ns) => before.tasks,
        _ => match count(container, hierarchies, host)? {
            Some(tasks) => tasks,
            None => return Ok(None),
        },
    };
    let history = match before {
        Some(before) => before.advance(now_ns, tasks, used_ns),
        None => first(container, host, now_ns, tasks, used_ns),
    };
    let load = Load { average: history.average, tasks, ..Load::default() };
    *lock(&container.history.load) = Some(history);
    container.at_hand.is_sampled.store(true, Ordering::Relaxed);
    Ok(Some(load))
}

impl LoadHistory {
    /// Whether no task can have changed its state: none was waiting for a CPU, and no CPU time was used.
    fn stands_still(&self, used_ns: Option<u64>) -> bool {
        used_ns.is_some() && used_ns == self.used_ns && self.tasks.running == 0
    }

    fn advance(&self, now_ns: u64, tasks: Tasks, used_ns: Option<u64>) -> Self {
        // The nearest number: a sample a moment early is a whole period's all the same, and would else always be one
        // behind, because the clock of the first one is read a moment after it was due.
        let periods = (now_ns.saturating_sub(self.sampled_ns) + PERIOD_NS / 2) / PERIOD_NS;
        let active = tasks.active();
        Self {
            average: self.average.advance(active, periods),
            sampled_ns: self.sampled_ns + periods * PERIOD_NS,
            tasks,
            switches: 0,
            used_ns,
        }
    }
}

fn first(
    container: &Container,
    host: &Host,
    now_ns: u64,
    tasks: Tasks,
    used_ns: Option<u64>,
) -> LoadHistory {
    let life_ns = host.boottime_ns().saturating_sub(container.started_ns);
    let average = mean_load(used_ns.unwrap_or(0), life_ns, host);
    LoadHistory { average, sampled_ns: now_ns, tasks, switches: 0, used_ns }
}

/// The load averages of something that has used `used_ns` of CPU time in a life of `life_ns`.
///
/// A container may have run for days before anybody counted its tasks. What the kernel remembers of that time is the CPU
/// time it used, and use over time is its mean number of running tasks.
pub(super) fn mean_load(used_ns: u64, life_ns: u64, host: &Host) -> LoadAverage {
    let mut online = Vec::new();
    let cpus = match host.read(File::CpuOnline, &mut online) {
        Ok(()) => CpuSet::parse(&online).map_or(1, |online| online.count()),
        Err(_) => 1,
    };
    let life = u128::from(life_ns.max(1));
    // A cgroup can be older than the init in it: more than all CPUs since its start was used by somebody before.
    let used = u128::from(used_ns).min(life * u128::from(cpus));
    let mean = u64::try_from((used << 32) / life).unwrap_or(0);
    LoadAverage::since_start(mean, life_ns / PERIOD_NS)
}

/// The threads of a container, by any hierarchy in which it has a cgroup of its own; `Ok(None)` if there is none.
///
/// # Errors
/// The cgroup is gone.
pub fn threads(cgroups: &CgroupPaths, hierarchies: &Hierarchies) -> Result<Option<Vec<u32>>> {
    let by_controller = |name: &&str| v1(cgroups, hierarchies, name);
    let unified = || {
        let cgroup = hierarchies.v2()?.cgroup(cgroups.unified()?);
        (!cgroup.is_root()).then_some(cgroup)
    };
    let cgroup = BY_TASKS.iter().find_map(by_controller).or_else(unified);
    cgroup.map(|cgroup| read_threads(&cgroup)).transpose()
}

/// The container's cgroup in the v1 hierarchy of `controller`, if it has one of its own there.
fn v1<'a>(
    cgroups: &'a CgroupPaths,
    hierarchies: &'a Hierarchies,
    controller: &str,
) -> Option<Cgroup<'a>> {
    let cgroup = hierarchies.v1(controller)?.cgroup(cgroups.v1(controller)?);
    (!cgroup.is_root()).then_some(cgroup)
}

/// Counts the container's tasks. `Ok(None)`: it has no cgroup of its own in any hierarchy.
fn count(container: &Container, hierarchies: &Hierarchies, host: &Host) -> Result<Option<Tasks>> {
    let Some(tids) = threads(&container.cgroups, hierarchies)? else {
        return Ok(None);
    };
    // In v1 a frozen task is in state D, although it waits for nothing and does not count.
    let freezer = v1(&container.cgroups, hierarchies, "freezer");
    let frozen = freezer.is_some_and(|freezer| is_frozen(&freezer));
    let mut tasks = Tasks::default();
    let mut alive = Vec::with_capacity(tids.len());
    let mut text = Vec::with_capacity(512);
    for tid in tids {
        text.clear();
        // A thread may end between the list and the look at it.
        if host.read_proc(&format!("{tid}/stat"), &mut text).is_err() {
            continue;
        }
        let Some(stat) = parse::pid_stat(&text) else {
            continue;
        };
        tasks.threads += 1;
        alive.push(tid);
        match stat.state {
            b'R' => tasks.running += 1,
            b'D' if !frozen => {
                tasks.blocked += 1;
                tasks.waiting_for_io += 1;
            }
            _ => {}
        }
    }
    tasks.last_pid = read_newest(host, alive, container.pid_depth);
    Ok(Some(tasks))
}

fn is_frozen(freezer: &Cgroup<'_>) -> bool {
    let state = freezer.parse("freezer.state", |text| Some(text.trim_ascii() == b"FROZEN"));
    matches!(state, Ok(Some(true)))
}

/// The pid of the container's newest thread in its own numbering: looked up once in a second at most.
pub(super) fn last_pid(container: &Container, hierarchies: &Hierarchies, host: &Host) -> u32 {
    const FRESH_NS: u64 = 1_000_000_000;
    let now_ns = clock_ns(ClockId::Monotonic);
    if let Some((at_ns, pid)) = *lock(&container.history.last_pid)
        && now_ns.saturating_sub(at_ns) < FRESH_NS
    {
        return pid;
    }
    let tids = threads(&container.cgroups, hierarchies).ok().flatten().unwrap_or_default();
    let pid = read_newest(host, tids, container.pid_depth);
    *lock(&container.history.last_pid) = Some((now_ns, pid));
    pid
}

/// The newest thread's pid in the container's own pid namespace; 0 if there is none. Passed over are threads that have ended
/// since they were listed, and those of a runtime that is in the cgroup but not in the namespace.
fn read_newest(host: &Host, mut tids: Vec<u32>, depth: usize) -> u32 {
    tids.sort_unstable_by_key(|&tid| Reverse(tid));
    tids.into_iter().find_map(|tid| read_own_pid(host, tid, depth)).unwrap_or(0)
}

/// The pid of thread `tid` in the container's own pid namespace.
fn read_own_pid(host: &Host, tid: u32, depth: usize) -> Option<u32> {
    let mut text = Vec::with_capacity(2_048);
    host.read_proc(&format!("{tid}/status"), &mut text).ok()?;
    parse::status_numbers(&text, b"NSpid")?.get(depth).copied()
}

/// The threads of the cgroup and everything below it.
fn read_threads(cgroup: &Cgroup<'_>) -> Result<Vec<u32>> {
    let file = if cgroup.is_v1() { c"tasks" } else { c"cgroup.threads" };
    let mut threads = Vec::new();
    let mut directories = vec![cgroup.open_directory()?];
    let mut text = Vec::new();
    while let Some(directory) = directories.pop() {
        text.clear();
        // A v2 cgroup in an invalid domain refuses the list; it has no threads either.
        if read_at(&directory, file, &mut text).is_ok() {
            threads.extend(
                parse::lines(&text).filter_map(|line| u32::try_from(parse::number(line)?).ok()),
            );
        }
        let Ok(entries) = Dir::read_from(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if entry.file_type() != FileType::Directory || name == c"." || name == c".." {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            directories.extend(rustix::fs::openat(&directory, name, flags, Mode::empty()).ok());
        }
    }
    Ok(threads)
}

fn read_at(directory: &OwnedFd, file: &CStr, text: &mut Vec<u8>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, file, flags, Mode::empty())?;
    read_whole(&fd, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(running: u32, used_ns: Option<u64>) -> LoadHistory {
        LoadHistory {
            tasks: Tasks { running, ..Tasks::default() },
            used_ns,
            ..LoadHistory::default()
        }
    }

    #[test]
    fn w23_a_container_that_used_no_cpu_has_not_changed() {
        assert!(history(0, Some(5)).stands_still(Some(5)));
        assert!(!history(0, Some(5)).stands_still(Some(6)));
        assert!(!history(1, Some(5)).stands_still(Some(5)), "throttled tasks use nothing and run");
        assert!(!history(0, None).stands_still(None));
    }

    #[test]
    fn missed_periods_are_made_up_for() {
        let tasks = Tasks { running: 1, ..Tasks::default() };
        let late = history(1, None).advance(12 * PERIOD_NS + 7, tasks, None);
        assert_eq!(late.sampled_ns, 12 * PERIOD_NS);
        assert_eq!(late.average, LoadAverage::default().advance(1, 12));
    }

    #[test]
    fn a_sample_a_moment_early_is_that_periods() {
        let tasks = Tasks { running: 1, ..Tasks::default() };
        let early = history(1, None).advance(PERIOD_NS - 1, tasks, None);
        assert_eq!(early.average, LoadAverage::default().advance(1, 1));
        // And the one after it, in time, is the next and not the one after that.
        let second = early.advance(2 * PERIOD_NS, tasks, None);
        assert_eq!(second.average, LoadAverage::default().advance(1, 2));
        let at_once = history(1, None).advance(PERIOD_NS / 3, tasks, None);
        assert_eq!((at_once.average, at_once.sampled_ns), (LoadAverage::default(), 0));
    }
}
