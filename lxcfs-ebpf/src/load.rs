//! Counts of tasks and their averages.
//!
//! Events count into the record of their own CPU with plain stores: they run with interrupts off.
//! Everyone else (the iterator, cgroup moves) can be interrupted by a wake-up and counts into the
//! slot's shared record under its lock.

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_spin_lock, bpf_spin_unlock};
use lxcfs_abi::word::{self, ALIVE, IOWAIT, RUN, STATE, UNINTERRUPTIBLE, span};
use lxcfs_abi::{BATCH, Record, decay};

use crate::{atomic, maps};

/// Jiffies between two samples: `LOAD_FREQ`, 5 * HZ + 1.
#[unsafe(no_mangle)]
pub(crate) static TICK_JIFFIES: Global<u64> = Global::new(1251);

/// One tick of the kernel's own series, so that ours fall on the same jiffies.
#[unsafe(no_mangle)]
static TICK_PHASE: Global<u64> = Global::new(0);

/// Changes of the three counts.
#[derive(Clone, Copy)]
struct Change {
    running: i32,
    uninterruptible: i32,
    tasks: i32,
}

impl Change {
    #[inline(always)]
    const fn between(old: u64, new: u64) -> Self {
        Self {
            running: word::change(old, new, RUN),
            uninterruptible: word::change(old, new, UNINTERRUPTIBLE),
            tasks: word::change(old, new, ALIVE),
        }
    }
}

/// An event's change of a task's word. Interrupts are off and `cpu` is the current one.
#[inline(always)]
pub(crate) fn change(old: u64, new: u64, cpu: u32) {
    if word::slot(old) == word::slot(new) {
        add_local(word::slot(new), cpu, Change::between(old, new));
    } else {
        change_slot(old, new, cpu);
    }
    if (old | new) & IOWAIT != 0 {
        change_iowait(old, new);
    }
}

/// The rare half of [`change`]: out of one slot, into another.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn change_slot(old: u64, new: u64, cpu: u32) -> u32 {
    if old & STATE != 0 {
        add_local(word::slot(old), cpu, Change::between(old, 0));
    }
    add_local(word::slot(new), cpu, Change::between(0, new));
    0
}

#[inline(always)]
fn add_local(slot: u32, cpu: u32, by: Change) {
    let index = maps::record_index(slot, cpu);
    let Some(record) = maps::record(index) else {
        maps::count!(no_record);
        return;
    };
    let now = maps::jiffies();
    // SAFETY: this CPU's record, interrupts off.
    unsafe {
        if now >= (*record).next_tick_jiffies {
            catch_up_local(index, now);
        }
        add(record, by);
        if beyond((*record).nr_running)
            || beyond((*record).nr_uninterruptible)
            || beyond((*record).nr_tasks)
        {
            transfer(index, slot);
        }
    }
}

/// # Safety
/// `record` is a map value that nobody else writes now.
#[inline(always)]
unsafe fn add(record: *mut Record, by: Change) {
    // SAFETY: by contract.
    unsafe {
        (*record).nr_running += by.running;
        (*record).nr_uninterruptible += by.uninterruptible;
        (*record).nr_tasks += by.tasks;
    }
}

#[inline(always)]
const fn beyond(count: i32) -> bool {
    count.wrapping_add(BATCH) as u32 > 2 * BATCH as u32
}

/// Brings the averages of this CPU's record up to `now`.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn catch_up_local(index: u32, now: u64) -> u32 {
    let Some(record) = maps::record(index) else { return 0 };
    // SAFETY: this CPU's record, interrupts off.
    unsafe {
        atomic::step(&raw mut (*record).sequence);
        catch_up(record, now);
        atomic::step(&raw mut (*record).sequence);
    }
    0
}

/// # Safety
/// `record` is a map value that nobody else writes now.
#[inline(always)]
unsafe fn catch_up(record: *mut Record, now: u64) {
    let period = TICK_JIFFIES.load();
    // SAFETY: by contract.
    unsafe {
        let next = (*record).next_tick_jiffies;
        if next == 0 {
            (*record).next_tick_jiffies = decay::first_tick(now, TICK_PHASE.load(), period);
            return;
        }
        let ticks = decay::ticks_due(now, next, period);
        if ticks == 0 {
            return;
        }
        let active = i64::from((*record).nr_running) + i64::from((*record).nr_uninterruptible);
        let [one, five, fifteen] = decay::EXPONENTS;
        let [a, b, c] = (*record).average;
        // A record at rest, the common case for groups on many CPUs, needs no arithmetic.
        if a | b | c | active != 0 {
            (*record).average = [
                decay::after(a, active, one, ticks),
                decay::after(b, active, five, ticks),
                decay::after(c, active, fifteen, ticks),
            ];
        }
        (*record).next_tick_jiffies = next + ticks * period;
    }
}

/// Moves the averages of a removed group's record into `residual`, its parent's, where they decay.
///
/// # Safety
/// Both are map values that nobody else writes now.
#[inline(always)]
pub(crate) unsafe fn move_averages(record: *mut Record, residual: *mut Record) {
    let now = maps::jiffies();
    // SAFETY: by contract.
    unsafe {
        catch_up(record, now);
        catch_up(residual, now);
        for nth in 0..3 {
            (*residual).average[nth] += (*record).average[nth];
            (*record).average[nth] = 0;
        }
    }
}

