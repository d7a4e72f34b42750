//! The members of kernel structures that the programs read: where each must lie, and how it is handed over.

use lxcfs_abi::field;

use super::btf::Member;
use super::reason::Reason;

/// Where a kernel structure's member must lie for the programs, and how it is handed to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The read-only global of the programs.
    pub global: &'static str,
    pub structure: &'static str,
    pub path: &'static str,
    pub(super) need: Need,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// A member of exactly this many bytes: the global is its offset.
    Bytes(u32),
    /// A member of 1, 2, 4 or 8 bytes, or one bit: the global is a packed field.
    Any,
    /// As `Any`, and its absence has a meaning.
    Optional,
    /// A member of any size: the global is its offset.
    Place,
}

pub(super) const fn want(
    global: &'static str,
    structure: &'static str,
    path: &'static str,
    need: Need,
) -> Wanted {
    Wanted { global, structure, path, need }
}

/// Every member the programs read, except the way from a css_set to its cgroup.
pub const WANTED: [Wanted; 17] = [
    want("O_PID", "task_struct", "pid", Need::Bytes(4)),
    want("O_CGROUPS", "task_struct", "cgroups", Need::Bytes(8)),
    want("O_SUM_EXEC_RUNTIME", "task_struct", "se.sum_exec_runtime", Need::Bytes(8)),
    want("O_UTIME", "task_struct", "utime", Need::Bytes(8)),
    want("O_STIME", "task_struct", "stime", Need::Bytes(8)),
    want("O_RUN_DELAY", "task_struct", "sched_info.run_delay", Need::Bytes(8)),
    want("O_CSS_CGROUP", "cgroup_subsys_state", "cgroup", Need::Bytes(8)),
    want("O_CGROUP_KN", "cgroup", "kn", Need::Bytes(8)),
    want("O_CGROUP_PARENT", "cgroup", "self.parent", Need::Bytes(8)),
    want("O_KN_ID", "kernfs_node", "id", Need::Bytes(8)),
    want("F_ON_RQ", "task_struct", "on_rq", Need::Any),
    // From 6.12: a task that just slept stays queued for a while.
    want("F_SCHED_DELAYED", "task_struct", "se.sched_delayed", Need::Optional),
    want("F_CONTRIBUTES", "task_struct", "sched_contributes_to_load", Need::Any),
    want("F_IN_IOWAIT", "task_struct", "in_iowait", Need::Any),
    want("F_STATE", "task_struct", "__state", Need::Any),
    want("F_STATIC_PRIO", "task_struct", "static_prio", Need::Any),
    // Only places the I/O wait of tasks older than the programs: CPU 0 without it.
    want("F_TASK_CPU", "task_struct", "thread_info.cpu", Need::Optional),
];

/// Every member that the program of a file below FUSE reads besides. Where one is missing, there is no such file.
pub const WANTED_BELOW: [Wanted; 15] = [
    want("O_NSPROXY", "task_struct", "nsproxy", Need::Bytes(8)),
    want("O_THREAD_PID", "task_struct", "thread_pid", Need::Bytes(8)),
    want("O_START_BOOTTIME", "task_struct", "start_boottime", Need::Bytes(8)),
    want("O_PID_LEVEL", "pid", "level", Need::Bytes(4)),
    want("O_PID_NUMBERS", "pid", "numbers", Need::Place),
    want("O_UPID_NS", "upid", "ns", Need::Bytes(8)),
    want("O_CHILD_REAPER", "pid_namespace", "child_reaper", Need::Bytes(8)),
    want("O_IDR_NEXT", "pid_namespace", "idr.idr_next", Need::Bytes(4)),
    want("O_PIDNS_PARENT", "pid_namespace", "parent", Need::Bytes(8)),
    want("O_PIDNS_NUMBER", "pid_namespace", "ns.inum", Need::Bytes(4)),
    want("O_CGROUP_NS", "nsproxy", "cgroup_ns", Need::Bytes(8)),
    want("O_ROOT_CSET", "cgroup_namespace", "root_cset", Need::Bytes(8)),
    want("O_CGROUPNS_NUMBER", "cgroup_namespace", "ns.inum", Need::Bytes(4)),
    want("O_KN_NAME", "kernfs_node", "name", Need::Bytes(8)),
    want("O_RQ_NR_RUNNING", "rq", "nr_running", Need::Bytes(4)),
];

/// Every member that the program of `uptime` reads besides: whether an init lives, whether a task runs, and how many CPUs a container is shown.
pub const WANTED_UPTIME: [Wanted; 6] = [
    want("O_EXIT_STATE", "task_struct", "exit_state", Need::Bytes(4)),
    want("F_ON_CPU", "task_struct", "on_cpu", Need::Any),
    want("O_EFFECTIVE_CPUS", "cpuset", "effective_cpus", Need::Place),
    want("O_GROUP_STATE", "task_group", "css", Need::Place),
    want("O_QUOTA", "task_group", "cfs_bandwidth.quota", Need::Bytes(8)),
    want("O_PERIOD", "task_group", "cfs_bandwidth.period", Need::Bytes(8)),
];

/// Every member that such a program reads of the CPUs' run queues for readers on the host. Where one is missing, these are not told.
pub const WANTED_HOST: [Wanted; 4] = [
    want("O_TASK_QUEUE", "task_struct", "se.cfs_rq", Need::Bytes(8)),
    want("O_QUEUE_RQ", "cfs_rq", "rq", Need::Bytes(8)),
    want("O_RQ_NR_IOWAIT", "rq", "nr_iowait", Need::Bytes(4)),
    want("F_RQ_ONLINE", "rq", "online", Need::Any),
];

/// What the program is told of `member`, which is what was found of `wanted`.
///
/// # Errors
/// It is not there, or its size is one that the programs cannot read.
pub(super) fn global_value(wanted: &Wanted, member: Option<Member>) -> Result<u32, Reason> {
    let Some(member) = member else {
        return match wanted.need {
            Need::Optional => Ok(field::ABSENT),
            _ => Err(Reason::Missing(wanted.path)),
        };
    };
    let Wanted { structure, path, .. } = *wanted;
    let refused = Reason::Size { structure, path, bytes: member.size_bytes };
    let offset = u16::try_from(member.offset_bits / 8).map_err(|_| refused.clone())?;
    if member.bitfield_bits == 1 {
        let bit = u8::try_from(member.offset_bits % 8).map_err(|_| refused.clone())?;
        return match wanted.need {
            Need::Bytes(_) | Need::Place => Err(refused),
            _ => Ok(field::bit(offset, bit)),
        };
    }
    let aligned = member.offset_bits.is_multiple_of(8) && member.bitfield_bits == 0;
    match (wanted.need, member.size_bytes) {
        (Need::Bytes(bytes), actual) if aligned && bytes == actual => Ok(u32::from(offset)),
        (Need::Place, _) if aligned => Ok(u32::from(offset)),
        (Need::Any | Need::Optional, 1) if aligned => Ok(field::whole(offset, 1)),
        (Need::Any | Need::Optional, 2) if aligned => Ok(field::whole(offset, 2)),
        (Need::Any | Need::Optional, 4) if aligned => Ok(field::whole(offset, 4)),
        (Need::Any | Need::Optional, 8) if aligned => Ok(field::whole(offset, 8)),
        _ => Err(refused),
    }
}
