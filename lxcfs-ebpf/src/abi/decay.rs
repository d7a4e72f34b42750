//! The kernel's load average in closed form, at 32 fraction bits.
//!
//! The kernel samples every `LOAD_FREQ = 5 * HZ + 1` jiffies: `avg = avg * e + active * (1 - e)`
//! with e of 1884, 2014 and 2037 parts in 2048 (`include/linux/sched/loadavg.h`). Between two
//! changes of `active` that is a geometric progression, `avg_n = A + (avg_0 - A) * e^n`, so nothing
//! needs to run at the tick: whoever changes or reads a count catches up first.
//!
//! Eleven bits, as in the kernel, will not do for sums over many groups: each rounds up. At 32 bits
//! the worst error over 500 groups and 2,000 ticks is 1e-5.

pub const FRACTION_BITS: u32 = 32;
/// `FSHIFT` of the kernel: what user space prints from.
pub const KERNEL_BITS: u32 = 11;

/// e for 1, 5 and 15 minutes, 32 fraction bits.
pub const EXPONENTS: [u64; 3] = [1884 << 21, 2014 << 21, 2037 << 21];

/// e^8192 of the slowest average is below 2^-64.
const FORGOTTEN_TICKS: u64 = 1 << POWER_STEPS;
const POWER_STEPS: u32 = 13;

/// The period by which averages of before the programs decay, where nothing counts jiffies: 5 s and a tick of 4 ms.
pub const PERIOD_NS: u64 = 5_004_000_000;

/// Whole and hundredths of an average of [`FRACTION_BITS`], rounded as `/proc/loadavg` rounds: the kernel adds half a hundredth
/// at its 11 bits (`FIXED_1 / 200`) and truncates.
#[must_use]
#[inline(always)]
pub const fn hundredths(average: u64) -> (u64, u64) {
    const SHIFT: u32 = FRACTION_BITS - KERNEL_BITS;
    let rounded = (average.wrapping_add(1 << (SHIFT - 1)) >> SHIFT) + (1 << KERNEL_BITS) / 200;
    (rounded >> KERNEL_BITS, ((rounded & ((1 << KERNEL_BITS) - 1)) * 100) >> KERNEL_BITS)
}

/// e^n, truncated at each multiplication.
#[must_use]
#[inline(always)]
pub const fn power(e: u64, ticks: u64) -> u64 {
    let mut result: u64 = 1 << FRACTION_BITS;
    let mut square = e;
    let mut step = 0;
    while step < POWER_STEPS {
        // Without a branch: the verifier would follow both sides of each of the 13.
        let taken = 0u64.wrapping_sub((ticks >> step) & 1);
        let multiplied = multiply(result, square);
        result = (multiplied & taken) | (result & !taken);
        square = multiply(square, square);
        step += 1;
    }
    result
}

/// a * b for `a` up to and including 1.0.
#[inline(always)]
const fn multiply(a: u64, b: u64) -> u64 {
    (a >> FRACTION_BITS) * b + (((a & 0xffff_ffff) * b) >> FRACTION_BITS)
}

/// An average after `ticks` ticks (at least 1) with `active` tasks at each.
#[must_use]
#[inline(always)]
#[expect(
    clippy::cast_possible_wrap,
    reason = "a factor is at most 1.0 = 2^32 and the low half times it below 2^63"
)]
pub const fn after(average: i64, active: i64, e: u64, ticks: u64) -> i64 {
    let target = active << FRACTION_BITS;
    if ticks >= FORGOTTEN_TICKS {
        return target;
    }
    let factor = power(e, ticks);
    let distance = average.wrapping_sub(target);
    let high = (distance >> FRACTION_BITS).wrapping_mul(factor as i64);
    let low =
        ((distance.cast_unsigned() & 0xffff_ffff).wrapping_mul(factor) >> FRACTION_BITS) as i64;
    target.wrapping_add(high).wrapping_add(low)
}

/// Ticks due at `now` when `next` is the first not yet taken; 0 if none.
#[must_use]
#[inline(always)]
pub const fn ticks_due(now: u64, next: u64, period: u64) -> u64 {
    if now < next {
        return 0;
    }
    match (now - next).checked_div(period) {
        Some(whole) => whole + 1,
        None => 0,
    }
}

/// First tick after `now` of the series that contains `phase`.
#[must_use]
#[inline(always)]
pub const fn first_tick(now: u64, phase: u64, period: u64) -> u64 {
    phase + ticks_due(now, phase, period) * period
}

