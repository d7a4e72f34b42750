//! Who asks: from the thread id in a FUSE request to the container it is in. No process is made for it, ever.
//!
//! A container is told by two namespaces. Its pid namespace gives its init, whose start is the container's; its cgroup
//! namespace gives its boundary: the cgroup its limits are set on and its use is counted in, whatever leaf below it the
//! init has moved to since.

mod cache;
mod cgroupns;
mod lookup;
mod pidns;
mod pids;
mod readers;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use rustix::process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open};

use self::cache::{Cache, Entry};
use self::cgroupns::Visitor;
use self::lookup::Lookup;
use self::readers::Readers;
use crate::error::{Errno, Error, Result};
use crate::keep::memory::Memory;
use crate::model::container::{CgroupPaths, Container};
use crate::source::Machine;
use crate::source::cgroup::CgroupFiles;
use crate::source::host::{CPUINFO_GOES_BY_READER, Host};
use crate::source::parse;
use crate::source::tasks;

/// Leaves below a container's cgroup that inits are known to move to: systemd, DinD and k3s, LXC and Incus, crun.
const KNOWN_LEAVES: [&str; 4] = ["/init.scope", "/init", "/.lxc", "/container"];

/// So many threads that read again are kept at hand.
const MOST_READERS: usize = 1_024;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Who a request comes from.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A process of the host itself: it sees the host's bytes.
    Host,
    /// A process in a container.
    Container(Arc<Container>),
}

/// Whether a thread has `CAP_SYS_RESOURCE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// It has not.
    None,
    /// In a user namespace of its own.
    InItsNamespace,
    /// In ours, and so for the machine.
    OnHost,
}

/// Inode numbers of the namespaces that tell a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Namespaces {
    pid: u64,
    cgroup: u64,
}

/// Where a container begins, and what that depends on.
#[derive(Debug)]
struct Boundary {
    cgroups: CgroupPaths,
    /// See [`Entry::follows`].
    follows: Option<Vec<u8>>,
    /// See [`Entry::cgroup_namespace`].
    cgroup_namespace: Option<OwnedFd>,
    /// See [`Container::pid_depth`]; `None` where it has to be counted, in the longest file that a process has.
    pid_depth: Option<usize>,
}

/// How the init of a pid namespace is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InitLookup {
    /// Ask the namespace (6.11), and search where it does not answer.
    #[default]
    Ask,
    /// Always search, as kernels before 6.11 must. For tests.
    Search,
}

/// Finds containers.
#[derive(Debug)]
pub struct Callers {
    host: Arc<Host>,
    files: Arc<CgroupFiles>,
    ours: Namespaces,
    our_user_namespace: u64,
    our_time_namespace: Option<u64>,
    visitor: Visitor,
    cache: Cache,
    readers: Readers,
    init_lookup: InitLookup,
    memory: Arc<Memory>,
    watcher: OnceLock<Thread>,
}

