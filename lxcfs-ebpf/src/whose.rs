//! Which container a reader is in, by the rule of the daemon's room `caller`, from the kernel's own structures.
//!
//! Addresses are followed by copies that do not fault: a container that ends meanwhile reads as nothing, and nothing is a reader
//! whose container is not known.

use aya_ebpf::bindings::task_struct;
use lxcfs_abi::MAX_DEPTH;

use crate::kernel::{self, cgroup_in, follow, follow_u32};

/// `PROC_CGROUP_INIT_INO` (include/linux/proc_ns.h): the cgroup namespace the daemon is in.
const HOST_CGROUPS: u32 = 0xefff_fffb;

/// Leaves below a container's cgroup that inits are known to move to, as in `caller.rs`.
const KNOWN_LEAVES: [[u8; 16]; 4] = [
    *b"init.scope\0\0\0\0\0\0",
    *b"init\0\0\0\0\0\0\0\0\0\0\0\0",
    *b".lxc\0\0\0\0\0\0\0\0\0\0\0\0",
    *b"container\0\0\0\0\0\0\0",
];

// What [`home`] finds, in the lowest bits of an address.

/// The container is at the root of its cgroup namespace.
const ROOT: u64 = 1;
/// It is where its init is, if that is not a leaf that inits are known to move to.
const WITHOUT_LEAF: u64 = 2;
/// The address is that of its init, and not of a css_set.
const INIT: u64 = 4;
const BITS: u64 = ROOT | WITHOUT_LEAF | INIT;

/// What is found where the reader is on the host.
pub(crate) const HOST: u64 = BITS;

/// Where a reader is: addresses.
#[derive(Clone, Copy)]
pub(crate) struct Reader {
    pub(crate) pids: u64,
    cgroups: u64,
    /// See [`home`].
    pub(crate) home: u64,
}

impl Reader {
    /// The address of the cgroup at the boundary of its container, in the hierarchy that `way` leads to; 0 where it is not known.
    #[inline(always)]
    pub(crate) fn boundary(self, way: u32) -> u64 {
        boundary(self.home, self.cgroups, way)
    }

    /// The address of the init of its container; 0 where that has none of its own.
    #[inline(always)]
    pub(crate) fn init(self) -> u64 {
        let all_if_init = 0_u64.wrapping_sub(self.home / INIT & 1);
        self.home & !BITS & all_if_init
    }
}

/// # Safety
/// `reader` is a task the verifier trusts.
#[inline(always)]
pub(crate) unsafe fn reader(reader: *const task_struct) -> Reader {
    // SAFETY: by contract.
    let ((pids, level), nsproxy, css_set) = unsafe {
        (
            pid_namespace(reader),
            kernel::address(reader, &kernel::O_NSPROXY),
            kernel::css_set(reader),
        )
    };
    let cgroups = follow(nsproxy, &kernel::O_CGROUP_NS);
    Reader { pids, cgroups, home: home(pids, level, cgroups, nsproxy, css_set) }
}

// These are functions of their own, of numbers alone: the verifier follows them once, and not each way through them together
// with each way through what comes behind.

/// From what the boundary of a reader's container follows: the init of that or the reader's css_set, and how; 0 where it is not
/// known.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn home(
    pids: u64,
    level: u32,
    cgroups: u64,
    nsproxy: u64,
    css_set: u64,
) -> u64 {
    if pids == 0 || cgroups == 0 {
        return 0;
    }
    // The daemon is in the first one, as it has made sure of.
    let shares_pids = level == 0;
    let shares_cgroups =
        follow_u32(cgroups, u64::from(kernel::O_CGROUPNS_NUMBER.load())) == HOST_CGROUPS;
    if shares_pids && shares_cgroups {
        return HOST;
    }
    let init = if shares_pids { 0 } else { follow(pids, &kernel::O_CHILD_REAPER) };
    let its_nsproxy = follow(init, &kernel::O_NSPROXY);
    let inits = match its_nsproxy == nsproxy {
        true => cgroups,
        false => follow(its_nsproxy, &kernel::O_CGROUP_NS),
    };
    // An init that has left its namespaces is on its way out, and its container with it.
    if !shares_pids && inits == 0 {
        return 0;
    }
    if inits == cgroups {
        let is_its_own = !shares_cgroups && !(level > 1 && is_of_parent(pids, cgroups));
        return init | INIT | if is_its_own { ROOT } else { WITHOUT_LEAF };
    }
    // A pod with one pid namespace for several containers, or a service with a cgroup namespace of its own.
    if shares_cgroups { css_set } else { css_set | ROOT }
}

/// See [`Reader::boundary`].
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn boundary(home: u64, cgroups: u64, way: u32) -> u64 {
    let at = home & !BITS;
    let css_set = if home & INIT == 0 { at } else { follow(at, &kernel::O_CGROUPS) };
    let leaf = cgroup_in(css_set, way);
    if home & ROOT != 0 {
        root(cgroups, leaf, way)
    } else if home & WITHOUT_LEAF != 0 {
        without_known_leaf(leaf)
    } else {
        leaf
    }
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

/// The pid namespace a process was made in, that of its deepest number, and how many are above that.
///
/// # Safety
/// `task` is a task the verifier trusts.
#[inline(always)]
pub(crate) unsafe fn pid_namespace(task: *const task_struct) -> (u64, u32) {
    // `struct upid` ends with its namespace.
    let (namespace, length) = (u64::from(kernel::O_UPID_NS.load()), 8);
    // SAFETY: the loader found a pointer to a structure with such members there; the last is copied without faulting.
    unsafe {
        let at = task.cast::<u8>().add(kernel::O_THREAD_PID.load() as usize);
        let pid = at.cast::<*const u8>().read_volatile();
        let level = pid.add(kernel::O_PID_LEVEL.load() as usize).cast::<u32>().read_volatile();
        // As a number: before 6.2 nothing that is not known may be added to the pointer.
        let pid = kernel::address(task, &kernel::O_THREAD_PID);
        let numbers = pid + u64::from(kernel::O_PID_NUMBERS.load());
        let number = numbers + u64::from(level) * (namespace + length);
        (kernel::copy(number + namespace), level)
    }
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
    let init = follow(above, &kernel::O_CHILD_REAPER);
    follow(follow(init, &kernel::O_NSPROXY), &kernel::O_CGROUP_NS) == cgroups
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
