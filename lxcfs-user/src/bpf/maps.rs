//! The programs' maps as user space sees them: memory, and a few descriptors.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use lxcfs_abi::{Cpu, Ctrl, EXTRA_RECORDS, Idle, Record, Slot};

use super::kept::Kept;
use super::mapping::Mapping;
use super::sys;

/// What is read at every sample. Only maintenance writes here, and says where.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) ctrl: Mapping<Ctrl>,
    pub(crate) slots: Mapping<Slot>,
    pub(crate) records: Mapping<Record>,
    /// By slot.
    pub(crate) idles: Mapping<Idle>,
    pub(crate) cpus: Mapping<Cpu>,
    /// Cgroup id -> slot.
    pub(crate) slot_of: OwnedFd,
    /// Cgroup id -> what was before the programs.
    pub(crate) earlier: OwnedFd,
    /// Task (by pidfd) -> its entry.
    pub(crate) tasks: OwnedFd,
}

/// A counter or a switch of the control map.
macro_rules! ctrl_word {
    ($maps:expr, $field:ident) => {
        $maps.ctrl.word(0, std::mem::offset_of!(lxcfs_abi::Ctrl, $field))
    };
}
pub(crate) use ctrl_word;

macro_rules! slot_word {
    ($maps:expr, $slot:expr, $field:ident) => {
        $maps.slots.word($slot, std::mem::offset_of!(lxcfs_abi::Slot, $field))
    };
}
pub(crate) use slot_word;

macro_rules! slot_half {
    ($maps:expr, $slot:expr, $field:ident) => {
        $maps.slots.half($slot, std::mem::offset_of!(lxcfs_abi::Slot, $field))
    };
}
pub(crate) use slot_half;

