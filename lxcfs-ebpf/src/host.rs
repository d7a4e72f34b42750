//! What the kernel itself counts by CPU, for readers on the host: in its run queues, and beside them.

use core::arch::asm;
use core::ffi::c_void;
use core::ptr;

use aya_ebpf::Global;
use aya_ebpf::bindings::task_struct;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_map_lookup_percpu_elem};
use aya_ebpf::macros::btf_map;

use crate::kernel::{self, follow, follow_field, follow_u32};
use crate::maps::{self, zero};

/// A word of each CPU's, by which the CPUs' parts of the kernel's memory are told apart: what one CPU has at some place, another has
/// as far from that as their words are from each other.
#[btf_map]
static WORDS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// From a CPU's run queue to where its idle time is; signed. 0: it is not known where.
#[unsafe(no_mangle)]
static IDLE_BEHIND_QUEUE: Global<u32> = Global::new(0);

/// Looks at the CPUs, at one again for as long as it changes its idle time: it may be a virtual one that stands still for a while.
const MOST_STEPS: u32 = 1 << 20;

/// Of all CPUs.
#[repr(C)]
struct Sum {
    /// The address of our own CPU's run queue.
    own_queue: u64,
    now_ns: u64,
    /// The CPU that is next.
    cpu: u64,
    sum: u64,
    is_known: u64,
}

/// How many tasks run, as `nr_running()` of the kernel has it, who asks among them. `None`: it is not known.
///
/// # Safety
/// `current` is the current task.
#[inline(always)]
pub(crate) unsafe fn running(current: *const task_struct) -> Option<u64> {
    // SAFETY: by contract.
    unsafe { sum(current, add_running as *mut c_void) }
}

/// The host's idle time, nanoseconds, as `get_idle_time()` of the kernel has it (fs/proc/stat.c). `None`: it is not known.
///
/// # Safety
/// As [`running`].
#[inline(always)]
pub(crate) unsafe fn idle_ns(current: *const task_struct) -> Option<u64> {
    if IDLE_BEHIND_QUEUE.load() == 0 {
        return None;
    }
    // SAFETY: by contract.
    unsafe { sum(current, add_idle as *mut c_void) }
}

/// # Safety
/// `add` is a callback for a [`Sum`]; and as [`running`].
#[inline(always)]
unsafe fn sum(current: *const task_struct, add: *mut c_void) -> Option<u64> {
    if kernel::O_QUEUE_RQ.load() == 0 {
        return None;
    }
    // SAFETY: by contract; the task is in a queue of the CPU it runs on, which stays the same one while a program runs.
    let own_queue =
        unsafe { follow(kernel::address(current, &kernel::O_TASK_QUEUE), &kernel::O_QUEUE_RQ) };
    let now_ns = maps::monotonic_ns();
    let mut sum = Sum { own_queue, now_ns, cpu: zero(), sum: zero(), is_known: 0 };
    // SAFETY: what is added to outlives the call.
    unsafe { bpf_loop(MOST_STEPS, add, ptr::from_mut(&mut sum).cast(), 0) };
    (own_queue != 0 && sum.is_known != 0).then_some(sum.sum)
}

/// The address of a CPU's run queue.
#[inline(always)]
fn queue(cpu: u64, own_queue: u64) -> Option<u64> {
    let own = WORDS.get_ptr(0)?;
    let map = ptr::from_ref(&WORDS).cast_mut().cast();
    // SAFETY: a map, and the key of its one element.
    let its = unsafe { bpf_map_lookup_percpu_elem(map, (&raw const FIRST).cast(), cpu as u32) };
    if its.is_null() {
        return None;
    }
    let mut distance = (its as u64).wrapping_sub(own as u64);
    // SAFETY: an instruction that changes nothing. Without any, the compiler might take the one address from what the other is added
    // to, and that is no number to the verifier.
    unsafe { asm!("{0} += 0", inout(reg) distance) };
    Some(own_queue.wrapping_add(distance))
}

static FIRST: u32 = 0;

/// One step: adds what `of` has of the next CPU. 1 ends the walk.
#[inline(always)]
fn step(sum: &mut Sum, of: impl Fn(u64, u64) -> u64) -> i64 {
    if sum.cpu >= u64::from(maps::cpu_count()) {
        sum.is_known = 1;
        return 1;
    }
    let Some(queue) = queue(sum.cpu, sum.own_queue) else { return 1 };
    match of(queue, sum.now_ns) {
        UNKNOWN => return 1,
        CHANGING => return 0,
        more => sum.sum = sum.sum.wrapping_add(more),
    }
    sum.cpu = sum.cpu.wrapping_add(1) & MASK;
    0
}

/// Numbers of CPUs stay below this: of one that grows with every step the verifier would see no end.
const MASK: u64 = 0xffff;

extern "C" fn add_running(_nth: u64, sum: *mut Sum) -> i64 {
    // SAFETY: what was handed to the helper, and nobody else's.
    let sum = unsafe { &mut *sum };
    step(sum, |queue, _| u64::from(follow_u32(queue, u64::from(kernel::O_RQ_NR_RUNNING.load()))))
}

extern "C" fn add_idle(_nth: u64, sum: *mut Sum) -> i64 {
    // SAFETY: as above.
    let sum = unsafe { &mut *sum };
    step(sum, |queue, now_ns| idle_at(queue, now_ns))
}

const UNKNOWN: u64 = u64::MAX;
const CHANGING: u64 = u64::MAX - 1;

/// Idle time of the CPU with that run queue: what it was when that CPU was last idle, and since when it is now. Time in which a task
/// waits for I/O is not idle.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn idle_at(queue: u64, now_ns: u64) -> u64 {
    let at = queue.wrapping_add(IDLE_BEHIND_QUEUE.load() as i32 as i64 as u64);
    let sequence = follow_field(at, &kernel::F_IDLE_SEQUENCE);
    let idle_ns = follow(at, &kernel::O_IDLE_TIME);
    let since_ns = follow(at, &kernel::O_IDLE_ENTRY);
    let is_idle = follow_field(at, &kernel::F_IDLE_ACTIVE) != 0;
    let waiting = follow_u32(queue, u64::from(kernel::O_RQ_NR_IOWAIT.load()));
    if follow_field(at, &kernel::F_IDLE_SEQUENCE) != sequence || sequence & 1 != 0 {
        return CHANGING;
    }
    if follow_field(queue, &kernel::F_RQ_ONLINE) == 0 {
        // The kernel tells another one of its counts for a CPU that was taken away.
        return if idle_ns == 0 { 0 } else { UNKNOWN };
    }
    let more_ns = if is_idle && waiting == 0 { now_ns.saturating_sub(since_ns) } else { 0 };
    idle_ns.wrapping_add(more_ns)
}
