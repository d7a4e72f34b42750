//! The threads that answer requests: what each works on, for the journal and the watchdog.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use super::journal::{Journal, WORKER_WORDS};

/// As many threads as the command line allows.
const THREADS: usize = 64;

// The words of one thread in the journal: the request, what it is, of which node, by which thread. The fifth is not the
// thread's: together they are the requests that a daemon was given a second time.
const REQUEST: usize = 0;
const OPERATION: usize = 1;
const NODE: usize = 2;
const THREAD: usize = 3;
const REPEATED: usize = 4;
/// Of a poll, the kernel's number for those who poll the file.
const POLLED: usize = 5;
const _: () = assert!(POLLED < WORKER_WORDS);

/// Set in the number of a request that the kernel asks a second time.
const RESENT: u64 = 1 << 63;

/// What is asked, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of FUSE")]
pub enum Operation {
    Lookup = 1,
    Attributes = 2,
    Open = 3,
    Read = 4,
    Release = 5,
    List = 6,
    Other = 7,
    Poll = 8,
}

impl Operation {
    const fn name(number: u64) -> &'static str {
        match number {
            1 => "lookup",
            2 => "getattr",
            3 => "open",
            4 => "read",
            5 => "release",
            6 => "readdir",
            8 => "poll",
            _ => "request",
        }
    }
}

/// The threads of one mount.
#[derive(Debug)]
pub struct Workers {
    journal: Arc<Journal>,
    /// The thread that looks for requests that take long, and whether it is about to look.
    watcher: OnceLock<Thread>,
    is_watched: AtomicBool,
    /// Requests that took long, in the life of this process.
    slow: AtomicU64,
}

/// A request under work. Dropping it, after the reply, ends that.
#[derive(Debug)]
#[must_use]
pub struct Working<'a> {
    workers: &'a Workers,
    slot: Option<usize>,
}

/// A request that has not been answered yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unanswered {
    /// The kernel's number for it.
    pub request: u64,
    /// What it asks.
    pub operation: &'static str,
    /// Of which node.
    pub node: u64,
    /// Our thread.
    pub thread: u64,
    /// Of a poll, the kernel's number for those who poll the file.
    pub polled: Option<u64>,
}

thread_local! {
    static SLOT: Cell<Option<usize>> = const { Cell::new(None) };
}

impl Workers {
    /// The threads that write to `journal`.
    #[must_use]
    pub const fn new(journal: Arc<Journal>) -> Self {
        Self {
            journal,
            watcher: OnceLock::new(),
            is_watched: AtomicBool::new(false),
            slow: AtomicU64::new(0),
        }
    }

    /// Says that this thread works on `request` from now on.
    pub fn begin(&self, request: u64, operation: Operation, node: u64) -> Working<'_> {
        self.begin_with(request, operation, node, None)
    }

    /// The same of a poll. `polled` is the kernel's number for those who poll the file.
    pub fn begin_poll(&self, request: u64, node: u64, polled: u64) -> Working<'_> {
        self.begin_with(request, Operation::Poll, node, Some(polled))
    }

    fn begin_with(
        &self,
        request: u64,
        operation: Operation,
        node: u64,
        polled: Option<u64>,
    ) -> Working<'_> {
        let slot = SLOT.with(|slot| slot.get().or_else(|| first_request(slot)));
        let slot = slot.filter(|slot| *slot < THREADS);
        let request = request & !RESENT;
        if let Some(slot) = slot {
            let store = |nth, value| self.journal.worker(slot, nth).store(value, Ordering::Relaxed);
            store(OPERATION, operation as u64);
            store(NODE, node);
            store(THREAD, thread_id());
            if let Some(polled) = polled {
                store(POLLED, polled);
            }
            store(REQUEST, request);
        }
        if !self.is_watched.load(Ordering::Relaxed) {
            self.wake_watcher();
        }
        self.journal.latest_request().store(request, Ordering::Relaxed);
        Working { workers: self, slot }
    }

    /// Makes this thread the one that looks for requests that take long.
    pub fn watch(&self) {
        // One watches, and is the first to ask.
        let _ = self.watcher.set(std::thread::current());
    }

    /// What is worked on, once in each `pause`. Sleeps while nothing has been asked for two of them: a daemon that nobody
    /// asks wakes up for nothing.
    #[must_use]
    pub fn look(&self, pause: Duration) -> Vec<Unanswered> {
        let mut quiet = 0;
        loop {
            std::thread::sleep(pause);
            let unanswered = Self::unanswered(&self.journal);
            let was_asked = self.is_watched.swap(false, Ordering::Relaxed);
            if was_asked || !unanswered.is_empty() {
                return unanswered;
            }
            quiet += 1;
            // A thread may have begun and not have seen that nobody looks any more: the second look finds what it does.
            while quiet > 1 && !self.is_watched.load(Ordering::Relaxed) {
                std::thread::park();
            }
        }
    }

    #[cold]
    fn wake_watcher(&self) {
        if let Some(watcher) = self.watcher.get() {
            self.is_watched.store(true, Ordering::Relaxed);
            watcher.unpark();
        }
    }

    /// Requests that took long, in the life of this process.
    #[must_use]
    pub const fn slow(&self) -> &AtomicU64 {
        &self.slow
    }

    /// What the threads of `journal`'s last daemon, or of ours, work on.
    #[must_use]
    pub fn unanswered(journal: &Journal) -> Vec<Unanswered> {
        let load = |slot, nth: usize| journal.worker(slot, nth).load(Ordering::Relaxed);
        let slots = (0..THREADS).filter(|&slot| load(slot, REQUEST) != 0);
        slots
            .map(|slot| Unanswered {
                request: load(slot, REQUEST),
                operation: Operation::name(load(slot, OPERATION)),
                node: load(slot, NODE),
                thread: load(slot, THREAD),
                polled: (load(slot, OPERATION) == Operation::Poll as u64)
                    .then(|| load(slot, POLLED)),
            })
            .collect()
    }

    /// Settles what a daemon before us left: returns the requests that two daemons have died of by now, and remembers
    /// the others, which will be asked again.
    #[must_use]
    pub fn settle(journal: &Journal) -> Vec<Unanswered> {
        let repeated = |slot| journal.worker(slot, REPEATED);
        let before: Vec<_> =
            (0..THREADS).map(|slot| repeated(slot).swap(0, Ordering::Relaxed)).collect();
        let left = Self::unanswered(journal);
        for slot in 0..THREADS {
            journal.worker(slot, REQUEST).store(0, Ordering::Relaxed);
        }
        let (deadly, again) =
            left.into_iter().partition::<Vec<_>, _>(|l| before.contains(&l.request));
        for (slot, unanswered) in again.iter().enumerate() {
            repeated(slot).store(unanswered.request, Ordering::Relaxed);
        }
        deadly
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.workers.journal.worker(slot, REQUEST).store(0, Ordering::Relaxed);
        }
    }
}

