//! PSI triggers set through open files, and who waits for them.
//!
//! A trigger is a descriptor of the kernel's pressure file. One thread waits for all of them; it is started with the
//! first, and sleeps while nothing stalls. An event is kept for each file until somebody polls it, as in the kernel.
//!
//! The first triggers of a container are the kernel's, one for each file. Further ones share those, where they ask for
//! the same: the kernel has whoever closes a trigger wait for a hundredth of a second, one after the other, so
//! that ten thousand of them would keep the daemon from ending for minutes.
//!
//! Each is in the journal with the number the kernel knows its pollers by: the next daemon sets it again, and has whoever
//! waits look once more.

mod carried;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use fuser::{FileHandle, PollEvents, PollNotifier};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;

use serde::{Deserialize, Serialize};

use crate::error::{Errno, Error, Result};
use crate::keep::journal::{Journal, Record};
use crate::model::file::Resource;
use crate::model::lock::lock;
use crate::model::trigger::Trigger;
use crate::road::Owner;

/// What a file without an event answers, like every file that is always ready (`DEFAULT_POLLMASK`).
pub(super) const READY: PollEvents = PollEvents::POLLIN
    .union(PollEvents::POLLRDNORM)
    .union(PollEvents::POLLOUT)
    .union(PollEvents::POLLWRNORM);

/// What says that there is no trigger, or no cgroup any more.
const NO_TRIGGER: PollEvents = PollEvents::POLLERR.union(PollEvents::POLLPRI);

/// How many triggers of the kernel's one container may have. Its further files share them.
const MOST_OF_ONE: usize = 64;

/// A trigger that was set: all that is needed to set it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// The open file it was set through.
    pub handle: u64,
    /// What for.
    pub wish: Wish,
    /// The kernel's number for those who poll the open file, once somebody has waited.
    pub poll_handle: Option<u64>,
}

/// What a trigger is for. Files that wish for the same may share one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// Whose pressure file.
    pub owner: Owner,
    /// Which.
    pub resource: Resource,
    /// What was asked for.
    pub trigger: Trigger,
}

/// The open files that may have a trigger.
#[derive(Debug)]
pub struct Pollers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    known: Mutex<Known>,
    /// The epoll instance all triggers are in.
    queue: OwnedFd,
    /// Whether the thread that waits for it has been started.
    is_waiting: AtomicBool,
    /// Triggers of the kernel's at most, of all containers together.
    most: usize,
    journal: Arc<Journal>,
}

#[derive(Debug, Default)]
struct Known {
    /// Files opened for writing, by handle.
    files: HashMap<u64, Open>,
    /// The triggers of the kernel's, by a number of ours.
    watches: HashMap<u64, Watch>,
    next_watch: u64,
    /// How many triggers of the kernel's each owner has, those included that are being set or closed.
    counts: HashMap<Owner, usize>,
    closing: Vec<(OwnedFd, Owner)>,
    is_closing: bool,
}

#[derive(Debug, Default)]
struct Open {
    is_privileged: bool,
    /// Somebody is setting a trigger.
    is_claimed: bool,
    /// The trigger, and the number of the watch. `None` in its place: the cgroup is gone.
    set: Option<(Set, Option<u64>)>,
    /// There was an event, and nobody has polled since.
    has_event: bool,
    waiter: Option<PollNotifier>,
    record: Option<Record>,
}

/// A trigger of the kernel's.
#[derive(Debug)]
struct Watch {
    wish: Wish,
    descriptor: OwnedFd,
    files: HashSet<u64>,
}