impl Maps {
    /// Maps what the programs count into.
    pub(crate) fn new(kept: &Kept) -> io::Result<Self> {
        let slots = kept.elements::<Slot>("SLOTS")?;
        let cpus = kept.elements::<Cpu>("CPUS")?;
        let records = kept.elements::<Record>("RECORDS")?;
        kept.elements::<Ctrl>("CTRL")?;
        let idles = kept.elements::<Idle>("IDLES")?;
        let each = cpus.checked_add(EXTRA_RECORDS).and_then(|each| each.checked_mul(slots));
        if each != Some(records) || idles != slots {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the maps do not belong together",
            ));
        }
        Ok(Self {
            ctrl: Mapping::new(kept.get("CTRL")?, 1)?,
            slots: Mapping::new(kept.get("SLOTS")?, slots)?,
            records: Mapping::new(kept.get("RECORDS")?, records)?,
            idles: Mapping::new(kept.get("IDLES")?, slots)?,
            cpus: Mapping::new(kept.get("CPUS")?, cpus)?,
            slot_of: kept.get("SLOT_OF")?.try_clone_to_owned()?,
            earlier: kept.get("EARLIER")?.try_clone_to_owned()?,
            tasks: kept.get("TASKS")?.try_clone_to_owned()?,
        })
    }

    /// Possible CPUs: per-CPU records of a slot.
    pub(crate) const fn cpu_count(&self) -> u32 {
        self.cpus.len()
    }

    /// Index of a slot's record; `cpu_count()` is the shared one and one more the residual one.
    pub(crate) const fn record_index(&self, slot: u32, nth: u32) -> u32 {
        slot * (self.cpu_count() + EXTRA_RECORDS) + nth
    }

    /// The slot counted for a cgroup id.
    pub(crate) fn slot_of(&self, cgroup_id: u64) -> io::Result<Option<u32>> {
        sys::lookup(self.slot_of.as_fd(), &cgroup_id)
    }

    /// [`Slot::folds`].
    pub(crate) fn folds(&self, slot: u32) -> u32 {
        slot_half!(self, slot, folds).load(Ordering::SeqCst)
    }

    pub(crate) fn generation(&self) -> &AtomicU32 {
        self.ctrl.half(0, offset_of!(Ctrl, generation))
    }

    pub(crate) fn enabled(&self) -> &AtomicU32 {
        self.ctrl.half(0, offset_of!(Ctrl, enabled))
    }

    pub(crate) fn notified(&self) -> &AtomicU32 {
        self.ctrl.half(0, offset_of!(Ctrl, notified))
    }

    /// Slots of the subtree of `root`, itself first. `visit` may see a slot being taken or given
    /// back; callers compare [`Self::folds`].
    pub(crate) fn walk(&self, root: u32, mut visit: impl FnMut(u32)) {
        let next = |half: &AtomicU32| {
            let slot = half.load(Ordering::Acquire);
            (slot != 0 && slot < self.slots.len()).then_some(slot)
        };
        let mut at = root;
        // Each slot is entered once and left once; more means that the tree changed under us.
        for _ in 0..2 * u64::from(self.slots.len()) {
            visit(at);
            if let Some(child) = next(slot_half!(self, at, first_child)) {
                at = child;
                continue;
            }
            loop {
                if at == root {
                    return;
                }
                if let Some(sibling) = next(slot_half!(self, at, next_sibling)) {
                    at = sibling;
                    break;
                }
                let Some(parent) = next(slot_half!(self, at, parent)) else { return };
                at = parent;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    /// Maps that no kernel knows, all zero.
    pub(crate) fn maps(slots: u32, cpus: u32) -> Maps {
        let memory = || memfd_create("map", MemfdFlags::CLOEXEC).expect("make memory");
        let of = |bytes: usize| {
            let memory = memory();
            ftruncate(&memory, u64::try_from(bytes).unwrap()).expect("size memory");
            memory
        };
        let records = slots * (cpus + EXTRA_RECORDS);
        let size = |count: u32, size: usize| usize::try_from(count).unwrap() * size;
        Maps {
            ctrl: Mapping::new(of(size_of::<Ctrl>()), 1).unwrap(),
            slots: Mapping::new(of(size(slots, size_of::<Slot>())), slots).unwrap(),
            records: Mapping::new(of(size(records, size_of::<Record>())), records).unwrap(),
            idles: Mapping::new(of(size(slots, size_of::<Idle>())), slots).unwrap(),
            cpus: Mapping::new(of(size(cpus, size_of::<Cpu>())), cpus).unwrap(),
            slot_of: memory(),
            earlier: memory(),
            tasks: memory(),
        }
    }

    /// Puts `child` at the head of `parent`'s list, as the programs do.
    pub(crate) fn link(maps: &Maps, child: u32, parent: u32) {
        let head = slot_half!(maps, parent, first_child).swap(child, Ordering::SeqCst);
        slot_half!(maps, child, next_sibling).store(head, Ordering::SeqCst);
        slot_half!(maps, child, parent).store(parent, Ordering::SeqCst);
    }

    pub(crate) fn subtree(maps: &Maps, root: u32) -> Vec<u32> {
        let mut seen = Vec::new();
        maps.walk(root, |slot| seen.push(slot));
        seen
    }

    #[test]
    fn a_subtree_is_walked_once_each() {
        let maps = maps(16, 2);
        for (child, parent) in [(2, 1), (3, 1), (4, 1), (5, 3), (6, 5), (7, 3), (9, 8)] {
            link(&maps, child, parent);
        }
        assert_eq!(subtree(&maps, 1), [1, 4, 3, 7, 5, 6, 2]);
        assert_eq!(subtree(&maps, 3), [3, 7, 5, 6]);
        assert_eq!(subtree(&maps, 2), [2], "siblings of the root are not below it");
        assert_eq!(subtree(&maps, 8), [8, 9]);
    }

    #[test]
    fn a_walk_of_a_broken_tree_ends() {
        let maps = maps(8, 1);
        link(&maps, 2, 1);
        link(&maps, 3, 2);
        slot_half!(maps, 3, first_child).store(2, Ordering::SeqCst);
        assert!(subtree(&maps, 1).len() <= 16);
        slot_half!(maps, 3, first_child).store(4_000_000, Ordering::SeqCst);
        assert_eq!(subtree(&maps, 1), [1, 2, 3]);
    }
}
