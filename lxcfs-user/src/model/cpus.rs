//! Sets of CPUs, in the kernel's list format, and how many of them a quota is worth.

use std::fmt;

/// The largest CPU number a list may name: far above the kernel's own limit of 8,192 (`NR_CPUS`), and small enough
/// that a malformed list cannot make us allocate without bound.
const MAX_CPU: u32 = 65_535;

/// A set of CPU numbers. `Display` prints the kernel's list format, `0-1,3`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSet {
    /// Bit `n % 64` of word `n / 64` is CPU `n`. The last word is never zero.
    words: Vec<u64>,
}

impl CpuSet {
    /// The CPUs `0..count`.
    #[must_use]
    pub fn first(count: u32) -> Self {
        (0..count).collect()
    }

    /// Parses a list as `cpuset.cpus.effective` and `/sys/devices/system/cpu/online` have it. `None` when malformed.
    #[must_use]
    pub fn parse(list: &[u8]) -> Option<Self> {
        let mut set = Self::default();
        let list = std::str::from_utf8(list).ok()?.trim();
        for range in list.split(',').filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            if first > last || last > MAX_CPU {
                return None;
            }
            (first..=last).for_each(|cpu| set.insert(cpu));
        }
        Some(set)
    }

    /// Adds `cpu`.
    pub fn insert(&mut self, cpu: u32) {
        let (word, bit) = (cpu as usize / 64, cpu % 64);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << bit;
    }

    /// Whether `cpu` is in the set.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        self.words.get(cpu as usize / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    /// How many CPUs are in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether no CPU is in the set.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The CPUs in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.words).flat_map(|(index, &word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
        })
    }

    /// The CPUs in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.iter().filter(|&cpu| other.contains(cpu)).collect()
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        let mut set = Self::default();
        cpus.into_iter().for_each(|cpu| set.insert(cpu));
        set
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while cpus.peek() == Some(&(last + 1)) {
                last += 1;
                cpus.next();
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// CPU bandwidth: at most `quota_us` of CPU time in every `period_us`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// CPU time allowed in each period, microseconds.
    pub quota_us: u64,
    /// The period, microseconds, never 0.
    pub period_us: u64,
}

impl Bandwidth {
    /// The tighter of two, by CPU time allowed per second.
    #[must_use]
    pub const fn min(self, other: Self) -> Self {
        let ours = self.quota_us as u128 * other.period_us as u128;
        let theirs = other.quota_us as u128 * self.period_us as u128;
        if ours <= theirs { self } else { other }
    }

    /// The CPUs this is worth, rounded up, at least one: 1.5 CPUs need two to run on.
    #[must_use]
    pub fn cpus(self) -> u32 {
        u32::try_from(self.quota_us.div_ceil(self.period_us)).unwrap_or(u32::MAX).max(1)
    }
}

/// Which CPUs a container is shown (`--cpu-view`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuView {
    /// The CPUs of its effective cpuset, under the numbers the kernel gives them.
    #[default]
    Cpuset,
    /// As many as its quota is worth, at most those of its cpuset, numbered from 0.
    Quota,
    /// All of the host's.
    Host,
}

/// The CPUs a container is shown. One answer, used by every file.
///
/// Under [`CpuView::Cpuset`] a CPU keeps its number, because `sched_getaffinity(2)`, `getcpu(2)` and `taskset` in the
/// container speak of the same number. Under [`CpuView::Quota`] the CPUs are virtual and counted from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpus {
    /// `(shown, host)`: the number shown and the host CPU behind it, ascending in both. Never empty.
    pairs: Vec<(u32, u32)>,
}

impl Cpus {
    /// Decides what is shown. `effective` is the container's cpuset, if it has one.
    #[must_use]
    pub fn decide(
        view: CpuView,
        online: &CpuSet,
        effective: Option<&CpuSet>,
        bandwidth: Option<Bandwidth>,
    ) -> Self {
        let allowed = match (view, effective) {
            (CpuView::Host, _) | (_, None) => online.clone(),
            (_, Some(effective)) => {
                let both = effective.intersection(online);
                // A container always runs somewhere; an empty answer means the two were read at different times.
                if both.is_empty() { online.clone() } else { both }
            }
        };
        let limit = match (view, bandwidth) {
            (CpuView::Quota, Some(bandwidth)) => bandwidth.cpus() as usize,
            _ => usize::MAX,
        };
        let hosts = allowed.iter().take(limit);
        let pairs = match view {
            CpuView::Quota => (0..).zip(hosts).collect(),
            CpuView::Cpuset | CpuView::Host => hosts.map(|cpu| (cpu, cpu)).collect(),
        };
        Self { pairs }
    }

