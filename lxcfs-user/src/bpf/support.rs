//! What this kernel has, and what follows from it.
//!
//! [`Facts`] is probed once; [`plan`] is a pure rule on facts. No kernel version is compared
//! anywhere: what matters is whether a member, a function or a mount is there.

use std::path::PathBuf;

use lxcfs_abi::field;

use super::btf::Member;
use super::hierarchy::{Controller, Hierarchy};
use super::reason::Reason;
use super::wanted::{WANTED, WANTED_BELOW, WANTED_UPTIME, Wanted, global_value};

/// The tracepoints the programs attach to.
pub const TRACEPOINTS: [&str; 8] = [
    "sched_switch",
    "sched_wakeup",
    "sched_wakeup_new",
    "sched_process_fork",
    "cgroup_attach_task",
    "cgroup_transfer_tasks",
    "cgroup_rmdir",
    "cgroup_release",
];

/// The kernel functions that walk the threads of a process, in the order of the placeholders.
pub const WALK: [&str; 3] = ["bpf_iter_task_new", "bpf_iter_task_next", "bpf_iter_task_destroy"];

/// What is in the kernel's type information.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Types {
    /// In the order of [`WANTED`].
    pub members: [Option<Member>; WANTED.len()],
    /// In the order of [`WANTED_BELOW`].
    pub members_below: [Option<Member>; WANTED_BELOW.len()],
    /// In the order of [`WANTED_UPTIME`].
    pub members_uptime: [Option<Member>; WANTED_UPTIME.len()],
    /// Values of the globals of which readers on the host are told, as far as they are known.
    pub host: Vec<(&'static str, u32)>,
    /// `cpuset.effective_cpus` points to its mask, which else is in its place.
    pub mask_is_pointer: bool,
    /// `bpf_iter_bpf_map_elem`: a file can run a program for an element of a map.
    pub element_iterator: bool,
    /// `bpf_loop`.
    pub loops: bool,
    /// `css_set.dfl_cgrp`.
    pub default_cgroup: Option<Member>,
    /// `css_set.subsys`, an array of pointers.
    pub subsystems: Option<Member>,
    /// `cgroup.subsys`, likewise.
    pub subsystems_of_cgroup: Option<Member>,
    pub cpuset_id: Option<u32>,
    pub cpuacct_id: Option<u32>,
    pub cpu_id: Option<u32>,
    /// In the order of [`TRACEPOINTS`].
    pub tracepoints: [bool; TRACEPOINTS.len()],
    /// Ids of the functions of [`WALK`].
    pub walk: [Option<u32>; WALK.len()],
    pub task_iterator: bool,
    pub task_storage: bool,
    /// Task storage comes from an allocator that may be used with a run queue locked.
    pub storage_under_lock: bool,
}

/// What this kernel and this process have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `Err` says why there is none.
    pub types: Result<Types, String>,
    /// The mounted hierarchy that groups CPU time.
    pub hierarchy: Option<Hierarchy>,
    /// The controller is in a v1 hierarchy.
    pub cpuset_is_v1: bool,
    pub cpu_is_v1: bool,
    /// Effective capabilities, one bit each.
    pub capabilities: u64,
    /// `/sys/kernel/security/lockdown` is at `confidentiality`.
    pub locked_down: bool,
    /// membarrier(2) can wait for all CPUs.
    pub membarrier: bool,
    /// Possible CPUs, counted up to the highest.
    pub possible_cpus: u32,
    /// Length of a jiffy, from the resolution of CLOCK_MONOTONIC_COARSE.
    pub jiffy_ns: u64,
}

