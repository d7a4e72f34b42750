//! The only reads of kernel structures. Where a member lies is found by the loader in the kernel's
//! BTF and handed over as read-only globals, which are constants to the verifier.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_kernel_str_bytes};
use lxcfs_abi::field;

/// `O_` globals are plain offsets, of members of 8 bytes where nothing else is said.
macro_rules! offsets {
    ($($name:ident),* $(,)?) => { $(
        #[unsafe(no_mangle)]
        pub(crate) static $name: Global<u32> = Global::new(0);
    )* };
}

offsets! {
    O_PID, O_CGROUPS, O_SUM_EXEC_RUNTIME, O_UTIME, O_STIME, O_RUN_DELAY,
    O_CSS_CGROUP, O_CGROUP_KN, O_CGROUP_PARENT, O_KN_ID,
    O_NSPROXY, O_THREAD_PID, O_START_BOOTTIME, O_PID_LEVEL, O_PID_NUMBERS, O_UPID_NS,
    O_CHILD_REAPER, O_IDR_NEXT, O_PIDNS_PARENT, O_PIDNS_NUMBER, O_CGROUP_NS, O_ROOT_CSET, O_CGROUPNS_NUMBER,
    O_KN_NAME, O_RQ_NR_RUNNING,
    O_TASK_QUEUE, O_QUEUE_RQ, O_RQ_NR_IOWAIT, O_IDLE_TIME, O_IDLE_ENTRY,
    O_EXIT_STATE, O_CPUSET_STATE, O_CPU_STATE, O_EFFECTIVE_CPUS, O_GROUP_STATE, O_QUOTA, O_PERIOD, MASK_IS_POINTER,
}

/// `W_` globals are ways from a css_set to its cgroup in a hierarchy, see [`field::THROUGH_STATE`].
macro_rules! ways {
    ($($name:ident),* $(,)?) => { $(
        #[unsafe(no_mangle)]
        pub(crate) static $name: Global<u32> = Global::new(0);
    )* };
}

ways! {
    W_COUNTED, W_CPUSET, W_QUOTA,
}

/// `F_` globals are fields as packed by [`field`].
macro_rules! fields {
    ($($name:ident),* $(,)?) => { $(
        #[unsafe(no_mangle)]
        pub(crate) static $name: Global<u32> = Global::new(field::ABSENT);
    )* };
}

fields! {
    F_ON_RQ, F_SCHED_DELAYED, F_CONTRIBUTES, F_IN_IOWAIT, F_STATE, F_STATIC_PRIO, F_TASK_CPU, F_ON_CPU,
    F_RQ_ONLINE, F_IDLE_ACTIVE, F_IDLE_SEQUENCE,
}

/// 1 where storage may be made with a run queue locked.
#[unsafe(no_mangle)]
pub(crate) static CREATE_LOCKED: Global<u32> = Global::new(0);

/// An 8-byte member, by a checked load. Each call loads: others write the member meanwhile.
///
/// # Safety
/// `task` is a task the verifier trusts.
#[inline(always)]
pub(crate) unsafe fn load_u64(task: *const task_struct, offset: &Global<u32>) -> u64 {
    // SAFETY: the loader found an 8-byte member there.
    unsafe { task.cast::<u8>().add(offset.load() as usize).cast::<u64>().read_volatile() }
}

/// # Safety
/// As [`load_u64`].
#[inline(always)]
pub(crate) unsafe fn pid(task: *const task_struct) -> u32 {
    // SAFETY: the loader found a 4-byte member there.
    unsafe { *task.cast::<u8>().add(O_PID.load() as usize).cast::<u32>() }
}

/// A member of any size, or one bit; 0 if this kernel does not have it.
///
/// # Safety
/// As [`load_u64`].
#[inline(always)]
pub(crate) unsafe fn load(task: *const task_struct, global: &Global<u32>) -> u64 {
    let place = global.load();
    // SAFETY: offset and size are a member's; of the four loads the verifier keeps one.
    unsafe {
        let at = task.cast::<u8>().add(field::offset(place));
        let bytes = match field::size(place) {
            1 => u64::from(*at),
            2 => u64::from(*at.cast::<u16>()),
            4 => u64::from(*at.cast::<u32>()),
            8 => *at.cast::<u64>(),
            _ => return 0,
        };
        field::extract(place, bytes)
    }
}

