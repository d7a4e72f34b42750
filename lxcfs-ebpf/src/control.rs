//! Programs that user space runs on demand (`BPF_PROG_TEST_RUN`), on a CPU of its choice.

use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::bpf_get_current_task_btf;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

use lxcfs_abi::word::span;

use crate::{atomic, cpu, kernel, maps, task};

/// Reads jiffies and CLOCK_MONOTONIC together, into the control map.
#[raw_tracepoint]
pub(crate) fn peek(_ctx: RawTracePointContext) -> i32 {
    if let Some(ctrl) = maps::ctrl() {
        let (jiffies, now) = (maps::jiffies(), maps::monotonic_ns());
        // SAFETY: a map value; the loader runs this alone.
        unsafe {
            (*ctrl).peek_jiffies = jiffies;
            (*ctrl).peek_monotonic_ns = now;
        }
    }
    0
}

/// Charges the task that runs on this CPU now, so that readers see one that never switches.
///
/// Here too nothing else writes the CPU's times: this runs in an interrupt, or (on the caller's own
/// CPU) with preemption off, and times are charged at switches only.
#[raw_tracepoint]
pub(crate) fn flush(_ctx: RawTracePointContext) -> i32 {
    let Some(ctrl) = maps::enabled() else { return 0 };
    // SAFETY: the helper returns the current task.
    unsafe {
        let current: *const task_struct = bpf_get_current_task_btf();
        if kernel::pid(current) == 0 {
            return 0;
        }
        let Some(entry) = task::find(current) else { return 0 };
        let cpu = maps::current_cpu();
        let slot = task::slot_unsaved(current, entry, ctrl);
        if let Some(record) = maps::record(maps::record_index(slot, cpu)) {
            cpu::charge(current, entry, record, cpu);
            cpu::runs(current, cpu);
        }
    }
    0
}

/// Adds the times of a removed group's record to its parent's: arguments are the two indices. Runs
/// on the CPU of both, whose times nobody else writes.
#[raw_tracepoint]
pub(crate) fn fold(ctx: RawTracePointContext) -> i32 {
    let (from, to): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let (Some(from), Some(to)) = (maps::record(from as u32), maps::record(to as u32)) else {
        return -1;
    };
    // SAFETY: map values; the group of `from` is gone and its slot is not yet given back.
    unsafe {
        (*to).run_ns += (*from).run_ns;
        (*to).user_ns += (*from).user_ns;
        (*to).nice_ns += (*from).nice_ns;
        (*to).system_ns += (*from).system_ns;
        (*to).run_delay_ns += (*from).run_delay_ns;
        (*to).switches += (*from).switches;
        (*to).iowait_folded_ns += (*from).iowait_folded_ns;
        // Nobody waits in the group any more, so its span is at rest.
        if (*from).iowait & span::RUNNING == 0 {
            (*to).iowait_folded_ns += (*from).iowait;
        }
        // A new task's wake-up may interrupt us here.
        atomic::add(&raw mut (*to).forks, (*from).forks);
    }
    0
}
