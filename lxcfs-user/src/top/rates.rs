//! From two surveys to what happened between them.

use serde::Serialize;

use crate::survey::{Measure, Survey};

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Rates over an interval, and the state at its end. This is what `--json` prints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Rates {
    /// The end of the interval, nanoseconds of `CLOCK_BOOTTIME`.
    pub(super) taken_ns: u64,
    /// How long it was.
    pub(super) interval_ns: u64,
    /// The host's own load averages, hundredths.
    pub(super) host_load_hundredths: [u64; 3],
    /// The containers there are at its end.
    pub(super) containers: Vec<Rate>,
}

/// One container's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Rate {
    #[serde(flatten)]
    pub(super) now: Measure,
    /// CPU time used in a second: 1,000,000,000 is one CPU.
    pub(super) cpu_ns_per_s: Option<u64>,
    /// Time in a second that its threads waited for a CPU, summed over them.
    pub(super) steal_ns_per_s: Option<u64>,
    /// Time in a second that its quota kept it from a CPU.
    pub(super) throttled_ns_per_s: Option<u64>,
}

impl Rates {
    /// What happened from `before` to `after`. A container that is new has no rates yet.
    pub(super) fn between(before: &Survey, after: &Survey) -> Self {
        let interval_ns = after.taken_ns.saturating_sub(before.taken_ns);
        let rate = |now: &Measure| {
            let same = |was: &&Measure| (was.init, was.started_ns) == (now.init, now.started_ns);
            let was = before.containers.iter().find(same);
            let per_second = |counter: fn(&Measure) -> Option<u64>| {
                let growth = counter(now)?.saturating_sub(counter(was?)?);
                let scaled = u128::from(growth) * u128::from(NS_PER_SECOND);
                u64::try_from(scaled.checked_div(u128::from(interval_ns))?).ok()
            };
            Rate {
                cpu_ns_per_s: per_second(|measure| measure.used_ns),
                steal_ns_per_s: per_second(|measure| measure.steal_ns),
                throttled_ns_per_s: per_second(|measure| measure.throttled_ns),
                now: now.clone(),
            }
        };
        Self {
            taken_ns: after.taken_ns,
            interval_ns,
            host_load_hundredths: after.host_load_hundredths,
            containers: after.containers.iter().map(rate).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(taken_ns: u64, used_ns: u64, started_ns: u64) -> Survey {
        let used_ns = Some(used_ns);
        let container = Measure { init: 7, started_ns, used_ns, ..Measure::default() };
        Survey { taken_ns, containers: vec![container], ..Survey::default() }
    }

    #[test]
    fn half_a_cpu_for_two_seconds() {
        let rates = Rates::between(
            &survey(10 * NS_PER_SECOND, 5, 1),
            &survey(12 * NS_PER_SECOND, NS_PER_SECOND + 5, 1),
        );
        assert_eq!(rates.interval_ns, 2 * NS_PER_SECOND);
        assert_eq!(rates.containers[0].cpu_ns_per_s, Some(NS_PER_SECOND / 2));
        assert_eq!(rates.containers[0].steal_ns_per_s, None, "never counted");
    }

    #[test]
    fn a_pid_used_again_is_another_container() {
        let rates = Rates::between(&survey(1, 5, 1), &survey(2, 6, 2));
        assert_eq!(rates.containers[0].cpu_ns_per_s, None);
    }

    #[test]
    fn no_time_and_counters_that_fall_are_no_panic() {
        let rates = Rates::between(&survey(1, 5, 1), &survey(1, 6, 1));
        assert_eq!(rates.containers[0].cpu_ns_per_s, None);
        let rates = Rates::between(&survey(1, 5, 1), &survey(2, 4, 1));
        assert_eq!(rates.containers[0].cpu_ns_per_s, Some(0));
    }
}
