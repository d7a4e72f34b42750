//! Sums over a subtree of slots, as the daemon makes them (`bpf/sample.rs`, `bpf/maps.rs`).
//!
//! One step of one loop looks at one record, or goes from one slot to the next: with a loop in a loop the verifier would have to
//! follow each pair.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::generated::bpf_loop;
use lxcfs_abi::{EXTRA_RECORDS, Record, decay};

use crate::maps::zero;
use crate::{atomic, load, maps};

/// As many steps as the kernel allows: records of some thousand cgroups on hundreds of CPUs; and all the time there is to wait for
/// who changes one. Those cannot be interrupted, but their CPU may be a virtual one that stands still for a while.
const MOST_STEPS: u32 = 1 << 23;

/// Records of which only a time is wanted are added together.
const AT_ONCE: u32 = 8;

/// Numbers that are counted stay below this: of one that grows with every step the verifier would see no end.
const MASK: u64 = 0xffff;

/// What is summed.
trait Sum: Sized {
    /// All of it zero, of which the verifier knows nothing.
    fn nothing() -> Self;

    /// How many records of a slot there are to add.
    fn records() -> u32;

    /// Adds the record with that index, and may be some behind it. 1 ends the walk.
    fn add(index: u32, walk: &mut Walk<Self>) -> i64;
}

/// The load.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Load {
    /// 1, 5 and 15 minutes, 32 fraction bits.
    pub(crate) average: [i64; 3],
    pub(crate) running: i64,
    pub(crate) threads: i64,
}

/// A walk through a subtree. Whole words, each of which is of a number that the verifier does not know and finds nowhere else:
/// one that it knows, or one that two words share, would make every step another one to it, and it would follow them all.
#[repr(C)]
struct Walk<S> {
    sum: S,
    jiffies: u64,
    root: u64,
    /// The slot, and its record that is next.
    at: u64,
    nth: u64,
    /// Not 0: the subtree of `at` has been read, on to what comes behind it.
    climbs: u64,
    /// The sequence of the slot's shared record when its first one was read.
    sequence: u64,
    /// Where the reader counts, and whether that was passed.
    own: u64,
    own_seen: u64,
    /// `Slot::folds` of the root when the walk began.
    folds: u64,
    is_whole: u64,
}

/// The load of the subtree of `root` at `jiffies`, and not 0 if the slot `own` is in it. `None`: it changed too often.
#[inline(always)]
pub(crate) fn load_under(root: u32, jiffies: u64, own: u32) -> Option<(Load, u64)> {
    let walk = walk::<Load>(root, jiffies, own)?;
    Some((walk.sum, walk.own_seen))
}

/// CPU time charged in the subtree of `root` since the programs count, nanoseconds. `None`: it changed too often.
#[inline(always)]
pub(crate) fn charged_ns_under(root: u32) -> Option<u64> {
    Some(walk::<Charged>(root, 0, lxcfs_abi::OVERFLOW_SLOT)?.sum.run_ns)
}

#[inline(always)]
fn walk<S: Sum>(root: u32, jiffies: u64, own: u32) -> Option<Walk<S>> {
    let (root, own) = (u64::from(root), u64::from(own));
    let mut walk = Walk {
        sum: S::nothing(),
        jiffies,
        root,
        at: root.wrapping_add(zero()),
        nth: zero(),
        climbs: zero(),
        sequence: zero(),
        own,
        own_seen: zero(),
        folds: maps::folds(root as u32),
        is_whole: 0,
    };
    atomic::barrier();
    // SAFETY: the function has the type of a callback, and the walk outlives the call.
    unsafe { bpf_loop(MOST_STEPS, step::<S> as *mut c_void, ptr::from_mut(&mut walk).cast(), 0) };
    (walk.is_whole != 0).then_some(walk)
}

/// One step; 1 ends the walk.
extern "C" fn step<S: Sum>(_nth: u64, walk: *mut Walk<S>) -> i64 {
    // SAFETY: the walk that was handed to the helper, and nobody else's.
    let walk = unsafe { &mut *walk };
    if walk.climbs != 0 {
        return climb(walk);
    }
    let slot = walk.at as u32;
    if walk.nth >= u64::from(S::records()) {
        return leave(walk);
    }
    if walk.nth == 0 {
        walk.sequence = sequence(maps::shared_index(slot));
        atomic::barrier();
    }
    S::add(maps::record_index(slot, walk.nth as u32), walk)
}

/// The slot is read: on to its first child.
#[inline(always)]
fn leave<S: Sum>(walk: &mut Walk<S>) -> i64 {
    let index = walk.at as u32;
    atomic::barrier();
    let now = sequence(maps::shared_index(index));
    if now != walk.sequence || now & 1 != 0 {
        return again(walk);
    }
    walk.nth = zero();
    if walk.at == walk.own {
        walk.own_seen = zero() | 1;
    }
    let Some(slot) = maps::slot(index) else { return 1 };
    // SAFETY: a map value, whose word is read whole.
    match unsafe { ptr::read_volatile(&raw const (*slot).first_child) } {
        0 => walk.climbs = zero() | 1,
        child => walk.at = u64::from(child),
    }
    0
}