/// To the kernel's fixed point, rounded to nearest; a sum that is transiently negative is 0.
#[must_use]
#[expect(clippy::cast_sign_loss, reason = "negative sums are cut off first")]
pub const fn to_kernel(average: i64) -> u64 {
    const SHIFT: u32 = FRACTION_BITS - KERNEL_BITS;
    if average <= 0 {
        return 0;
    }
    (average as u64 + (1 << (SHIFT - 1))) >> SHIFT
}

#[cfg(test)]
#[expect(clippy::float_arithmetic, reason = "the exact result to compare with")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `calc_load` without the 11-bit rounding, one tick at a time.
    fn recurrence(mut average: f64, active: f64, e: f64, ticks: u64) -> f64 {
        for _ in 0..ticks {
            average = average * e + active * (1.0 - e);
        }
        average
    }

    /// `calc_load` of the kernel (kernel/sched/loadavg.c), rounding included.
    fn kernel_tick(load: u64, e: u64, active: u64) -> u64 {
        let mut new = load * e + active * (2048 - e);
        if active >= load {
            new += 2047;
        }
        new / 2048
    }

    fn as_float(average: i64) -> f64 {
        average as f64 / (1u64 << FRACTION_BITS) as f64
    }

    proptest! {
        #[test]
        fn closed_form_is_the_recurrence(start in 0i64..1 << 20, active in -64i64..10_000, ticks in 1u64..9_000) {
            for (e, kernel) in EXPONENTS.into_iter().zip([1884.0, 2014.0, 2037.0]) {
                let ours = as_float(after(start << 20, active, e, ticks));
                let exact = recurrence(as_float(start << 20), active as f64, kernel / 2048.0, ticks);
                let scale = 1.0 + exact.abs() + active.unsigned_abs() as f64 + as_float(start << 20);
                prop_assert!((ours - exact).abs() < 1e-7 * scale, "{ours} is not {exact}");
            }
        }

        #[test]
        fn catching_up_in_parts_is_catching_up_at_once(active in 0i64..5_000, a in 1u64..500, b in 1u64..500) {
            for e in EXPONENTS {
                let parts = after(after(0, active, e, a), active, e, b);
                let once = after(0, active, e, a + b);
                prop_assert!((parts - once).abs() < (1 << 8) * (active + 1), "{parts} is not {once}");
            }
        }

        #[test]
        fn averages_add(x in 0i64..1_000, y in 0i64..1_000, ticks in 1u64..2_000) {
            for e in EXPONENTS {
                let sum = after(0, x, e, ticks) + after(0, y, e, ticks);
                prop_assert!((sum - after(0, x + y, e, ticks)).abs() <= 2);
            }
        }

        #[test]
        fn the_kernels_own_rounding_is_near(active in 0u64..200, ticks in 1u64..400) {
            for (e, kernel) in EXPONENTS.into_iter().zip([1884u64, 2014, 2037]) {
                let mut load = 0;
                for _ in 0..ticks {
                    load = kernel_tick(load, kernel, active << KERNEL_BITS);
                }
                let ours = to_kernel(after(0, i64::try_from(active).unwrap(), e, ticks));
                // Each tick rounds up by less than 1; what is forgotten bounds the sum.
                let bound = 2048 / (2048 - kernel) + 2;
                prop_assert!(load >= ours.saturating_sub(1) && load <= ours + bound, "{ours}, kernel {load}");
            }
        }
    }

    #[test]
    fn ticks_are_counted_from_the_next() {
        assert_eq!(ticks_due(99, 100, 1251), 0);
        assert_eq!(ticks_due(100, 100, 1251), 1);
        assert_eq!(ticks_due(1350, 100, 1251), 1);
        assert_eq!(ticks_due(1351, 100, 1251), 2);
        assert_eq!(ticks_due(1351, 100, 0), 0);
        assert_eq!(first_tick(100, 100, 1251), 1351);
        assert_eq!(first_tick(99, 100, 1251), 100);
    }

    #[test]
    fn an_idle_group_is_forgotten() {
        assert_eq!(after(5 << 32, 0, EXPONENTS[2], 1 << 20), 0);
        assert_eq!(to_kernel(-5), 0);
        assert_eq!(to_kernel(1 << 32), 2048);
    }
}