    /// `(shown, host)` for each CPU, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.pairs.iter().copied()
    }

    /// How many CPUs are shown, at least one on any running machine.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.pairs.len()).unwrap_or(u32::MAX)
    }

    /// The number shown for the host's `cpu`, if it is shown.
    #[must_use]
    pub fn shown(&self, cpu: u32) -> Option<u32> {
        let at = self.pairs.binary_search_by_key(&cpu, |&(_, host)| host).ok()?;
        Some(self.pairs[at].0)
    }

    /// The host's CPU behind the number `shown`, if it is shown.
    #[must_use]
    pub fn host(&self, shown: u32) -> Option<u32> {
        let at = self.pairs.binary_search_by_key(&shown, |&(number, _)| number).ok()?;
        Some(self.pairs[at].1)
    }

    /// The numbers shown, as a set.
    #[must_use]
    pub fn set(&self) -> CpuSet {
        self.iter().map(|(shown, _)| shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(list: &str) -> CpuSet {
        CpuSet::parse(list.as_bytes()).unwrap()
    }

    #[test]
    fn lists_print_as_the_kernel_prints_them() {
        for list in ["", "0", "0-1", "0-3,5,7-9", "63-65,1023"] {
            assert_eq!(set(list).to_string(), list);
        }
        assert_eq!(set("0,1,2\n").to_string(), "0-2");
    }

    #[test]
    fn malformed_lists_are_refused() {
        for list in ["x", "1-", "3-1", "-1", "0-99999999", "1,,x"] {
            assert_eq!(CpuSet::parse(list.as_bytes()), None, "{list}");
        }
    }

    #[test]
    fn ask_298_quota_rounds_up_and_stays_within_the_cpuset() {
        let quota = |quota_us| Some(Bandwidth { quota_us, period_us: 100_000 });
        let count = |view, quota| Cpus::decide(view, &set("0-7"), Some(&set("2-5")), quota).count();
        assert_eq!(count(CpuView::Quota, quota(50_000)), 1);
        assert_eq!(count(CpuView::Quota, quota(150_000)), 2);
        assert_eq!(count(CpuView::Quota, quota(900_000)), 4);
        assert_eq!(count(CpuView::Quota, None), 4);
        assert_eq!(count(CpuView::Cpuset, quota(50_000)), 4);
        assert_eq!(count(CpuView::Host, quota(50_000)), 8);
    }

    #[test]
    fn cpuset_view_keeps_numbers_and_quota_view_counts_from_zero() {
        let quota = Some(Bandwidth { quota_us: 200_000, period_us: 100_000 });
        let shown = |view| Cpus::decide(view, &set("0-7"), Some(&set("2,5-6")), quota);
        assert_eq!(shown(CpuView::Cpuset).iter().collect::<Vec<_>>(), [(2, 2), (5, 5), (6, 6)]);
        assert_eq!(shown(CpuView::Quota).iter().collect::<Vec<_>>(), [(0, 2), (1, 5)]);
    }

    #[test]
    fn the_tighter_bandwidth_wins_whatever_its_period() {
        let slow = Bandwidth { quota_us: 100_000, period_us: 1_000_000 };
        let fast = Bandwidth { quota_us: 5_000, period_us: 10_000 };
        assert_eq!(slow.min(fast), slow);
        assert_eq!(fast.min(slow), slow);
    }

    proptest! {
        #[test]
        fn print_then_parse_is_the_same_set(cpus in proptest::collection::vec(0_u32..2_000, 0..64)) {
            let set: CpuSet = cpus.into_iter().collect();
            prop_assert_eq!(CpuSet::parse(set.to_string().as_bytes()), Some(set));
        }

        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _: Option<CpuSet> = CpuSet::parse(&bytes);
        }
    }
}