impl Pollers {
    /// At most `most` triggers of the kernel's, written to `journal`.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(super) fn new(most: usize, journal: Arc<Journal>) -> Result<Self> {
        let queue = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| Error::io("create", "an epoll instance", errno))?;
        let (known, is_waiting) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self(Arc::new(Shared { known, queue, is_waiting, most, journal })))
    }

    /// A pressure file was opened for writing, by somebody who has `CAP_SYS_RESOURCE` or not.
    pub(super) fn open(&self, handle: FileHandle, is_privileged: bool) {
        self.0.lock().files.insert(handle.0, Open { is_privileged, ..Open::default() });
    }

    /// The file was closed, and its trigger with it.
    pub(super) fn close(&self, handle: FileHandle) {
        let mut known = self.0.lock();
        let Some(open) = known.files.remove(&handle.0) else { return };
        if let Some(record) = open.record {
            self.0.journal.remove(record);
        }
        let Some((_, Some(number))) = open.set else { return };
        let Some(watch) = known.watches.get_mut(&number) else { return };
        watch.files.remove(&handle.0);
        if watch.files.is_empty() {
            Shared::end(&self.0, known, number);
        }
    }

    /// Begins setting a trigger through `handle`. Nobody else can until the claim is dropped.
    ///
    /// # Errors
    /// It has one (`EBUSY`), or its cgroup is gone (`ENODEV`).
    pub(super) fn claim(&self, handle: FileHandle) -> Result<Claim<'_>, Errno> {
        let mut known = self.0.lock();
        // Of a file opened before this daemon was started nothing is known, and nothing assumed of who opened it.
        let open = known.files.entry(handle.0).or_default();
        match open.set {
            Some((_, None)) => return Err(Errno::NODEV),
            Some(_) => return Err(Errno::BUSY),
            None if open.is_claimed => return Err(Errno::BUSY),
            None => open.is_claimed = true,
        }
        let is_privileged = open.is_privileged;
        Ok(Claim { shared: &self.0, handle: handle.0, is_privileged })
    }

    /// What poll(2) says of the file. `waiter` is told of the next event.
    pub(super) fn poll(&self, handle: FileHandle, waiter: Option<PollNotifier>) -> PollEvents {
        let mut known = self.0.lock();
        let open = known.files.get_mut(&handle.0);
        let Some(Open { set: Some((set, Some(_))), has_event, waiter: known_waiter, .. }) = open
        else {
            return READY | NO_TRIGGER;
        };
        let number = waiter.as_ref().map(|waiter| waiter.handle().0);
        let is_new = number.is_some() && set.poll_handle != number;
        if waiter.is_some() {
            set.poll_handle = number;
            *known_waiter = waiter;
        }
        let events = if std::mem::take(has_event) { READY | PollEvents::POLLPRI } else { READY };
        if is_new {
            self.0.write_down(&mut known, handle.0);
        }
        events
    }

    /// The triggers that are set now.
    #[must_use]
    pub fn list(&self) -> Vec<Set> {
        let known = self.0.lock();
        let sets = known.files.values().filter_map(|open| open.set.as_ref());
        sets.filter(|(_, watch)| watch.is_some()).map(|(set, _)| set.clone()).collect()
    }
}

/// The right to set the trigger of one open file. Dropped, it leaves the file as it is then.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    shared: &'a Arc<Shared>,
    handle: u64,
    is_privileged: bool,
}

impl Claim<'_> {
    /// Reads what was written.
    ///
    /// # Errors
    /// It is no trigger, or not one for whoever opened the file (`EINVAL`).
    pub(super) fn parse(&self, text: &[u8]) -> Result<Trigger, Errno> {
        let is_allowed = |trigger: &Trigger| self.is_privileged || trigger.is_for_anybody();
        Trigger::parse(text).filter(is_allowed).ok_or(Errno::INVAL)
    }

    /// Has the file told of the events of the trigger wished for: one that `set` makes, or one that is there.
    ///
    /// # Errors
    /// `set` fails; or the owner has as many different ones as it may (`ENOSPC`, as for the watches of inotify(7)).
    pub(super) fn fulfil(self, wish: Wish, set: impl FnOnce() -> Result<OwnedFd>) -> Result<()> {
        let shared = self.shared;
        let mut known = shared.lock();
        let own = known.counts.get(&wish.owner).copied().unwrap_or_default();
        if own >= MOST_OF_ONE || known.counts.values().sum::<usize>() >= shared.most {
            let same = known.watches.iter_mut().find(|(_, watch)| watch.wish == wish);
            let (&number, watch) = same
                .ok_or_else(|| Error::io("set another trigger in", "a container", Errno::NOSPC))?;
            watch.files.insert(self.handle);
            known.keep(self.handle, wish, number);
            shared.write_down(&mut known, self.handle);
            return Ok(());
        }
        let owner = wish.owner.clone();
        *known.counts.entry(owner.clone()).or_default() += 1;
        let number = known.next_watch;
        known.next_watch += 1;
        drop(known);
        let set = Shared::start(shared).and_then(|()| set());
        let mut known = shared.lock();
        let descriptor = set.inspect_err(|_| known.uncount(&owner))?;
        // Edge-triggered: an event is consumed by the first look at it, and a second would only find it gone.
        let flags = epoll::EventFlags::PRI | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(number);
        if let Err(errno) = epoll::add(&shared.queue, &descriptor, data, flags) {
            Shared::close_later(shared, known, descriptor, owner);
            return Err(Error::io("wait for", "a trigger", errno));
        }
        let files = HashSet::from([self.handle]);
        known.watches.insert(number, Watch { wish: wish.clone(), descriptor, files });
        known.keep(self.handle, wish, number);
        shared.write_down(&mut known, self.handle);
        Ok(())
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(open) = self.shared.lock().files.get_mut(&self.handle) {
            open.is_claimed = false;
        }
    }
}

