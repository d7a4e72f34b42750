//! Giving back the slots of removed cgroups, and repair.
//!
//! A removed group's averages live on in its parent (they decay there), its times are added to the
//! parent's on the same CPU: a container's numbers do not jump when a group in it goes.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::maps::{MapData, Stack};
use lxcfs_abi::word::span;
use lxcfs_abi::{EXTRA_RECORDS, Record, Slot};

use super::clock::{Clock, monotonic_ns};
use super::maps::{Maps, slot_half, slot_word};
use super::support::Barrier;
use super::sys;

/// A group removed this long ago whose counts are zero has no task on its way out either; its
/// release may be far away (v2 keeps a removed group while memory is charged to it).
const AT_REST_NS: u64 = 200_000_000;

/// What the folding needs beside the maps.
pub(crate) struct Folder {
    pub(crate) fold: OwnedFd,
    pub(crate) free: Stack<MapData, u32>,
    pub(crate) barrier: Barrier,
}

/// What one pass over the slots did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Slots given back.
    pub returned: u32,
    /// Slots of removed groups that are not at rest yet: ask again in a second.
    pub waiting: u32,
}

impl Folder {
    /// Gives back every slot that no task refers to any more.
    ///
    /// First nobody may find the slot: it leaves the map, and a new generation voids what tasks
    /// remember. When all programs that ran then have ended, the counts cannot rise any more; if
    /// they are zero, no task's word names the slot, as each count is a sum over words.
    pub(crate) fn reap(&mut self, maps: &Maps, clock: &Clock) -> io::Result<Reaped> {
        let (ready, young) = candidates(maps, clock);
        let mut reaped = Reaped { waiting: young, ..Reaped::default() };
        if ready.is_empty() {
            return Ok(reaped);
        }
        for slot in &ready {
            forget(maps, *slot)?;
        }
        maps.generation().fetch_add(1, Ordering::SeqCst);
        match self.barrier {
            Barrier::Membarrier => sys::membarrier()?,
            Barrier::Sleep => std::thread::sleep(Duration::from_secs(1)),
        }
        let mut left = ready;
        // A parent can go when its children have gone.
        loop {
            let before = left.len();
            let mut still = Vec::new();
            for slot in left {
                let childless = slot_half!(maps, slot, first_child).load(Ordering::Acquire) == 0;
                if childless && at_rest(maps, slot, clock) {
                    self.give_back(maps, slot)?;
                    reaped.returned += 1;
                } else {
                    still.push(slot);
                }
            }
            left = still;
            if left.is_empty() || left.len() == before {
                break;
            }
        }
        reaped.waiting += u32::try_from(left.len()).unwrap_or(u32::MAX);
        Ok(reaped)
    }

    fn give_back(&mut self, maps: &Maps, slot: u32) -> io::Result<()> {
        let parent = slot_half!(maps, slot, parent).load(Ordering::Acquire);
        self.fold(maps, slot, parent)?;
        unlink(maps, slot, parent);
        // Nobody finds the slot any more, and who is on the way through it is told before it is another group's.
        disturb(maps, slot);
        clear(maps, slot);
        self.free.push(slot, 0).map_err(io::Error::other)
    }

    /// Moves all numbers of `slot` to its parent, one record after the other, so that nobody ever waits for us: we may be kept from our
    /// CPU, or killed.
    fn fold(&self, maps: &Maps, slot: u32, parent: u32) -> io::Result<()> {
        for nth in 0..maps.cpu_count() + EXTRA_RECORDS {
            let index = maps.record_index(slot, nth);
            let arguments = [slot, parent, nth].map(u64::from);
            if nth < maps.cpu_count() && has_times(maps, index) {
                // On the CPU itself, so that nobody else adds to its times meanwhile; one that is offline adds nothing, so that any
                // will do.
                let run = sys::test_run(self.fold.as_fd(), &arguments, Some(nth));
                run.or_else(|_| sys::test_run(self.fold.as_fd(), &arguments, None))?;
            } else if maps.load_record(index).average != [0; 3] {
                sys::test_run(self.fold.as_fd(), &arguments, None)?;
            }
        }
        Ok(())
    }
}

/// Slots of removed groups: those that can go, and how many are too young to say.
fn candidates(maps: &Maps, clock: &Clock) -> (Vec<u32>, u32) {
    let now = monotonic_ns();
    let (mut ready, mut young) = (Vec::new(), 0);
    for slot in 1..maps.slots.len() {
        let removed_ns = slot_word!(maps, slot, removed_ns).load(Ordering::Acquire);
        if removed_ns == 0 || slot_word!(maps, slot, cgroup_id).load(Ordering::Acquire) == 0 {
            continue;
        }
        let released = slot_word!(maps, slot, released_ns).load(Ordering::Acquire) != 0;
        let old = now.saturating_sub(removed_ns) > AT_REST_NS;
        if released || (old && at_rest(maps, slot, clock)) {
            ready.push(slot);
        } else {
            young += 1;
        }
    }
    (ready, young)
}

