//! The programs' maps as user space sees them: memory, and a few descriptors.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{Map, MapData, RingBuf, Stack};
use lxcfs_abi::{Cpu, Ctrl, EXTRA_RECORDS, Record, Slot};

use super::mapping::Mapping;
use super::sys;

/// What is read at every sample. Only maintenance writes here, and says where.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) ctrl: Mapping<Ctrl>,
    pub(crate) slots: Mapping<Slot>,
    pub(crate) records: Mapping<Record>,
    pub(crate) cpus: Mapping<Cpu>,
    /// Cgroup id -> slot.
    pub(crate) slot_of: OwnedFd,
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
    /// Takes the maps out of a loaded object.
    pub(crate) fn new(ebpf: &mut Ebpf, slots: u32, cpus: u32) -> io::Result<Self> {
        Ok(Self {
            ctrl: Mapping::new(take(ebpf, "CTRL")?.fd(), 1)?,
            slots: Mapping::new(take(ebpf, "SLOTS")?.fd(), slots)?,
            records: Mapping::new(take(ebpf, "RECORDS")?.fd(), slots * (cpus + EXTRA_RECORDS))?,
            cpus: Mapping::new(take(ebpf, "CPUS")?.fd(), cpus)?,
            slot_of: take(ebpf, "SLOT_OF")?.fd().as_fd().try_clone_to_owned()?,
            tasks: take(ebpf, "TASKS")?.fd().as_fd().try_clone_to_owned()?,
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

    pub(crate) fn fold_sequence(&self) -> &AtomicU64 {
        ctrl_word!(self, fold_sequence)
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
    /// back; callers compare [`Self::fold_sequence`].
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

/// The map of this name, whatever its type.
fn take(ebpf: &mut Ebpf, name: &str) -> io::Result<MapData> {
    match ebpf.take_map(name) {
        Some(Map::Array(data) | Map::HashMap(data) | Map::Unsupported(data)) => Ok(data),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, format!("map {name}"))),
    }
}

/// The stack of free slots.
pub(crate) fn take_free(ebpf: &mut Ebpf) -> io::Result<Stack<MapData, u32>> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "map FREE");
    let map = ebpf.take_map("FREE").ok_or_else(missing)?;
    Stack::try_from(map).map_err(io::Error::other)
}

/// The ring that wakes the daemon.
pub(crate) fn take_notify(ebpf: &mut Ebpf) -> io::Result<RingBuf<MapData>> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "map NOTIFY");
    let map = ebpf.take_map("NOTIFY").ok_or_else(missing)?;
    RingBuf::try_from(map).map_err(io::Error::other)
}
