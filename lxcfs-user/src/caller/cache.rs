//! The containers seen so far, by the namespaces of their tasks. Bounded, and forgotten when their init ends: the kernel
//! tells of it, nothing is looked for.

use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use hashbrown::HashMap;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll};

use super::Namespaces;
use crate::error::{Errno, Error, Result};
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
    pub(super) cgroup_namespace: Option<OwnedFd>,
}

impl Entry {
    /// Whether the container's init lives: its pidfd becomes readable when its process ends.
    pub(super) fn lives(&self) -> bool {
        let mut fds = [PollFd::new(&self.init, PollFlags::IN)];
        // It is interrupted only where it has found nothing.
        matches!(rustix::event::poll(&mut fds, Some(&NOW)), Ok(0) | Err(Errno::INTR))
    }
}

pub(super) const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Containers by namespaces.
#[derive(Debug)]
pub(super) struct Cache {
    known: RwLock<Known>,
    /// Tells of inits that have ended, by the number of their entry.
    endings: OwnedFd,
    most: usize,
}

#[derive(Debug, Default)]
struct Known {
    entries: HashMap<Namespaces, (u64, Arc<Entry>)>,
    numbers: HashMap<u64, Namespaces>,
    next_number: u64,
}

impl Known {
    fn remove(&mut self, key: &Namespaces, endings: &OwnedFd) {
        if let Some((number, entry)) = self.entries.remove(key) {
            self.numbers.remove(&number);
            // A request may hold the entry a while longer, and its end would be told again and again.
            let _ = epoll::delete(endings, &entry.init);
        }
    }
}

impl Cache {
    /// A cache of at most `most` containers.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(super) fn new(most: usize) -> Result<Self> {
        let endings = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| Error::io("create", "an epoll instance", errno))?;
        Ok(Self { known: RwLock::default(), endings, most: most.max(1) })
    }

    pub(super) fn get(&self, key: &Namespaces) -> Option<Arc<Entry>> {
        self.read().entries.get(key).map(|(_, entry)| Arc::clone(entry))
    }

    /// Remembers the container. If the kernel cannot tell us of its end, it is not remembered.
    pub(super) fn insert(&self, key: Namespaces, entry: Arc<Entry>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(&key, &self.endings);
        // Full of living ones: any one goes, and costs a lookup when it is next asked for.
        if known.entries.len() >= self.most
            && let Some(victim) = known.entries.keys().next().copied()
        {
            known.remove(&victim, &self.endings);
        }
        let number = known.next_number;
        known.next_number += 1;
        let data = epoll::EventData::new_u64(number);
        if epoll::add(&self.endings, &entry.init, data, epoll::EventFlags::IN).is_ok() {
            known.numbers.insert(number, key);
            known.entries.insert(key, (number, entry));
        }
    }

    pub(super) fn remove(&self, key: &Namespaces) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(key, &self.endings);
    }

    pub(super) fn len(&self) -> usize {
        self.read().entries.len()
    }

    pub(super) fn containers(&self) -> Vec<Arc<Container>> {
        let known = self.read();
        known.entries.values().map(|(_, entry)| Arc::clone(&entry.container)).collect()
    }

    /// Forgets containers that have ended; waits for `patience`, or for ever, if none has. Returns how many endings
    /// there were.
    pub(super) fn forget_ended(&self, patience: Option<&Timespec>) -> usize {
        let mut events = Vec::with_capacity(64);
        // Interrupted: the caller comes again.
        if epoll::wait(&self.endings, spare_capacity(&mut events), patience).is_err() {
            return 0;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for event in &events {
            if let Some(key) = known.numbers.get(&event.data.u64()).copied() {
                known.remove(&key, &self.endings);
            }
        }
        events.len()
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
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
            at_hand: Arc::default(),
        });
        (child, Arc::new(Entry { container, init, follows: None, cgroup_namespace: None }))
    }

    const fn key(number: u64) -> Namespaces {
        Namespaces { pid: number, cgroup: number }
    }

    #[test]
    fn b02_the_dead_are_forgotten_and_the_living_kept() {
        let cache = Cache::new(10).unwrap();
        let (mut dying, entry) = sleeper();
        cache.insert(key(1), Arc::clone(&entry));
        let (mut living, kept) = sleeper();
        cache.insert(key(2), kept);
        assert!(entry.lives());
        dying.kill().unwrap();
        dying.wait().unwrap();
        assert!(!entry.lives());
        while cache.forget_ended(Some(&NOW)) > 0 {}
        assert!(cache.get(&key(1)).is_none());
        assert!(cache.get(&key(2)).is_some());
        living.kill().unwrap();
        living.wait().unwrap();
    }

    #[test]
    fn b03_it_never_grows_beyond_its_bound() {
        let cache = Cache::new(3).unwrap();
        let mut children = Vec::new();
        for number in 0..8 {
            let (child, entry) = sleeper();
            children.push(child);
            cache.insert(key(number), entry);
            assert!(cache.len() <= 3);
            assert!(cache.get(&key(number)).is_some(), "the newest is there");
        }
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
