//! From a cgroup to its slot. Slots are taken when a group's first event comes: no hook on mkdir,
//! no walk of directories at the start, no race between the two.

use core::ptr;

use aya_ebpf::bindings::BPF_NOEXIST;
use lxcfs_abi::{MAX_DEPTH, OVERFLOW_SLOT, Slot};

use crate::{atomic, kernel, maps, report};

/// Set in the result of [`claim`] if the slot was taken just now.
const FRESH: u64 = 1 << 32;

/// Attempts to put a slot at the head of its parent's list against other CPUs.
const LINK_ATTEMPTS: u32 = 32;

/// The slot of a css_set's cgroup; the overflow slot if there is none to be had.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn resolve(css_set: u64) -> u32 {
    maps::count!(resolves);
    let cgroup = kernel::cgroup_of(css_set);
    let id = kernel::cgroup_id(cgroup);
    if id == 0 {
        maps::count!(no_slot);
        return OVERFLOW_SLOT;
    }
    // SAFETY: the value is copied; an entry deleted meanwhile belongs to a dead group.
    if let Some(slot) = unsafe { maps::SLOT_OF.get(id) } {
        return *slot;
    }
    take(cgroup)
}

/// Takes a slot for `cgroup` and for each ancestor that has none, and links them.
#[inline(always)]
fn take(mut cgroup: u64) -> u32 {
    let mut leaf = OVERFLOW_SLOT;
    let mut child = OVERFLOW_SLOT;
    for _ in 0..MAX_DEPTH {
        let claimed = claim(kernel::cgroup_id(cgroup));
        let slot = claimed as u32;
        if slot == OVERFLOW_SLOT {
            return leaf;
        }
        if leaf == OVERFLOW_SLOT {
            leaf = slot;
        }
        if child != OVERFLOW_SLOT {
            link(child, slot);
        }
        // Whoever took the known one links it further up.
        if claimed & FRESH == 0 {
            return leaf;
        }
        child = slot;
        cgroup = kernel::cgroup_parent(cgroup);
        if cgroup == 0 {
            return leaf;
        }
    }
    maps::count!(too_deep);
    leaf
}

/// The slot of a cgroup id, taken from the free ones if it has none.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn claim(id: u64) -> u64 {
    // SAFETY: as in `resolve`.
    if let Some(slot) = unsafe { maps::SLOT_OF.get(id) } {
        return u64::from(*slot);
    }
    let Ok(Some(index)) = maps::FREE.pop() else {
        if maps::count!(no_slot) {
            report::report_no_slot(id);
            maps::notify();
        }
        return u64::from(OVERFLOW_SLOT);
    };
    let Some(slot) = maps::slot(index) else { return u64::from(OVERFLOW_SLOT) };
    let created_ns = maps::monotonic_ns();
    // SAFETY: a map value that nobody else has: it came from the free stack.
    unsafe {
        let folds = ptr::read_volatile(&raw const (*slot).folds);
        *slot = Slot { cgroup_id: id, created_ns, folds, ..EMPTY };
    }
    if maps::SLOT_OF.insert(id, index, u64::from(BPF_NOEXIST)).is_ok() {
        maps::count!(allocations);
        return u64::from(index) | FRESH;
    }
    // Another CPU was first.
    // SAFETY: still ours alone.
    unsafe { (*slot).cgroup_id = 0 };
    let _ = maps::FREE.push(index, 0);
    // SAFETY: as above.
    unsafe { maps::SLOT_OF.get(id) }.map_or(u64::from(OVERFLOW_SLOT), |slot| u64::from(*slot))
}

const EMPTY: Slot = Slot {
    cgroup_id: 0,
    removed_ns: 0,
    released_ns: 0,
    created_ns: 0,
    parent: 0,
    first_child: 0,
    next_sibling: 0,
    folds: 0,
    padding: [0; 4],
};

/// Puts `child` at the head of `parent`'s list.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn link(child: u32, parent: u32) -> u32 {
    let (Some(below), Some(above)) = (maps::slot(child), maps::slot(parent)) else { return 0 };
    // SAFETY: map values; `below` is new and in no list yet.
    unsafe {
        (*below).parent = parent;
        for _ in 0..LINK_ATTEMPTS {
            let head = ptr::read_volatile(&raw const (*above).first_child);
            ptr::write_volatile(&raw mut (*below).next_sibling, head);
            if atomic::replace32(&raw mut (*above).first_child, head, child) {
                return 1;
            }
        }
    }
    if maps::count!(unlinked) {
        report::report_unlinked(child);
        maps::notify();
    }
    0
}
