//! The scheduler's events. All run with a run queue's lock held and interrupts off, but for the
//! wake-up of the current task, which is ignored.

use core::ptr;

use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::bpf_get_current_task_btf;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use lxcfs_abi::word::{self, ALIVE, RUN, SEEN};
use lxcfs_abi::{Ctrl, Task, TaskTimes};

use crate::{atomic, cpu, kernel, life, load, maps, slot, task};

/// `prev` leaves the CPU. `next` needs nothing: its wake-up made it running.
#[btf_tracepoint(function = "sched_switch")]
pub(crate) fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let Some(ctrl) = maps::enabled() else { return 0 };
    let previous: *const task_struct = ctx.arg(1);
    let next: *const task_struct = ctx.arg(2);
    let cpu = maps::current_cpu();
    // SAFETY: both are tasks by the tracepoint's definition.
    unsafe {
        leave(previous, next, ctrl, cpu);
        cpu::runs(next, cpu);
    }
    0
}

/// # Safety
/// `previous` is being switched out on the current CPU, for `next`.
#[inline(always)]
unsafe fn leave(previous: *const task_struct, next: *const task_struct, ctrl: *mut Ctrl, cpu: u32) {
    // SAFETY: by contract.
    unsafe {
        if kernel::pid(previous) == 0 {
            cpu::idle_ends(cpu);
            return;
        }
        if kernel::pid(next) == 0 {
            cpu::idle_begins(cpu);
        }
        if let Some(entry) = task::find(previous).or_else(|| task::create_late(previous)) {
            switch_out(previous, entry, ctrl, cpu);
        }
    }
}

/// # Safety
/// `entry` is the task's; it is being switched out on the current CPU.
#[inline(always)]
unsafe fn switch_out(previous: *const task_struct, entry: *mut Task, ctrl: *mut Ctrl, cpu: u32) {
    // SAFETY: by contract.
    unsafe {
        let home = task::home(previous, entry, ctrl);
        let Some(record) = maps::record(maps::record_index(home.slot, cpu)) else {
            maps::count!(no_record);
            return;
        };
        cpu::charge(previous, entry, record, cpu);
        (*record).switches += 1;
        become_state(previous, entry, home, task::state(previous), cpu);
    }
}

/// Gives the task its new word and counts the difference.
///
/// Who moves a task changes its group, then its word. If the whole move came after `home` was
/// looked up and before the word is set here, the word names the group the task has left: so it is
/// asked again.
///
/// # Safety
/// `entry` is the task's; interrupts are off.
#[inline(always)]
unsafe fn become_state(
    task: *const task_struct,
    entry: *mut Task,
    home: task::Home,
    state: u64,
    cpu: u32,
) {
    // SAFETY: by contract.
    unsafe {
        let new = word::make(home.slot, state, cpu);
        if ptr::read_volatile(&raw const (*entry).word) == new {
            return;
        }
        let old = atomic::swap(&raw mut (*entry).word, new);
        load::change(old, new, cpu);
        if task::has_left(task, home) {
            life::rehome(task);
        }
    }
}

#[btf_tracepoint(function = "sched_wakeup")]
pub(crate) fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    let Some(ctrl) = maps::enabled() else { return 0 };
    let woken: *const task_struct = ctx.arg(0);
    // SAFETY: a task by the tracepoint's definition; the helper returns the current one.
    unsafe {
        // It is running already, and this one comes without the lock.
        if ptr::eq(woken, bpf_get_current_task_btf()) {
            return 0;
        }
        if let Some(entry) = task::find(woken).or_else(|| task::create_late(woken)) {
            wake(woken, entry, ctrl);
        }
    }
    0
}

/// # Safety
/// `entry` is the task's; interrupts are off.
#[inline(always)]
unsafe fn wake(woken: *const task_struct, entry: *mut Task, ctrl: *mut Ctrl) -> u32 {
    // SAFETY: by contract.
    unsafe {
        let home = task::home(woken, entry, ctrl);
        let cpu = maps::current_cpu();
        become_state(woken, entry, home, SEEN | ALIVE | RUN, cpu);
        maps::record_index(home.slot, cpu)
    }
}

/// A new task becomes runnable: this is where it begins to count, and where forks are counted.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub(crate) fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    let Some(ctrl) = maps::enabled() else { return 0 };
    let woken: *const task_struct = ctx.arg(0);
    // SAFETY: as above.
    unsafe {
        let Some(entry) = task::find(woken).or_else(|| task::create_late(woken)) else {
            return 0;
        };
        let index = wake(woken, entry, ctrl);
        if let Some(record) = maps::record(index) {
            (*record).forks += 1;
        }
    }
    0
}

/// Makes the child's entry where memory may be had, outside of the scheduler's locks.
#[btf_tracepoint(function = "sched_process_fork")]
pub(crate) fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let Some(ctrl) = maps::enabled() else { return 0 };
    let parent: *const task_struct = ctx.arg(0);
    let child: *const task_struct = ctx.arg(1);
    // SAFETY: both are tasks by the tracepoint's definition.
    unsafe {
        let generation = ptr::read_volatile(&raw const (*ctrl).generation);
        let css_set = kernel::css_set(child);
        // A child mostly starts in its parent's group: take what the parent remembers.
        let known =
            task::find(parent).and_then(|entry| task::remembered(entry, css_set, generation));
        let slot = known.unwrap_or_else(|| slot::resolve(css_set));
        // A new task's clocks are at zero.
        let mut initial = task::entry_of(word::make(slot, SEEN, 0), TaskTimes::default());
        initial.slot = slot;
        initial.generation = generation;
        initial.css_set = if slot == lxcfs_abi::OVERFLOW_SLOT { 0 } else { css_set };
        task::create(child, &mut initial);
    }
    0
}
