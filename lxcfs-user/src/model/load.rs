//! The kernel's load average (kernel/sched/loadavg.c) for one container, in fixed point.
//!
//! Every period of 5 s and one tick, with `n` tasks running or uninterruptible,
//!
//! ```text
//! avg' = avg * e + n * (1 - e),   e = exp(-5 s / 1 min), exp(-5 s / 5 min), exp(-5 s / 15 min)
//! ```
//!
//! The kernel keeps 11 fraction bits and rounds up while the load rises. That is exact enough for one number per
//! machine; a container's small load would be mostly rounding. We keep 32 bits and print with the kernel's rounding.

use lxcfs_abi::decay;

/// Fraction bits of [`LoadAverage`].
const BITS: u32 = decay::FRACTION_BITS;

/// exp(-5/60), exp(-5/300), exp(-5/900) with 11 fraction bits, as include/linux/sched/loadavg.h has them: a container
/// alone on its host must print what the host prints, so these are the kernel's constants and not better ones.
const DECAY: [u64; 3] = [1884 << (BITS - 11), 2014 << (BITS - 11), 2037 << (BITS - 11)];

/// Beyond this many periods (11 hours) even the slowest average is where it is heading.
const FORGOTTEN: u64 = 8_192;

/// The period of the kernel's samples, nanoseconds: 5 s and one tick.
///
/// The tick (`CONFIG_HZ`) is not told to user space. It is 4 ms on the kernels distributions build; at the extremes of
/// 1 and 10 ms the period is off by 0.12 %.
pub const PERIOD_NS: u64 = decay::PERIOD_NS;

/// The averages over 1, 5 and 15 minutes, with 32 fraction bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LoadAverage([u64; 3]);

impl LoadAverage {
    /// The averages after `periods` samples that all saw `active` tasks.
    #[must_use]
    pub fn advance(self, active: u64, periods: u64) -> Self {
        let mut next = self.0;
        for (average, decay) in next.iter_mut().zip(DECAY) {
            *average = approach(*average, active << BITS, decay, periods);
        }
        Self(next)
    }

    /// The averages of something that has had `mean` active tasks (32 fraction bits) since it began `periods` ago.
    ///
    /// Used when a container was there before we were: its mean use of CPUs since its start is the one thing the
    /// kernel remembers for us.
    #[must_use]
    pub fn since_start(mean: u64, periods: u64) -> Self {
        Self(DECAY.map(|decay| approach(0, mean, decay, periods)))
    }

    /// Averages that are known already, with 32 fraction bits.
    #[must_use]
    pub const fn from_fixed(averages: [u64; 3]) -> Self {
        Self(averages)
    }

    /// The averages of the tasks of both: what is averaged may be split at will, because averaging is linear.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let mut sum = self.0;
        sum.iter_mut().zip(other.0).for_each(|(sum, more)| *sum = sum.saturating_add(more));
        Self(sum)
    }

    /// Whole and hundredths of each average, rounded as `/proc/loadavg` rounds.
    #[must_use]
    pub fn hundredths(self) -> [(u64, u64); 3] {
        self.0.map(decay::hundredths)
    }

    /// The averages with 32 fraction bits.
    #[must_use]
    pub const fn to_fixed(self) -> [u64; 3] {
        self.0
    }
}

/// `target + (from - target) * decay^periods`, with 32 fraction bits.
fn approach(from: u64, target: u64, decay: u64, periods: u64) -> u64 {
    if periods >= FORGOTTEN {
        return target;
    }
    let factor = u128::from(power(decay, periods));
    if from >= target {
        target + scaled(u128::from(from - target) * factor)
    } else {
        target - scaled(u128::from(target - from) * factor)
    }
}

/// A product with 64 fraction bits, back to 32. A fraction of a number of 64 bits fits in them.
fn scaled(product: u128) -> u64 {
    u64::try_from(product >> BITS).unwrap_or(u64::MAX)
}

/// `base^exponent` with 32 fraction bits, for `base` below 1: by squaring, 13 steps at most.
fn power(base: u64, exponent: u64) -> u64 {
    let (mut result, mut square, mut left) = (1_u128 << BITS, u128::from(base), exponent);
    while left > 0 {
        if left & 1 == 1 {
            result = (result * square) >> BITS;
        }
        square = (square * square) >> BITS;
        left >>= 1;
    }
    u64::try_from(result).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::float_arithmetic, reason = "floats are the independent check of the fixed point")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// calc_load() of the kernel, on 11 bits.
    fn kernel(load: u64, decay: u64, active: u64) -> u64 {
        let active = active << 11;
        let round_up = if active >= load { 2047 } else { 0 };
        (load * decay + active * (2048 - decay) + round_up) >> 11
    }

    #[test]
    fn three_busy_tasks_rise_as_the_kernel_rises() {
        let mut ours = LoadAverage::default();
        let mut theirs = [0; 3];
        for _ in 0..120 {
            ours = ours.advance(3, 1);
            theirs =
                [(0, 1884), (1, 2014), (2, 2037)].map(|(i, decay)| kernel(theirs[i], decay, 3));
            for ((whole, hundredths), theirs) in ours.hundredths().into_iter().zip(theirs) {
                let theirs = ((theirs + 10) * 100) >> 11;
                assert!(
                    (whole * 100 + hundredths).abs_diff(theirs) <= 4,
                    "{whole}.{hundredths} {theirs}"
                );
            }
        }
        assert_eq!(ours.hundredths()[0], (3, 0));
    }

    #[test]
    fn nothing_running_for_half_a_day_is_zero() {
        let loaded = LoadAverage::default().advance(40, 1_000);
        assert_eq!(loaded.advance(0, FORGOTTEN), LoadAverage::default());
    }

    #[test]
    fn w21_one_task_since_an_hour_is_one_and_since_now_is_zero() {
        assert_eq!(LoadAverage::since_start(1 << 32, 0), LoadAverage::default());
        assert_eq!(LoadAverage::since_start(1 << 32, 720).hundredths()[0], (1, 0));
    }

    proptest! {
        #[test]
        fn n_periods_at_once_are_n_periods_one_by_one(
            before in 0_u64..1_000, active in 0_u64..1_000, periods in 0_u64..600,
        ) {
            let start = LoadAverage::default().advance(before, 100);
            let at_once = start.advance(active, periods);
            let one_by_one = (0..periods).fold(start, |average, _| average.advance(active, 1));
            for (a, b) in at_once.0.into_iter().zip(one_by_one.0) {
                prop_assert!(a.abs_diff(b) <= 1 << (BITS - 11), "{a} {b}");
            }
        }

        #[test]
        fn an_average_stays_between_where_it_was_and_where_it_goes(
            before in 0_u64..100_000, active in 0_u64..100_000, periods in 0_u64..20_000,
        ) {
            let start = LoadAverage::default().advance(before, FORGOTTEN);
            for average in start.advance(active, periods).0 {
                prop_assert!(average >= before.min(active) << BITS);
                prop_assert!(average <= before.max(active) << BITS);
            }
        }
    }
}
