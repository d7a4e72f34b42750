//! Reading the records: counts, averages and times of one slot.

use std::mem::offset_of;
use std::sync::atomic::{Ordering, fence};

use lxcfs_abi::word::span;
use lxcfs_abi::{Cpu, Record, decay};

use super::clock::Clock;
use super::maps::Maps;

/// Load of a cgroup or of a subtree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadSample {
    /// 1, 5 and 15 minutes, [`decay::FRACTION_BITS`] fraction bits; see [`Self::avenrun`].
    pub average: [i64; 3],
    pub nr_running: i64,
    pub nr_uninterruptible: i64,
    pub nr_iowait: i64,
    /// Live threads.
    pub nr_tasks: i64,
    /// Since the programs were loaded, as all counters.
    pub forks: u64,
    pub switches: u64,
}

impl LoadSample {
    /// The averages in the kernel's own fixed point (`FSHIFT` = 11), rounded to nearest.
    #[must_use]
    pub fn avenrun(&self) -> [u64; 3] {
        self.average.map(decay::to_kernel)
    }

    fn add(&mut self, other: &Self) {
        for (sum, more) in self.average.iter_mut().zip(other.average) {
            *sum += more;
        }
        self.nr_running += other.nr_running;
        self.nr_uninterruptible += other.nr_uninterruptible;
        self.nr_iowait += other.nr_iowait;
        self.nr_tasks += other.nr_tasks;
        self.forks += other.forks;
        self.switches += other.switches;
    }
}

/// CPU time of a cgroup or of a subtree on one CPU, since the programs were loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuSample {
    /// Time on the CPU, to the nanosecond.
    pub run_ns: u64,
    /// By the kernel's tick, as `cpuacct.usage_all`: the three need not add up to `run_ns`.
    pub user_ns: u64,
    pub nice_ns: u64,
    pub system_ns: u64,
    /// The CPU was idle while a task that blocked on it waited for I/O.
    pub iowait_ns: u64,
    /// Runnable but not running, bandwidth throttling included.
    pub run_delay_ns: u64,
}

impl CpuSample {
    const fn add(&mut self, other: &Self) {
        self.run_ns += other.run_ns;
        self.user_ns += other.user_ns;
        self.nice_ns += other.nice_ns;
        self.system_ns += other.system_ns;
        self.iowait_ns += other.iowait_ns;
        self.run_delay_ns += other.run_delay_ns;
    }
}

/// Looks at what a writer changes meanwhile. A writer is a program with interrupts off, so a few suffice; but its CPU may be a virtual
/// one that stands still for a while, and is let go on. A reader that starves all the same takes what it has.
const ATTEMPTS: usize = 20_000;
const SPINS: usize = 100;