/// No task of the group is counted.
fn at_rest(maps: &Maps, slot: u32, clock: &Clock) -> bool {
    let mut sum = super::sample::LoadSample::default();
    maps.add_load(slot, clock.jiffies, clock, &mut sum);
    let counts = [sum.nr_running, sum.nr_uninterruptible, sum.nr_iowait, sum.nr_tasks];
    counts == [0; 4]
}

/// Takes the slot out of the map of cgroup ids, unless the id has another slot by now.
fn forget(maps: &Maps, slot: u32) -> io::Result<()> {
    let id = slot_word!(maps, slot, cgroup_id).load(Ordering::Acquire);
    if maps.slot_of(id)? == Some(slot) {
        sys::delete(maps.slot_of.as_fd(), &id)?;
        sys::delete(maps.earlier.as_fd(), &id)?;
    }
    Ok(())
}

/// Takes `slot` out of its parent's list. Programs only push at the head, and only we remove.
fn unlink(maps: &Maps, slot: u32, parent: u32) {
    let next = slot_half!(maps, slot, next_sibling).load(Ordering::Acquire);
    let head = slot_half!(maps, parent, first_child);
    if head.compare_exchange(slot, next, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
        return;
    }
    let mut at = head.load(Ordering::Acquire);
    for _ in 0..maps.slots.len() {
        if at == 0 {
            return;
        }
        let link = slot_half!(maps, at, next_sibling);
        at = link.load(Ordering::Acquire);
        if at == slot {
            link.store(next, Ordering::Release);
            return;
        }
    }
}

/// Has whoever sums a subtree with `slot` in it begin anew.
fn disturb(maps: &Maps, slot: u32) {
    let mut at = slot;
    for _ in 0..maps.slots.len() {
        slot_half!(maps, at, folds).fetch_add(2, Ordering::SeqCst);
        at = slot_half!(maps, at, parent).load(Ordering::Acquire);
        if at == 0 {
            return;
        }
    }
}

/// Leaves the slot as a fresh one, but for what tells others that it is one.
fn clear(maps: &Maps, slot: u32) {
    for nth in 0..maps.cpu_count() + EXTRA_RECORDS {
        let index = maps.record_index(slot, nth);
        for offset in (8..size_of::<Record>()).step_by(8) {
            maps.records.word(index, offset).store(0, Ordering::Relaxed);
        }
    }
    for offset in (0..size_of::<lxcfs_abi::Idle>()).step_by(8) {
        maps.idles.word(slot, offset).store(0, Ordering::Relaxed);
    }
    let kept = offset_of!(Slot, folds);
    for offset in (0..size_of::<Slot>()).step_by(4).filter(|offset| *offset != kept) {
        maps.slots.half(slot, offset).store(0, Ordering::Release);
    }
}

fn has_times(maps: &Maps, index: u32) -> bool {
    let word = |offset| maps.records.word(index, offset).load(Ordering::Relaxed);
    let times = offset_of!(Record, run_ns)..size_of::<Record>();
    let iowait = word(offset_of!(Record, iowait)) & !span::RUNNING;
    iowait != 0
        || word(offset_of!(Record, iowait_folded_ns)) != 0
        || times.step_by(8).any(|offset| word(offset) != 0)
}

#[cfg(test)]
mod tests {
    use super::super::maps::tests::{link, maps, subtree};
    use super::*;

    #[test]
    fn a_slot_leaves_the_list_from_any_place() {
        for gone in [2, 3, 4] {
            let maps = maps(8, 2);
            for child in [2, 3, 4] {
                link(&maps, child, 1);
            }
            unlink(&maps, gone, 1);
            clear(&maps, gone);
            let mut left = subtree(&maps, 1);
            left.sort_unstable();
            let expected: Vec<_> = (1..=4).filter(|slot| *slot != gone).collect();
            assert_eq!(left, expected);
        }
    }

    #[test]
    fn who_sums_a_slot_or_one_above_it_is_told() {
        let maps = maps(8, 2);
        for (child, parent) in [(2, 1), (3, 2), (4, 2), (5, 3)] {
            link(&maps, child, parent);
        }
        disturb(&maps, 3);
        clear(&maps, 3);
        assert_eq!([1, 2, 3, 4, 5].map(|slot| maps.folds(slot)), [2, 2, 2, 0, 0]);
        assert_eq!(slot_half!(maps, 3, parent).load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_cleared_slot_is_a_fresh_one_but_for_its_sequence() {
        let maps = maps(4, 2);
        let index = maps.record_index(1, 0);
        for offset in (0..size_of::<Record>()).step_by(8) {
            maps.records.word(index, offset).store(7, Ordering::SeqCst);
        }
        assert!(has_times(&maps, index));
        clear(&maps, 1);
        assert!(!has_times(&maps, index));
        assert_eq!(maps.records.word(index, 0).load(Ordering::SeqCst), 7);
        assert_eq!(maps.load_record(index).average, [0; 3]);
    }
}