/// Gives the thread a slot of its own.
#[cold]
fn first_request(slot: &Cell<Option<usize>>) -> Option<usize> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    slot.set(Some(next));
    Some(next)
}

/// The number of this thread.
fn thread_id() -> u64 {
    thread_local! {
        static ID: u64 = u64::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap_or(0);
    }
    ID.with(|id| *id)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::journal::tests::journal;
    use super::*;

    #[test]
    fn a_request_is_unanswered_while_it_is_worked_on() {
        let journal = Arc::new(journal());
        let workers = Workers::new(Arc::clone(&journal));
        let working = workers.begin(RESENT | 12, Operation::Read, 17);
        let unanswered = Workers::unanswered(&journal);
        assert_eq!((unanswered[0].request, unanswered[0].operation), (12, "read"));
        assert_eq!((unanswered[0].thread, unanswered[0].polled), (thread_id(), None));
        drop(working);
        assert!(Workers::unanswered(&journal).is_empty());
        assert_eq!(journal.latest_request().load(Ordering::Relaxed), 12);
        let _working = workers.begin_poll(14, 17, 99);
        let unanswered = Workers::unanswered(&journal);
        assert_eq!((unanswered[0].operation, unanswered[0].polled), ("poll", Some(99)));
    }

    #[test]
    fn a_request_that_two_daemons_died_of_is_told() {
        let journal = Arc::new(journal());
        let workers = Workers::new(Arc::clone(&journal));
        for (request, deadly) in [(12, 0), (14, 0), (14, 1), (14, 0)] {
            std::mem::forget(workers.begin(request, Operation::Read, 17));
            assert_eq!(Workers::settle(&journal).len(), deadly, "{request}");
            assert!(Workers::unanswered(&journal).is_empty());
        }
    }

    #[test]
    fn nobody_looks_while_nothing_is_asked() {
        let workers: &'static Workers = Box::leak(Box::new(Workers::new(Arc::new(journal()))));
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            workers.watch();
            while sender.send(workers.look(Duration::from_millis(5))).is_ok() {}
        });
        let is_seen = || {
            let until = Instant::now() + Duration::from_secs(10);
            let mut is_seen = false;
            while !is_seen && Instant::now() < until {
                let _working = workers.begin(12, Operation::Read, 17);
                let look = receiver.recv_timeout(Duration::from_millis(100));
                is_seen = look.is_ok_and(|unanswered| !unanswered.is_empty());
            }
            is_seen
        };
        assert!(is_seen());
        let still = || receiver.recv_timeout(Duration::from_millis(500)).is_ok();
        assert!((0..50).any(|_| !still()), "it looks on and on");
        assert!(is_seen(), "it was woken by a request");
    }
}
