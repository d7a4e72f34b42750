//! What a run found out. Written as JSON; everything else that is shown is made from it.

use std::collections::BTreeMap;

use lxcfs_tests::bench::Timing;
use serde::{Deserialize, Serialize};

use super::process::MemoryKib;

/// Values by the name of the filesystem.
pub(super) type BySubject<T> = BTreeMap<String, T>;

/// A whole run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Results {
    pub(super) machine: Machine,
    /// What became of a daemon that could not be measured, or not to the end.
    pub(super) absent: BySubject<String>,
    /// Open, read to the end, close: by file.
    pub(super) cycle: BTreeMap<String, BySubject<Timing>>,
    /// Reading an open file from its start: by file.
    pub(super) held: BTreeMap<String, BySubject<Timing>>,
    pub(super) cold: BySubject<Cold>,
    pub(super) crowds: Vec<Crowd>,
    pub(super) costs: BTreeMap<String, BySubject<Cost>>,
    pub(super) containers: Vec<Containers>,
    pub(super) idle: Option<Idle>,
    pub(super) noise: Noise,
    pub(super) targets: Vec<Target>,
}

/// Where it was measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) cpus: usize,
    pub(super) kernel: String,
    pub(super) cgroups: String,
    /// The CPU everything was pinned to.
    pub(super) pinned_to: usize,
    /// Where our CPU time and load come from.
    pub(super) accounting: String,
}

/// The first reading in a new container, beyond a warm one. Medians over containers, nanoseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Cold {
    pub(super) first_ns: f64,
    pub(super) warm_ns: f64,
    /// The median of the differences.
    pub(super) over_warm_ns: f64,
}

/// Many readers of one file at once.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Crowd {
    pub(super) file: String,
    pub(super) readers: u32,
    /// Everything on one CPU, or on all of them.
    pub(super) pinned: bool,
    pub(super) per_second: BySubject<Vec<f64>>,
}

/// What a reading (open, read to the end, close) costs the daemon.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Cost {
    /// CPU seconds for a million.
    pub(super) cpu_s_per_million: f64,
    /// System calls on `/dev/fuse` for one.
    pub(super) fuse_calls: f64,
    /// All other system calls for one, by name.
    pub(super) other_calls: BTreeMap<String, f64>,
}

/// Latency while so many containers are known.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Containers {
    pub(super) count: u32,
    /// By file.
    pub(super) timings: BTreeMap<String, BySubject<Timing>>,
}

/// A thousand containers that do nothing.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Idle {
    pub(super) containers: u32,
    pub(super) seconds: u64,
    pub(super) wakeups: BySubject<u64>,
    pub(super) cpu_ns: BySubject<u64>,
    pub(super) memory: BySubject<MemoryKib>,
}

/// How quiet the machine was.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Noise {
    /// How far the ratio of a file to the floor may be from the true one, as a part of it: of the file where that is most.
    pub(super) doubt: f64,
    /// The part of the CPU time that the hypervisor gave to others.
    pub(super) steal: f64,
}

/// One line of the table of targets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Target {
    pub(super) what: String,
    pub(super) wanted: String,
    pub(super) measured: String,
    /// `None`: could not be measured in this run.
    pub(super) met: Option<bool>,
}
