//! The kernel's jiffies, computed from CLOCK_MONOTONIC.

use rustix::time::{ClockId, clock_gettime};

/// One moment in both clocks, and how they relate. Both stand still while the machine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// A moment at which `jiffies` had just begun.
    pub monotonic_ns: u64,
    pub jiffies: u64,
    pub jiffy_ns: u64,
    /// Jiffies between two samples of the load.
    pub tick_jiffies: u64,
    /// One jiffy at which the load is sampled.
    pub tick_phase: u64,
}

impl Clock {
    /// As words, for the journal.
    #[must_use]
    pub const fn to_words(self) -> [u64; 5] {
        [self.monotonic_ns, self.jiffies, self.jiffy_ns, self.tick_jiffies, self.tick_phase]
    }

    /// From words of [`Self::to_words`].
    #[must_use]
    pub const fn from_words(words: [u64; 5]) -> Self {
        let [monotonic_ns, jiffies, jiffy_ns, tick_jiffies, tick_phase] = words;
        Self { monotonic_ns, jiffies, jiffy_ns, tick_jiffies, tick_phase }
    }

    /// Jiffies at `monotonic_ns`.
    #[must_use]
    pub const fn jiffies_at(&self, monotonic_ns: u64) -> u64 {
        let passed = monotonic_ns.saturating_sub(self.monotonic_ns);
        match passed.checked_div(self.jiffy_ns) {
            Some(jiffies) => self.jiffies + jiffies,
            None => self.jiffies,
        }
    }

    /// CLOCK_MONOTONIC of the beginning of `jiffies` (not before this clock was set).
    #[must_use]
    pub const fn beginning_of(&self, jiffies: u64) -> u64 {
        self.monotonic_ns + jiffies.saturating_sub(self.jiffies) * self.jiffy_ns
    }

    /// The next jiffy at which the load is sampled.
    #[must_use]
    pub const fn next_tick(&self, jiffies: u64) -> u64 {
        lxcfs_abi::decay::first_tick(jiffies, self.tick_phase, self.tick_jiffies)
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jiffies_follow_the_clock() {
        let clock = Clock {
            monotonic_ns: 1_000,
            jiffies: 50,
            jiffy_ns: 4_000_000,
            tick_jiffies: 1_251,
            tick_phase: 0,
        };
        assert_eq!(clock.jiffies_at(0), 50);
        assert_eq!(clock.jiffies_at(4_000_999), 50);
        assert_eq!(clock.jiffies_at(4_001_000), 51);
        assert_eq!(clock.beginning_of(51), 4_001_000);
        assert_eq!(clock.next_tick(51), 1_251);
        assert_eq!(clock.next_tick(1_251), 2_502);
        assert_eq!(Clock::from_words(clock.to_words()), clock);
    }
}
