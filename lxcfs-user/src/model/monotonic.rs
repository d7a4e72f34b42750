//! CPU times never run backwards, whatever the readers' order and the container's cpuset do.
//!
//! Each value shown is derived from two numbers the kernel updates at different instants (wall time, time used), so a
//! later read can come out a tick lower. Tools subtract two reads, unsigned: htop and others then show 1e18 percent.

use std::collections::BTreeMap;

/// CPU time by kind, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// Normal priority in user mode.
    pub user_ns: u64,
    /// Low priority in user mode.
    pub nice_ns: u64,
    /// Kernel mode.
    pub system_ns: u64,
    /// Nothing to run.
    pub idle_ns: u64,
    /// Nothing to run and a task waiting for I/O.
    pub iowait_ns: u64,
    /// Something to run and no CPU given: waiting for one, or throttled.
    pub steal_ns: u64,
}

impl CpuTimes {
    /// All times together with `with`, kind by kind.
    #[must_use]
    pub fn zip(self, with: Self, mut combine: impl FnMut(u64, u64) -> u64) -> Self {
        Self {
            user_ns: combine(self.user_ns, with.user_ns),
            nice_ns: combine(self.nice_ns, with.nice_ns),
            system_ns: combine(self.system_ns, with.system_ns),
            idle_ns: combine(self.idle_ns, with.idle_ns),
            iowait_ns: combine(self.iowait_ns, with.iowait_ns),
            steal_ns: combine(self.steal_ns, with.steal_ns),
        }
    }

    /// What was used between `self` and `later`: together no more than that, whatever the ticks now say of the past.
    fn growth_to(self, later: Self) -> Self {
        let used_ns = later.used_ns().saturating_sub(self.used_ns());
        let system_ns = later.system_ns.saturating_sub(self.system_ns).min(used_ns);
        let nice_ns = later.nice_ns.saturating_sub(self.nice_ns).min(used_ns - system_ns);
        Self {
            user_ns: used_ns - system_ns - nice_ns,
            nice_ns,
            system_ns,
            idle_ns: later.idle_ns.saturating_sub(self.idle_ns),
            iowait_ns: later.iowait_ns.saturating_sub(self.iowait_ns),
            steal_ns: later.steal_ns.saturating_sub(self.steal_ns),
        }
    }

    /// CPU time in use: all but idle, iowait and steal. Nanoseconds.
    #[must_use]
    pub const fn used_ns(self) -> u64 {
        self.user_ns.saturating_add(self.nice_ns).saturating_add(self.system_ns)
    }
}

/// The times last shown for each CPU, by the number shown.
#[derive(Debug, Default)]
pub struct CpuHistory {
    shown: BTreeMap<u32, CpuTimes>,
    /// What each CPU was dealt of times that are not known by CPU.
    dealt: BTreeMap<u32, CpuTimes>,
    /// The sum of what was dealt.
    dealt_total: CpuTimes,
}

impl CpuHistory {
    /// Deals out to `cpus`, evenly, what of `total` was not dealt yet, and returns all that each of them has.
    ///
    /// Not an even share of the whole: with one CPU more or less all past time would be dealt anew, and the times of
    /// the others would leap, or stand still until as much again is used.
    pub fn deal(&mut self, total: CpuTimes, cpus: &[u32]) -> Vec<CpuTimes> {
        let count = u64::try_from(cpus.len().max(1)).unwrap_or(u64::MAX);
        let share = self.dealt_total.growth_to(total).zip(CpuTimes::default(), |ns, _| ns / count);
        let deal = |times: &mut CpuTimes, share| {
            *times = times.zip(share, u64::saturating_add);
            *times
        };
        cpus.iter()
            .map(|&cpu| {
                deal(&mut self.dealt_total, share);
                deal(self.dealt.entry(cpu).or_default(), share)
            })
            .collect()
    }

    /// What was shown last of the CPUs that are not among `cpus`.
    pub fn gone(&self, cpus: &[u32]) -> Vec<CpuTimes> {
        let gone = self.shown.iter().filter(|(cpu, _)| !cpus.contains(cpu));
        gone.map(|(_, times)| *times).collect()
    }

