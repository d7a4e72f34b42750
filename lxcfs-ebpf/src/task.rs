//! A task's entry, its state as the kernel has it, and the slot its cgroup has.

use core::ptr;

use aya_ebpf::bindings::{BPF_LOCAL_STORAGE_GET_F_CREATE, task_struct};
use aya_ebpf::helpers::generated::bpf_task_storage_get;
use lxcfs_abi::word::{ALIVE, IOWAIT, RUN, SEEN, UNINTERRUPTIBLE};
use lxcfs_abi::{Ctrl, Task, TaskTimes};

use crate::{cpu, kernel, maps, slot};

/// `TASK_DEAD` (include/linux/sched.h): set for the last switch of a task only.
const TASK_DEAD: u64 = 0x80;

/// # Safety
/// `task` is a task the verifier trusts, and so in all functions below.
#[inline(always)]
pub(crate) unsafe fn find(task: *const task_struct) -> Option<*mut Task> {
    // SAFETY: the map is task storage of `Task`; without the flag nothing is made.
    let entry =
        unsafe { bpf_task_storage_get(maps::TASKS.as_ptr(), task.cast_mut(), ptr::null_mut(), 0) };
    (!entry.is_null()).then_some(entry.cast())
}

/// The entry of `task`, made from `initial` if there is none.
///
/// # Safety
/// See [`find`].
#[inline(always)]
pub(crate) unsafe fn create(task: *const task_struct, initial: &mut Task) -> Option<*mut Task> {
    // SAFETY: `initial` has the size of the map's value.
    let entry = unsafe {
        bpf_task_storage_get(
            maps::TASKS.as_ptr(),
            task.cast_mut(),
            ptr::from_mut(initial).cast(),
            u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE),
        )
    };
    if entry.is_null() {
        maps::count!(no_storage);
        maps::notify();
        return None;
    }
    Some(entry.cast())
}

/// For events under a run queue's lock: makes the entry of a task that is older than we are and
/// that the iterator has not reached. Its time up to now is not charged to anyone.
///
/// # Safety
/// See [`find`].
#[inline(always)]
pub(crate) unsafe fn create_late(task: *const task_struct) -> Option<*mut Task> {
    maps::count!(late);
    if kernel::CREATE_LOCKED.load() == 0 {
        maps::count!(no_storage);
        maps::notify();
        return None;
    }
    // SAFETY: by contract.
    unsafe {
        let mut initial = entry_of(0, cpu::times(task));
        create(task, &mut initial)
    }
}

/// A fresh entry.
#[inline(always)]
pub(crate) const fn entry_of(word: u64, charged: TaskTimes) -> Task {
    let none = TaskTimes { run_ns: 0, user_ns: 0, system_ns: 0, run_delay_ns: 0 };
    Task { word, css_set: 0, slot: 0, generation: 0, charged, moved_from: 0, at_move: none }
}

/// What the kernel says of a task.
///
/// Never from `prev_state`: a signal may have aborted the block, or the task may have been woken
/// while the run queue's lock was dropped. The bits are the kernel's own and are set anew at every
/// block, so TASK_NOLOAD and TASK_FROZEN are in them. A delayed dequeue (from 6.12) is asleep; a
/// task throttled by its bandwidth wants a CPU and counts as running.
///
/// # Safety
/// See [`find`].
#[inline(always)]
pub(crate) unsafe fn state(task: *const task_struct) -> u64 {
    // SAFETY: by contract.
    unsafe {
        if kernel::load(task, &kernel::F_ON_RQ) != 0
            && kernel::load(task, &kernel::F_SCHED_DELAYED) == 0
        {
            return SEEN | ALIVE | RUN;
        }
        let mut flags = SEEN;
        if kernel::load(task, &kernel::F_STATE) & TASK_DEAD == 0 {
            flags |= ALIVE;
        }
        if kernel::load(task, &kernel::F_CONTRIBUTES) != 0 {
            flags |= UNINTERRUPTIBLE;
        }
        if kernel::load(task, &kernel::F_IN_IOWAIT) != 0 {
            flags |= IOWAIT;
        }
        flags
    }
}

