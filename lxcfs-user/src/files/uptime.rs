//! `/proc/uptime`: how long the container has been up, and how long its CPUs have idled (kernel: fs/proc/uptime.c).

use super::digits::push_fraction;
use super::{View, required};
use crate::error::Result;
use crate::model::lock::lock;

/// The two numbers of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Uptime {
    /// Since the container's init started, nanoseconds.
    up_ns: u64,
    /// Idle time summed over the CPUs shown, nanoseconds: what they had, less what the container used.
    idle_ns: u64,
}

pub(super) fn gather(view: &View<'_>) -> Result<Uptime> {
    let cpus = view.cpus()?.count();
    // Before what was used, or what was used between would seem idle.
    let up_ns = view.up_ns();
    let history = &view.container.history.idle;
    if let Some(kept) = view.source.idle(view.container, up_ns, cpus)? {
        *lock(history) = kept;
        return Ok(Uptime { up_ns, idle_ns: kept.idle_ns });
    }
    let used_ns = required(view.source.cpu(view.container)?, "cpu")?.total.used_ns();
    let idle_ns = lock(history).advance(up_ns, used_ns, cpus);
    Ok(Uptime { up_ns, idle_ns })
}

pub(super) fn render(uptime: Uptime, page: &mut Vec<u8>) {
    for (ns, end) in [(uptime.up_ns, b' '), (uptime.idle_ns, b'\n')] {
        push_fraction(page, ns / 1_000_000_000, ns / 10_000_000 % 100);
        page.push(end);
    }
}

#[cfg(test)]
mod tests {
    use crate::files::testing::Case;
    use crate::model::cpus::CpuSet;
    use crate::model::file::File;
    use crate::model::monotonic::CpuTimes;
    use crate::source::Cpu;
    use crate::source::fake::FakeSource;

    fn case(used_ns: u64) -> Case {
        let total = CpuTimes { user_ns: used_ns, ..CpuTimes::default() };
        let cpu = Some(Cpu { total, per_cpu: None });
        Case::new(FakeSource { cpu, ..FakeSource::default() }, &[(File::CpuOnline, "0-1\n")])
    }

    #[test]
    fn w19_idle_is_what_two_cpus_had_less_what_was_used() {
        case(30_120_000_000).golden(File::Uptime, "uptime/two_cpus");
    }

    #[test]
    fn a_cgroup_older_than_its_init_has_no_negative_idle() {
        assert_eq!(case(u64::MAX).page(File::Uptime).unwrap(), "100.00 0.00\n");
    }

    #[test]
    fn fewer_cpus_take_no_idle_time_back() {
        let mut case = case(10_000_000_000);
        assert_eq!(case.page(File::Uptime).unwrap(), "100.00 190.00\n");
        case.source.cpuset = CpuSet::parse(b"1");
        assert_eq!(case.page(File::Uptime).unwrap(), "100.00 190.00\n");
        case.machine.boottime_ns += 5_000_000_000;
        assert_eq!(case.page(File::Uptime).unwrap(), "105.00 195.00\n");
    }

    #[test]
    fn without_cpu_accounting_there_is_no_page() {
        let case = Case::new(FakeSource::default(), &[(File::CpuOnline, "0-1\n")]);
        assert!(case.page(File::Uptime).is_err());
    }
}
