//! Asks the kernel and this process for [`Facts`].

use std::fs;

use rustix::time::{ClockId, clock_getres};

use super::btf::{Btf, Kind};
use super::support::{Facts, TRACEPOINTS, Types, WALK};
use super::wanted::{WANTED, WANTED_BELOW, WANTED_UPTIME};
use super::{hierarchy, host, sys};

const TYPES: &str = "/sys/kernel/btf/vmlinux";

/// Reads everything a plan depends on.
pub(crate) fn facts() -> Facts {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let types = fs::read(TYPES).map_err(|error| format!("{TYPES}: {error}"));
    Facts {
        types: types.and_then(|bytes| match Btf::parse(&bytes) {
            Ok(btf) => Ok(types_of(&btf)),
            Err(error) => Err(format!("{TYPES}: {error}")),
        }),
        hierarchy: hierarchy::choose(&mounts),
        cpuset_is_v1: hierarchy::is_v1(&mounts, "cpuset"),
        cpu_is_v1: hierarchy::is_v1(&mounts, "cpu"),
        capabilities: effective_capabilities(&read("/proc/self/status")),
        locked_down: read("/sys/kernel/security/lockdown").contains("[confidentiality]"),
        membarrier: sys::has_membarrier(),
        possible_cpus: highest_cpu(&read("/sys/devices/system/cpu/possible")).map_or(1, |n| n + 1),
        jiffy_ns: jiffy_ns(),
    }
}

fn types_of(btf: &Btf<'_>) -> Types {
    let storage_map = |member| btf.member("bpf_local_storage_map", member).is_some();
    Types {
        members: WANTED.map(|wanted| btf.member(wanted.structure, wanted.path)),
        members_below: WANTED_BELOW.map(|wanted| btf.member(wanted.structure, wanted.path)),
        members_uptime: WANTED_UPTIME.map(|wanted| btf.member(wanted.structure, wanted.path)),
        host: host::globals(btf),
        mask_is_pointer: btf.is_pointer("cpuset", "effective_cpus"),
        element_iterator: btf.find("bpf_iter_bpf_map_elem", Kind::Func).is_some(),
        loops: btf.find("bpf_loop", Kind::Func).is_some(),
        default_cgroup: btf.member("css_set", "dfl_cgrp"),
        subsystems: btf.member("css_set", "subsys"),
        subsystems_of_cgroup: btf.member("cgroup", "subsys"),
        cpuset_id: btf.enumerator("cgroup_subsys_id", "cpuset_cgrp_id"),
        cpuacct_id: btf.enumerator("cgroup_subsys_id", "cpuacct_cgrp_id"),
        cpu_id: btf.enumerator("cgroup_subsys_id", "cpu_cgrp_id"),
        tracepoints: TRACEPOINTS
            .map(|name| btf.find(&format!("btf_trace_{name}"), Kind::Typedef).is_some()),
        walk: WALK.map(|name| btf.find(name, Kind::Func)),
        task_iterator: btf.find("bpf_iter_task", Kind::Func).is_some(),
        task_storage: btf.enumerator("bpf_map_type", "BPF_MAP_TYPE_TASK_STORAGE").is_some(),
        // Storage first came from kmalloc, which may wake a task and so take a run queue's lock;
        // then from an allocator of BPF's own; and, since there is one, from a kmalloc without locks
        // (by BPF's wrapper, whose name has stayed).
        storage_under_lock: storage_map("selem_ma")
            || btf.find("bpf_map_kmalloc_nolock", Kind::Func).is_some(),
    }
}

/// `CapEff` of `/proc/self/status`.
fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// The highest number in a list like `0-3,8`.
fn highest_cpu(list: &str) -> Option<u32> {
    list.trim().rsplit([',', '-']).next()?.parse().ok()
}

/// The coarse clocks advance once per jiffy, and say so.
fn jiffy_ns() -> u64 {
    let resolution = clock_getres(ClockId::MonotonicCoarse);
    u64::try_from(resolution.tv_nsec).unwrap_or(0).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_a_hexadecimal_line() {
        let status = "Name:\tx\nCapPrm:\t0000000000000001\nCapEff:\t000001ffffffffff\n";
        assert_eq!(effective_capabilities(status), 0x1ff_ffff_ffff);
        assert_eq!(effective_capabilities("CapEff:\tx\n"), 0);
        assert_eq!(effective_capabilities(""), 0);
    }

    #[test]
    fn the_highest_cpu_ends_the_list() {
        assert_eq!(highest_cpu("0-1\n"), Some(1));
        assert_eq!(highest_cpu("0\n"), Some(0));
        assert_eq!(highest_cpu("0-3,8-11\n"), Some(11));
        assert_eq!(highest_cpu(""), None);
    }
}
