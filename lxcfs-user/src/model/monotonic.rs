//! CPU times never run backwards, whatever the readers' order and the container's cpuset do.
//!
//! Each value shown is derived from two numbers the kernel updates at different instants (wall time, time used), so a
//! later read can come out a tick lower. Tools subtract two reads, unsigned: htop and others then show 1e18 percent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// CPU time by kind, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
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

/// What was last shown for each CPU, by the number shown, and what it was made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuHistory {
    cpus: BTreeMap<u32, Last>,
    /// What each CPU was dealt of times that are not known by CPU.
    dealt: BTreeMap<u32, CpuTimes>,
    /// The sum of what was dealt.
    dealt_total: CpuTimes,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Last {
    shown: CpuTimes,
    up_ns: u64,
    /// Of what was read, not of what was shown.
    iowait_ns: u64,
    steal_ns: u64,
    /// Time shown beyond the time that had passed, to be taken from idle time to come.
    debt_ns: u64,
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

    /// The times of the CPUs that were shown before and are not among `cpus`: what was used on them, by `own` where that
    /// is known, and no more idle time.
    pub fn gone(&mut self, cpus: &[u32], own: impl Fn(u32) -> Option<CpuTimes>) -> Vec<CpuTimes> {
        let gone = self.cpus.iter_mut().filter(|(cpu, _)| !cpus.contains(cpu));
        gone.map(|(&cpu, last)| {
            let shown = last.shown;
            let used = own(cpu).map_or(shown, |times| use_since(shown, times));
            let CpuTimes { user_ns, nice_ns, system_ns, .. } = used;
            last.shown = CpuTimes { user_ns, nice_ns, system_ns, ..shown };
            last.shown
        })
        .collect()
    }

    /// The times to show for `cpu` after `up_ns` of wall time: `times`, but none less than was shown before, and together
    /// no more than the wall time unless more was used. The idle time of `times` is not looked at: it is what is left.
    ///
    /// User and system time are one precise number, split by what ticks happened to hit. The split may shift from one
    /// read to the next; as in the kernel (cputime_adjust), what one side may not give back the other side bears, so
    /// that they still add up to the precise number.
    pub fn advance(&mut self, cpu: u32, up_ns: u64, times: CpuTimes) -> CpuTimes {
        let entry = self.cpus.entry(cpu).or_default();
        let (last, shown) = (*entry, entry.shown);
        let used = use_since(shown, times);
        // The time since the last read that was not used: tasks that waited come first (each may have waited all of it,
        // so together they may say more than there was), then waiting for I/O, and the rest was idle.
        let passed_ns = up_ns.saturating_sub(last.up_ns);
        let spent_ns = used.used_ns().saturating_sub(shown.used_ns()).saturating_add(last.debt_ns);
        let mut left_ns = passed_ns.saturating_sub(spent_ns);
        let mut take = |now: u64, then: u64| {
            let taken = now.saturating_sub(then).min(left_ns);
            left_ns -= taken;
            taken
        };
        let steal_ns = shown.steal_ns.saturating_add(take(times.steal_ns, last.steal_ns));
        let iowait_ns = shown.iowait_ns.saturating_add(take(times.iowait_ns, last.iowait_ns));
        let idle_ns = shown.idle_ns.saturating_add(left_ns);
        *entry = Last {
            shown: CpuTimes { steal_ns, iowait_ns, idle_ns, ..used },
            up_ns: up_ns.max(last.up_ns),
            iowait_ns: times.iowait_ns.max(last.iowait_ns),
            steal_ns: times.steal_ns.max(last.steal_ns),
            debt_ns: spent_ns.saturating_sub(passed_ns),
        };
        entry.shown
    }
}

/// The idle time of all CPUs together, as `/proc/uptime` has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdleHistory {
    /// How long the container had been up, and what it had used, when it was last shown.
    pub up_ns: u64,
    /// See `up_ns`.
    pub used_ns: u64,
    /// What was shown.
    pub idle_ns: u64,
    /// Time used beyond what the CPUs had, to be taken from idle time to come.
    pub debt_ns: u64,
}

