//! The load of a subtree of slots, as the daemon sums it (`bpf/sample.rs`, `bpf/maps.rs`).
//!
//! One step of one loop looks at one record, or goes from one slot to the next: with a loop in a loop the verifier would have to
//! follow each pair.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::generated::bpf_loop;
use lxcfs_abi::{EXTRA_RECORDS, Record};

use crate::{atomic, load, maps};

/// As many steps as the kernel allows: records of some thousand cgroups on hundreds of CPUs.
const MOST_STEPS: u32 = 1 << 23;

/// Looks at a record that its writer overtook, and at a slot whose records were moved into each other. A writer has interrupts
/// off, so one suffices mostly; who starves takes what it has.
const ATTEMPTS: u64 = 16;

/// Walks during which a slot was given back.
const WALKS: u64 = 16;

/// What is summed.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Load {
    /// 1, 5 and 15 minutes, 32 fraction bits.
    pub(crate) average: [i64; 3],
    pub(crate) running: i64,
    pub(crate) threads: i64,
}

/// A walk through a subtree. Whole words, none of them known when it begins, and set back from one that is not known either:
/// numbers that the verifier knows would make every step another one to it, and it would follow them all.
#[repr(C)]
struct Walk {
    /// Of the slots before this one, and with what of this one has been read.
    before: Load,
    sum: Load,
    jiffies: u64,
    zero: u64,
    root: u64,
    /// The slot, and its record that is next.
    at: u64,
    nth: u64,
    /// The slot whose subtree has been read: on to what comes behind it. 0: none.
    left: u64,
    /// The sequence of the slot's shared record when its first one was read.
    sequence: u64,
    attempts: u64,
    /// Where the reader counts, and the same once that was passed.
    own: u64,
    own_seen: u64,
    /// `Ctrl::fold_sequence` when the walk began.
    fold: u64,
    walks_left: u64,
    is_whole: u64,
}

/// The load of the subtree of `root` at `jiffies`, and `own` if that slot is in it, else 0. `None`: it changed too often.
#[inline(always)]
pub(crate) fn load_under(root: u32, jiffies: u64, own: u32) -> Option<(Load, u64)> {
    let zero = u64::from(maps::zero());
    let nothing = nothing(zero);
    let mut walk = Walk {
        before: nothing,
        sum: nothing,
        jiffies,
        zero,
        root: u64::from(root),
        at: u64::from(root),
        nth: zero,
        left: zero,
        sequence: zero,
        attempts: zero,
        own: u64::from(own),
        own_seen: zero,
        fold: maps::fold_sequence(),
        walks_left: zero + WALKS,
        is_whole: 0,
    };
    atomic::barrier();
    // SAFETY: the function has the type of a callback, and the walk outlives the call.
    unsafe { bpf_loop(MOST_STEPS, step as *mut c_void, ptr::from_mut(&mut walk).cast(), 0) };
    (walk.is_whole != 0).then_some((walk.sum, walk.own_seen))
}

#[inline(always)]
const fn nothing(zero: u64) -> Load {
    let zero = zero as i64;
    Load { average: [zero; 3], running: zero, threads: zero }
}

/// One step; 1 ends the walk.
extern "C" fn step(_nth: u64, walk: *mut Walk) -> i64 {
    // SAFETY: the walk that was handed to the helper, and nobody else's.
    let walk = unsafe { &mut *walk };
    if walk.left != 0 {
        return climb(walk);
    }
    let slot = walk.at as u32;
    if walk.nth == u64::from(maps::cpu_count().wrapping_add(EXTRA_RECORDS)) {
        return leave(walk);
    }
    if walk.nth == 0 {
        walk.sequence = sequence(maps::shared_index(slot));
        atomic::barrier();
    }
    let Some(record) = maps::record(maps::record_index(slot, walk.nth as u32)) else { return 1 };
    if add(record, walk) {
        walk.nth += 1;
    } else {
        walk.attempts += 1;
    }
    0
}

/// The slot is read: again, if a transfer came between, or on to its first child.
#[inline(always)]
fn leave(walk: &mut Walk) -> i64 {
    let index = walk.at as u32;
    atomic::barrier();
    let now = sequence(maps::shared_index(index));
    walk.nth = walk.zero;
    if (now != walk.sequence || now & 1 != 0) && walk.attempts < ATTEMPTS {
        walk.attempts += 1;
        walk.sum = walk.before;
        return 0;
    }
    walk.attempts = walk.zero;
    walk.before = walk.sum;
    if walk.at == walk.own {
        walk.own_seen = walk.own;
    }
    let Some(slot) = maps::slot(index) else { return 1 };
    // SAFETY: a map value, whose word is read whole.
    match unsafe { ptr::read_volatile(&raw const (*slot).first_child) } {
        0 => walk.left = walk.at,
        child => walk.at = u64::from(child),
    }
    0
}

/// To the next sibling, else to the parent and its.
#[inline(always)]
fn climb(walk: &mut Walk) -> i64 {
    if walk.left == walk.root {
        return end(walk);
    }
    let Some(slot) = maps::slot(walk.left as u32) else { return 1 };
    // SAFETY: a map value, whose words are read whole.
    let (sibling, parent) = unsafe {
        (
            ptr::read_volatile(&raw const (*slot).next_sibling),
            ptr::read_volatile(&raw const (*slot).parent),
        )
    };
    if sibling == 0 {
        walk.left = u64::from(parent);
        return i64::from(parent == 0);
    }
    walk.at = u64::from(sibling);
    walk.left = walk.zero;
    0
}

/// All is read: once more from the beginning, if a slot was given back meanwhile.
#[inline(always)]
fn end(walk: &mut Walk) -> i64 {
    atomic::barrier();
    let fold = maps::fold_sequence();
    if fold == walk.fold && fold & 1 == 0 {
        walk.is_whole = 1;
        return 1;
    }
    walk.walks_left = walk.walks_left.wrapping_sub(1);
    walk.fold = fold;
    walk.at = walk.root;
    walk.left = walk.zero;
    walk.own_seen = walk.zero;
    walk.sum = nothing(walk.zero);
    walk.before = walk.sum;
    i64::from(walk.walks_left == 0)
}

#[inline(always)]
fn sequence(index: u32) -> u64 {
    let Some(record) = maps::record(index) else { return 0 };
    // SAFETY: a map value, whose word is read whole.
    u64::from(unsafe { ptr::read_volatile(&raw const (*record).sequence) })
}

/// Adds a record. `false`: its writer was faster, and nothing is added.
#[inline(always)]
fn add(record: *mut Record, walk: &mut Walk) -> bool {
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
        if (before != after || before & 1 != 0) && walk.attempts < ATTEMPTS {
            return false;
        }
        let [a, b, c] = load::averages_at(walk.jiffies, next, average, running + blocked);
        let [x, y, z] = walk.sum.average;
        walk.sum.average = [x + a, y + b, z + c];
        walk.sum.running += running;
        walk.sum.threads += threads;
    }
    true
}
