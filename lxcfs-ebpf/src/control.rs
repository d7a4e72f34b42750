//! Programs that user space runs on demand (`BPF_PROG_TEST_RUN`), on a CPU of its choice.

use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::bpf_get_current_task_btf;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

use core::ptr;
use lxcfs_abi::word::span;
use lxcfs_abi::{MAX_DEPTH, Record};

use crate::{atomic, cpu, kernel, load, maps, task};

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

/// Moves what a record of a removed group holds to its parent: arguments are the slots of both, and which record. Runs on the CPU
/// whose record it is, if that is one's: nobody else writes the parent's then.
#[raw_tracepoint]
pub(crate) fn fold(ctx: RawTracePointContext) -> i32 {
    let (from, to, nth): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let (from, to, nth) = (from as u32, to as u32, nth as u32);
    let residual = maps::record(maps::record_index(to, maps::cpu_count().wrapping_add(1)));
    let (Some(record), Some(parents), Some(residual)) = (
        maps::record(maps::record_index(from, nth)),
        maps::record(maps::record_index(to, nth)),
        residual,
    ) else {
        return -1;
    };
    raise_folds(from);
    // SAFETY: map values; the group of `from` is gone and its slot is not yet given back.
    unsafe {
        load::move_averages(record, residual);
        if nth < maps::cpu_count() {
            move_times(record, parents);
        }
    }
    raise_folds(from);
    0
}

/// Raises `Slot::folds` of a slot and of all above it.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn raise_folds(from: u32) -> u32 {
    let mut at = from;
    for _ in 0..MAX_DEPTH {
        let Some(slot) = maps::slot(at) else { break };
        // SAFETY: a map value, whose words are read whole.
        unsafe {
            atomic::step(&raw mut (*slot).folds);
            at = ptr::read_volatile(&raw const (*slot).parent);
        }
        if at == 0 {
            break;
        }
    }
    0
}

/// # Safety
/// `from` is a record of a group that has gone, `to` that of its parent on this CPU.
#[inline(always)]
unsafe fn move_times(from: *mut Record, to: *mut Record) {
    // SAFETY: by contract.
    unsafe {
        (*to).run_ns += take(&raw mut (*from).run_ns);
        (*to).user_ns += take(&raw mut (*from).user_ns);
        (*to).nice_ns += take(&raw mut (*from).nice_ns);
        (*to).system_ns += take(&raw mut (*from).system_ns);
        (*to).run_delay_ns += take(&raw mut (*from).run_delay_ns);
        (*to).switches += take(&raw mut (*from).switches);
        (*to).iowait_folded_ns += take(&raw mut (*from).iowait_folded_ns);
        // Nobody waits in the group any more, so its span is at rest.
        let iowait = take(&raw mut (*from).iowait);
        if iowait & span::RUNNING == 0 {
            (*to).iowait_folded_ns += iowait;
        }
        // A new task's wake-up may interrupt us here.
        atomic::add(&raw mut (*to).forks, take(&raw mut (*from).forks));
    }
}

/// # Safety
/// `word` is one of a map value that nobody else writes now.
#[inline(always)]
unsafe fn take(word: *mut u64) -> u64 {
    // SAFETY: by contract.
    unsafe {
        let value = word.read_volatile();
        word.write_volatile(0);
        value
    }
}