impl Callers {
    /// A finder that speaks of `host`'s processes.
    ///
    /// # Errors
    /// Our own namespaces cannot be read, or no thread can be made.
    pub fn new(
        host: Arc<Host>,
        files: Arc<CgroupFiles>,
        init_lookup: InitLookup,
        memory: Arc<Memory>,
    ) -> Result<Self> {
        let us = std::process::id();
        let lookup = Lookup(&host);
        let ours = lookup.namespaces(us)?;
        let our_user_namespace = lookup.namespace(us, "user")?;
        let our_time_namespace = lookup.namespace(us, "time").ok();
        let home = lookup.open_namespace(us, "cgroup")?;
        let visitor = Visitor::start(Arc::clone(&host), home)?;
        // Each container takes a descriptor, some two: leave half of what we may have for everything else.
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::from(u32::MAX));
        let cache = Cache::new(usize::try_from(descriptors / 4).unwrap_or(usize::MAX).min(65_536))?;
        let readers = Readers::new(
            usize::try_from(descriptors / 32).unwrap_or(MOST_READERS).min(MOST_READERS),
        );
        let watcher = OnceLock::new();
        Ok(Self {
            host,
            files,
            ours,
            our_user_namespace,
            our_time_namespace,
            visitor,
            cache,
            readers,
            init_lookup,
            memory,
            watcher,
        })
    }

    /// The container of thread `tid`.
    ///
    /// # Errors
    /// The thread has ended, is not visible from our pid namespace (`tid` 0), or its cgroups cannot be read.
    pub fn find(&self, tid: u32) -> Result<Caller> {
        if tid == 0 {
            let cause = "the reader is not in our pid namespace";
            return Err(Error::because("find the container of", "pid 0", Errno::SRCH, cause));
        }
        let namespaces = self.readers.namespaces(Lookup(&self.host), tid)?;
        if namespaces == self.ours {
            return Ok(Caller::Host);
        }
        let known = self.cache.get(&namespaces);
        if let Some(entry) = &known {
            if self.is_current(entry) {
                return Ok(Caller::Container(Arc::clone(&entry.container)));
            }
            self.cache.remove(&namespaces);
        }
        let entry = Arc::new(self.resolve(tid, namespaces, known.as_deref())?);
        let container = Arc::clone(&entry.container);
        let is_first = self.cache.len() == 0;
        self.cache.insert(namespaces, entry);
        if let Some(watcher) = self.watcher.get().filter(|_| is_first) {
            watcher.unpark();
        }
        Ok(Caller::Container(container))
    }

    /// What thread `tid` may do about resources.
    ///
    /// # Errors
    /// The thread has ended, or is not visible from our pid namespace.
    pub fn privilege(&self, tid: u32) -> Result<Privilege> {
        Lookup(&self.host).privilege(tid, self.our_user_namespace)
    }

    /// This process as if it were a container's init, with the limits of its own cgroup. For a look at every page.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn ourselves(&self) -> Result<Container> {
        let us = std::process::id();
        let lookup = Lookup(&self.host);
        let started_ns = self.ticks_to_ns(lookup.stat(us)?.start_ticks);
        let cgroups = CgroupPaths::parse(&lookup.read(us, "cgroup")?);
        Ok(Container { init: us, started_ns, cgroups, ..Container::default() })
    }

    /// A time of procfs.
    fn ticks_to_ns(&self, ticks: u64) -> u64 {
        let per_second = u128::from(self.host.ticks_per_second());
        u64::try_from(u128::from(ticks) * u128::from(NS_PER_SECOND) / per_second)
            .unwrap_or(u64::MAX)
    }

    /// By how many seconds the time since boot is ahead of ours for thread `tid`: 0 in our time namespace.
    #[must_use]
    pub fn boottime_ahead_s(&self, tid: u32) -> i64 {
        let lookup = Lookup(&self.host);
        let offset = |tid| {
            let text = lookup.read(tid, "timens_offsets").unwrap_or_default();
            parse::timens_boottime_s(&text).unwrap_or(0)
        };
        match self.readers.time_namespace(lookup, tid) {
            Ok(theirs) if Some(theirs) != self.our_time_namespace => {
                offset(tid).saturating_sub(offset(std::process::id()))
            }
            // A kernel before 5.6 has none.
            _ => 0,
        }
    }

    /// Whether thread `tid` has the personality of a 32-bit program (`PER_LINUX32`), where that changes what it is shown. Where
    /// it cannot be asked, it has not.
    #[must_use]
    pub fn is_32bit(&self, tid: u32) -> bool {
        if !CPUINFO_GOES_BY_READER {
            return false;
        }
        // Eight hexadecimal digits, of which the last two tell the kind and the others are flags.
        let text = Lookup(&self.host).read(tid, "personality").unwrap_or_default();
        text.trim_ascii_end().ends_with(b"08")
    }

    /// Forgets the container of thread `tid`, because what was known of it turned out to be wrong.
    pub fn forget(&self, tid: u32) {
        if let Ok(namespaces) = self.readers.namespaces(Lookup(&self.host), tid) {
            self.cache.remove(&namespaces);
        }
    }

    /// Forgets the containers that have ended by now.
    pub fn forget_ended(&self) {
        while self.cache.forget_ended(Some(&cache::NOW)) > 0 {}
    }

    /// Waits for a container to end, and forgets it.
    pub fn wait_and_forget(&self) {
        self.cache.forget_ended(None);
    }

    /// Has `watcher` unparked when a container is found while none is known.
    pub fn wake_at_first_container(&self, watcher: Thread) {
        // Set once, by the one watcher there is.
        let _ = self.watcher.set(watcher);
    }

    /// Every container that has a process now, by a look at all of them: for an operator's question, never for a request.
    ///
    /// # Errors
    /// The processes cannot be listed. A process that ends meanwhile is left out.
    pub fn discover(&self) -> Result<Vec<Arc<Container>>> {
        let lookup = Lookup(&self.host);
        let mut seen = HashSet::from([self.ours]);
        let mut found = Vec::new();
        for pid in lookup.processes()? {
            let Ok(namespaces) = lookup.namespaces(pid) else { continue };
            if !seen.insert(namespaces) {
                continue;
            }
            match self.find(pid) {
                Ok(Caller::Container(container)) => found.push(container),
                Ok(Caller::Host) => {}
                Err(error) => tracing::debug!("discover: {error}"),
            }
        }
        Ok(found)
    }

    /// The containers known now.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.cache.containers()
    }

    /// Whether the entry still describes the container: it has not moved where that matters, and the process that stands
    /// for an init it has not got still lives.
    ///
    /// A pid namespace needs no look at its init: the entry keeps the namespace's number from being given out again, so
    /// that a reader in a namespace of that number is in this one, and its init lives as long as it does.
    fn is_current(&self, entry: &Entry) -> bool {
        let moved = |was: &Vec<u8>| {
            let now = Lookup(&self.host).read(entry.container.init, "cgroup");
            now.is_ok_and(|now| now != *was)
        };
        let has_own_init = entry.cgroup_namespace.is_none();
        (has_own_init || entry.lives()) && !entry.follows.as_ref().is_some_and(moved)
    }

    /// Finds out about a container. `before` is what was known of these namespaces until it turned out to be outdated.
    fn resolve(&self, tid: u32, namespaces: Namespaces, before: Option<&Entry>) -> Result<Entry> {
        let lookup = Lookup(&self.host);
        if namespaces.pid == self.ours.pid {
            return self.resolve_shared(tid, namespaces);
        }
        let init = match self.init_lookup {
            InitLookup::Ask => lookup.init_of(tid, namespaces.pid)?,
            InitLookup::Search => lookup.init_by_search(tid, namespaces.pid)?,
        };
        let pidfd = open_pidfd(init)?;
        let init_namespaces = lookup.namespaces(init)?;
        if init_namespaces.cgroup != namespaces.cgroup {
            // A pod with one pid namespace for several containers, or a service with a cgroup namespace of its own.
            return self.resolve_shared(tid, namespaces);
        }
        let text = lookup.read(init, "cgroup")?;
        let ours = CgroupPaths::parse(&text);
        let above = lookup.init_above(init, self.ours.pid)?;
        let has_own_cgroup_namespace = init_namespaces.cgroup != self.ours.cgroup
            && match above {
                Some(above) => lookup.namespaces(above)?.cgroup != init_namespaces.cgroup,
                None => true,
            };
        let (cgroups, follows) = if has_own_cgroup_namespace {
            (self.roots_of_namespace(init, &ours)?, None)
        } else {
            (ours.map(|_, path| without_known_leaf(path).to_owned()), Some(text))
        };
        let pid_depth = above.is_none().then_some(1);
        let boundary = Boundary { cgroups, follows, cgroup_namespace: None, pid_depth };
        self.entry(init, pidfd, boundary, before)
    }

    /// A container that shares its pid namespace: its cgroup namespace alone tells it, and its oldest process stands
    /// for its init.
    fn resolve_shared(&self, tid: u32, namespaces: Namespaces) -> Result<Entry> {
        let lookup = Lookup(&self.host);
        let kept = lookup.open_namespace(tid, "cgroup")?;
        let cgroups = if namespaces.cgroup == self.ours.cgroup {
            CgroupPaths::parse(&lookup.read(tid, "cgroup")?)
        } else {
            self.roots_of_namespace(tid, &CgroupPaths::parse(&lookup.read(tid, "cgroup")?))?
        };
        let age = |pid: &u32| lookup.stat(*pid).map_or(u64::MAX, |stat| stat.start_ticks);
        let members = tasks::threads(&cgroups, self.files.hierarchies())?.unwrap_or_default();
        let oldest = members.into_iter().min_by_key(age).unwrap_or(tid);
        let pidfd = open_pidfd(oldest)?;
        let boundary =
            Boundary { cgroups, follows: None, cgroup_namespace: Some(kept), pid_depth: None };
        self.entry(oldest, pidfd, boundary, None)
    }

    fn roots_of_namespace(&self, member: u32, ours: &CgroupPaths) -> Result<CgroupPaths> {
        let namespace = Lookup(&self.host).open_namespace(member, "cgroup")?;
        let inside = self.visitor.read_cgroup(namespace, member)?;
        Ok(cgroupns::roots(ours, &inside))
    }

    fn entry(
        &self,
        init: u32,
        pidfd: OwnedFd,
        boundary: Boundary,
        before: Option<&Entry>,
    ) -> Result<Entry> {
        let lookup = Lookup(&self.host);
        let started_ns = self.ticks_to_ns(lookup.stat(init)?.start_ticks);
        let same = |known: &&Container| known.init == init && known.started_ns == started_ns;
        let known = before.map(|before| &*before.container).filter(same);
        let container = Container {
            init,
            started_ns,
            pid_depth: match boundary.pid_depth {
                Some(depth) => depth,
                None => lookup.own_pids(init)?.len() - 1,
            },
            cgroups: boundary.cgroups,
            history: match known {
                Some(known) => Arc::clone(&known.history),
                None => self.memory.history(init, started_ns),
            },
            at_hand: Arc::default(),
        };
        let entry = Entry {
            container: Arc::new(container),
            init: pidfd,
            follows: boundary.follows,
            cgroup_namespace: boundary.cgroup_namespace,
        };
        // All of this was read under a number. If the process it began with still lives, it was that process's.
        if entry.lives() {
            Ok(entry)
        } else {
            Err(Error::io("look up", format!("/proc/{init}"), Errno::SRCH))
        }
    }
}

/// `path` without the leaf that an init is known to move itself to.
fn without_known_leaf(path: &str) -> &str {
    KNOWN_LEAVES.iter().find_map(|leaf| path.strip_suffix(leaf)).unwrap_or(path)
}

fn open_pidfd(pid: u32) -> Result<OwnedFd> {
    let gone = || Error::io("open pidfd of", pid.to_string(), Errno::SRCH);
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    pidfd_open(number, PidfdFlags::empty())
        .map_err(|errno| Error::io("open pidfd of", pid.to_string(), errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_leaf_of_an_init_is_cut() {
        assert_eq!(without_known_leaf("/lxc/c1/init.scope"), "/lxc/c1");
        assert_eq!(without_known_leaf("/lxc.payload.c1/.lxc"), "/lxc.payload.c1");
        assert_eq!(without_known_leaf("/docker/abc"), "/docker/abc");
        assert_eq!(without_known_leaf("/docker/myinit"), "/docker/myinit");
        assert_eq!(without_known_leaf("/init.scope"), "");
    }
}
