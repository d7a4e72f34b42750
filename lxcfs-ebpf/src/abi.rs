//! Types and constants that cross the line between the eBPF programs and user space.
//!
//! Both sides compile this file. Everything is `repr(C)`, made of integers and explicitly padded;
//! sizes are asserted below. Times are nanoseconds, averages are fixed point with
//! [`decay::FRACTION_BITS`] fraction bits, jiffies are the kernel's `jiffies_64`.
#![no_std]

// This file is a crate root beside main.rs, so its modules do not find their folder by themselves.
#[path = "abi/decay.rs"]
pub mod decay;
#[path = "abi/field.rs"]
pub mod field;
#[path = "abi/word.rs"]
pub mod word;

/// Tasks whose cgroup could not be given a slot of its own are counted in this one.
pub const OVERFLOW_SLOT: u32 = 0;

/// A per-CPU record whose count leaves `-BATCH..BATCH` is moved into the slot's shared record.
///
/// Counts drift apart ("woken on 0, slept on 1") and the fixed-point error grows with their size.
pub const BATCH: i32 = 64;

/// Records of one slot behind its per-CPU ones: the shared record and the residual one.
pub const EXTRA_RECORDS: u32 = 2;

/// Cgroups nested deeper than this are not linked to their ancestors (counted in `too_deep`).
pub const MAX_DEPTH: u32 = 64;

/// Values of [`Ctrl::cpu_view`].
pub mod view {
    pub const CPUSET: u32 = 0;
    pub const QUOTA: u32 = 1;
    pub const HOST: u32 = 2;
}

/// Switches and counters, one element. Line 0 is read at every event and written rarely.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Ctrl {
    /// Programs return at once while this is 0. Written by the loader.
    pub enabled: u32,
    /// Raised before a slot is reused: cached css_set -> slot pairs of older generations are void.
    pub generation: u32,
    /// When everything that was there before was counted, CLOCK_BOOTTIME and CLOCK_MONOTONIC. Written by the daemon once.
    pub loaded_boottime_ns: u64,
    pub loaded_monotonic_ns: u64,
    /// Addresses of the kernel's own counts, for readers on the host of a file without a daemon: `avenrun`, `nr_threads`. 0: not
    /// told. Written by the daemon.
    pub symbols: [u64; 2],
    /// 1: idle time of the host is what the kernel says. Written by the daemon.
    pub tells_host_idle: u32,
    /// Which CPUs containers are shown, a number of [`view`]. Written by the daemon.
    pub cpu_view: u32,
    pub rest_of_line: [u64; 2],

    /// 1 while a wake-up of the daemon is pending in the notification ring.
    pub notified: u32,
    pub unused: u32,
    /// Result of the `peek` program: jiffies and CLOCK_MONOTONIC read together.
    pub peek_jiffies: u64,
    pub peek_monotonic_ns: u64,
    /// Thread groups moved where threads cannot be walked in the kernel: the daemon must reconcile.
    pub deferred_moves: u64,
    /// Per-task entry neither found nor made.
    pub no_storage: u64,
    /// No free slot (or no id could be read): counted in the overflow slot.
    pub no_slot: u64,
    /// A record index beyond the map.
    pub no_record: u64,
    /// A slot could not be linked under its parent.
    pub unlinked: u64,

    pub too_deep: u64,
    /// Cache misses of css_set -> slot.
    pub resolves: u64,
    /// Slots taken from the free stack.
    pub allocations: u64,
    /// Tasks first seen by the iterator.
    pub seeded: u64,
    /// Tasks whose word disagreed with the kernel and was repaired by the iterator.
    pub healed: u64,
    /// Threads re-homed by a cgroup move.
    pub rehomed: u64,
    /// Events of a task that was not known before.
    pub late: u64,
    /// Removals seen (`cgroup_rmdir` of a group that has a slot).
    pub removals: u64,
    /// Readers of a file below FUSE who were not told because the daemon had not said what only it can know.
    pub unknown: u64,
    pub padding: [u64; 7],
}

/// One cgroup. Slots form a tree, so a subtree is summed without touching the filesystem.
///
/// Written by the programs when taken; all but `folds` becomes 0 when the daemon gives it back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// Inode number of the cgroup's directory; 0 = free.
    pub cgroup_id: u64,
    /// CLOCK_MONOTONIC of `cgroup_rmdir`, 0 = it exists. Tasks on their way out may remain.
    pub removed_ns: u64,
    /// CLOCK_MONOTONIC of `cgroup_release`: no task refers to it any more.
    pub released_ns: u64,
    pub created_ns: u64,
    /// Slot of the parent cgroup; 0 for the root cgroup.
    pub parent: u32,
    /// Pushed to by the programs (compare and swap), unlinked from by the daemon only.
    pub first_child: u32,
    pub next_sibling: u32,
    /// Changes when a removed cgroup in the subtree of this one is folded into its parent, and when its slot is given back; odd while
    /// a program moves numbers. Who sums the subtree compares it.
    pub folds: u32,
    pub padding: [u32; 4],
}

