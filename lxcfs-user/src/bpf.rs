//! Load and CPU time per cgroup, from the eBPF programs of `lxcfs-ebpf`.
//!
//! [`Accounting::load`] asks what the kernel has ([`support`]), loads and attaches the programs and
//! seeds them; from then on every number is a read of memory. [`Accounting::maintain`] is called
//! when [`Accounting::notifications`] becomes readable, and only then.
//!
//! # Subtrees
//!
//! A container is a cgroup with everything below it. The programs keep the tree of counted cgroups
//! in their own map: a slot names its parent, its first child and its next sibling, set when the
//! slot is taken. The alternative, walking the directories here, costs a system call per group and
//! read, misses a group made since the last walk, and is no help to a program in the kernel that
//! wants the same sum (a file served by a BPF iterator). With the tree, a group that is born inside
//! a container is in the container's next sum, at any depth, and a sum costs what its groups cost.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use lxcfs_abi::word;

mod below;
pub mod btf;
pub mod clock;
pub mod hierarchy;
mod host;
mod idle;
mod kept;
mod load;
mod maintain;
pub(crate) mod mapping;
mod maps;
mod patch;
mod pids;
mod probe;
pub mod reason;
mod report;
mod sample;
pub mod support;
mod sys;
pub mod wanted;

use crate::model::lock::lock;
pub use below::Symbols;
use clock::{Clock, monotonic_ns};
pub use idle::{IdleQuestion, IdleState};
use kept::Kept;
pub use kept::{FILES_BELOW, object_hash};
pub use lxcfs_abi::{Earlier, Process, view};
use maintain::Folder;
pub use maintain::Reaped;
use maps::{Maps, ctrl_word, slot_word};
pub use sample::{CpuSample, LoadSample};

/// A missed event is made good by the task's next one, so that only a task that sleeps on can stay miscounted: all are
/// compared with the kernel this often, when there is something else to do. No timer runs for it.
const RECONCILE_EVERY: Duration = Duration::from_secs(3_600);

/// Why there is no accounting: one line, and for a refused program the verifier's log.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error(transparent)]
    Unsupported(#[from] reason::Reason),
    #[error("the kernel refused the program `{program}`: {source}: {}", last_word(verifier_log))]
    Refused { program: &'static str, source: io::Error, verifier_log: String },
    #[error("cannot {operation}: {source}")]
    Failed { operation: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
}

/// What the verifier objected to: the last line that is no summary of its work.
fn last_word(verifier_log: &str) -> &str {
    let summary = ["processed ", "verification time ", "stack depth ", "subprog "];
    let is_word = |line: &&str| !line.is_empty() && !summary.iter().any(|s| line.starts_with(s));
    verifier_log.lines().rev().map(str::trim).find(is_word).unwrap_or("it says nothing")
}

/// How much is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// Cgroups counted at once, those without tasks of their own but with such below included.
    /// Each costs 128 bytes per possible CPU and some 480 more.
    pub slots: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { slots: 4_096 }
    }
}

/// A counted cgroup. Outlives the group: reading a removed one gives `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    index: u32,
    cgroup_id: u64,
}

impl Slot {
    /// Inode number of the cgroup's directory.
    #[must_use]
    pub const fn cgroup_id(&self) -> u64 {
        self.cgroup_id
    }

    /// What a slot is made of, to be kept where nothing is known of slots.
    #[must_use]
    pub const fn parts(self) -> (u32, u64) {
        (self.index, self.cgroup_id)
    }

    /// The slot of [`Self::parts`].
    #[must_use]
    pub const fn from_parts((index, cgroup_id): (u32, u64)) -> Self {
        Self { index, cgroup_id }
    }
}

/// What is counted of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskState {
    /// 0 if the task could not be given its cgroup's slot.
    pub cgroup_id: u64,
    pub running: bool,
    pub uninterruptible: bool,
    pub iowait: bool,
    /// From its first wake-up to its last switch.
    pub alive: bool,
}

/// What [`Accounting::maintain`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Maintained {
    /// All tasks were compared with the kernel.
    pub reconciled: bool,
    pub reaped: Reaped,
}

/// Anomalies and rare events since the start, for `lxcfs status` and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub no_storage: u64,
    pub no_slot: u64,
    pub no_record: u64,
    pub unlinked: u64,
    pub too_deep: u64,
    pub deferred_moves: u64,
    pub resolves: u64,
    pub allocations: u64,
    pub seeded: u64,
    pub healed: u64,
    pub rehomed: u64,
    pub late: u64,
    pub removals: u64,
    pub unknown: u64,
}

impl Counters {
    /// Events that leave a task miscounted until it is compared with the kernel.
    const fn anomalies(&self) -> u64 {
        self.no_storage + self.no_slot + self.no_record + self.deferred_moves
    }
}

