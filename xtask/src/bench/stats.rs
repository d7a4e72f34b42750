//! Medians and spreads. Nothing here knows where numbers come from.

use lxcfs_tests::bench::Timing;

/// The number in the middle.
pub(super) fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    quantile(numbers, 0.5)
}

/// The number that a share of `numbers` is below.
pub(super) fn quantile(numbers: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut sorted: Vec<_> = numbers.into_iter().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    if sorted.is_empty() {
        return f64::NAN;
    }
    let last = sorted.len() - 1;
    sorted[((last as f64 * share).round() as usize).min(last)]
}

/// How far the middle half of `numbers` is apart, as a part of the median.
pub(super) fn spread(numbers: &[f64]) -> f64 {
    let at = |share| quantile(numbers.iter().copied(), share);
    (at(0.75) - at(0.25)) / at(0.5)
}

/// The median over all rounds of how much longer `ours` took than `theirs` in the same round.
pub(super) fn ratio(ours: &Timing, theirs: &Timing) -> f64 {
    let pairs = ours.rounds_ns.iter().zip(&theirs.rounds_ns);
    median(pairs.map(|(&ours, &theirs)| ours as f64 / theirs as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(rounds_ns: &[u64]) -> Timing {
        Timing { rounds_ns: rounds_ns.to_vec(), ..Timing::default() }
    }

    #[test]
    fn a_round_in_which_all_were_slow_changes_no_ratio() {
        let (ours, theirs) = (timing(&[20, 200, 21]), timing(&[10, 100, 10]));
        assert!((ratio(&ours, &theirs) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn the_spread_is_that_of_the_middle_half() {
        let numbers: Vec<_> = (0..=100).map(f64::from).collect();
        assert!((spread(&numbers) - 1.0).abs() < 1e-9);
        assert!(spread(&[5.0; 9]).abs() < 1e-9);
        assert!(median([]).is_nan());
    }
}
