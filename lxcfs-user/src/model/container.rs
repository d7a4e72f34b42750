//! Who asks: one container, as the sources need to know it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use lxcfs_abi::Process;
use serde::{Deserialize, Serialize, Serializer};

use super::load::LoadAverage;
use super::lock::lock;
use super::monotonic::{CpuHistory, CpuTimes, IdleHistory};

/// The cgroups of a container, one per hierarchy, as paths from the root of our own cgroup namespace.
///
/// Each is the container's boundary, the root of its cgroup namespace, and not the leaf its init happens to sit in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupPaths {
    /// `(controllers, path)` in the order of `/proc/PID/cgroup`. `controllers` is comma separated, empty for v2.
    hierarchies: Vec<(String, String)>,
}

impl CgroupPaths {
    /// The content of a `/proc/PID/cgroup`, lines `id:controllers:path`. Lines of another form are left out.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let line = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
        };
        Self { hierarchies: text.lines().filter_map(line).collect() }
    }

    /// The path in the cgroup v2 hierarchy.
    #[must_use]
    pub fn unified(&self) -> Option<&str> {
        self.find(str::is_empty)
    }

    /// The path in the cgroup v1 hierarchy of `controller`, if it has one.
    #[must_use]
    pub fn v1(&self, controller: &str) -> Option<&str> {
        self.find(|controllers| controllers.split(',').any(|name| name == controller))
    }

    /// All `(controllers, path)`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.hierarchies.iter().map(|(controllers, path)| (controllers.as_str(), path.as_str()))
    }

    /// Replaces each path by `boundary(controllers, path)`.
    #[must_use]
    pub fn map(&self, mut boundary: impl FnMut(&str, &str) -> String) -> Self {
        let hierarchies = self.iter().map(|(name, path)| (name.to_owned(), boundary(name, path)));
        Self { hierarchies: hierarchies.collect() }
    }

    fn find(&self, matches: impl Fn(&str) -> bool) -> Option<&str> {
        self.iter().find(|(controllers, _)| matches(controllers)).map(|(_, path)| path)
    }
}

/// One container.
#[derive(Debug, Default)]
pub struct Container {
    /// The process whose life is the container's: the init of its pid namespace. A pid in our own pid namespace.
    pub init: u32,
    /// When `init` started, nanoseconds of `CLOCK_BOOTTIME`.
    pub started_ns: u64,
    /// How many pid namespaces the container's is below ours: which column of `NSpid` is its own numbering.
    pub pid_depth: usize,
    /// Where its limits are set and its use is counted.
    pub cgroups: CgroupPaths,
    /// What we remember of it from one read to the next. It outlives a move to another cgroup.
    pub history: Arc<History>,
    /// What its sources keep at hand. It does not outlive a move to another cgroup.
    pub at_hand: Arc<AtHand>,
}

/// What is the same at every read of a container, and costs system calls to find.
#[derive(Debug, Default)]
pub struct AtHand {
    /// Where the kernel side counts it: the index of its counters, and the cgroup id they have while they are its own.
    pub counters: Mutex<Option<(u32, u64)>>,
    /// Its init, where the kernel side can tell it.
    pub process: OnceLock<Option<Process>>,
    /// Open files of its cgroups.
    pub files: Mutex<Vec<(KeptKey, Arc<OwnedFd>)>>,
    /// Whether its tasks were counted in these cgroups: what is remembered may be of those it was in before.
    pub is_sampled: AtomicBool,
}

/// A file of a container's cgroup or of one of its ancestors. Its name is borrowed where it is only looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileKey<Name> {
    /// The hierarchy, by its number among those that are mounted.
    pub hierarchy: usize,
    /// Which of the ancestors: each has a path of another length.
    pub path_length: usize,
    /// The file's name.
    pub name: Name,
}

/// One that outlives the look.
pub type KeptKey = FileKey<Box<str>>;

impl KeptKey {
    /// Whether it is `key`.
    #[must_use]
    pub fn is(&self, key: FileKey<&str>) -> bool {
        let place = (self.hierarchy, self.path_length);
        place == (key.hierarchy, key.path_length) && *self.name == *key.name
    }
}

/// What must be remembered of a container: it is forgotten with it.
#[derive(Debug, Default)]
pub struct History {
    /// The CPU times last shown, which may never run backwards.
    pub cpu: Mutex<CpuHistory>,
    /// The idle time last shown, likewise.
    pub idle: Mutex<IdleHistory>,
    /// The load average at its last sample, or where the kernel side keeps it, when it was last shown.
    pub load: Mutex<Option<LoadHistory>>,
    /// The number of tasks ever made that was last shown, which may not fall either.
    pub made: AtomicU64,
    /// What the container used before the kernel side began to count.
    pub before: OnceLock<Before>,
    /// The newest pid, and when it was looked up, nanoseconds of `CLOCK_MONOTONIC`.
    pub last_pid: Mutex<Option<(u64, u32)>>,
}