/// How the programs are loaded here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Values of the programs' read-only globals.
    pub globals: Vec<(&'static str, u32)>,
    /// Jiffies between two samples of the load, and one jiffy at which the kernel samples.
    pub tick_jiffies: u64,
    pub tick_phase: u64,
    pub jiffy_ns: u64,
    pub possible_cpus: u32,
    /// Function ids that replace the placeholders; `None`: the daemon walks all tasks instead.
    pub walk: Option<[u32; WALK.len()]>,
    pub barrier: Barrier,
    /// Whether there can be files below FUSE, and if not, why.
    pub below: Result<(), Reason>,
    /// Whether `uptime` can be one of them, and if not, why.
    pub uptime: Result<(), Reason>,
    /// Root directory of the hierarchy.
    pub root: PathBuf,
}

/// How to wait until all programs that run now have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barrier {
    Membarrier,
    /// Where CPUs run without ticks: programs take microseconds, so a second is enough.
    Sleep,
}

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Facts to plan, or to the one reason that comes first.
pub fn plan(facts: &Facts) -> Result<Plan, Reason> {
    let has = |capability: u32| facts.capabilities >> capability & 1 == 1;
    let permitted = has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON));
    if !permitted {
        return Err(Reason::NotPermitted);
    }
    if facts.locked_down {
        return Err(Reason::LockedDown);
    }
    let types = facts.types.as_ref().map_err(|cause| Reason::NoTypes(cause.clone()))?;
    let hierarchy = facts.hierarchy.as_ref().ok_or(Reason::NoHierarchy)?;
    require(types)?;
    let mut globals = Vec::with_capacity(WANTED.len() + 6);
    for (wanted, member) in WANTED.iter().zip(types.members) {
        globals.push((wanted.global, global_value(wanted, member)?));
    }
    globals.push(("W_COUNTED", way(hierarchy.controller, types)?));
    globals.push(("CREATE_LOCKED", u32::from(types.storage_under_lock)));
    globals.push(("CPU_COUNT", facts.possible_cpus));
    globals.push(("LOADS_ARE_ORDERED", u32::from(cfg!(target_arch = "x86_64"))));
    let below = globals_below(types);
    globals.extend(below.iter().flatten());
    let uptime = globals_uptime(facts, types);
    globals.extend(uptime.iter().flatten());
    globals.extend(&types.host);
    let walk = match types.walk {
        [Some(new), Some(next), Some(destroy)] => Some([new, next, destroy]),
        _ => None,
    };
    globals.push(("WALK_THREADS", u32::from(walk.is_some())));
    let (tick_jiffies, tick_phase) = tick(facts.jiffy_ns);
    Ok(Plan {
        globals,
        tick_jiffies,
        tick_phase,
        jiffy_ns: facts.jiffy_ns,
        possible_cpus: facts.possible_cpus,
        walk,
        barrier: if facts.membarrier { Barrier::Membarrier } else { Barrier::Sleep },
        below: below.map(|_| ()),
        uptime: uptime.map(|_| ()),
        root: hierarchy.root.clone(),
    })
}

fn require(types: &Types) -> Result<(), Reason> {
    for (name, present) in TRACEPOINTS.into_iter().zip(types.tracepoints) {
        if !present {
            return Err(Reason::Missing(name));
        }
    }
    if !types.task_iterator {
        return Err(Reason::Missing("task iterator"));
    }
    if !types.task_storage {
        return Err(Reason::Missing("task local storage"));
    }
    Ok(())
}

fn globals_below(types: &Types) -> Result<Vec<(&'static str, u32)>, Reason> {
    if !types.element_iterator {
        return Err(Reason::Missing("iterator over the elements of a map"));
    }
    if !types.loops {
        return Err(Reason::Missing("bpf_loop"));
    }
    values(&WANTED_BELOW, &types.members_below)
}

fn values(
    wanted: &[Wanted],
    members: &[Option<Member>],
) -> Result<Vec<(&'static str, u32)>, Reason> {
    let members = wanted.iter().zip(members);
    members.map(|(wanted, member)| Ok((wanted.global, global_value(wanted, *member)?))).collect()
}

