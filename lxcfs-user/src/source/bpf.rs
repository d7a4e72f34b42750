//! [`Source`] over the maps of the eBPF programs: CPU time of each CPU, and the load, exact and current.
//!
//! The programs count from when they are loaded. What a container used before is taken from its cgroup files once, when it
//! is first seen, and added from then on.

use std::sync::Arc;

use rustix::time::ClockId;

use super::cgroup::CgroupFiles;
use super::host::{Host, clock_ns};
use super::{Cpu, Load, Machine, Source};
use crate::bpf::{
    Accounting, CpuSample, Earlier, IdleQuestion, IdleState, LoadSample, Process, Slot,
};
use crate::error::Result;
use crate::model::container::{Before, Container, LoadHistory, Tasks};
use crate::model::load::{LoadAverage, PERIOD_NS};
use crate::model::lock::lock;
use crate::model::monotonic::{CpuTimes, IdleHistory};

/// The groups `cpu`, `idle` and `load`, from maps.
#[derive(Debug)]
pub struct BpfMaps {
    accounting: Arc<Accounting>,
    files: Arc<CgroupFiles>,
    /// When the programs began to count, nanoseconds of `CLOCK_BOOTTIME`.
    loaded_ns: u64,
    host: Arc<Host>,
}

impl BpfMaps {
    /// Reads from `accounting`, which counts since `loaded_ns` (nanoseconds of `CLOCK_BOOTTIME`).
    #[must_use]
    pub const fn new(
        accounting: Arc<Accounting>,
        files: Arc<CgroupFiles>,
        host: Arc<Host>,
        loaded_ns: u64,
    ) -> Self {
        Self { accounting, files, loaded_ns, host }
    }

    /// The container's slot. `Ok(None)`: it has no cgroup of its own, or no task has run in it yet.
    fn slot(&self, container: &Container) -> Result<Option<Slot>> {
        let mut counters = lock(&container.at_hand.counters);
        // Counters that were given back are no longer those of the cgroup, and tell it by its id.
        let kept = counters.map(Slot::from_parts).filter(|slot| self.accounting.is_current(*slot));
        if kept.is_some() {
            return Ok(kept);
        }
        drop(counters);
        let id = self.files.cpu_cgroup_id(container)?;
        let slot = id.and_then(|id| self.accounting.slot_of(id));
        counters = lock(&container.at_hand.counters);
        *counters = slot.map(Slot::parts);
        Ok(slot)
    }

