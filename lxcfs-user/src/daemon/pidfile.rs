//! The pidfile. Its lock, not its existence, is what keeps a second daemon away: a crash leaves a file but no lock.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::error::{Errno, Error, Result};

/// A pidfile that is ours. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Pidfile {
    path: PathBuf,
    /// The lock is the process's and ends when the file is closed.
    _locked: File,
}

impl Pidfile {
    /// Locks `path` and writes our pid to it.
    ///
    /// # Errors
    /// Another daemon holds the lock, or the file cannot be written.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let failed = |operation| move |error: std::io::Error| Error::std(operation, path, &error);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(failed("open"))?;
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => {
                return Err(Error::because("lock", path, Errno::BUSY, "another lxcfs holds it")
                    .hint("stop it, or name another file with --pidfile"));
            }
            Err(errno) => return Err(Error::io("lock", path, errno)),
        }
        file.set_len(0).map_err(failed("truncate"))?;
        writeln!(file, "{}", std::process::id()).map_err(failed("write"))?;
        Ok(Self { path: path.to_owned(), _locked: file })
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("{}", Error::std("remove", &self.path, &error));
        }
    }
}
