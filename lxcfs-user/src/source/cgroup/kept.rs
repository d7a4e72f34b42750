//! Cgroup files that are kept open. Opening one takes longer than reading it, and monitoring reads the same ones for ever.
//!
//! A descriptor is kept with its container and speaks of the cgroup it was opened in, whatever is made under its path
//! later: when that cgroup is removed, reading fails with `ENODEV`. There is a bound on all of them together; beyond it the
//! one that was opened first is closed.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use crate::model::container::{AtHand, FileKey, KeptKey};
use crate::model::lock::lock;

/// All descriptors kept, in the order they were opened in.
#[derive(Debug)]
pub(super) struct Kept {
    order: Mutex<VecDeque<(Weak<AtHand>, KeptKey)>>,
    most: usize,
}

/// The descriptors of one container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shelf<'a> {
    pub(super) all: &'a Kept,
    pub(super) own: &'a Arc<AtHand>,
}

impl Kept {
    /// Keeps at most `most` descriptors.
    pub(super) const fn new(most: usize) -> Self {
        Self { order: Mutex::new(VecDeque::new()), most }
    }
}

impl Shelf<'_> {
    /// The descriptor kept for `key`.
    pub(super) fn get(self, key: FileKey<&str>) -> Option<Arc<OwnedFd>> {
        let files = lock(&self.own.files);
        files.iter().find(|(known, _)| known.is(key)).map(|(_, fd)| Arc::clone(fd))
    }

    /// Keeps `fd` for `key`.
    pub(super) fn put(self, key: FileKey<&str>, fd: OwnedFd) {
        let FileKey { hierarchy, path_length, name } = key;
        let named = || FileKey { hierarchy, path_length, name: Box::from(name) };
        {
            let mut files = lock(&self.own.files);
            if files.iter().any(|(known, _)| known.is(key)) {
                // Another request was faster; its descriptor is as good.
                return;
            }
            files.push((named(), Arc::new(fd)));
        }
        let oldest = {
            let mut order = lock(&self.all.order);
            order.push_back((Arc::downgrade(self.own), named()));
            if order.len() > self.all.most { order.pop_front() } else { None }
        };
        if let Some((owner, key)) = oldest
            && let Some(owner) = owner.upgrade()
        {
            lock(&owner.files).retain(|(known, _)| *known != key);
        }
    }

    /// Closes the descriptor kept for `key`: its cgroup is gone.
    pub(super) fn drop(self, key: FileKey<&str>) {
        lock(&self.own.files).retain(|(known, _)| !known.is(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn key(name: &str) -> FileKey<&str> {
        FileKey { hierarchy: 0, path_length: 3, name }
    }

    fn some_file() -> OwnedFd {
        std::fs::File::open("/proc/self/stat").unwrap().into()
    }

    #[test]
    fn the_first_opened_goes_first() {
        let all = Kept::new(2);
        let (one, other) = (Arc::new(AtHand::default()), Arc::new(AtHand::default()));
        let (one, other) = (Shelf { all: &all, own: &one }, Shelf { all: &all, own: &other });
        one.put(key("a"), some_file());
        other.put(key("a"), some_file());
        other.put(key("a"), some_file());
        assert!(one.get(key("a")).is_some() && other.get(key("a")).is_some());
        other.put(key("b"), some_file());
        assert!(one.get(key("a")).is_none());
        assert!(other.get(key("a")).is_some() && other.get(key("b")).is_some());
        other.drop(key("b"));
        assert!(other.get(key("b")).is_none());
    }

    #[test]
    fn files_of_other_levels_and_hierarchies_are_others() {
        let all = Kept::new(9);
        let own = Arc::new(AtHand::default());
        let shelf = Shelf { all: &all, own: &own };
        shelf.put(key("a"), some_file());
        assert!(shelf.get(FileKey { path_length: 2, ..key("a") }).is_none());
        assert!(shelf.get(FileKey { hierarchy: 1, ..key("a") }).is_none());
    }
}