/// The loaded programs and their maps. Dropping it detaches them.
#[derive(Debug)]
pub struct Accounting {
    maps: Maps,
    clock: Clock,
    /// Everything that keeps the programs counting.
    kept: Kept,
    flush: OwnedFd,
    newest_pid: Option<OwnedFd>,
    idle: Option<OwnedFd>,
    keeps_idle: AtomicBool,
    notifications: OwnedFd,
    /// Jiffy of the last flush: what a flush sees moves once per jiffy.
    flushed: AtomicU64,
    upkeep: Mutex<Upkeep>,
    below: kept::Below,
}

struct Upkeep {
    /// The task iterator.
    seed: OwnedFd,
    folder: Folder,
    notify: RingBuf<MapData>,
    messages: Option<EbpfLogger<report::ToTracing>>,
    anomalies_seen: u64,
    reconciled: Instant,
}

impl std::fmt::Debug for Upkeep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upkeep").finish_non_exhaustive()
    }
}

impl Accounting {
    /// Loads the programs into this kernel and counts every task in it.
    pub fn load(options: &Options) -> Result<Self, Unavailable> {
        let plan = support::plan(&probe::facts())?;
        let load::Loaded { kept, messages, clock, below } = load::load(&plan, options)?;
        sys::trim_memory();
        let loaded = Self::of(kept, messages, clock, below)?;
        load::start(loaded.upkeep().seed.as_fd(), &loaded.maps, plan.barrier)?;
        Ok(loaded)
    }

    /// Whether [`Self::load`] can succeed here, without loading anything.
    pub fn plan() -> Result<support::Plan, reason::Reason> {
        support::plan(&probe::facts())
    }

    /// The clock of the averages.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The slot of a cgroup; `None` if it has had no task since the start. Keep it: finding it is
    /// the one system call of a read.
    #[must_use]
    pub fn slot_of(&self, cgroup_id: u64) -> Option<Slot> {
        let index = self.maps.slot_of(cgroup_id).ok().flatten()?;
        Some(Slot { index, cgroup_id })
    }

    /// Whether the slot is still its cgroup's, and the cgroup is not removed.
    #[must_use]
    pub fn is_current(&self, slot: Slot) -> bool {
        let id = slot_word!(self.maps, slot.index, cgroup_id).load(Ordering::Acquire);
        let removed_ns = slot_word!(self.maps, slot.index, removed_ns).load(Ordering::Acquire);
        id == slot.cgroup_id && removed_ns == 0
    }

    /// Load of a cgroup with everything below it; `None` if it was removed.
    #[must_use]
    pub fn load_under(&self, slot: Slot) -> Option<LoadSample> {
        let jiffies = self.clock.jiffies_at(monotonic_ns());
        self.read(slot, |sum: &mut LoadSample| {
            self.maps.walk(slot.index, |index| {
                self.maps.add_load(index, jiffies, &self.clock, sum);
            });
        })
    }

    /// Load of a cgroup's own tasks.
    #[must_use]
    pub fn load_of(&self, slot: Slot) -> Option<LoadSample> {
        let jiffies = self.clock.jiffies_at(monotonic_ns());
        self.read(slot, |sum| self.maps.add_load(slot.index, jiffies, &self.clock, sum))
    }

    /// CPU times of a cgroup with everything below it, one per possible CPU, including what the
    /// tasks that run now have gained (as far as the kernel itself knows: to one tick).
    #[must_use]
    pub fn cpus_under(&self, slot: Slot) -> Option<Vec<CpuSample>> {
        self.flush();
        let now = monotonic_ns();
        let empty = vec![CpuSample::default(); self.maps.cpu_count() as usize];
        self.read_into(slot, &empty, |sums: &mut Vec<CpuSample>| {
            self.maps.walk(slot.index, |index| {
                for (cpu, sum) in (0..self.maps.cpu_count()).zip(sums.iter_mut()) {
                    self.maps.add_cpu(index, cpu, now, sum);
                }
            });
        })
    }

    /// The counted cgroups of a subtree, itself first.
    #[must_use]
    pub fn slots_under(&self, slot: Slot) -> Option<Vec<Slot>> {
        self.read(slot, |slots: &mut Vec<Slot>| {
            self.maps.walk(slot.index, |index| {
                let cgroup_id = slot_word!(self.maps, index, cgroup_id).load(Ordering::Acquire);
                slots.push(Slot { index, cgroup_id });
            });
        })
    }

    fn read<T: Default + Clone>(&self, slot: Slot, read: impl Fn(&mut T)) -> Option<T> {
        self.read_into(slot, &T::default(), read)
    }

    /// Repeats a read during which a slot was given back.
    fn read_into<T: Clone>(&self, slot: Slot, empty: &T, read: impl Fn(&mut T)) -> Option<T> {
        loop {
            let before = self.maps.folds(slot.index);
            let id = slot_word!(self.maps, slot.index, cgroup_id).load(Ordering::SeqCst);
            if id != slot.cgroup_id {
                return None;
            }
            let mut value = empty.clone();
            read(&mut value);
            if before.is_multiple_of(2) && before == self.maps.folds(slot.index) {
                return Some(value);
            }
            std::thread::yield_now();
        }
    }