/// Where an event found its task.
#[derive(Clone, Copy)]
pub(crate) struct Home {
    pub(crate) slot: u32,
    css_set: u64,
}

/// The slot of the task's cgroup, remembered in its entry.
///
/// Only events may call this: they are serialised per task by the scheduler's locks, and what is
/// remembered must not be written by two at once.
///
/// # Safety
/// See [`find`]; `entry` is the task's, `ctrl` the map's element.
#[inline(always)]
pub(crate) unsafe fn home(task: *const task_struct, entry: *mut Task, ctrl: *mut Ctrl) -> Home {
    // SAFETY: by contract.
    unsafe {
        let generation = ptr::read_volatile(&raw const (*ctrl).generation);
        let css_set = kernel::load_u64(task, &kernel::O_CGROUPS);
        if (*entry).css_set == css_set && (*entry).generation == generation {
            return Home { slot: (*entry).slot, css_set };
        }
        let css_set = kernel::css_set(task);
        let slot = slot::resolve(css_set);
        remember(entry, css_set, slot, generation);
        Home { slot, css_set }
    }
}

/// Whether the task has left `home` since.
///
/// # Safety
/// See [`find`].
#[inline(always)]
pub(crate) unsafe fn has_left(task: *const task_struct, home: Home) -> bool {
    // SAFETY: by contract.
    unsafe { kernel::load_u64(task, &kernel::O_CGROUPS) != home.css_set }
}

/// Voids what the entry remembers: the kernel may use a css_set's address again, for another group.
///
/// # Safety
/// `entry` is a map value.
#[inline(always)]
pub(crate) unsafe fn forget(entry: *mut Task) {
    // SAFETY: by contract.
    unsafe { ptr::write_volatile(&raw mut (*entry).css_set, 0) };
}

/// The css_set goes first and comes last: who reads it twice reads a pair that belongs together.
///
/// # Safety
/// See [`home`].
#[inline(always)]
unsafe fn remember(entry: *mut Task, css_set: u64, slot: u32, generation: u32) {
    // SAFETY: by contract.
    unsafe {
        ptr::write_volatile(&raw mut (*entry).css_set, 0);
        ptr::write_volatile(&raw mut (*entry).slot, slot);
        ptr::write_volatile(&raw mut (*entry).generation, generation);
        // The overflow slot is not remembered: the next event tries again.
        if slot != lxcfs_abi::OVERFLOW_SLOT {
            ptr::write_volatile(&raw mut (*entry).css_set, css_set);
        }
    }
}

/// The slot that `entry` remembers for `css_set`, for callers that race with its events.
///
/// # Safety
/// See [`home`].
#[inline(always)]
pub(crate) unsafe fn remembered(entry: *mut Task, css_set: u64, generation: u32) -> Option<u32> {
    // SAFETY: by contract.
    unsafe {
        let before = ptr::read_volatile(&raw const (*entry).css_set);
        let slot = ptr::read_volatile(&raw const (*entry).slot);
        let of = ptr::read_volatile(&raw const (*entry).generation);
        let after = ptr::read_volatile(&raw const (*entry).css_set);
        (before == css_set && after == css_set && of == generation).then_some(slot)
    }
}

/// The slot of [`home`] for callers that are not the task's events.
///
/// # Safety
/// See [`home`].
#[inline(always)]
pub(crate) unsafe fn slot_unsaved(
    task: *const task_struct,
    entry: *mut Task,
    ctrl: *mut Ctrl,
) -> u32 {
    // SAFETY: by contract.
    unsafe {
        let css_set = kernel::css_set(task);
        let generation = ptr::read_volatile(&raw const (*ctrl).generation);
        remembered(entry, css_set, generation).unwrap_or_else(|| slot::resolve(css_set))
    }
}