fn globals_uptime(facts: &Facts, types: &Types) -> Result<Vec<(&'static str, u32)>, Reason> {
    let mut globals = values(&WANTED_UPTIME, &types.members_uptime)?;
    let controllers = [
        (Controller::Cpuset, facts.cpuset_is_v1, "W_CPUSET", "O_CPUSET_STATE"),
        (Controller::Cpu, facts.cpu_is_v1, "W_QUOTA", "O_CPU_STATE"),
    ];
    for (controller, is_v1, its_way, its_state) in controllers {
        globals.push((its_way, way(is_v1.then_some(controller), types)?));
        let states = types.subsystems_of_cgroup;
        globals.push((its_state, state_offset(controller, states, "cgroup.subsys", types)?));
    }
    globals.push(("MASK_IS_POINTER", u32::from(types.mask_is_pointer)));
    Ok(globals)
}

/// The way from a css_set to its cgroup, in the v1 hierarchy of `controller` or in the default one.
fn way(controller: Option<Controller>, types: &Types) -> Result<u32, Reason> {
    let Some(controller) = controller else {
        let member = types.default_cgroup.ok_or(Reason::Missing("css_set.dfl_cgrp"))?;
        return Ok(member.offset_bits / 8);
    };
    let offset = state_offset(controller, types.subsystems, "css_set.subsys", types)?;
    Ok(offset | field::THROUGH_STATE)
}

/// Where in the array of `states`, of that name, the pointer to the state of `controller` lies.
fn state_offset(
    controller: Controller,
    states: Option<Member>,
    name: &'static str,
    types: &Types,
) -> Result<u32, Reason> {
    let id = match controller {
        Controller::Cpuacct => types.cpuacct_id.ok_or(Reason::Missing("cpuacct_cgrp_id"))?,
        Controller::Cpu => types.cpu_id.ok_or(Reason::Missing("cpu_cgrp_id"))?,
        Controller::Cpuset => types.cpuset_id.ok_or(Reason::Missing("cpuset_cgrp_id"))?,
    };
    let array = states.ok_or(Reason::Missing(name))?;
    if id >= array.size_bytes / 8 {
        return Err(Reason::Missing(name));
    }
    Ok(array.offset_bits / 8 + id * 8)
}

/// The kernel's series of samples: `LOAD_FREQ = 5 * HZ + 1` jiffies apart, the first one that long
/// after `INITIAL_JIFFIES`, which is -300 s as an unsigned 32-bit number
/// (`include/linux/jiffies.h`; `calc_load_update` in kernel/sched/core.c, `sched_init`).
const fn tick(jiffy_ns: u64) -> (u64, u64) {
    let per_second = match 1_000_000_000u64.checked_div(jiffy_ns) {
        Some(0) | None => 1,
        Some(hz) => hz,
    };
    let tick_jiffies = 5 * per_second + 1;
    ((tick_jiffies), (1 << 32) - 300 * per_second)
}

#[cfg(test)]
mod tests {
    use super::super::wanted::Need;
    use super::*;

    const fn member(offset_bytes: u32, size_bytes: u32) -> Option<Member> {
        Some(Member { offset_bits: offset_bytes * 8, size_bytes, bitfield_bits: 0 })
    }