    /// What the container used before the programs counted. `counted` says what they have counted by now: asked of an older
    /// container only, because it interrupts the CPUs that run something.
    fn before<'a>(
        &self,
        container: &'a Container,
        slot: Slot,
        counted: impl FnOnce() -> Vec<CpuTimes>,
    ) -> Result<&'a Before> {
        if let Some(before) = container.history.before.get() {
            return Ok(before);
        }
        let before = if container.started_ns >= self.loaded_ns {
            Before::default()
        } else {
            let before = self.read_before(container, &counted())?;
            self.tell_kernel(slot, &before);
            before
        };
        Ok(container.history.before.get_or_init(|| before))
    }

    /// As the kernel has it; else the newest there is, by a look at the threads.
    fn last_pid(&self, container: &Container) -> u32 {
        let init = self.init(container);
        let newest = init.and_then(|init| self.accounting.newest_pid(init.pid_namespace));
        newest.unwrap_or_else(|| self.files.last_pid(container))
    }

    fn init(&self, container: &Container) -> Option<Process> {
        *container.at_hand.process.get_or_init(|| self.accounting.process(container.init))
    }

    /// Files below FUSE need it too.
    fn tell_kernel(&self, slot: Slot, before: &Before) {
        let used_ns = sum(&before.per_cpu).used_ns();
        let earlier = Earlier { average: before.average.to_fixed(), used_ns };
        if let Err(error) = self.accounting.was_earlier(slot, earlier) {
            tracing::warn!("{error}: the container's files will be EAGAIN below FUSE");
        }
    }

    /// Whether idle time is the programs'.
    #[must_use]
    pub fn keeps_idle(&self) -> bool {
        self.accounting.keeps_idle()
    }

    /// Finds out what an older container was before, and tells the kernel's side.
    ///
    /// # Errors
    /// Its cgroup files cannot be read.
    pub fn look_back(&self, container: &Container) -> Result<()> {
        if container.started_ns >= self.loaded_ns {
            return Ok(());
        }
        let Some(slot) = self.slot(container)? else { return Ok(()) };
        let before = self.before(container, slot, || self.counted(slot).unwrap_or_default())?;
        self.tell_kernel(slot, before);
        Ok(())
    }

    fn read_before(&self, container: &Container, counted: &[CpuTimes]) -> Result<Before> {
        let all = self.files.cpu(container)?.unwrap_or_default();
        let rest = |all: CpuTimes, counted: CpuTimes| all.zip(counted, u64::saturating_sub);
        let per_cpu: Vec<_> = match all.per_cpu {
            Some(per_cpu) => {
                let counted = counted.iter().copied().chain(std::iter::repeat(CpuTimes::default()));
                per_cpu.into_iter().zip(counted).map(|(all, counted)| rest(all, counted)).collect()
            }
            // v2 knows the total alone: it is spread over the CPUs the container may run on.
            None => {
                let cpuset = self.files.cpuset(container)?;
                let allowed = |cpu: usize| {
                    let cpu = u32::try_from(cpu).unwrap_or(u32::MAX);
                    cpuset.as_ref().is_none_or(|cpuset| cpuset.contains(cpu))
                };
                let cpus = (0..counted.len()).filter(|&cpu| allowed(cpu)).count().max(1) as u64;
                let rest = rest(all.total, sum(counted));
                let share = rest.zip(CpuTimes::default(), |ns, _| ns / cpus);
                let own = |cpu| if allowed(cpu) { share } else { CpuTimes::default() };
                (0..counted.len()).map(own).collect()
            }
        };
        // A daemon before us may have shown it, from other programs: it goes on from there.
        let shown = container.history.load().clone();
        let (average, switches) = match shown {
            Some(shown) => {
                let passed_ns = clock_ns(ClockId::Monotonic).saturating_sub(shown.sampled_ns);
                let since_ns = self.host.boottime_ns().saturating_sub(self.loaded_ns);
                let periods = passed_ns.saturating_sub(since_ns) / PERIOD_NS;
                let active = shown.tasks.active();
                (shown.average.advance(active, periods), shown.switches)
            }
            None => {
                let life_ns = self.loaded_ns.saturating_sub(container.started_ns);
                (self.files.mean_load(sum(&per_cpu).used_ns(), life_ns), 0)
            }
        };
        Ok(Before { per_cpu, average, switches })
    }

    fn counted(&self, slot: Slot) -> Option<Vec<CpuTimes>> {
        let samples = self.accounting.cpus_under(slot)?;
        Some(samples.into_iter().map(times).collect())
    }
}

impl Source for BpfMaps {
    fn cpu(&self, container: &Container) -> Result<Option<Cpu>> {
        let Some(slot) = self.slot(container)? else { return Ok(None) };
        let Some(mut per_cpu) = self.counted(slot) else { return Ok(None) };
        let before = self.before(container, slot, || per_cpu.clone())?;
        for (counted, before) in per_cpu.iter_mut().zip(&before.per_cpu) {
            *counted = counted.zip(*before, u64::saturating_add);
        }
        Ok(Some(Cpu { total: sum(&per_cpu), per_cpu: Some(per_cpu) }))
    }

    fn idle(&self, container: &Container, up_ns: u64, cpus: u32) -> Result<Option<IdleHistory>> {
        if !self.keeps_idle() {
            return Ok(None);
        }
        let Some(slot) = self.slot(container)? else { return Ok(None) };
        let Some(init) = self.init(container) else { return Ok(None) };
        let before = self.before(container, slot, || self.counted(slot).unwrap_or_default())?;
        let earlier_ns = sum(&before.per_cpu).used_ns();
        let before = idle_state(*lock(&container.history.idle));
        let question = IdleQuestion { init, cpus, earlier_ns, up_us: up_ns / 1_000, before };
        Ok(self
            .accounting
            .idle(slot, &question)
            .map(|idle| IdleHistory { up_ns, ..idle_history(idle) }))
    }

    fn load(&self, container: &Container) -> Result<Option<Load>> {
        let Some(slot) = self.slot(container)? else { return Ok(None) };
        let Some(sample) = self.accounting.load_under(slot) else { return Ok(None) };
        let before = self.before(container, slot, || self.counted(slot).unwrap_or_default())?;
        let since_ns = self.host.boottime_ns().saturating_sub(self.loaded_ns);
        let carried = before.average.advance(0, since_ns / PERIOD_NS);
        let is_younger = container.started_ns >= self.loaded_ns;
        let load = Load {
            average: carried.plus(average(&sample)),
            tasks: Tasks { last_pid: self.last_pid(container), ..tasks(&sample) },
            forks: is_younger.then_some(sample.forks),
            switches: Some(before.switches.saturating_add(sample.switches)),
        };
        *container.history.load() = Some(LoadHistory {
            average: load.average,
            sampled_ns: clock_ns(ClockId::Monotonic),
            tasks: load.tasks,
            switches: load.switches.unwrap_or(0),
            used_ns: None,
        });
        Ok(Some(load))
    }
}