/// A pointer in the task, as a number.
///
/// # Safety
/// As [`load_u64`].
#[inline(always)]
pub(crate) unsafe fn address(task: *const task_struct, offset: &Global<u32>) -> u64 {
    // SAFETY: an address inside the task, copied without faulting.
    unsafe { copy(task as u64 + u64::from(offset.load())) }
}

/// The task's css_set as a number.
///
/// # Safety
/// As [`load_u64`].
#[inline(always)]
pub(crate) unsafe fn css_set(task: *const task_struct) -> u64 {
    // SAFETY: by contract.
    unsafe { address(task, &O_CGROUPS) }
}

/// The cgroup of a css_set in the hierarchy that groups CPU time; 0 if it cannot be read.
#[inline(always)]
pub(crate) fn cgroup_of(css_set: u64) -> u64 {
    cgroup_in(css_set, W_COUNTED.load())
}

/// The cgroup of a css_set in the hierarchy that a `W_` global leads to; 0 if it cannot be read.
#[inline(always)]
pub(crate) fn cgroup_in(css_set: u64, way: u32) -> u64 {
    let group = word_at(css_set, u64::from(way & !field::THROUGH_STATE));
    if way & field::THROUGH_STATE == 0 { group } else { follow(group, &O_CSS_CGROUP) }
}

/// Inode number of the directory of a cgroup that the verifier knows as such.
#[inline(always)]
pub(crate) fn id_of(cgroup: *const c_void) -> u64 {
    // SAFETY: an address inside the cgroup, copied without faulting.
    let node = unsafe { copy(cgroup as u64 + u64::from(O_CGROUP_KN.load())) };
    follow(node, &O_KN_ID)
}

/// Inode number of the cgroup's directory.
#[inline(always)]
pub(crate) fn cgroup_id(cgroup: u64) -> u64 {
    follow(follow(cgroup, &O_CGROUP_KN), &O_KN_ID)
}

/// The parent cgroup; 0 for a root.
#[inline(always)]
pub(crate) fn cgroup_parent(cgroup: u64) -> u64 {
    follow(follow(cgroup, &O_CGROUP_PARENT), &O_CSS_CGROUP)
}

/// The name of the cgroup's directory, as far as it fits; all zero if it cannot be read.
#[inline(always)]
pub(crate) fn cgroup_name(cgroup: u64) -> [u8; 16] {
    let mut name = [0; 16];
    let address = follow(follow(cgroup, &O_CGROUP_KN), &O_KN_NAME);
    // SAFETY: the helper checks the address, and writes no more than it is told.
    let _ = unsafe { bpf_probe_read_kernel_str_bytes(address as *const u8, &mut name) };
    name
}

/// A member as [`load`] has it, of a structure that is only an address; 0 if it cannot be read, or if this kernel does not have it.
/// Its first byte is the lowest, as on all machines there are programs for.
#[inline(always)]
pub(crate) fn follow_field(address: u64, global: &Global<u32>) -> u64 {
    let place = global.load();
    if place == field::ABSENT {
        return 0;
    }
    let bytes = word_at(address, field::offset(place) as u64);
    let unused_bits = 64 - 8 * u64::from(field::size(place));
    field::extract(place, bytes << unused_bits >> unused_bits)
}

/// The 8 bytes at `offset` behind `address`; 0 if they cannot be read.
#[inline(always)]
pub(crate) fn follow(address: u64, offset: &Global<u32>) -> u64 {
    word_at(address, u64::from(offset.load()))
}

/// [`follow`] for numbers. A function of its own, which the verifier follows once: a chain of these would be as many choices
/// between a number it knows, 0, and one it does not.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn word_at(address: u64, offset: u64) -> u64 {
    if address == 0 {
        return 0;
    }
    // SAFETY: a copy that does not fault.
    unsafe { copy(address + offset) }
}

/// The 4 bytes there, likewise.
#[inline(always)]
pub(crate) fn follow_u32(address: u64, offset: u64) -> u32 {
    half_at(address, offset) as u32
}

#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn half_at(address: u64, offset: u64) -> u64 {
    // SAFETY: a copy that does not fault.
    u64::from(unsafe { bpf_probe_read_kernel((address + offset) as *const u32) }.unwrap_or(0))
}

/// # Safety
/// None needed in truth: an address that is not mapped gives 0.
#[inline(always)]
pub(crate) unsafe fn copy(address: u64) -> u64 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const u64) }.unwrap_or(0)
}