    /// Facts of a 6.18 kernel, as far as they matter.
    fn facts() -> Facts {
        let mut members = [None; WANTED.len()];
        for ((nth, wanted), slot) in (0u32..).zip(&WANTED).zip(&mut members) {
            *slot = match wanted.need {
                Need::Bytes(bytes) => member(nth * 8, bytes),
                _ => member(nth * 8, 4),
            };
        }
        let found = |wanted: Wanted| match wanted.need {
            Need::Bytes(bytes) => member(0, bytes),
            _ => member(0, 4),
        };
        members[12] = Some(Member { offset_bits: 1_203, size_bytes: 4, bitfield_bits: 1 });
        Facts {
            types: Ok(Types {
                members,
                members_below: WANTED_BELOW.map(found),
                members_uptime: WANTED_UPTIME.map(found),
                host: vec![("O_QUEUE_RQ", 312)],
                mask_is_pointer: true,
                element_iterator: true,
                loops: true,
                default_cgroup: member(136, 8),
                subsystems: member(0, 8 * 14),
                subsystems_of_cgroup: member(800, 8 * 14),
                cpuset_id: Some(0),
                cpuacct_id: Some(2),
                cpu_id: Some(1),
                tracepoints: [true; TRACEPOINTS.len()],
                walk: [Some(71), Some(72), Some(73)],
                task_iterator: true,
                task_storage: true,
                storage_under_lock: true,
            }),
            hierarchy: Some(Hierarchy { controller: None, root: "/sys/fs/cgroup".into() }),
            cpuset_is_v1: false,
            cpu_is_v1: false,
            capabilities: u64::MAX,
            locked_down: false,
            membarrier: true,
            possible_cpus: 2,
            jiffy_ns: 4_000_000,
        }
    }

    fn with(change: impl FnOnce(&mut Types)) -> Facts {
        let mut facts = facts();
        change(facts.types.as_mut().unwrap());
        facts
    }

    fn value(plan: &Plan, name: &str) -> u32 {
        plan.globals.iter().find(|(global, _)| *global == name).unwrap().1
    }

    #[test]
    fn everything_there_is_a_full_plan() {
        let plan = plan(&facts()).unwrap();
        assert_eq!(plan.walk, Some([71, 72, 73]));
        assert_eq!(plan.barrier, Barrier::Membarrier);
        assert_eq!((plan.tick_jiffies, plan.tick_phase), (1_251, 0x1_0000_0000 - 75_000));
        assert_eq!(value(&plan, "W_COUNTED"), 136);
        assert_eq!(value(&plan, "F_CONTRIBUTES"), field::bit(150, 3));
        assert_eq!(value(&plan, "F_ON_RQ"), field::whole(80, 4));
        assert_eq!(value(&plan, "CPU_COUNT"), 2);
    }

    #[test]
    fn each_member_is_needed_or_its_absence_known() {
        for (nth, wanted) in WANTED.iter().enumerate() {
            let without = with(|types| types.members[nth] = None);
            match (wanted.need, plan(&without)) {
                (Need::Optional, Ok(plan)) => {
                    assert_eq!(value(&plan, wanted.global), field::ABSENT)
                }
                (Need::Bytes(_) | Need::Any | Need::Place, Err(reason)) => {
                    assert_eq!(reason, Reason::Missing(wanted.path));
                }
                (_, other) => panic!("without {}: {other:?}", wanted.path),
            }
        }
    }

    #[test]
    fn what_only_a_file_below_fuse_needs_is_not_needed_otherwise() {
        assert_eq!(plan(&facts()).unwrap().below, Ok(()));
        for (nth, wanted) in WANTED_BELOW.iter().enumerate() {
            let plan = plan(&with(|types| types.members_below[nth] = None)).unwrap();
            assert_eq!(plan.below, Err(Reason::Missing(wanted.path)));
            assert!(plan.globals.iter().all(|(global, _)| *global != wanted.global));
        }
        assert!(plan(&with(|types| types.loops = false)).unwrap().below.is_err());
        assert!(plan(&with(|types| types.element_iterator = false)).unwrap().below.is_err());
    }

    #[test]
    fn uptime_needs_more_and_nothing_else_needs_that() {
        let whole = plan(&Facts { cpuset_is_v1: true, ..facts() }).unwrap();
        assert_eq!(whole.uptime, Ok(()));
        assert_eq!(value(&whole, "W_CPUSET"), field::THROUGH_STATE);
        assert_eq!((value(&whole, "W_QUOTA"), value(&whole, "O_CPU_STATE")), (136, 808));
        for (nth, wanted) in WANTED_UPTIME.iter().enumerate() {
            let plan = plan(&with(|types| types.members_uptime[nth] = None)).unwrap();
            assert_eq!(plan.uptime, Err(Reason::Missing(wanted.path)));
            assert_eq!(plan.below, Ok(()));
        }
        let without = plan(&with(|types| types.subsystems_of_cgroup = None)).unwrap();
        assert_eq!(without.uptime, Err(Reason::Missing("cgroup.subsys")));
        let without = plan(&with(|types| types.cpuset_id = None)).unwrap();
        assert_eq!(
            (without.uptime, without.below),
            (Err(Reason::Missing("cpuset_cgrp_id")), Ok(()))
        );
    }

