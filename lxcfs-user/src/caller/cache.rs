//! The containers seen so far, by the namespaces of their tasks. Bounded, and dead ones are forgotten.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::Namespaces;
use crate::model::container::Container;

/// What is kept with a container.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) container: Arc<Container>,
    /// The container's init. While it lives, the namespaces that are the key cannot be another's; and while we hold it,
    /// dead or alive, the kernel does not give the number of its pid namespace out again.
    pub(super) init: OwnedFd,
    /// `/proc/<init>/cgroup` as it was, where the boundary depends on it and may move.
    pub(super) follows: Option<Vec<u8>>,
    /// Keeps a cgroup namespace from being replaced by another of the same number, where init's life does not.
    pub(super) _cgroup_namespace: Option<OwnedFd>,
}

impl Entry {
    /// Whether the container's init lives: a pidfd becomes readable when its process ends.
    pub(super) fn lives(&self) -> bool {
        let mut fds = [PollFd::new(&self.init, PollFlags::IN)];
        matches!(rustix::event::poll(&mut fds, Some(&NOW)), Ok(0))
    }
}

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Containers by namespaces.
#[derive(Debug)]
pub(super) struct Cache {
    entries: RwLock<HashMap<Namespaces, Arc<Entry>>>,
    most: usize,
    /// How many entries make the next insertion sweep: twice what the last one left, so that the dead are never more
    /// than the living and a few, whatever the rate they come at.
    sweep_at: AtomicUsize,
}

/// So few entries are not worth a sweep.
const FEW: usize = 256;

impl Cache {
    /// A cache of at most `most` containers.
    pub(super) fn new(most: usize) -> Self {
        Self { entries: RwLock::default(), most: most.max(1), sweep_at: AtomicUsize::new(FEW) }
    }

    pub(super) fn get(&self, key: &Namespaces) -> Option<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub(super) fn insert(&self, key: Namespaces, entry: Arc<Entry>) {
        if self.len() >= self.sweep_at.load(Ordering::Relaxed).min(self.most) {
            self.sweep();
            self.sweep_at.store((2 * self.len()).max(FEW), Ordering::Relaxed);
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        // All alive and still full: any one goes, and costs a lookup when it is next asked for.
        if entries.len() >= self.most
            && let Some(victim) = entries.keys().next().copied()
        {
            entries.remove(&victim);
        }
        entries.insert(key, entry);
    }

    pub(super) fn remove(&self, key: &Namespaces) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    pub(super) fn len(&self) -> usize {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(super) fn containers(&self) -> Vec<Arc<Container>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.values().map(|entry| Arc::clone(&entry.container)).collect()
    }

    /// Forgets the containers whose init has ended. One system call for all of them, and no lock held over it.
    pub(super) fn sweep(&self) {
        let snapshot: Vec<_> = {
            let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
            entries.iter().map(|(key, entry)| (*key, Arc::clone(entry))).collect()
        };
        let mut fds: Vec<_> =
            snapshot.iter().map(|(_, entry)| PollFd::new(&entry.init, PollFlags::IN)).collect();
        if rustix::event::poll(&mut fds, Some(&NOW)).is_err() {
            return;
        }
        let dead = snapshot.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        for ((key, entry), _) in dead {
            // The key may belong to a new container by now.
            if entries.get(key).is_some_and(|current| Arc::ptr_eq(current, entry)) {
                entries.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;
    use crate::model::container::CgroupPaths;

    fn sleeper() -> (Child, Arc<Entry>) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let init = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let container = Arc::new(Container {
            init: child.id(),
            started_ns: 0,
            pid_depth: 0,
            cgroups: CgroupPaths::default(),
            history: Arc::default(),
        });
        (child, Arc::new(Entry { container, init, follows: None, _cgroup_namespace: None }))
    }

    const fn key(number: u64) -> Namespaces {
        Namespaces { pid: number, cgroup: number }
    }

    #[test]
    fn the_dead_are_forgotten_and_the_living_kept() {
        let cache = Cache::new(10);
        let (mut dying, entry) = sleeper();
        cache.insert(key(1), Arc::clone(&entry));
        let (mut living, kept) = sleeper();
        cache.insert(key(2), kept);
        assert!(entry.lives());
        dying.kill().unwrap();
        dying.wait().unwrap();
        assert!(!entry.lives());
        cache.sweep();
        assert!(cache.get(&key(1)).is_none());
        assert!(cache.get(&key(2)).is_some());
        living.kill().unwrap();
        living.wait().unwrap();
    }

    #[test]
    fn it_never_grows_beyond_its_bound() {
        let cache = Cache::new(3);
        let (mut child, entry) = sleeper();
        for number in 0..100 {
            cache.insert(key(number), Arc::clone(&entry));
            assert!(cache.len() <= 3);
            assert!(cache.get(&key(number)).is_some(), "the newest is there");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
