//! One page for one reader: who asks, what the page says, and what happens when something on the way breaks.
//!
//! The failure rule lives here and nowhere else. A reader in a container whose page cannot be made gets the host's page,
//! because programs expect `/proc` to be readable; that is counted, logged once for each cause, and shown by
//! `lxcfs status`. An empty page is never an answer to an error. With `--strict` the reader gets `EIO` instead.

pub mod fallback;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use self::fallback::Fallbacks;
use crate::caller::{Caller, Callers};
use crate::error::{Errno, Error, Result};
use crate::files::{self, Policy, Reader, View};
use crate::keep::memory::Memory;
use crate::model::container::{CgroupPaths, Container};
use crate::model::file::{File, Path, Resource};
use crate::model::topology::{Place, Shown, Tree};
use crate::source::trigger::PressureFile;
use crate::source::{Machine, Source};
use crate::survey::{self, Survey};

/// What the trees of `/sys` are called where fallbacks are counted.
const TREES: &str = "sys/devices/system";

/// Whose a trigger is. The default is the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Owner {
    /// The container's cgroup in the v2 hierarchy.
    pub cgroup: Option<String>,
}

impl Owner {
    fn of(container: &Container) -> Self {
        Self { cgroup: container.cgroups.unified().map(ToOwned::to_owned) }
    }
}

/// Everything between a request and its reply.
#[derive(Debug)]
pub struct Road {
    callers: Arc<Callers>,
    source: Arc<dyn Source>,
    machine: Arc<dyn Machine>,
    policy: Policy,
    fallbacks: Fallbacks,
    passthrough: AtomicBool,
    memory: Arc<Memory>,
}

impl Road {
    /// A road that asks `callers` who reads and `source` what to tell them.
    #[must_use]
    pub fn new(
        callers: Arc<Callers>,
        source: Arc<dyn Source>,
        machine: Arc<dyn Machine>,
        policy: Policy,
        memory: Arc<Memory>,
    ) -> Self {
        Self {
            callers,
            source,
            machine,
            policy,
            fallbacks: Fallbacks::default(),
            passthrough: AtomicBool::new(false),
            memory,
        }
    }

    /// The page of `file` for the thread `tid`.
    ///
    /// # Errors
    /// The reader has ended (`ESRCH`), not even the host's file can be read, or with `--strict` the container's page cannot
    /// be made (`EIO`).
    pub fn page(&self, file: File, tid: u32) -> Result<Bytes> {
        let made = self.made(tid, file.path(), |view| {
            let mut page = Vec::with_capacity(file.usual_bytes());
            let reader = self.reader(file, tid);
            files::page(file, &View { reader, ..*view }, &mut page)?;
            // Before the page is served: what was shown may not be forgotten.
            if file.has_counters() {
                self.memory.remember(view.container);
            } else if file == File::Loadavg {
                self.memory.remember_load(view.container);
            }
            Ok(page)
        })?;
        let host = || {
            let mut page = Vec::with_capacity(file.usual_bytes());
            let read = match file {
                File::Cpuinfo => self.machine.read_cpuinfo(self.callers.is_32bit(tid), &mut page),
                file => self.machine.read(file, &mut page),
            };
            read.map(|()| page)
        };
        if made.is_some() {
            self.fallbacks.served(file);
        }
        made.map_or_else(host, Ok).map(Bytes::from)
    }

    /// What of the thread `tid` itself matters to its page of `file`.
    fn reader(&self, file: File, tid: u32) -> Reader {
        match file {
            File::Cpuinfo => Reader { is_32bit: self.callers.is_32bit(tid), ..Reader::default() },
            File::Stat => {
                Reader { boottime_ahead_s: self.callers.boottime_ahead_s(tid), ..Reader::default() }
            }
            _ => Reader::default(),
        }
    }

    /// The text of the file at `place` for the thread `tid`.
    ///
    /// # Errors
    /// As for [`Road::page`], and where the CPU or node is not shown, or not any more (`ENODEV`, as in sysfs).
    pub fn sysfs(&self, place: &Place, tid: u32) -> Result<Bytes> {
        let made = self.made(tid, TREES, |view| {
            let mut page = Vec::with_capacity(256);
            Ok(files::sysfs(place, view, &mut page)?.then_some(page))
        })?;
        let gone = || Error::io("read", format!("/{}", place.path()), Errno::NODEV);
        let host = || {
            let mut page = Vec::with_capacity(256);
            self.machine.read_sys(&place.path(), &mut page).map(|()| page)
        };
        made.map_or_else(host, |page| page.ok_or_else(gone)).map(Bytes::from)
    }

    /// The text of the file at `path` as the thread `tid` finds it.
    ///
    /// # Errors
    /// As for [`Road::page`] and [`Road::sysfs`].
    pub fn text(&self, path: &Path, tid: u32) -> Result<Bytes> {
        match path {
            Path::File(file) => self.page(*file, tid),
            Path::Place(place) => self.sysfs(place, tid),
        }
    }