/// To the next sibling, else to the parent and its.
#[inline(always)]
fn climb<S: Sum>(walk: &mut Walk<S>) -> i64 {
    if walk.at == walk.root {
        atomic::barrier();
        let folds = maps::folds(walk.root as u32);
        if folds != walk.folds || folds & 1 != 0 {
            return again(walk);
        }
        walk.is_whole = 1;
        return 1;
    }
    let Some(slot) = maps::slot(walk.at as u32) else { return 1 };
    // SAFETY: a map value, whose words are read whole.
    let (sibling, parent) = unsafe {
        (
            ptr::read_volatile(&raw const (*slot).next_sibling),
            ptr::read_volatile(&raw const (*slot).parent),
        )
    };
    if sibling == 0 {
        walk.at = u64::from(parent);
        return i64::from(parent == 0);
    }
    walk.at = u64::from(sibling);
    walk.climbs = zero();
    0
}

/// Once more from the beginning: records were moved into each other, or a slot was given back meanwhile.
#[inline(always)]
fn again<S: Sum>(walk: &mut Walk<S>) -> i64 {
    walk.sum = S::nothing();
    walk.at = walk.root.wrapping_add(zero());
    walk.nth = zero();
    walk.climbs = zero();
    walk.own_seen = zero();
    walk.folds = maps::folds(walk.root as u32);
    atomic::barrier();
    0
}

#[inline(always)]
fn sequence(index: u32) -> u64 {
    let Some(record) = maps::record(index) else { return 0 };
    // SAFETY: a map value, whose word is read whole.
    u64::from(unsafe { ptr::read_volatile(&raw const (*record).sequence) })
}

impl Sum for Load {
    #[inline(always)]
    fn nothing() -> Self {
        let zero = || zero() as i64;
        Self { average: [zero(), zero(), zero()], running: zero(), threads: zero() }
    }

    #[inline(always)]
    fn records() -> u32 {
        maps::cpu_count().wrapping_add(EXTRA_RECORDS)
    }

    #[inline(always)]
    fn add(index: u32, walk: &mut Walk<Self>) -> i64 {
        let Some(record) = maps::record(index) else { return 1 };
        if Self::add_record(record, walk) {
            walk.nth = walk.nth.wrapping_add(1) & MASK;
        }
        0
    }
}

impl Load {
    /// `false`: the record's writer was faster, and nothing is added.
    #[inline(always)]
    fn add_record(record: *mut Record, walk: &mut Walk<Self>) -> bool {
        // SAFETY: a map value, whose words are read whole; the sequence tells whether they belong together.
        unsafe {
            let before = ptr::read_volatile(&raw const (*record).sequence);
            atomic::barrier();
            let next = ptr::read_volatile(&raw const (*record).next_tick_jiffies);
            let average = ptr::read_volatile(&raw const (*record).average);
            let running = i64::from(ptr::read_volatile(&raw const (*record).nr_running));
            let blocked = i64::from(ptr::read_volatile(&raw const (*record).nr_uninterruptible));
            let threads = i64::from(ptr::read_volatile(&raw const (*record).nr_tasks));
            atomic::barrier();
            let after = ptr::read_volatile(&raw const (*record).sequence);
            if before != after || before & 1 != 0 {
                return false;
            }
            // What is rare is left to functions.
            let (ticks, active) = (load::ticks_due(walk.jiffies, next), running + blocked);
            let ([mut a, mut b, mut c], [x, y, z]) = (average, walk.sum.average);
            if ticks != 0 && a | b | c | active != 0 {
                let [one, five, fifteen] = decay::EXPONENTS;
                a = load::decayed(a, active, one, ticks);
                b = load::decayed(b, active, five, ticks);
                c = load::decayed(c, active, fifteen, ticks);
            }
            walk.sum.average = [x + a, y + b, z + c];
            walk.sum.running += running;
            walk.sum.threads += threads;
        }
        true
    }
}

/// CPU time.
#[repr(C)]
struct Charged {
    run_ns: u64,
}

impl Sum for Charged {
    #[inline(always)]
    fn nothing() -> Self {
        Self { run_ns: zero() }
    }

    /// Times are counted by CPU.
    #[inline(always)]
    fn records() -> u32 {
        maps::cpu_count()
    }

    #[inline(always)]
    fn add(index: u32, walk: &mut Walk<Self>) -> i64 {
        for nth in 0..AT_ONCE {
            if walk.nth.wrapping_add(u64::from(nth)) >= u64::from(Self::records()) {
                break;
            }
            let Some(record) = maps::record(index.wrapping_add(nth)) else { return 1 };
            // SAFETY: a map value, whose word is read whole.
            let run_ns = unsafe { ptr::read_volatile(&raw const (*record).run_ns) };
            walk.sum.run_ns = walk.sum.run_ns.wrapping_add(run_ns);
        }
        walk.nth = walk.nth.wrapping_add(u64::from(AT_ONCE)) & MASK;
        0
    }
}
