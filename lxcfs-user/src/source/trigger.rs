//! Setting PSI triggers. A pressure file opened for writing takes a [`Trigger`] and nothing else.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::OFlags;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::host::Host;
use crate::error::{Errno, Error, Result};
use crate::model::file::{File, Resource};
use crate::model::trigger::Trigger;

/// A pressure file of a cgroup or of the host, open for one trigger.
#[derive(Debug)]
pub struct PressureFile {
    descriptor: OwnedFd,
    path: PathBuf,
}

impl PressureFile {
    /// Takes a descriptor opened for writing; `path` is for messages.
    pub(super) const fn new(descriptor: OwnedFd, path: PathBuf) -> Self {
        Self { descriptor, path }
    }

    /// Sets the trigger. The descriptor then polls `PRI` for each event, `ERR` when the cgroup is gone, and takes the
    /// trigger with it when it is closed, for which the kernel waits about a hundredth of a second.
    ///
    /// # Errors
    /// The kernel refuses it, or the cgroup is gone (`ENODEV`).
    pub fn set(self, trigger: Trigger) -> Result<OwnedFd> {
        let mut file = std::fs::File::from(self.descriptor);
        let written = file.write_all(trigger.to_string().as_bytes());
        written.map_err(|error| Error::std("set a trigger in", &self.path, &error))?;
        Ok(file.into())
    }
}

/// Whether this kernel lets nobody without `CAP_SYS_RESOURCE` open a pressure file for writing, as before 6.5.
///
/// Asked of the kernel on a thread that gives the capability up.
#[must_use]
pub fn takes_privilege(host: &Host) -> bool {
    let try_without = || {
        let mut sets = capabilities(None)?;
        sets.effective -= CapabilitySet::SYS_RESOURCE;
        set_capabilities(None, sets)?;
        host.reopen(File::Pressure(Resource::Cpu), OFlags::RDWR)
    };
    let tried = std::thread::scope(|scope| scope.spawn(try_without).join());
    matches!(tried, Ok(Err(Errno::PERM)))
}
