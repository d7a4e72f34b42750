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
}

impl CpuHistory {
    /// The times to show for `cpu` now: `times`, or what was shown before where that is more.
    pub fn advance(&mut self, cpu: u32, times: CpuTimes) -> CpuTimes {
        let shown = self.shown.entry(cpu).or_default();
        *shown = shown.zip(times, u64::max);
        *shown
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_kind_of_time_ever_falls(reads in proptest::collection::vec((0_u64..1000, 0_u64..1000), 1..50)) {
            let mut history = CpuHistory::default();
            let mut last = CpuTimes::default();
            for (user_ns, idle_ns) in reads {
                let times = CpuTimes { user_ns, idle_ns, ..CpuTimes::default() };
                let shown = history.advance(3, times);
                prop_assert!(shown.user_ns >= last.user_ns && shown.idle_ns >= last.idle_ns);
                prop_assert!(shown.user_ns >= user_ns && shown.idle_ns >= idle_ns);
                last = shown;
            }
        }
    }
}