/// What was shown, as the programs know it.
fn idle_state(shown: IdleHistory) -> IdleState {
    let us = |ns: u64| ns / 1_000;
    IdleState {
        left_us: us(shown.idle_ns).cast_signed() - us(shown.debt_ns).cast_signed(),
        shown_us: us(shown.idle_ns),
        up_us: us(shown.up_ns),
        used_us: us(shown.used_ns),
    }
}

/// And back.
fn idle_history(state: IdleState) -> IdleHistory {
    let ns = |us: u64| us.saturating_mul(1_000);
    let debt_us = state.shown_us.cast_signed().saturating_sub(state.left_us).max(0);
    IdleHistory {
        up_ns: ns(state.up_us),
        used_ns: ns(state.used_us),
        idle_ns: ns(state.shown_us),
        debt_ns: ns(debt_us.cast_unsigned()),
    }
}

/// The precise time, split as the ticks fell.
fn times(sample: CpuSample) -> CpuTimes {
    let CpuSample { run_ns, user_ns, nice_ns, system_ns, iowait_ns, run_delay_ns } = sample;
    let ticks = u128::from(user_ns) + u128::from(nice_ns) + u128::from(system_ns);
    let part = |part: u64| {
        let part = (u128::from(run_ns) * u128::from(part)).checked_div(ticks).unwrap_or(0);
        u64::try_from(part).unwrap_or(run_ns)
    };
    let (nice_ns, system_ns) = (part(nice_ns), part(system_ns));
    CpuTimes {
        user_ns: run_ns.saturating_sub(nice_ns).saturating_sub(system_ns),
        nice_ns,
        system_ns,
        idle_ns: 0,
        iowait_ns,
        steal_ns: run_delay_ns,
    }
}

fn sum(times: &[CpuTimes]) -> CpuTimes {
    times.iter().fold(CpuTimes::default(), |sum, times| sum.zip(*times, u64::saturating_add))
}

/// A sum over CPUs may be caught between a wake-up on one and a block on another: never below zero.
fn average(sample: &LoadSample) -> LoadAverage {
    LoadAverage::from_fixed(sample.average.map(|average| u64::try_from(average).unwrap_or(0)))
}

fn tasks(sample: &LoadSample) -> Tasks {
    let count = |count: i64| u32::try_from(count.max(0)).unwrap_or(u32::MAX);
    Tasks {
        running: count(sample.nr_running),
        blocked: count(sample.nr_uninterruptible),
        waiting_for_io: count(sample.nr_iowait),
        threads: count(sample.nr_tasks),
        last_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precise_time_is_split_as_the_ticks_fell() {
        let sample = CpuSample {
            run_ns: 1_000,
            user_ns: 2_000,
            nice_ns: 1_000,
            system_ns: 1_000,
            iowait_ns: 7,
            run_delay_ns: 9,
        };
        let split = times(sample);
        assert_eq!((split.user_ns, split.nice_ns, split.system_ns), (500, 250, 250));
        assert_eq!((split.iowait_ns, split.steal_ns), (7, 9));
        let untouched = times(CpuSample { run_ns: 5, ..CpuSample::default() });
        assert_eq!(untouched.user_ns, 5, "no tick has hit yet");
    }

    #[test]
    fn idle_time_is_the_same_on_both_sides() {
        for (idle_ns, debt_ns) in [(5_000_000, 0), (5_000_000, 7_000_000), (0, 0)] {
            let shown = IdleHistory { up_ns: 9_000_000, used_ns: 4_000, idle_ns, debt_ns };
            assert_eq!(idle_history(idle_state(shown)), shown);
        }
    }

    #[test]
    fn counts_caught_in_between_are_not_negative() {
        let sample =
            LoadSample { nr_running: -1, average: [-5, 1 << 32, 0], ..LoadSample::default() };
        assert_eq!(tasks(&sample).running, 0);
        assert_eq!(average(&sample).hundredths()[1], (1, 0));
        assert_eq!(average(&sample).hundredths()[0], (0, 0));
    }
}
