//! One page for one reader: who asks, what the page says, and what happens when something on the way breaks.
//!
//! The failure rule lives here and nowhere else. A reader in a container whose page cannot be made gets the host's page,
//! because programs expect `/proc` to be readable; that is counted, logged once for each cause, and shown by
//! `lxcfs status`. An empty page is never an answer to an error.

pub mod fallback;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use self::fallback::Fallbacks;
use crate::caller::{Caller, Callers};
use crate::error::{Errno, Error, Result};
use crate::files::{self, Policy, View};
use crate::model::file::File;
use crate::source::{Machine, Source};
use crate::survey::{self, Survey};

/// Everything between a request and its reply.
#[derive(Debug)]
pub struct Road {
    callers: Arc<Callers>,
    source: Arc<dyn Source>,
    machine: Arc<dyn Machine>,
    policy: Policy,
    fallbacks: Fallbacks,
    passthrough: AtomicBool,
}

impl Road {
    /// A road that asks `callers` who reads and `source` what to tell them.
    #[must_use]
    pub fn new(
        callers: Arc<Callers>,
        source: Arc<dyn Source>,
        machine: Arc<dyn Machine>,
        policy: Policy,
    ) -> Self {
        Self {
            callers,
            source,
            machine,
            policy,
            fallbacks: Fallbacks::default(),
            passthrough: AtomicBool::new(false),
        }
    }

    /// The page of `file` for the thread `tid`.
    ///
    /// # Errors
    /// The reader has ended (`ESRCH`), or not even the host's file can be read.
    pub fn page(&self, file: File, tid: u32) -> Result<Bytes> {
        if self.passthrough.load(Ordering::Relaxed) {
            return self.host_page(file);
        }
        match self.container_page(file, tid) {
            Ok(Some(page)) => Ok(page),
            Ok(None) => self.host_page(file),
            Err(error) if error.errno == Errno::SRCH && tid != 0 => Err(error),
            Err(error) => {
                self.fallbacks.count(file, &error);
                self.host_page(file)
            }
        }
    }

    /// The page of a reader in a container; `Ok(None)` for a reader on the host.
    fn container_page(&self, file: File, tid: u32) -> Result<Option<Bytes>> {
        let mut page = Vec::with_capacity(4_096);
        let mut try_once = || {
            let Caller::Container(container) = self.callers.find(tid)? else {
                return Ok(false);
            };
            let view = View {
                container: &container,
                source: &*self.source,
                machine: &*self.machine,
                policy: &self.policy,
            };
            files::page(file, &view, &mut page).map(|()| true)
        };
        let made = match try_once() {
            // The cgroup went away under us: the container has moved, or what we knew of it is outdated. Look again.
            Err(Error { errno: Errno::NOENT | Errno::NODEV, .. }) => {
                self.callers.forget(tid);
                try_once()?
            }
            made => made?,
        };
        Ok(made.then(|| Bytes::from(page)))
    }

    /// Every container measured, from the same sources as their pages.
    ///
    /// # Errors
    /// See [`survey::take`].
    pub fn survey(&self) -> Result<Survey> {
        survey::take(&self.callers, &*self.source, &*self.machine)
    }

    fn host_page(&self, file: File) -> Result<Bytes> {
        let mut page = Vec::with_capacity(4_096);
        self.machine.read(file, &mut page)?;
        Ok(Bytes::from(page))
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