    /// The times to show for `cpu` now: `times`, but none less than was shown before.
    ///
    /// User and system time are one precise number, split by what ticks happened to hit. The split may shift from one
    /// read to the next; as in the kernel (cputime_adjust), what one side may not give back the other side bears, so
    /// that they still add up to the precise number.
    pub fn advance(&mut self, cpu: u32, times: CpuTimes) -> CpuTimes {
        let shown = self.shown.entry(cpu).or_default();
        let last = *shown;
        let used_ns = times.used_ns().max(last.used_ns());
        // `used_ns` is at least what was shown of all three, so each upper bound is at least its lower bound.
        let most = used_ns.saturating_sub(last.user_ns).saturating_sub(last.nice_ns);
        let system_ns = times.system_ns.min(most).max(last.system_ns);
        let most = used_ns.saturating_sub(last.user_ns).saturating_sub(system_ns);
        let nice_ns = times.nice_ns.min(most).max(last.nice_ns);
        let user_ns = used_ns.saturating_sub(system_ns).saturating_sub(nice_ns).max(last.user_ns);
        *shown = CpuTimes { user_ns, nice_ns, system_ns, ..last.zip(times, u64::max) };
        *shown
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn times(user_ns: u64, nice_ns: u64, system_ns: u64, idle_ns: u64) -> CpuTimes {
        CpuTimes { user_ns, nice_ns, system_ns, idle_ns, ..CpuTimes::default() }
    }

    #[test]
    fn a_split_that_shifts_moves_no_time_back_and_none_out_of_thin_air() {
        let mut history = CpuHistory::default();
        assert_eq!(history.advance(0, times(60, 0, 40, 0)), times(60, 0, 40, 0));
        // Ten more were used, and the ticks now say that fewer of all were system time.
        assert_eq!(history.advance(0, times(80, 0, 30, 0)), times(70, 0, 40, 0));
        assert_eq!(history.advance(0, times(50, 0, 70, 0)), times(70, 0, 50, 0));
    }

    #[test]
    fn only_what_is_new_is_dealt_when_the_number_of_cpus_changes() {
        let mut history = CpuHistory::default();
        assert_eq!(history.deal(times(600, 0, 400, 0), &[0, 1]), [times(300, 0, 200, 0); 2]);
        assert_eq!(history.deal(times(610, 0, 400, 0), &[0]), [times(310, 0, 200, 0)]);
        // The ticks now say that some of what was user time was system time.
        let dealt = history.deal(times(600, 0, 430, 0), &[0, 1, 2]);
        let [gone, share] = [times(300, 0, 206, 0), times(0, 0, 6, 0)];
        assert_eq!(dealt, [times(310, 0, 206, 0), gone, share]);
        // What did not come out even is dealt the next time.
        assert_eq!(history.deal(times(600, 0, 430, 0), &[5]), [times(0, 0, 2, 0)]);
    }

    #[test]
    fn a_cpu_that_is_gone_has_what_it_had() {
        let mut history = CpuHistory::default();
        history.advance(0, times(1, 0, 0, 0));
        history.advance(7, times(3, 0, 4, 0));
        assert_eq!(history.gone(&[0, 1]), [times(3, 0, 4, 0)]);
    }

    proptest! {
        #[test]
        fn what_is_dealt_is_the_precise_number(
            steps in proptest::collection::vec((0_u64..1000, 0_u64..=100, 1_u32..5), 1..50),
        ) {
            let mut history = CpuHistory::default();
            let (mut used, mut last) = (0, [CpuTimes::default(); 5]);
            for (step, system_percent, count) in steps {
                used += step;
                let system = used * system_percent / 100;
                let cpus: Vec<_> = (0..count).collect();
                for (cpu, dealt) in history.deal(times(used - system, 0, system, 0), &cpus).into_iter().enumerate() {
                    let falls = |now: u64, then: u64| u64::from(now < then);
                    prop_assert_eq!(dealt.zip(last[cpu], falls), CpuTimes::default());
                    last[cpu] = dealt;
                }
                let sum: u64 = last.iter().map(|times| times.used_ns()).sum();
                prop_assert!(sum <= used && used - sum < 15, "{} of {}", sum, used);
            }
        }

        #[test]
        fn no_kind_of_time_ever_falls_and_the_sum_is_the_precise_number(
            steps in proptest::collection::vec((0_u64..1000, 0_u64..=100, 0_u64..=100, 0_u64..1000), 1..50),
        ) {
            let mut history = CpuHistory::default();
            let mut last = CpuTimes::default();
            let mut used = 0;
            for (step, system_percent, nice_percent, idle) in steps {
                used += step;
                let system = used * system_percent / 100;
                let nice = (used - system) * nice_percent / 100;
                let shown = history.advance(3, times(used - system - nice, nice, system, idle));
                prop_assert_eq!(shown.used_ns(), used);
                let falls = |now: u64, then: u64| u64::from(now < then);
                prop_assert_eq!(shown.zip(last, falls), CpuTimes::default());
                last = shown;
            }
        }
    }
}