impl Known {
    fn keep(&mut self, handle: u64, wish: Wish, watch: u64) {
        let set = Set { handle, wish, poll_handle: None };
        self.files.entry(handle).or_default().set = Some((set, Some(watch)));
    }

    fn uncount(&mut self, owner: &Owner) {
        if let Some(count) = self.counts.get_mut(owner) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(owner);
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// Starts the thread that waits for events, unless it runs.
    fn start(this: &Arc<Self>) -> Result<()> {
        if this.is_waiting.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let shared = Arc::clone(this);
        let thread = std::thread::Builder::new().name("triggers".to_owned());
        thread.spawn(move || shared.wait()).map(drop).map_err(|error| {
            this.is_waiting.store(false, Ordering::Relaxed);
            Error::std("start", "thread triggers", &error)
        })
    }

    /// Waits for events for ever.
    fn wait(self: Arc<Self>) {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            // It fails only when it is interrupted: the caller's mistakes are not made here.
            if epoll::wait(&self.queue, spare_capacity(&mut events), None).is_err() {
                continue;
            }
            for &epoll::Event { flags, data } in &events {
                Self::happened(&self, data.u64(), flags.contains(epoll::EventFlags::ERR));
            }
        }
    }

    /// There was an event: whoever waits for one has to look.
    fn happened(this: &Arc<Self>, number: u64, is_gone: bool) {
        let mut known = this.lock();
        let Known { files, watches, .. } = &mut *known;
        // Ended meanwhile; its number is never used again.
        let Some(watch) = watches.get(&number) else { return };
        let mut waiters = Vec::new();
        for handle in &watch.files {
            let Some(open) = files.get_mut(handle) else { continue };
            open.has_event = true;
            waiters.extend(open.waiter.take());
            if let Some((_, watch)) = open.set.as_mut().filter(|_| is_gone) {
                *watch = None;
            }
        }
        if is_gone {
            Self::end(this, known, number);
        } else {
            drop(known);
        }
        for waiter in waiters {
            // It may have closed the file: then nobody needs to know.
            let _ = waiter.notify();
        }
    }

    /// Ends a trigger that no file has any more.
    fn end(this: &Arc<Self>, mut known: MutexGuard<'_, Known>, number: u64) {
        if let Some(Watch { wish, descriptor, .. }) = known.watches.remove(&number) {
            // Closing it wakes those who wait for another one of the same cgroup, too: not us.
            let _ = epoll::delete(&this.queue, &descriptor);
            Self::close_later(this, known, descriptor, wish.owner);
        }
    }

    /// Closes a trigger on a thread of its own, which ends when there is nothing more to close. Whoever closes one
    /// waits, and that must not be a request. It counts until it is closed.
    fn close_later(
        this: &Arc<Self>,
        mut known: MutexGuard<'_, Known>,
        descriptor: OwnedFd,
        owner: Owner,
    ) {
        known.closing.push((descriptor, owner));
        if std::mem::replace(&mut known.is_closing, true) {
            return;
        }
        drop(known);
        let shared = Arc::clone(this);
        let thread = std::thread::Builder::new().name("closing".to_owned());
        if thread.spawn(move || shared.close_all()).is_err() {
            this.close_all();
        }
    }

