//! Which container a reader is in, by the rule of the daemon's room `caller`, from the kernel's own structures.
//!
//! Addresses are followed by copies that do not fault: a container that ends meanwhile reads as nothing, and nothing is a reader
//! whose container is not known.

use aya_ebpf::bindings::task_struct;
use lxcfs_abi::MAX_DEPTH;

use crate::kernel::{self, cgroup_in, follow, follow_u32};

/// `PROC_PID_INIT_INO` and `PROC_CGROUP_INIT_INO` (include/linux/proc_ns.h): the namespaces the daemon is in.
const HOST_PIDS: u32 = 0xefff_fffc;
const HOST_CGROUPS: u32 = 0xefff_fffb;

/// Leaves below a container's cgroup that inits are known to move to, as in `caller.rs`.
const KNOWN_LEAVES: [[u8; 16]; 4] = [
    *b"init.scope\0\0\0\0\0\0",
    *b"init\0\0\0\0\0\0\0\0\0\0\0\0",
    *b".lxc\0\0\0\0\0\0\0\0\0\0\0\0",
    *b"container\0\0\0\0\0\0\0",
];

/// What is found instead of a cgroup's address: the reader is on the host.
pub(crate) const HOST: u64 = 1;

/// The namespaces of a reader, and where it is counted: addresses.
#[derive(Clone, Copy)]
pub(crate) struct Reader {
    pub(crate) pids: u64,
    pub(crate) cgroups: u64,
    pub(crate) css_set: u64,
}

impl Reader {
    /// The address of the cgroup at the boundary of its container, in the hierarchy that `way` leads to; 0 where it is not known.
    #[inline(always)]
    pub(crate) fn boundary(self, way: u32) -> u64 {
        boundary(self.pids, self.cgroups, self.css_set, way)
    }

    /// The address of the init of its container; 0 where that has none of its own.
    #[inline(always)]
    pub(crate) fn init(self) -> u64 {
        init(self.pids, self.cgroups)
    }
}

/// # Safety
/// `reader` is a task the verifier trusts.
#[inline(always)]
pub(crate) unsafe fn reader(reader: *const task_struct) -> Reader {
    // SAFETY: by contract.
    unsafe {
        Reader {
            pids: pid_namespace(kernel::address(reader, &kernel::O_THREAD_PID)),
            cgroups: follow(kernel::address(reader, &kernel::O_NSPROXY), &kernel::O_CGROUP_NS),
            css_set: kernel::css_set(reader),
        }
    }
}

// These are functions of their own, of numbers alone: the verifier follows them once, and not each way through them together
// with each way through what comes behind.

/// See [`Reader::boundary`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn boundary(pids: u64, cgroups: u64, css_set: u64, way: u32) -> u64 {
    if pids == 0 || cgroups == 0 {
        return 0;
    }
    let shares_pids = pids_number(pids) == HOST_PIDS;
    let shares_cgroups =
        follow_u32(cgroups, u64::from(kernel::O_CGROUPNS_NUMBER.load())) == HOST_CGROUPS;
    if shares_pids && shares_cgroups {
        return HOST;
    }
    let init = if shares_pids { 0 } else { follow(pids, &kernel::O_CHILD_REAPER) };
    let inits = cgroup_namespace(init);
    // An init that has left its namespaces is on its way out, and its container with it.
    if !shares_pids && inits == 0 {
        return 0;
    }
    if inits == cgroups {
        let leaf = cgroup_in(follow(init, &kernel::O_CGROUPS), way);
        let is_its_own = !shares_cgroups && !is_of_parent(pids, cgroups);
        if is_its_own { root(cgroups, leaf, way) } else { without_known_leaf(leaf) }
    } else {
        // A pod with one pid namespace for several containers, or a service with a cgroup namespace of its own.
        let leaf = cgroup_in(css_set, way);
        if shares_cgroups { leaf } else { root(cgroups, leaf, way) }
    }
}

/// See [`Reader::init`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn init(pids: u64, cgroups: u64) -> u64 {
    let shares_pids = pids_number(pids) == HOST_PIDS;
    let init = if shares_pids { 0 } else { follow(pids, &kernel::O_CHILD_REAPER) };
    if cgroup_namespace(init) == cgroups { init } else { 0 }
}

/// When a process started, nanoseconds of CLOCK_BOOTTIME; 0 for none.
#[inline(always)]
pub(crate) fn started_ns(init: u64) -> u64 {
    follow(init, &kernel::O_START_BOOTTIME)
}

/// The newest pid in a pid namespace, as `/proc/loadavg` has it: one less than where the next search begins.
#[inline(always)]
pub(crate) fn newest_pid(pids: u64) -> u32 {
    follow_u32(pids, u64::from(kernel::O_IDR_NEXT.load())).wrapping_sub(1)
}

/// The pid namespace a process was made in: that of its deepest number.
#[inline(always)]
pub(crate) fn pid_namespace(pid: u64) -> u64 {
    let level = follow_u32(pid, u64::from(kernel::O_PID_LEVEL.load()));
    // `struct upid` ends with its namespace.
    let (namespace, length) = (u64::from(kernel::O_UPID_NS.load()), 8);
    let numbers = pid + u64::from(kernel::O_PID_NUMBERS.load());
    // SAFETY: a copy that does not fault.
    unsafe { kernel::copy(numbers + u64::from(level) * (namespace + length) + namespace) }
}

#[inline(always)]
fn cgroup_namespace(task: u64) -> u64 {
    follow(follow(task, &kernel::O_NSPROXY), &kernel::O_CGROUP_NS)
}

/// The number of a pid namespace.
#[inline(always)]
pub(crate) fn pids_number(pids: u64) -> u32 {
    follow_u32(pids, u64::from(kernel::O_PIDNS_NUMBER.load()))
}

/// Whether the pid namespace above has an init that is in the cgroup namespace too.
#[inline(always)]
fn is_of_parent(pids: u64, cgroups: u64) -> bool {
    let above = follow(pids, &kernel::O_PIDNS_PARENT);
    let is_below_ours = above != 0 && pids_number(above) != HOST_PIDS;
    is_below_ours && cgroup_namespace(follow(above, &kernel::O_CHILD_REAPER)) == cgroups
}

/// The root of a cgroup namespace, or `leaf` if that does not lie below it.
#[inline(always)]
fn root(cgroups: u64, leaf: u64, way: u32) -> u64 {
    let root = cgroup_in(follow(cgroups, &kernel::O_ROOT_CSET), way);
    if leaf == root || is_below(leaf, root) != 0 { root } else { leaf }
}

/// Whether the cgroup `leaf` lies below `root`. A function of its own, which the verifier follows once.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn is_below(leaf: u64, root: u64) -> u32 {
    let mut at = leaf;
    for _ in 0..MAX_DEPTH {
        at = kernel::cgroup_parent(at);
        if at == 0 {
            break;
        }
        if at == root {
            return 1;
        }
    }
    0
}

#[inline(always)]
fn without_known_leaf(cgroup: u64) -> u64 {
    let [a, b] = words(&kernel::cgroup_name(cgroup));
    for leaf in &KNOWN_LEAVES {
        if words(leaf) == [a, b] {
            return kernel::cgroup_parent(cgroup);
        }
    }
    cgroup
}

/// A name as two numbers, which compare without a call.
#[inline(always)]
const fn words(name: &[u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *name;
    [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p])]
}
