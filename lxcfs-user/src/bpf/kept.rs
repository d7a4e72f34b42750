//! What keeps the programs counting while no daemon runs: descriptors of their links, maps and programs.
//!
//! They are kept beside the mount's and not pinned in bpffs: a descriptor has no path that somebody else could have made
//! first or replaced by a link, needs no bpffs, and goes when nobody is left who would read what is counted.
//!
//! The next daemon goes on with them if it has the same object, byte for byte: the layout of the maps is in it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use aya::maps::{Map, MapData, RingBuf, Stack};
use aya_log::EbpfLogger;

use super::clock::Clock;
use super::load::{OBJECT, failed};
use super::maintain::Folder;
use super::maps::Maps;
use super::report::ToTracing;
use super::support::Barrier;
use super::{Accounting, Unavailable, Upkeep, sys};
use crate::model::hash::fnv1a;

/// The maps that user space reads.
pub(super) const MAPS: [&str; 10] =
    ["CTRL", "SLOTS", "RECORDS", "IDLES", "CPUS", "SLOT_OF", "EARLIER", "TASKS", "FREE", "NOTIFY"];

/// The programs that it runs.
pub(super) const PROGRAMS: [&str; 3] = ["seed", "flush", "fold"];

/// Those that tell of a process and of its pid namespace, where there are.
pub(super) const PROCESS: &str = "process";
pub(super) const NEWEST_PID: &str = "newest_pid";

/// The one that tells idle time, where there is.
pub(super) const IDLE: &str = "idle";

/// The programs of a file below FUSE.
pub(super) struct Reader {
    /// The file, and the program that prints it.
    pub(super) name: &'static str,
    /// Iterators, and over what: the file's own first.
    pub(super) iterators: &'static [(&'static str, &'static str)],
    /// What user space runs besides.
    pub(super) on_demand: &'static str,
}

/// The files. Nothing else depends on their programs.
pub(super) const READERS: [Reader; 2] = [
    Reader {
        name: "loadavg",
        iterators: &[("loadavg", "bpf_map_elem"), (PROCESS, "task")],
        on_demand: NEWEST_PID,
    },
    Reader { name: "uptime", iterators: &[("uptime", "bpf_map_elem")], on_demand: IDLE },
];

/// Their names.
pub const FILES_BELOW: [&str; READERS.len()] = {
    let [one, other] = READERS;
    [one.name, other.name]
};

/// For each of [`READERS`], whether there can be such a file, and if not, why.
pub(crate) type Below = [Result<(), String>; READERS.len()];

/// Descriptors by name.
#[derive(Debug, Default)]
pub(super) struct Kept(Vec<(String, OwnedFd)>);

impl Kept {
    pub(super) fn push(&mut self, name: &str, descriptor: OwnedFd) {
        self.0.push((name.to_owned(), descriptor));
    }

    pub(super) fn get(&self, name: &str) -> io::Result<BorrowedFd<'_>> {
        let found = self.0.iter().find(|(known, _)| known == name);
        let missing = || io::Error::new(io::ErrorKind::NotFound, name.to_owned());
        found.map(|(_, descriptor)| descriptor.as_fd()).ok_or_else(missing)
    }

    fn map(&self, name: &str) -> io::Result<MapData> {
        MapData::from_fd(self.get(name)?.try_clone_to_owned()?).map_err(io::Error::other)
    }

    /// How many `T` the map has, if it is a map of those.
    pub(super) fn elements<T>(&self, name: &str) -> io::Result<u32> {
        let info = self.map(name)?.info().map_err(io::Error::other)?;
        if info.value_size() as usize == size_of::<T>() {
            return Ok(info.max_entries());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} has other elements")))
    }

    /// The stack of free slots.
    pub(super) fn free(&self) -> io::Result<Stack<MapData, u32>> {
        Stack::try_from(Map::Stack(self.map("FREE")?)).map_err(io::Error::other)
    }

    /// The ring that wakes the daemon.
    fn notify(&self) -> io::Result<RingBuf<MapData>> {
        RingBuf::try_from(Map::RingBuf(self.map("NOTIFY")?)).map_err(io::Error::other)
    }
}

impl Accounting {
    /// Goes on with programs that count already, loaded by a daemon whose [`object_hash`] was ours.
    ///
    /// # Errors
    /// Something is missing, or the maps are not what they should be.
    pub fn adopt(kept: Vec<(String, OwnedFd)>, clock: Clock) -> Result<Self, Unavailable> {
        let kept = Kept(kept);
        let without = |_| "the programs that count already were loaded without it".to_owned();
        let below = READERS.map(|reader| kept.get(reader.name).map(|_| ()).map_err(without));
        Self::of(kept, None, clock, below)
    }

    pub(super) fn of(
        kept: Kept,
        messages: Option<EbpfLogger<ToTracing>>,
        clock: Clock,
        below: Below,
    ) -> Result<Self, Unavailable> {
        let maps = Maps::new(&kept).map_err(failed("map the counters"))?;
        let own = |name| kept.get(name).and_then(|program| program.try_clone_to_owned());
        let program = |name| own(name).map_err(failed("open a program"));
        let free = kept.free().map_err(failed("open the free slots"))?;
        let notify = kept.notify().map_err(failed("open the notification ring"))?;
        let notifications = notify.as_fd().try_clone_to_owned();
        let notifications = notifications.map_err(failed("share a descriptor"))?;
        let barrier = if sys::has_membarrier() { Barrier::Membarrier } else { Barrier::Sleep };
        let folder = Folder { fold: program("fold")?, free, barrier };
        let (seed, flush) = (program("seed")?, program("flush")?);
        let upkeep = Mutex::new(Upkeep {
            seed,
            folder,
            notify,
            messages,
            anomalies_seen: 0,
            reconciled: Instant::now(),
        });
        let flushed = AtomicU64::new(0);
        let (newest_pid, idle) = (program(NEWEST_PID).ok(), program(IDLE).ok());
        Ok(Self {
            maps,
            clock,
            kept,
            flush,
            newest_pid,
            idle,
            keeps_idle: AtomicBool::new(false),
            notifications,
            flushed,
            upkeep,
            below,
        })
    }

    /// What another daemon needs to go on.
    pub fn kept(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.kept.0.iter().map(|(name, descriptor)| (name.as_str(), descriptor.as_fd()))
    }

    /// Looks after the maps no more: another daemon is about to.
    pub fn retire(&self) {
        std::mem::forget(self.upkeep());
    }
}

/// Tells one object from another.
#[must_use]
pub fn object_hash() -> u64 {
    fnv1a(OBJECT)
}
