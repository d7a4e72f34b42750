//! Triggers from one daemon to the next: written down as they are set, and set again from what was written.

use std::os::fd::OwnedFd;

use fuser::FileHandle;

use super::{Known, Open, Pollers, Set, Shared, Wish};
use crate::error::{Error, Result};
use crate::keep::journal::{Content, Kind};

impl Pollers {
    /// Sets the triggers of a daemon before us again. `set` makes one. Returns the numbers of those who wait: each has to
    /// be told to look again.
    pub fn take_over(&self, set: impl Fn(&Wish) -> Result<OwnedFd>) -> Vec<u64> {
        let mut waiting = Vec::new();
        for kept in self.0.journal.list(Kind::Trigger) {
            let text = kept.bytes.unwrap_or_default();
            let Ok(before) = serde_json::from_slice::<Set>(&text) else {
                self.0.journal.remove(kept.record);
                continue;
            };
            waiting.extend(before.poll_handle);
            let handle = FileHandle(before.handle);
            let open = Open { record: Some(kept.record), ..Open::default() };
            self.0.lock().files.insert(handle.0, open);
            let again = self.claim(handle).map_err(|errno| Error::io("claim", "a file", errno));
            let again =
                again.and_then(|claim| claim.fulfil(before.wish.clone(), || set(&before.wish)));
            let mut known = self.0.lock();
            let Some(open) = known.files.get_mut(&handle.0) else { continue };
            match again {
                Ok(()) => {
                    if let Some((set, _)) = &mut open.set {
                        set.poll_handle = before.poll_handle;
                    }
                    self.0.write_down(&mut known, handle.0);
                }
                Err(error) => {
                    tracing::info!("a trigger cannot be set again: {error}");
                    open.set = Some((before, None));
                }
            }
        }
        waiting
    }
}

impl Shared {
    /// Has the journal know the trigger of a file.
    pub(super) fn write_down(&self, known: &mut Known, handle: u64) {
        let Some(open) = known.files.get_mut(&handle) else { return };
        let Some((set, _)) = &open.set else { return };
        let Ok(text) = serde_json::to_vec(set) else { return };
        let content = Content::Bytes(&text);
        match open.record {
            Some(record) => _ = self.journal.replace(record, content),
            None => open.record = self.journal.put(Kind::Trigger, [handle, 0], content),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fuser::PollEvents;

    use super::super::tests::{descriptor, pollers, set, wish};
    use super::super::{NO_TRIGGER, READY};
    use super::*;
    use crate::error::Errno;

    #[test]
    fn the_next_daemon_sets_what_is_set() {
        let first = pollers(10);
        for (handle, cgroup) in [(1, "/a"), (2, "/gone"), (3, "/closed")] {
            set(&first, handle, &wish(cgroup, 1)).unwrap();
        }
        first.close(FileHandle(3));
        if let Some((set, _)) = &mut first.0.lock().files.get_mut(&1).unwrap().set {
            set.poll_handle = Some(77);
        }
        first.0.write_down(&mut first.0.lock(), 1);
        let next = Pollers::new(10, Arc::clone(&first.0.journal)).unwrap();
        let told = next.take_over(|wish| match wish.owner.cgroup.as_deref() {
            Some("/gone") => Err(Error::io("open", "/gone", Errno::NOENT)),
            _ => descriptor(),
        });
        assert_eq!(told, [77]);
        assert_eq!(next.list(), [Set { handle: 1, wish: wish("/a", 1), poll_handle: Some(77) }]);
        assert!(!next.poll(FileHandle(1), None).contains(PollEvents::POLLERR));
        assert_eq!(next.poll(FileHandle(2), None), READY | NO_TRIGGER);
        next.close(FileHandle(1));
        next.close(FileHandle(2));
        assert!(first.0.journal.list(Kind::Trigger).is_empty());
    }
}
