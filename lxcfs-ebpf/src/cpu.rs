//! CPU time: what a task's clocks have gained is charged to its slot on the CPU it leaves.

use core::ptr;

use aya_ebpf::bindings::task_struct;
use lxcfs_abi::word::span;
use lxcfs_abi::{Record, Task, TaskTimes};

use crate::{kernel, maps};

/// `DEFAULT_PRIO` (include/linux/sched/prio.h): above it is nice.
const DEFAULT_PRIO: u64 = 120;

/// The task's clocks now.
///
/// # Safety
/// `task` is a task the verifier trusts.
#[inline(always)]
pub(crate) unsafe fn times(task: *const task_struct) -> TaskTimes {
    // SAFETY: by contract.
    unsafe {
        TaskTimes {
            run_ns: kernel::load_u64(task, &kernel::O_SUM_EXEC_RUNTIME),
            user_ns: kernel::load_u64(task, &kernel::O_UTIME),
            system_ns: kernel::load_u64(task, &kernel::O_STIME),
            run_delay_ns: kernel::load_u64(task, &kernel::O_RUN_DELAY),
        }
    }
}

/// Charges what `task` has gained since it was last charged to `record`, the (slot, current CPU)
/// it runs in. The caller cannot be preempted.
///
/// # Safety
/// `entry` is the task's, `record` this CPU's.
#[inline(always)]
pub(crate) unsafe fn charge(
    task: *const task_struct,
    entry: *mut Task,
    record: *mut Record,
    cpu: u32,
) {
    // SAFETY: by contract.
    unsafe {
        if ptr::read_volatile(&raw const (*entry).moved_from) != 0 {
            settle_move(task, entry, cpu);
        }
        let now = times(task);
        add_times(task, record, &now, &(*entry).charged);
        (*entry).charged = now;
    }
}

/// # Safety
/// As [`charge`].
#[inline(always)]
unsafe fn add_times(
    task: *const task_struct,
    record: *mut Record,
    now: &TaskTimes,
    before: &TaskTimes,
) {
    // SAFETY: by contract.
    unsafe {
        (*record).run_ns += now.run_ns.wrapping_sub(before.run_ns);
        (*record).run_delay_ns += now.run_delay_ns.wrapping_sub(before.run_delay_ns);
        (*record).system_ns += now.system_ns.wrapping_sub(before.system_ns);
        // User time moves once per tick at most: whether it is nice is asked only then.
        let user_ns = now.user_ns.wrapping_sub(before.user_ns);
        if user_ns != 0 {
            if kernel::load(task, &kernel::F_STATIC_PRIO) > DEFAULT_PRIO {
                (*record).nice_ns += user_ns;
            } else {
                (*record).user_ns += user_ns;
            }
        }
    }
}

/// The task was moved while it ran: the time up to the move belongs to the group it left.
///
/// # Safety
/// As [`charge`].
#[inline(never)]
unsafe fn settle_move(task: *const task_struct, entry: *mut Task, cpu: u32) {
    // SAFETY: by contract; `at_move` is not written while `moved_from` is set.
    unsafe {
        let from = (*entry).moved_from;
        let Some(ctrl) = maps::ctrl() else { return };
        // A slot given back meanwhile may be another group's by now.
        if (from >> 32) as u32 == (*ctrl).generation {
            if let Some(record) = maps::record(maps::record_index(from as u32, cpu)) {
                let at_move = (*entry).at_move;
                add_times(task, record, &at_move, &(*entry).charged);
                (*entry).charged = at_move;
            }
        }
        ptr::write_volatile(&raw mut (*entry).moved_from, 0);
    }
}

/// `task` runs on the current CPU from now on, and all it has used is charged. To be called behind the charge of whoever ran there
/// before: a reader that comes between adds a slice twice, and idle time stands still for that; missing it, it would have risen
/// too far and never fallen again.
///
/// # Safety
/// `task` is a task the verifier trusts.
#[inline(always)]
pub(crate) unsafe fn runs(task: *const task_struct, cpu: u32) {
    let Some(place) = maps::cpu(cpu) else { return };
    // SAFETY: by contract; this CPU's words, which readers load whole.
    unsafe {
        ptr::write_volatile(&raw mut (*place).task, 0);
        if kernel::pid(task) != 0 {
            let run_ns = kernel::load_u64(task, &kernel::O_SUM_EXEC_RUNTIME);
            ptr::write_volatile(&raw mut (*place).charged_ns, run_ns);
            ptr::write_volatile(&raw mut (*place).since_jiffies, maps::jiffies());
            ptr::write_volatile(&raw mut (*place).task, task as u64);
        }
    }
}

/// The current CPU goes idle.
#[inline(always)]
pub(crate) fn idle_begins(cpu: u32) {
    let now = maps::monotonic_ns();
    if let Some(place) = maps::cpu(cpu) {
        // SAFETY: this CPU's word; readers load it whole.
        unsafe { ptr::write_volatile(&raw mut (*place).idle, span::start((*place).idle, now)) };
    }
}

/// The current CPU leaves idle.
#[inline(always)]
pub(crate) fn idle_ends(cpu: u32) {
    let now = maps::monotonic_ns();
    if let Some(place) = maps::cpu(cpu) {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(&raw mut (*place).idle, span::stop((*place).idle, now)) };
    }
}