    /// What the thread `tid` is shown of `tree`.
    ///
    /// # Errors
    /// As for [`Road::page`].
    pub fn shown(&self, tree: Tree, tid: u32) -> Result<Shown> {
        let made = self.made(tid, TREES, |view| files::shown(tree, view))?;
        Ok(made.unwrap_or_default())
    }

    /// Whose cgroups the thread `tid` is shown. Here nothing stands for what cannot be had: who cannot be told from others is
    /// shown none, and so is everybody who is shown the host's files.
    ///
    /// # Errors
    /// As for [`Callers::find`], and `ENOENT` where everybody is shown the host's files.
    pub fn whose_cgroups(&self, tid: u32) -> Result<Caller> {
        if self.is_passthrough() {
            return Err(Error::io("find", "cgroup/", Errno::NOENT));
        }
        self.callers.find(tid)
    }

    /// The pressure file of an owner that is known already.
    ///
    /// # Errors
    /// It cannot be opened, or its cgroup is gone.
    pub fn pressure_file_of(&self, resource: Resource, owner: &Owner) -> Result<PressureFile> {
        let Some(cgroup) = &owner.cgroup else { return self.machine.pressure_file(resource) };
        let cgroups = CgroupPaths::parse(format!("0::{cgroup}\n").as_bytes());
        let container = Container { cgroups, ..Container::default() };
        let file = self.source.pressure_file(&container, resource)?;
        file.ok_or_else(|| Error::io("open the pressure file of", cgroup, Errno::NOENT))
    }

    /// The pressure file whose page the thread `tid` reads, open for a trigger, and whose it is.
    ///
    /// # Errors
    /// As for [`Road::page`].
    pub fn pressure_file(&self, resource: Resource, tid: u32) -> Result<(PressureFile, Owner)> {
        let made = self.made(tid, File::Pressure(resource).path(), |view| {
            let file = files::pressure_file(view, resource)?;
            Ok((file, Owner::of(view.container)))
        })?;
        let host = || Ok((self.machine.pressure_file(resource)?, Owner::default()));
        made.map_or_else(host, Ok)
    }

    /// What `make` makes for the thread `tid`. `Ok(None)`: it is shown the host's.
    fn made<T>(
        &self,
        tid: u32,
        what: &'static str,
        make: impl Fn(&View<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        if self.passthrough.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match self.for_container(tid, make) {
            Err(error) if error.errno == Errno::SRCH && tid != 0 => Err(error),
            Err(error) => {
                self.fallbacks.count(what, &error, self.policy.strict);
                if self.policy.strict { Err(Error { errno: Errno::IO, ..error }) } else { Ok(None) }
            }
            made => made,
        }
    }

    /// What `make` makes for a reader in a container; `Ok(None)` for a reader on the host.
    fn for_container<T>(
        &self,
        tid: u32,
        make: impl Fn(&View<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let mut known = None;
        let mut try_once = || {
            let Caller::Container(container) = self.callers.find(tid)? else {
                return Ok(None);
            };
            // Until it is found again, or what was shown of it would be forgotten, and its counters fall.
            let container = known.insert(container);
            let view = View {
                container,
                source: &*self.source,
                machine: &*self.machine,
                policy: &self.policy,
                reader: Reader::default(),
            };
            make(&view).map(Some)
        };
        match try_once() {
            // The cgroup went away under us: the container has moved, or what we knew of it is outdated. Look again.
            Err(Error { errno: Errno::NOENT | Errno::NODEV, .. }) => {
                self.callers.forget(tid);
                try_once()
            }
            made => made,
        }
    }

    /// Every container measured, from the same sources as their pages.
    ///
    /// # Errors
    /// See [`survey::take`].
    pub fn survey(&self) -> Result<Survey> {
        survey::take(&self.callers, &*self.source, &*self.machine)
    }

    /// Shows everybody the host's pages, or ends it (`SIGUSR2`). Returns whether it is on now.
    pub fn toggle_passthrough(&self) -> bool {
        !self.passthrough.fetch_xor(true, Ordering::Relaxed)
    }

    /// Whether everybody is shown the host's pages.
    #[must_use]
    pub fn is_passthrough(&self) -> bool {
        self.passthrough.load(Ordering::Relaxed)
    }

    /// Writes down the load of every container as it is now, for a daemon after us that counts anew.
    pub fn look_again(&self) {
        for container in self.callers.containers() {
            // A container that has ended has no load, and none that is asked for.
            if self.source.load(&container).is_ok() {
                self.memory.remember(&container);
            }
        }
    }

    /// What pages are made from.
    #[must_use]
    pub fn parts(&self) -> (&dyn Source, &dyn Machine, &Policy) {
        (&*self.source, &*self.machine, &self.policy)
    }

    /// What was served from the host, and why.
    #[must_use]
    pub const fn fallbacks(&self) -> &Fallbacks {
        &self.fallbacks
    }

    /// Who reads.
    #[must_use]
    pub fn callers(&self) -> &Callers {
        &self.callers
    }
}