    /// Charges the tasks that run now. Idle CPUs are not disturbed, and nothing happens twice
    /// within a jiffy.
    pub fn flush(&self) {
        let jiffies = self.clock.jiffies_at(monotonic_ns());
        if self.flushed.swap(jiffies, Ordering::Relaxed) == jiffies {
            return;
        }
        for cpu in 0..self.maps.cpu_count() {
            if self.maps.idle_word(cpu) & word::span::RUNNING == 0 {
                // A CPU that is offline refuses, and runs nothing.
                drop(sys::test_run(self.flush.as_fd(), &[0; 2], Some(cpu)));
            }
        }
    }

    /// What is counted of a task, by its pidfd (of a thread: `PIDFD_THREAD`); `None` if nothing is.
    pub fn task(&self, pidfd: BorrowedFd<'_>) -> io::Result<Option<TaskState>> {
        use std::os::fd::AsRawFd;
        let key: i32 = pidfd.as_raw_fd();
        let entry = sys::lookup::<_, TaskEntry>(self.maps.tasks.as_fd(), &key)?;
        Ok(entry.filter(|entry| entry.0.word & word::SEEN != 0).map(|entry| {
            let word = entry.0.word;
            let slot = word::slot(word);
            let cgroup_id = slot_word!(self.maps, slot, cgroup_id).load(Ordering::Acquire);
            TaskState {
                cgroup_id,
                running: word & word::RUN != 0,
                uninterruptible: word & word::UNINTERRUPTIBLE != 0,
                iowait: word & word::IOWAIT != 0,
                alive: word & word::ALIVE != 0,
            }
        }))
    }

    /// Readable when [`Self::maintain`] has something to do.
    #[must_use]
    pub fn notifications(&self) -> BorrowedFd<'_> {
        self.notifications.as_fd()
    }

    /// Gives back the slots of removed cgroups, and compares all tasks with the kernel if anything
    /// was missed, or if that is an hour ago. To be called shortly after a notification (many removals come together), again
    /// a second later while [`Reaped::waiting`] is not 0.
    pub fn maintain(&self) -> Result<Maintained, Unavailable> {
        let mut upkeep = self.upkeep();
        while upkeep.notify.next().is_some() {}
        // Before the work: what comes from here on notifies again.
        self.maps.notified().store(0, Ordering::SeqCst);
        if let Some(messages) = &mut upkeep.messages {
            messages.flush();
        }
        let anomalies = self.counters().anomalies();
        let due = upkeep.reconciled.elapsed() > RECONCILE_EVERY;
        let reconciled = due || anomalies != upkeep.anomalies_seen;
        if reconciled {
            upkeep.anomalies_seen = anomalies;
            upkeep.reconciled = Instant::now();
            load::walk_tasks(upkeep.seed.as_fd())?;
        }
        let reaped = upkeep.folder.reap(&self.maps, &self.clock).map_err(|error| {
            Unavailable::Failed { operation: "give back slots", source: Box::new(error) }
        })?;
        Ok(Maintained { reconciled, reaped })
    }

    /// Compares every task with the kernel and repairs what differs: against what no counter sees.
    pub fn reconcile(&self) -> Result<(), Unavailable> {
        load::walk_tasks(self.upkeep().seed.as_fd())
    }

    fn upkeep(&self) -> MutexGuard<'_, Upkeep> {
        // Nothing in it is left half done by a panic: the maps are the state.
        lock(&self.upkeep)
    }

    /// Anomalies and rare events.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
        Counters {
            no_storage: read(ctrl_word!(self.maps, no_storage)),
            no_slot: read(ctrl_word!(self.maps, no_slot)),
            no_record: read(ctrl_word!(self.maps, no_record)),
            unlinked: read(ctrl_word!(self.maps, unlinked)),
            too_deep: read(ctrl_word!(self.maps, too_deep)),
            deferred_moves: read(ctrl_word!(self.maps, deferred_moves)),
            resolves: read(ctrl_word!(self.maps, resolves)),
            allocations: read(ctrl_word!(self.maps, allocations)),
            seeded: read(ctrl_word!(self.maps, seeded)),
            healed: read(ctrl_word!(self.maps, healed)),
            rehomed: read(ctrl_word!(self.maps, rehomed)),
            late: read(ctrl_word!(self.maps, late)),
            removals: read(ctrl_word!(self.maps, removals)),
            unknown: read(ctrl_word!(self.maps, unknown)),
        }
    }

    /// Slots in use.
    #[must_use]
    pub fn slots_used(&self) -> u32 {
        let used =
            |slot: &u32| slot_word!(self.maps, *slot, cgroup_id).load(Ordering::Relaxed) != 0;
        u32::try_from((1..self.maps.slots.len()).filter(used).count()).unwrap_or(u32::MAX)
    }
}

/// The programs' entry of a task, as a map value.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct TaskEntry(lxcfs_abi::Task);