/// What of a [`History`] the next daemon has to know. A field that a version does not know is left out by it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Carried {
    cpu: CpuHistory,
    idle: IdleHistory,
    load: Option<LoadHistory>,
    made: u64,
    before: Option<Before>,
}

/// A [`Carried`] to be written down, where it is: nothing of it is copied, and nothing of it changes meanwhile.
#[derive(Debug, Serialize)]
pub struct Carrying<'a> {
    #[serde(serialize_with = "within")]
    cpu: MutexGuard<'a, CpuHistory>,
    #[serde(serialize_with = "within")]
    idle: MutexGuard<'a, IdleHistory>,
    #[serde(serialize_with = "within")]
    load: MutexGuard<'a, Option<LoadHistory>>,
    made: u64,
    before: Option<&'a Before>,
}

fn within<T: Serialize, S: Serializer>(
    guard: &MutexGuard<'_, T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    guard.serialize(serializer)
}

impl History {
    /// The load average as it was last known.
    pub fn load(&self) -> MutexGuard<'_, Option<LoadHistory>> {
        lock(&self.load)
    }

    /// The number of tasks ever made that is to be shown where `made` are seen now.
    pub fn made_by_now(&self, made: u64) -> u64 {
        self.made.fetch_max(made, Ordering::Relaxed).max(made)
    }

    /// What the next daemon has to know.
    #[must_use]
    pub fn carrying(&self) -> Carrying<'_> {
        Carrying {
            cpu: lock(&self.cpu),
            idle: lock(&self.idle),
            load: lock(&self.load),
            made: self.made.load(Ordering::Relaxed),
            before: self.before.get(),
        }
    }

    /// Goes on from what a daemon before us knew.
    pub fn resume(&self, carried: Carried, counting_goes_on: bool) {
        *lock(&self.cpu) = carried.cpu;
        *lock(&self.idle) = carried.idle;
        *lock(&self.load) = carried.load;
        self.made.fetch_max(carried.made, Ordering::Relaxed);
        if let Some(before) = carried.before.filter(|_| counting_goes_on) {
            // Found out already, it is the same.
            let _ = self.before.set(before);
        }
    }
}

/// What was there before the kernel side began to count. All zero for a container that is younger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Before {
    /// CPU time used, by host CPU number.
    pub per_cpu: Vec<CpuTimes>,
    /// The load averages at that time.
    pub average: LoadAverage,
    /// Context switches that programs before these have counted.
    pub switches: u64,
}

/// A container's load average as it was at the last sample.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadHistory {
    /// The averages at `sampled_ns`.
    pub average: LoadAverage,
    /// When the sample was due, nanoseconds of `CLOCK_MONOTONIC`.
    pub sampled_ns: u64,
    /// What the sample saw.
    pub tasks: Tasks,
    /// Context switches by then, where they are counted.
    pub switches: u64,
    /// CPU time the container had used at the sample, nanoseconds. While it stands still, nothing has run.
    pub used_ns: Option<u64>,
}

/// The tasks of a container at one instant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tasks {
    /// Threads running or waiting for a CPU (state `R`).
    pub running: u32,
    /// Threads in uninterruptible sleep that count towards the load (state `D`).
    pub blocked: u32,
    /// Threads in uninterruptible sleep that wait for I/O. Where that is not told apart, all of `blocked`.
    pub waiting_for_io: u32,
    /// All threads.
    pub threads: u32,
    /// The pid of the newest thread, in the container's own numbering.
    pub last_pid: u32,
}

impl Tasks {
    /// The tasks that make the load.
    #[must_use]
    pub fn active(&self) -> u64 {
        u64::from(self.running) + u64::from(self.blocked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_has_a_path_per_hierarchy() {
        let paths =
            CgroupPaths::parse(b"8:memory:/lxc/c1\n3:cpu,cpuacct:/lxc/c1/x:y\n0::/c1.scope\n");
        assert_eq!(paths.v1("memory"), Some("/lxc/c1"));
        assert_eq!(paths.v1("cpuacct"), Some("/lxc/c1/x:y"));
        assert_eq!(paths.v1("cpu"), Some("/lxc/c1/x:y"));
        assert_eq!(paths.v1("acct"), None);
        assert_eq!(paths.unified(), Some("/c1.scope"));
    }

    #[test]
    fn garbage_is_no_hierarchy() {
        let paths = CgroupPaths::parse(b"\xff\n::\n4\n5:cpu\n");
        assert_eq!(paths.iter().collect::<Vec<_>>(), [("", "")]);
    }

    #[test]
    fn the_number_of_tasks_made_never_falls_here_nor_in_the_next_daemon() {
        let first = History::default();
        assert_eq!([11, 10, 12].map(|made| first.made_by_now(made)), [11, 11, 12]);
        let next = History::default();
        let text = rmp_serde::to_vec_named(&first.carrying()).unwrap();
        next.resume(rmp_serde::from_slice(&text).unwrap(), true);
        assert_eq!(next.made_by_now(9), 12, "the newest has ended");
    }
}