/// Looks until it was not disturbed.
fn until_whole(mut look: impl FnMut() -> bool) {
    for attempt in 0..ATTEMPTS {
        if look() {
            return;
        }
        if attempt < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
}

/// A member of a record, loaded once.
macro_rules! word {
    ($maps:expr, $index:expr, $field:ident) => {
        $maps.records.word($index, offset_of!(Record, $field)).load(Ordering::Relaxed)
    };
}

impl Maps {
    /// Adds one slot's load to `sum`, its averages brought up to `jiffies`.
    pub(crate) fn add_load(&self, slot: u32, jiffies: u64, clock: &Clock, sum: &mut LoadSample) {
        let shared = self.record_index(slot, self.cpu_count());
        let mut own = LoadSample::default();
        // A transfer between two records of the slot raises the shared record's sequence.
        until_whole(|| {
            let before = self.sequence(shared);
            own = LoadSample::default();
            for nth in 0..self.cpu_count() + lxcfs_abi::EXTRA_RECORDS {
                self.add_record(self.record_index(slot, nth), jiffies, clock, &mut own);
            }
            self.unchanged(shared, before)
        });
        sum.add(&own);
    }

    fn add_record(&self, index: u32, jiffies: u64, clock: &Clock, sum: &mut LoadSample) {
        let mut record = Record::default();
        until_whole(|| {
            let before = self.sequence(index);
            record = self.load_record(index);
            self.unchanged(index, before)
        });
        catch_up(&mut record, jiffies, clock);
        sum.add(&LoadSample {
            average: record.average,
            nr_running: record.nr_running.into(),
            nr_uninterruptible: record.nr_uninterruptible.into(),
            nr_iowait: record.nr_iowait.into(),
            nr_tasks: record.nr_tasks.into(),
            forks: record.forks,
            switches: record.switches,
        });
    }

    /// The members of a record that make its load.
    pub(crate) fn load_record(&self, index: u32) -> Record {
        let count = |offset| self.records.half(index, offset).load(Ordering::Relaxed).cast_signed();
        let average = |nth: usize| {
            let offset = offset_of!(Record, average) + nth * size_of::<i64>();
            self.records.word(index, offset).load(Ordering::Relaxed).cast_signed()
        };
        Record {
            next_tick_jiffies: word!(self, index, next_tick_jiffies),
            average: [average(0), average(1), average(2)],
            nr_running: count(offset_of!(Record, nr_running)),
            nr_uninterruptible: count(offset_of!(Record, nr_uninterruptible)),
            nr_tasks: count(offset_of!(Record, nr_tasks)),
            nr_iowait: count(offset_of!(Record, nr_iowait)),
            forks: word!(self, index, forks),
            switches: word!(self, index, switches),
            ..Record::default()
        }
    }

    fn sequence(&self, index: u32) -> u32 {
        self.records.half(index, offset_of!(Record, sequence)).load(Ordering::Acquire)
    }

    /// Whether the record read since `before` belongs together.
    fn unchanged(&self, index: u32, before: u32) -> bool {
        fence(Ordering::Acquire);
        before.is_multiple_of(2) && self.sequence(index) == before
    }

    /// Adds one slot's times on `cpu` to `sum`. `now` is CLOCK_MONOTONIC.
    pub(crate) fn add_cpu(&self, slot: u32, cpu: u32, now: u64, sum: &mut CpuSample) {
        let index = self.record_index(slot, cpu);
        let idle = span::total(self.idle_word(cpu), now);
        sum.add(&CpuSample {
            run_ns: word!(self, index, run_ns),
            user_ns: word!(self, index, user_ns),
            nice_ns: word!(self, index, nice_ns),
            system_ns: word!(self, index, system_ns),
            iowait_ns: span::total(word!(self, index, iowait), idle)
                + word!(self, index, iowait_folded_ns),
            run_delay_ns: word!(self, index, run_delay_ns),
        });
    }

    /// Idle time of a CPU, a [`span`] over CLOCK_MONOTONIC.
    pub(crate) fn idle_word(&self, cpu: u32) -> u64 {
        self.cpus.word(cpu, offset_of!(Cpu, idle)).load(Ordering::Relaxed)
    }
}

/// Brings the averages of a copy up to `jiffies`, as the programs do.
pub(crate) fn catch_up(record: &mut Record, jiffies: u64, clock: &Clock) {
    if record.next_tick_jiffies == 0 {
        record.next_tick_jiffies = clock.next_tick(jiffies);
        return;
    }
    let ticks = decay::ticks_due(jiffies, record.next_tick_jiffies, clock.tick_jiffies);
    if ticks == 0 {
        return;
    }
    let active = i64::from(record.nr_running) + i64::from(record.nr_uninterruptible);
    for (average, e) in record.average.iter_mut().zip(decay::EXPONENTS) {
        *average = decay::after(*average, active, e, ticks);
    }
    record.next_tick_jiffies += ticks * clock.tick_jiffies;
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock = Clock {
        monotonic_ns: 0,
        jiffies: 0,
        jiffy_ns: 4_000_000,
        tick_jiffies: 1_251,
        tick_phase: 100,
    };

    #[test]
    fn a_record_never_used_has_no_load() {
        let mut record = Record::default();
        catch_up(&mut record, 5_000, &CLOCK);
        assert_eq!((record.average, record.next_tick_jiffies), ([0; 3], 100 + 4 * 1_251));
    }

    #[test]
    fn averages_move_at_ticks_only() {
        let mut record = Record { next_tick_jiffies: 100, nr_running: 3, ..Record::default() };
        catch_up(&mut record, 99, &CLOCK);
        assert_eq!(record.average, [0; 3]);
        catch_up(&mut record, 100, &CLOCK);
        let first = LoadSample { average: record.average, ..LoadSample::default() };
        // 3 * (2048 - 1884), 3 * (2048 - 2014), 3 * (2048 - 2037).
        assert_eq!(first.avenrun(), [492, 102, 33]);
        catch_up(&mut record, 1_350, &CLOCK);
        assert_eq!(record.average, first.average);
    }
}
