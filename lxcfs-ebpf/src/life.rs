//! Cgroup moves and removals.

use core::arch::asm;
use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::Global;
use aya_ebpf::bindings::task_struct;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use lxcfs_abi::word::{self, ALIVE};
use lxcfs_abi::{Slot, Task};

use crate::{atomic, cpu, kernel, load, maps, slot, task};

/// 1 where the kernel has the task iterator's functions.
#[unsafe(no_mangle)]
static WALK_THREADS: Global<u32> = Global::new(0);

/// `BPF_TASK_ITER_PROC_THREADS` (kernel/bpf/task_iter.c).
const PROC_THREADS: u64 = 2;

/// `struct bpf_iter_task`.
type Walk = MaybeUninit<[u64; 3]>;

/// Fires once per moved thread group, with its leader, after the move; also for hierarchies that
/// are none of ours, where nothing changes.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub(crate) fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    let leader: *const task_struct = ctx.arg(2);
    let whole_group: u64 = ctx.arg(3);
    // SAFETY: a task by the tracepoint's definition.
    unsafe { moved(leader, whole_group & 1 != 0) }
}

/// As `cgroup_attach_task`, for `cgroup.procs` of v1 emptied into another group.
#[btf_tracepoint(function = "cgroup_transfer_tasks")]
pub(crate) fn cgroup_transfer_tasks(ctx: BtfTracePointContext) -> i32 {
    let leader: *const task_struct = ctx.arg(2);
    // SAFETY: a task by the tracepoint's definition.
    unsafe { moved(leader, false) }
}

/// # Safety
/// `leader` is a task the verifier trusts.
#[inline(always)]
unsafe fn moved(leader: *const task_struct, whole_group: bool) -> i32 {
    if maps::enabled().is_none() {
        return 0;
    }
    // SAFETY: by contract.
    unsafe {
        if !whole_group {
            rehome(leader);
            return 0;
        }
        if WALK_THREADS.load() == 0 {
            rehome(leader);
            maps::count!(deferred_moves);
            maps::notify();
            return 0;
        }
        let mut walk = Walk::uninit();
        walk_new(&mut walk, leader);
        loop {
            let thread = walk_next(&mut walk);
            if thread.is_null() {
                break;
            }
            rehome(thread);
        }
        walk_destroy(&mut walk);
    }
    0
}

/// Counts a thread in the group it is in now. Its state is left to its events.
///
/// # Safety
/// `thread` is a task the verifier trusts.
#[inline(never)]
pub(crate) unsafe fn rehome(thread: *const task_struct) {
    // SAFETY: by contract.
    unsafe {
        let Some(entry) = task::find(thread) else { return };
        task::forget(entry);
        let slot = slot::resolve(kernel::css_set(thread));
        let old = ptr::read_volatile(&raw const (*entry).word);
        if word::slot(old) == slot || old & ALIVE == 0 {
            return;
        }
        remember_move(thread, entry, word::slot(old));
        let new = (old & !u64::from(u32::MAX)) | u64::from(slot);
        // If an event came between, it has read the new group itself.
        if atomic::replace(&raw mut (*entry).word, old, new) {
            load::change_shared(old, new);
            maps::count!(rehomed);
        }
    }
}

/// Notes how far the task's time belongs to the group it left; charged when it next leaves its CPU.
///
/// # Safety
/// `entry` is the task's.
#[inline(always)]
pub(crate) unsafe fn remember_move(thread: *const task_struct, entry: *mut Task, from: u32) {
    // SAFETY: by contract. `at_move` is read only while `moved_from` is set.
    unsafe {
        let Some(ctrl) = maps::ctrl() else { return };
        if ptr::read_volatile(&raw const (*entry).moved_from) != 0 {
            return;
        }
        (*entry).at_move = cpu::times(thread);
        let generation = ptr::read_volatile(&raw const (*ctrl).generation);
        atomic::swap(&raw mut (*entry).moved_from, u64::from(generation) << 32 | u64::from(from));
    }
}

/// The directory is gone. Tasks on their way out may still be counted in the slot.
#[btf_tracepoint(function = "cgroup_rmdir")]
pub(crate) fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup: *const core::ffi::c_void = ctx.arg(0);
    if let Some(slot) = slot_of(cgroup) {
        // SAFETY: a map value.
        unsafe { (*slot).removed_ns = maps::monotonic_ns() };
        maps::count!(removals);
        maps::notify();
    }
    0
}

/// Nobody refers to the group any more.
#[btf_tracepoint(function = "cgroup_release")]
pub(crate) fn cgroup_release(ctx: BtfTracePointContext) -> i32 {
    let cgroup: *const core::ffi::c_void = ctx.arg(0);
    if let Some(slot) = slot_of(cgroup) {
        let now = maps::monotonic_ns();
        // SAFETY: a map value.
        unsafe {
            (*slot).released_ns = now;
            if (*slot).removed_ns == 0 {
                (*slot).removed_ns = now;
            }
        }
        maps::notify();
    }
    0
}

#[inline(always)]
fn slot_of(cgroup: *const core::ffi::c_void) -> Option<*mut Slot> {
    maps::enabled()?;
    let id = kernel::id_of(cgroup);
    // SAFETY: the value is copied.
    let index = unsafe { maps::SLOT_OF.get(id) }?;
    maps::slot(*index)
}

// The three calls are placeholders that the loader turns into calls of kernel functions, or into
// no-operations where they are absent: the ELF object cannot name them (`bpf/patch.rs`).

#[inline(always)]
unsafe fn walk_new(walk: &mut Walk, leader: *const task_struct) {
    // SAFETY: `bpf_iter_task_new(it, task, flags)`; r0 to r5 are the caller's to lose.
    unsafe {
        asm!(
            "call 0x7f000001",
            inlateout("r1") walk.as_mut_ptr() => _,
            inlateout("r2") leader => _,
            inlateout("r3") PROC_THREADS => _,
            lateout("r0") _, lateout("r4") _, lateout("r5") _,
        );
    }
}

#[inline(always)]
unsafe fn walk_next(walk: &mut Walk) -> *const task_struct {
    let task: *const task_struct;
    // SAFETY: `bpf_iter_task_next(it)`.
    unsafe {
        asm!(
            "call 0x7f000002",
            inlateout("r1") walk.as_mut_ptr() => _,
            lateout("r0") task,
            lateout("r2") _, lateout("r3") _, lateout("r4") _, lateout("r5") _,
        );
    }
    task
}

#[inline(always)]
unsafe fn walk_destroy(walk: &mut Walk) {
    // SAFETY: `bpf_iter_task_destroy(it)`.
    unsafe {
        asm!(
            "call 0x7f000003",
            inlateout("r1") walk.as_mut_ptr() => _,
            lateout("r0") _,
            lateout("r2") _, lateout("r3") _, lateout("r4") _, lateout("r5") _,
        );
    }
}
