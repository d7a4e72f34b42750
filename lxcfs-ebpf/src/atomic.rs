//! Atomic instructions of BPF: those with a result are full barriers.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};

use aya_ebpf::Global;

/// Adds to a counter that several CPUs write, and returns what it was.
///
/// # Safety
/// `counter` points into a map.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller passes a map value; map values are aligned to their type.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(counter, value) }
}

/// Raises a sequence number; the barrier orders what is written before and after it.
///
/// # Safety
/// `sequence` points into a map.
#[inline(always)]
pub(crate) unsafe fn step(sequence: *mut u32) -> u32 {
    // SAFETY: as above.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::AcqRel }>(sequence, 1) }
}

/// # Safety
/// `word` points into a map.
#[inline(always)]
pub(crate) unsafe fn swap(word: *mut u64, value: u64) -> u64 {
    // SAFETY: as above.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::AcqRel }>(word, value) }
}

/// # Safety
/// `word` points into a map.
#[inline(always)]
pub(crate) unsafe fn swap32(word: *mut u32, value: u32) -> u32 {
    // SAFETY: as above.
    unsafe { atomic_xchg::<u32, { AtomicOrdering::AcqRel }>(word, value) }
}

/// Whether `word` was `old` and is `new` now.
///
/// # Safety
/// `word` points into a map.
#[inline(always)]
pub(crate) unsafe fn replace(word: *mut u64, old: u64, new: u64) -> bool {
    const ORDER: AtomicOrdering = AtomicOrdering::AcqRel;
    // SAFETY: as above.
    unsafe { atomic_cxchg::<u64, ORDER, { AtomicOrdering::Acquire }>(word, old, new).1 }
}

/// As [`replace`].
///
/// # Safety
/// `word` points into a map.
#[inline(always)]
pub(crate) unsafe fn replace32(word: *mut u32, old: u32, new: u32) -> bool {
    const ORDER: AtomicOrdering = AtomicOrdering::AcqRel;
    // SAFETY: as above.
    unsafe { atomic_cxchg::<u32, ORDER, { AtomicOrdering::Acquire }>(word, old, new).1 }
}

/// 1 where the machine orders loads by itself.
#[unsafe(no_mangle)]
static LOADS_ARE_ORDERED: Global<u32> = Global::new(0);

/// Orders the loads before it against those behind it. There is no such instruction; one that reads, changes and writes, of a
/// word that nobody else knows, is one.
#[inline(always)]
pub(crate) fn barrier() {
    if LOADS_ARE_ORDERED.load() != 0 {
        return;
    }
    let mut word = 0;
    // SAFETY: a word of our own stack.
    unsafe {
        let _ = atomic_xchg::<u64, { AtomicOrdering::AcqRel }>(&raw mut word, 1);
    }
}