    #[test]
    fn each_tracepoint_is_needed() {
        for (nth, name) in TRACEPOINTS.into_iter().enumerate() {
            let without = with(|types| types.tracepoints[nth] = false);
            assert_eq!(plan(&without).unwrap_err(), Reason::Missing(name));
        }
    }

    #[test]
    fn one_missing_function_means_that_the_daemon_walks() {
        for nth in 0..WALK.len() {
            let plan = plan(&with(|types| types.walk[nth] = None)).unwrap();
            assert_eq!((plan.walk, value(&plan, "WALK_THREADS")), (None, 0));
        }
    }

    #[test]
    fn a_byte_is_read_as_a_byte() {
        // `on_rq` in 7.3.
        let plan = plan(&with(|types| types.members[10] = member(53, 1))).unwrap();
        assert_eq!(value(&plan, "F_ON_RQ"), field::whole(53, 1));
    }

    #[test]
    fn a_member_of_another_size_is_refused() {
        let reason = plan(&with(|types| types.members[3] = member(24, 4))).unwrap_err();
        let (structure, path) = ("task_struct", "utime");
        assert_eq!(reason, Reason::Size { structure, path, bytes: 4 });
        assert!(plan(&with(|types| types.members[10] = member(53, 3))).is_err());
        assert!(plan(&with(|types| types.members[10] = member(1 << 17, 1))).is_err());
    }

    #[test]
    fn a_v1_hierarchy_groups_by_its_controller() {
        let mut v1 = facts();
        for (controller, offset) in [(Controller::Cpuacct, 16), (Controller::Cpu, 8)] {
            let root = PathBuf::from("/sys/fs/cgroup/x");
            v1.hierarchy = Some(Hierarchy { controller: Some(controller), root });
            let plan = plan(&v1).unwrap();
            assert_eq!(value(&plan, "W_COUNTED"), offset | field::THROUGH_STATE);
        }
        v1.types.as_mut().unwrap().cpu_id = None;
        assert_eq!(plan(&v1).unwrap_err(), Reason::Missing("cpu_cgrp_id"));
        v1.types.as_mut().unwrap().cpu_id = Some(14);
        assert_eq!(plan(&v1).unwrap_err(), Reason::Missing("css_set.subsys"));
    }

    #[test]
    fn reasons_come_in_the_order_in_which_they_can_be_helped() {
        let mut facts = facts();
        facts.hierarchy = None;
        assert_eq!(plan(&facts).unwrap_err(), Reason::NoHierarchy);
        facts.types = Err("no such file".into());
        assert_eq!(plan(&facts).unwrap_err(), Reason::NoTypes("no such file".into()));
        facts.locked_down = true;
        assert_eq!(plan(&facts).unwrap_err(), Reason::LockedDown);
        facts.capabilities = 1 << CAP_BPF;
        assert_eq!(plan(&facts).unwrap_err(), Reason::NotPermitted);
        facts.capabilities = 1 << CAP_BPF | 1 << CAP_PERFMON;
        assert_eq!(plan(&facts).unwrap_err(), Reason::LockedDown);
    }

    #[test]
    fn without_the_rest_there_are_other_ways() {
        let mut facts = with(|types| types.storage_under_lock = false);
        facts.membarrier = false;
        let plan = plan(&facts).unwrap();
        assert_eq!((plan.barrier, value(&plan, "CREATE_LOCKED")), (Barrier::Sleep, 0));
    }
}
