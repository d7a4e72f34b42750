//! Threads that read again. What tells a reader are links of its own in `/proc`; finding them by path takes two thirds of
//! asking them, so that of a thread that comes a second time they are kept.
//!
//! What a kept link says is not kept: it is read at every request, and a thread that has entered another namespace is there
//! at once. A link is of one thread, whoever has its number later, and answers with an error when that one has ended.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};

use super::Namespaces;
use super::lookup::{Lookup, read_number};
use crate::error::{Errno, Error, Result};
use crate::model::lock::lock;

/// The links of some threads. Where a thread is kept follows from its number, and whoever comes later takes the place.
#[derive(Debug)]
pub(super) struct Readers {
    places: Box<[Mutex<Place>]>,
}

#[derive(Debug, Default)]
struct Place {
    /// Who was here last. 0: nobody.
    tid: u32,
    links: Option<Arc<Links>>,
}

/// The links of one thread.
#[derive(Debug)]
pub(super) struct Links {
    /// The number of its pid namespace, which no thread can leave.
    pid: u64,
    cgroup: OwnedFd,
    /// `None` before 5.6.
    time: Option<OwnedFd>,
}

impl Readers {
    /// Keeps the links, two descriptors, of at most `most` threads.
    pub(super) fn new(most: usize) -> Self {
        Self { places: (0..most.max(1)).map(|_| Mutex::default()).collect() }
    }

    /// The links of thread `tid`, if it has been here before.
    fn links(&self, lookup: Lookup<'_>, tid: u32) -> Option<Arc<Links>> {
        let place = &self.places[tid as usize % self.places.len()];
        {
            let mut place = lock(place);
            if place.tid != tid {
                *place = Place { tid, links: None };
                return None;
            }
            if let Some(links) = &place.links {
                return Some(Arc::clone(links));
            }
        }
        let links = Arc::new(Links::open(lookup, tid).ok()?);
        let mut place = lock(place);
        if place.tid == tid {
            place.links = Some(Arc::clone(&links));
        }
        Some(links)
    }

    /// The pid and cgroup namespaces of thread `tid`.
    pub(super) fn namespaces(&self, lookup: Lookup<'_>, tid: u32) -> Result<Namespaces> {
        if let Some(links) = self.links(lookup, tid) {
            if let Ok(cgroup) = read_number(&links.cgroup, "") {
                return Ok(Namespaces { pid: links.pid, cgroup });
            }
            self.forget(tid);
        }
        lookup.namespaces(tid)
    }

    /// The time namespace of thread `tid`. A kernel before 5.6 has none.
    pub(super) fn time_namespace(&self, lookup: Lookup<'_>, tid: u32) -> Result<u64> {
        let kept = self.links(lookup, tid);
        let kept = kept.as_ref().and_then(|links| read_number(links.time.as_ref()?, "").ok());
        kept.map_or_else(|| lookup.namespace(tid, "time"), Ok)
    }

    /// Thread `tid` has ended: whoever has its number now is another one.
    fn forget(&self, tid: u32) {
        let mut place = lock(&self.places[tid as usize % self.places.len()]);
        if place.tid == tid {
            *place = Place::default();
        }
    }
}

impl Links {
    fn open(lookup: Lookup<'_>, tid: u32) -> Result<Self> {
        let path = tid.to_string();
        let failed = |errno: Errno| Error::io("open", format!("/proc/{path}/ns"), errno);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let open = |directory: &OwnedFd, path: &str| {
            rustix::fs::openat(directory, path, flags | OFlags::NOFOLLOW, Mode::empty())
        };
        // One directory for all of them: they are of one thread, even if its number is given to another meanwhile.
        let thread = open(lookup.0.proc(), &path).map_err(failed)?;
        Ok(Self {
            pid: read_number(&thread, "ns/pid").map_err(failed)?,
            cgroup: open(&thread, "ns/cgroup").map_err(failed)?,
            time: open(&thread, "ns/time").ok(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::source::host::Host;

    #[test]
    fn links_are_kept_from_the_second_time_on_and_end_with_their_thread() {
        let host = Host::open().unwrap();
        let lookup = Lookup(&host);
        let readers = Readers::new(1);
        let (tell, told) = channel();
        let (end, ended) = channel();
        let thread = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()).unwrap();
            ended.recv().unwrap();
        });
        let tid = told.recv().unwrap();
        let known = lookup.namespaces(tid).unwrap();
        let is_kept = || lock(&readers.places[0]).links.is_some();
        for time in 0..3 {
            assert_eq!(is_kept(), time > 1);
            assert_eq!(readers.namespaces(lookup, tid).unwrap(), known);
        }
        assert_eq!(readers.time_namespace(lookup, tid).ok(), lookup.namespace(tid, "time").ok());
        end.send(()).unwrap();
        thread.join().unwrap();
        // The kernel tells of the end a moment before the number is gone.
        while lookup.namespaces(tid).is_ok() {
            std::thread::yield_now();
        }
        assert_eq!(readers.namespaces(lookup, tid).unwrap_err().errno, Errno::SRCH);
        assert!(!is_kept(), "another may have the number next");
    }
}