/// Counts and times of one (slot, CPU). Index: `slot * (cpus + EXTRA_RECORDS) + cpu`.
///
/// A CPU's record is written by that CPU alone with interrupts off, except `nr_iowait` and
/// `iowait`, which follow the CPU on which a task blocked and are guarded by the slot's lock.
/// Record `cpus` is shared (guarded by the lock too); record `cpus + 1` is the residual of removed
/// children and is written by the program `fold` alone, which the daemon runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// Odd while the averages change.
    pub sequence: u32,
    /// Times this record was moved into the shared one.
    pub transfers: u32,
    /// First tick not yet in the averages; 0 = never used.
    pub next_tick_jiffies: u64,
    /// 1, 5 and 15 minutes.
    pub average: [i64; 3],
    /// May be negative here; the sum over the slot's records is not.
    pub nr_running: i32,
    pub nr_uninterruptible: i32,
    pub nr_tasks: i32,
    pub nr_iowait: i32,
    /// I/O wait of removed children, added on this CPU.
    pub iowait_folded_ns: u64,

    pub run_ns: u64,
    /// As the kernel samples it (by tick), not scaled to `run_ns`. Without `nice_ns`.
    pub user_ns: u64,
    pub nice_ns: u64,
    pub system_ns: u64,
    /// Runnable but waiting for a CPU, bandwidth throttling included.
    pub run_delay_ns: u64,
    pub switches: u64,
    pub forks: u64,
    /// See [`word::Span`]: idle time of this CPU while a task of the slot waited for I/O.
    pub iowait: u64,
}

/// What the programs remember of a task (task local storage).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Task {
    /// See [`word`]. Every change of a count derives from an atomic change of this word.
    pub word: u64,
    /// The css_set that `slot` was found from, in generation `generation`.
    pub css_set: u64,
    pub slot: u32,
    pub generation: u32,
    /// The kernel's counters of the task as far as they are charged to a slot.
    pub charged: TaskTimes,
    /// 0, or slot and generation the task was moved away from while `at_move` was reached.
    pub moved_from: u64,
    pub at_move: TaskTimes,
}

/// A task's clocks: `sum_exec_runtime`, `utime`, `stime`, `sched_info.run_delay`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskTimes {
    pub run_ns: u64,
    pub user_ns: u64,
    pub system_ns: u64,
    pub run_delay_ns: u64,
}

/// One CPU: its idle time, and who runs there. Written by the CPU it describes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// See [`word::Span`]; a CPU that was never seen idle has 0.
    pub idle: u64,
    /// Always 0, which the verifier does not know.
    pub zero: u64,
    /// The address of the task that runs; 0: none, or it is not known.
    pub task: u64,
    /// Of its `sum_exec_runtime`, what is charged.
    pub charged_ns: u64,
    /// Since when it runs.
    pub since_jiffies: u64,
    pub padding: [u64; 3],
}

/// What a container older than the programs was when they began.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Earlier {
    /// Its load averages.
    pub average: [u64; 3],
    /// CPU time that it had used.
    pub used_ns: u64,
}

/// What is remembered of a container's idle time: by the slot of its cgroup, written by the programs alone.
///
/// Idle time is what the CPUs shown had since the container began, less what it used, and never falls. So many microseconds of
/// them all fit the words of a machine with any number of CPUs, which nanoseconds do not.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Idle {
    /// Odd while what follows changes, but for `shown_us`.
    pub sequence: u64,
    /// Which container it is: the address of its init, and when that started, CLOCK_BOOTTIME.
    pub init: u64,
    pub started_ns: u64,
    /// How many CPUs it is shown.
    pub cpus: u64,
    /// What more it had than those since it began: other numbers of them were shown before.
    pub more_us: i64,
    /// The most that was shown.
    pub shown_us: u64,
    /// When it was last shown, CPU time used, and idle time as it would be if it might fall.
    pub used_us: u64,
    pub left_us: i64,
}

/// A pid namespace: where it is, and its number, which tells whether it still is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidNamespace {
    pub address: u64,
    pub number: u64,
}

/// A process as the kernel knows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    pub address: u64,
    /// CLOCK_BOOTTIME.
    pub started_ns: u64,
    pub pid_namespace: PidNamespace,
}

const _: () = assert!(size_of::<Ctrl>() == 256);
const _: () = assert!(size_of::<Slot>() == 64);
const _: () = assert!(size_of::<Record>() == 128);
const _: () = assert!(core::mem::offset_of!(Record, run_ns) == 64);
const _: () = assert!(size_of::<Task>() == 96);
const _: () = assert!(size_of::<Cpu>() == 64);
const _: () = assert!(size_of::<Idle>() == 64);
