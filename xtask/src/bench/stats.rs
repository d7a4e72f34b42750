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
    median(ratios(ours, theirs))
}

/// How far that median may be from the true one, as a part of it: the notch of a box plot, which holds it 95 times in 100.
///
/// It is not the spread of the times that counts. A virtual CPU may take half as long again from one second to the next,
/// and so it does for both: what is left in the ratio of a round is what nobody can tell from a difference.
pub(super) fn doubt(ours: &Timing, theirs: &Timing) -> f64 {
    let ratios: Vec<_> = ratios(ours, theirs).collect();
    1.57 * spread(&ratios) / (ratios.len() as f64).sqrt()
}

fn ratios(ours: &Timing, theirs: &Timing) -> impl Iterator<Item = f64> {
    let pairs = ours.rounds_ns.iter().zip(&theirs.rounds_ns);
    pairs.map(|(&ours, &theirs)| ours as f64 / theirs as f64)
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
    fn rounds_that_agree_leave_no_doubt() {
        let theirs: Vec<u64> = (0..100).map(|nth| 1_000 + nth % 7 * 500).collect();
        let ours: Vec<u64> = theirs.iter().map(|ns| ns * 2).collect();
        assert!(doubt(&timing(&ours), &timing(&theirs)) < 1e-9);
        let odd: Vec<u64> = ours.iter().zip(0..).map(|(ns, nth)| ns * (1 + nth % 2)).collect();
        assert!(doubt(&timing(&odd), &timing(&theirs)) > 0.05);
        assert!(doubt(&timing(&[]), &timing(&[])).is_nan());
    }

    #[test]
    fn the_spread_is_that_of_the_middle_half() {
        let numbers: Vec<_> = (0..=100).map(f64::from).collect();
        assert!((spread(&numbers) - 1.0).abs() < 1e-9);
        assert!(spread(&[5.0; 9]).abs() < 1e-9);
        assert!(median([]).is_nan());
    }
}