impl IdleHistory {
    /// Idle time after `up_ns` of wall time, in which `used_ns` of CPU time was used: what `cpus` CPUs had since the last
    /// time less what was used since. It never falls, however many CPUs there were before.
    pub fn advance(&mut self, up_ns: u64, used_ns: u64, cpus: u32) -> u64 {
        let had_ns = up_ns.saturating_sub(self.up_ns).saturating_mul(u64::from(cpus));
        let spent_ns = used_ns.saturating_sub(self.used_ns).saturating_add(self.debt_ns);
        *self = Self {
            up_ns: up_ns.max(self.up_ns),
            used_ns: used_ns.max(self.used_ns),
            idle_ns: self.idle_ns.saturating_add(had_ns.saturating_sub(spent_ns)),
            debt_ns: spent_ns.saturating_sub(had_ns),
        };
        self.idle_ns
    }
}

/// User, nice and system time to show where `shown` was shown and `times` was read.
fn use_since(shown: CpuTimes, times: CpuTimes) -> CpuTimes {
    let used_ns = times.used_ns().max(shown.used_ns());
    // `used_ns` is at least what was shown of all three, so each upper bound is at least its lower bound.
    let most = used_ns.saturating_sub(shown.user_ns).saturating_sub(shown.nice_ns);
    let system_ns = times.system_ns.min(most).max(shown.system_ns);
    let most = used_ns.saturating_sub(shown.user_ns).saturating_sub(system_ns);
    let nice_ns = times.nice_ns.min(most).max(shown.nice_ns);
    let user_ns = used_ns.saturating_sub(system_ns).saturating_sub(nice_ns).max(shown.user_ns);
    CpuTimes { user_ns, nice_ns, system_ns, ..CpuTimes::default() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn used(user_ns: u64, nice_ns: u64, system_ns: u64) -> CpuTimes {
        CpuTimes { user_ns, nice_ns, system_ns, ..CpuTimes::default() }
    }

    fn all_ns(times: CpuTimes) -> u64 {
        times.used_ns() + times.idle_ns + times.iowait_ns + times.steal_ns
    }

    #[test]
    fn a_split_that_shifts_moves_no_time_back_and_none_out_of_thin_air() {
        let mut history = CpuHistory::default();
        let mut show =
            |up_ns, times| use_since(CpuTimes::default(), history.advance(0, up_ns, times));
        assert_eq!(show(100, used(60, 0, 40)), used(60, 0, 40));
        // Ten more were used, and the ticks now say that fewer of all were system time.
        assert_eq!(show(110, used(80, 0, 30)), used(70, 0, 40));
        assert_eq!(show(120, used(50, 0, 70)), used(70, 0, 50));
    }

    #[test]
    fn three_tasks_that_waited_all_the_time_steal_it_once() {
        let mut history = CpuHistory::default();
        let waited = |steal_ns, iowait_ns| CpuTimes { steal_ns, iowait_ns, ..used(10, 0, 0) };
        let shown = history.advance(0, 100, waited(270, 5));
        assert_eq!((shown.steal_ns, shown.iowait_ns, shown.idle_ns), (90, 0, 0));
        let shown = history.advance(0, 200, waited(290, 10));
        assert_eq!((shown.steal_ns, shown.iowait_ns, shown.idle_ns), (110, 5, 75));
    }

    #[test]
    fn a_cgroup_older_than_its_init_is_not_idle_until_time_has_caught_up() {
        let mut history = CpuHistory::default();
        assert_eq!(history.advance(0, 100, used(1_000, 0, 0)).idle_ns, 0);
        assert_eq!(history.advance(0, 900, used(1_000, 0, 0)).idle_ns, 0);
        assert_eq!(history.advance(0, 1_100, used(1_000, 0, 0)).idle_ns, 100);
    }

    #[test]
    fn only_what_is_new_is_dealt_when_the_number_of_cpus_changes() {
        let mut history = CpuHistory::default();
        assert_eq!(history.deal(used(600, 0, 400), &[0, 1]), [used(300, 0, 200); 2]);
        assert_eq!(history.deal(used(610, 0, 400), &[0]), [used(310, 0, 200)]);
        // The ticks now say that some of what was user time was system time.
        let dealt = history.deal(used(600, 0, 430), &[0, 1, 2]);
        let [gone, share] = [used(300, 0, 206), used(0, 0, 6)];
        assert_eq!(dealt, [used(310, 0, 206), gone, share]);
        // What did not come out even is dealt the next time.
        assert_eq!(history.deal(used(600, 0, 430), &[5]), [used(0, 0, 2)]);
    }

    #[test]
    fn a_cpu_that_is_gone_has_what_it_had() {
        let mut history = CpuHistory::default();
        history.advance(0, 7, used(1, 0, 0));
        let shown = history.advance(7, 7, used(3, 0, 4));
        assert_eq!(history.gone(&[0, 1], |_| None), [shown]);
        let more = history.gone(&[0, 1], |_| Some(used(5, 0, 6)));
        assert_eq!(more, [CpuTimes { idle_ns: shown.idle_ns, ..used(5, 0, 6) }]);
    }

    proptest! {
        #[test]
        fn idle_time_never_falls_and_is_what_was_not_used(
            steps in proptest::collection::vec((0_u64..1000, 0_u64..3000, 1_u32..5), 1..50),
        ) {
            let mut history = IdleHistory::default();
            let (mut up, mut used, mut had, mut last) = (0, 0, 0, 0);
            for (passed, step, cpus) in steps {
                (up, used, had) = (up + passed, used + step, had + passed * u64::from(cpus));
                let idle = history.advance(up, used, cpus);
                prop_assert!(idle >= last && idle >= had.saturating_sub(used));
                prop_assert!(idle <= had);
                last = idle;
            }
        }

        #[test]
        fn what_is_dealt_is_the_precise_number(
            steps in proptest::collection::vec((0_u64..1000, 0_u64..=100, 1_u32..5), 1..50),
        ) {
            let mut history = CpuHistory::default();
            let (mut spent, mut last) = (0, [CpuTimes::default(); 5]);
            for (step, system_percent, count) in steps {
                spent += step;
                let system = spent * system_percent / 100;
                let cpus: Vec<_> = (0..count).collect();
                for (cpu, dealt) in history.deal(used(spent - system, 0, system), &cpus).into_iter().enumerate() {
                    let falls = |now: u64, then: u64| u64::from(now < then);
                    prop_assert_eq!(dealt.zip(last[cpu], falls), CpuTimes::default());
                    last[cpu] = dealt;
                }
                let sum: u64 = last.iter().map(|times| times.used_ns()).sum();
                prop_assert!(sum <= spent && spent - sum < 15, "{} of {}", sum, spent);
            }
        }

        #[test]
        fn ask_311_no_time_ever_falls_and_together_they_are_the_wall_time(
            steps in proptest::collection::vec(
                (0_u64..1000, 0_u64..1000, 0_u64..=100, 0_u64..=100, 0_u64..2000, 0_u64..500), 1..50),
        ) {
            let mut history = CpuHistory::default();
            let mut last = CpuTimes::default();
            let (mut up, mut spent, mut steal, mut iowait) = (0, 0, 0, 0);
            for (passed, step, system_percent, nice_percent, waited, io) in steps {
                (up, spent, steal, iowait) = (up + passed, spent + step, steal + waited, iowait + io);
                let system = spent * system_percent / 100;
                let nice = (spent - system) * nice_percent / 100;
                let read = used(spent - system - nice, nice, system);
                let shown = history.advance(3, up, CpuTimes { steal_ns: steal, iowait_ns: iowait, ..read });
                prop_assert_eq!(shown.used_ns(), spent);
                prop_assert!(all_ns(shown) >= up && all_ns(shown) <= up.max(spent + all_ns(last)));
                let falls = |now: u64, then: u64| u64::from(now < then);
                prop_assert_eq!(shown.zip(last, falls), CpuTimes::default());
                last = shown;
            }
        }
    }
}