    fn close_all(&self) {
        let mut known = self.lock();
        while let Some((descriptor, owner)) = known.closing.pop() {
            drop(known);
            drop(descriptor);
            known = self.lock();
            known.uncount(&owner);
        }
        known.is_closing = false;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::trigger::Stall;

    pub(super) fn pollers(most: usize) -> Pollers {
        Pollers::new(most, Arc::new(crate::keep::journal::tests::journal())).unwrap()
    }

    pub(super) fn wish(cgroup: &str, threshold_us: u32) -> Wish {
        Wish {
            owner: Owner { cgroup: Some(cgroup.to_owned()) },
            resource: Resource::Cpu,
            trigger: Trigger { stall: Stall::Some, threshold_us, window_us: 2_000_000 },
        }
    }

    /// Something that can be polled.
    pub(super) fn descriptor() -> Result<OwnedFd> {
        Ok(rustix::pipe::pipe().unwrap().0)
    }

    pub(super) fn set(pollers: &Pollers, handle: u64, wish: &Wish) -> Result<(), Errno> {
        let handle = FileHandle(handle);
        let claim = pollers.claim(handle)?;
        claim.fulfil(wish.clone(), descriptor).map_err(|error| error.errno)
    }

    #[test]
    fn one_trigger_for_a_file_and_for_its_opener() {
        let pollers = pollers(10);
        let handle = FileHandle(1);
        pollers.open(handle, false);
        assert_eq!(pollers.poll(handle, None), READY | NO_TRIGGER);
        let claim = pollers.claim(handle).unwrap();
        assert_eq!(claim.parse(b"some 1 1000000"), Err(Errno::INVAL));
        assert_eq!(pollers.claim(handle).unwrap_err(), Errno::BUSY);
        drop(claim);
        set(&pollers, 1, &wish("/a", 1)).unwrap();
        assert_eq!(set(&pollers, 1, &wish("/a", 1)), Err(Errno::BUSY));
        assert_eq!(pollers.poll(handle, None), READY);
        assert_eq!(pollers.list(), [Set { handle: 1, wish: wish("/a", 1), poll_handle: None }]);
        pollers.close(handle);
        assert_eq!(pollers.list(), []);
        pollers.open(FileHandle(2), true);
        assert!(pollers.claim(FileHandle(2)).unwrap().parse(b"some 1 1000000").is_ok());
    }

    #[test]
    fn an_event_is_for_each_file_once() {
        let pollers = pollers(2);
        for handle in 1..=3 {
            set(&pollers, handle, &wish("/a", 1)).unwrap();
        }
        assert_eq!(pollers.0.lock().watches.len(), 2, "the third file shares one");
        for number in 0..2 {
            Shared::happened(&pollers.0, number, false);
            Shared::happened(&pollers.0, number, false);
        }
        for handle in (1..=3).map(FileHandle) {
            assert_eq!(pollers.poll(handle, None), READY | PollEvents::POLLPRI);
            assert_eq!(pollers.poll(handle, None), READY);
        }
        for number in 0..2 {
            Shared::happened(&pollers.0, number, true);
        }
        assert_eq!(pollers.poll(FileHandle(3), None), READY | NO_TRIGGER);
        assert_eq!(set(&pollers, 3, &wish("/a", 1)), Err(Errno::NODEV));
        assert_eq!(pollers.list(), []);
    }

    #[test]
    fn a_container_has_no_more_than_its_share_until_some_are_closed() {
        let pollers = pollers(2 * MOST_OF_ONE);
        let most = u64::try_from(MOST_OF_ONE).unwrap();
        let of = |handle: u64| wish("/a", u32::try_from(handle + 1).unwrap());
        for handle in 0..most {
            set(&pollers, handle, &of(handle)).unwrap();
        }
        assert_eq!(set(&pollers, most, &of(most)), Err(Errno::NOSPC));
        set(&pollers, most + 1, &wish("/b", 1)).unwrap();
        set(&pollers, most, &of(7)).unwrap();
        // The seventh is still wished for by another file.
        pollers.close(FileHandle(7));
        assert_eq!(set(&pollers, most + 2, &of(most)), Err(Errno::NOSPC));
        pollers.close(FileHandle(most));
        pollers.close(FileHandle(0));
        while pollers.0.lock().counts[&wish("/a", 1).owner] > MOST_OF_ONE - 2 {
            std::thread::yield_now();
        }
        set(&pollers, most + 2, &of(most)).unwrap();
        assert_eq!(pollers.list().len(), MOST_OF_ONE);
        let failed = pollers.claim(FileHandle(most + 3)).unwrap();
        let refused = || Err(Error::io("set", "a trigger", Errno::OPNOTSUPP));
        assert!(failed.fulfil(wish("/c", 1), refused).is_err());
        assert!(!pollers.0.lock().counts.contains_key(&wish("/c", 1).owner));
    }
}
