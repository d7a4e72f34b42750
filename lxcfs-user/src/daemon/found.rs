//! What a daemon before us has left, and whether it is what we are to serve.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::connection;
use super::mount::Mount;
use crate::error::{Errno, Error, Result};
use crate::keep::journal::Journal;
use crate::keep::store::{ACCOUNTING, DEVICE, JOURNAL, Store};

/// A mount with nobody who serves it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) mount: Mount,
    pub(super) device: OwnedFd,
    pub(super) journal: Journal,
}

/// The mount at `point`, among what we were given. `Ok(None)`: there is none, or it has ended.
///
/// # Errors
/// There is one, and it is not clear which or not for us. It is left as it is.
pub(super) fn find(
    given: &mut Vec<(String, OwnedFd)>,
    store: Store,
    point: &Path,
) -> Result<Option<Found>> {
    let refused = |cause: String| Error::because("take over", point, Errno::INVAL, cause);
    let mut devices = take(given, DEVICE);
    let mut journals = take(given, JOURNAL);
    let (device, journal) = match (devices.len(), journals.len()) {
        (0, _) => return Ok(None),
        (1, 1) => (devices.remove(0), journals.remove(0)),
        (devices, journals) => {
            let cause = format!("the store has {devices} devices and {journals} journals");
            return Err(refused(cause).hint("stop lxcfs and start it again"));
        }
    };
    if connection::is_dead(&device) {
        tracing::info!("the mount that was kept has ended: a new one is made");
        for name in [DEVICE, JOURNAL] {
            store.forget(name);
        }
        return Ok(None);
    }
    let journal = Journal::open(journal)?;
    let point = super::mount::resolve(point);
    let mount = Mount::existing(point);
    journal.described().is(mount.point(), mount.device_number())?;
    Ok(Some(Found { mount, device, journal }))
}

/// What the accounting of the daemon before us has left, by its names there.
pub(super) fn accounting(given: Vec<(String, OwnedFd)>) -> Vec<(String, OwnedFd)> {
    let ours = given.into_iter().filter_map(|(name, descriptor)| {
        Some((name.strip_prefix(ACCOUNTING)?.to_owned(), descriptor))
    });
    ours.collect()
}

fn take(given: &mut Vec<(String, OwnedFd)>, name: &str) -> Vec<OwnedFd> {
    let (ours, rest) = std::mem::take(given).into_iter().partition(|(known, _)| known == name);
    *given = rest;
    let ours: Vec<(String, OwnedFd)> = ours;
    ours.into_iter().map(|(_, descriptor)| descriptor).collect()
}