// For readers, who change nothing. Functions of their own, of numbers alone: the verifier follows them once, and not each choice
// in them together with each that comes behind.

/// Ticks due at `now` of a record whose first tick not yet in its averages is `next`.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn ticks_due(now: u64, next: u64) -> u64 {
    if next == 0 { 0 } else { decay::ticks_due(now, next, TICK_JIFFIES.load()) }
}

/// One average after `ticks`, of which there is one at least, with `active` tasks at each.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn decayed(average: i64, active: i64, e: u64, ticks: u64) -> i64 {
    decay::after(average, active, e, ticks)
}

/// Moves counts and averages of this CPU's record into the shared one. Averages are linear, so
/// with both caught up to the same tick no sum changes.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn transfer(index: u32, slot: u32) -> u32 {
    let now = maps::jiffies();
    let (Some(record), Some(shared), Some(lock)) =
        (maps::record(index), maps::record(maps::shared_index(slot)), maps::lock(slot))
    else {
        maps::count!(no_record);
        return 0;
    };
    // SAFETY: `record` is this CPU's with interrupts off; `shared` is written under the lock only.
    // Readers of either retry on the shared record's sequence.
    unsafe {
        bpf_spin_lock(&raw mut (*lock).lock);
        atomic::step(&raw mut (*shared).sequence);
        catch_up(record, now);
        catch_up(shared, now);
        let all = Change {
            running: (*record).nr_running,
            uninterruptible: (*record).nr_uninterruptible,
            tasks: (*record).nr_tasks,
        };
        add(shared, all);
        let ([a, b, c], [d, e, f]) = ((*shared).average, (*record).average);
        (*shared).average = [a + d, b + e, c + f];
        // Volatile, or they become a call of memset, and there are no calls under a lock.
        for nth in 0..3 {
            (&raw mut (*record).average).cast::<i64>().add(nth).write_volatile(0);
        }
        (&raw mut (*record).nr_running).write_volatile(0);
        (&raw mut (*record).nr_uninterruptible).write_volatile(0);
        (&raw mut (*record).nr_tasks).write_volatile(0);
        (*record).transfers += 1;
        atomic::step(&raw mut (*shared).sequence);
        bpf_spin_unlock(&raw mut (*lock).lock);
    }
    0
}

/// A change of a task's word outside of its events: from the iterator or a cgroup move.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn change_shared(old: u64, new: u64) -> u32 {
    if word::slot(old) == word::slot(new) {
        add_shared(word::slot(new), old, new);
    } else {
        if old & STATE != 0 {
            add_shared(word::slot(old), old, 0);
        }
        add_shared(word::slot(new), 0, new);
    }
    if (old | new) & IOWAIT != 0 {
        change_iowait(old, new);
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn add_shared(slot: u32, old: u64, new: u64) -> u32 {
    let by = Change::between(old, new);
    let now = maps::jiffies();
    let (Some(shared), Some(lock)) = (maps::record(maps::shared_index(slot)), maps::lock(slot))
    else {
        maps::count!(no_record);
        return 0;
    };
    // SAFETY: written under the slot's lock only.
    unsafe {
        bpf_spin_lock(&raw mut (*lock).lock);
        atomic::step(&raw mut (*shared).sequence);
        catch_up(shared, now);
        add(shared, by);
        atomic::step(&raw mut (*shared).sequence);
        bpf_spin_unlock(&raw mut (*lock).lock);
    }
    0
}

/// I/O wait belongs to the CPU on which the task blocked, whoever wakes it.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn change_iowait(old: u64, new: u64) -> u32 {
    const PLACE: u64 = !STATE | IOWAIT;
    if old & PLACE == new & PLACE {
        return 0;
    }
    if old & IOWAIT != 0 {
        add_iowait(word::slot(old), word::cpu(old), -1);
    }
    if new & IOWAIT != 0 {
        add_iowait(word::slot(new), word::cpu(new), 1);
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn add_iowait(slot: u32, cpu: u32, by: i32) -> u32 {
    let now = maps::monotonic_ns();
    let index = maps::record_index(slot, cpu);
    let (Some(record), Some(lock), Some(place)) =
        (maps::record(index), maps::lock(slot), maps::cpu(cpu))
    else {
        maps::count!(no_record);
        return 0;
    };
    // SAFETY: the two words are written under the slot's lock only; the CPU's idle time is one
    // word, read whole.
    unsafe {
        let idle = span::total(core::ptr::read_volatile(&raw const (*place).idle), now);
        bpf_spin_lock(&raw mut (*lock).lock);
        let waiting = (*record).nr_iowait + by;
        (*record).nr_iowait = waiting;
        (*record).iowait = if waiting > 0 {
            span::start((*record).iowait, idle)
        } else {
            span::stop((*record).iowait, idle)
        };
        bpf_spin_unlock(&raw mut (*lock).lock);
    }
    0
}
