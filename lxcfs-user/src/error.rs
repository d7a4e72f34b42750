//! The one error type: what was tried, on which path, why it failed, and the errno a reader would get.

use std::fmt;
use std::path::{Path, PathBuf};

pub use rustix::io::Errno;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation.
///
/// `Display` prints one line, `operation path: cause (hint)`, which is what the log and the command line show.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    /// The errno this failure is worth to a reader of the filesystem.
    pub errno: Errno,
    /// What was being done, as a verb: `read`, `parse`, `mount`.
    pub operation: &'static str,
    /// The file, mount point or object it was done to.
    pub path: PathBuf,
    /// Why it failed, when the errno alone does not say it.
    pub cause: Option<String>,
    /// What the user can do about it.
    pub hint: Option<&'static str>,
}

impl Error {
    /// A system call on `path` failed with `errno`.
    pub fn io(operation: &'static str, path: impl AsRef<Path>, errno: impl Into<Errno>) -> Self {
        Self {
            errno: errno.into(),
            operation,
            path: path.as_ref().to_owned(),
            cause: None,
            hint: None,
        }
    }

    /// The standard library reported `error` for `path`.
    pub fn std(operation: &'static str, path: impl AsRef<Path>, error: &std::io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(errno) => Self::io(operation, path, errno),
            None => Self::because(operation, path, Errno::IO, error.to_string()),
        }
    }

    /// `path` could be reached, and what it holds or is makes the operation impossible.
    pub fn because(
        operation: &'static str,
        path: impl AsRef<Path>,
        errno: Errno,
        cause: impl Into<String>,
    ) -> Self {
        Self { cause: Some(cause.into()), ..Self::io(operation, path, errno) }
    }

    /// The content of `path` is not what the kernel documents.
    pub fn parse(path: impl AsRef<Path>, cause: impl Into<String>) -> Self {
        Self::because("parse", path, Errno::IO, cause)
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub const fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.operation, self.path.display())?;
        match &self.cause {
            Some(cause) => f.write_str(cause)?,
            None => write!(f, "{}", std::io::Error::from(self.errno))?,
        }
        match self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_operation_path_cause_and_hint() {
        let error = Error::io("open", "/dev/fuse", Errno::NOENT).hint("run `modprobe fuse`");
        assert_eq!(
            error.to_string(),
            "open /dev/fuse: No such file or directory (os error 2) (run `modprobe fuse`)"
        );
        let error = Error::parse("/proc/uptime", "no second field");
        assert_eq!(error.to_string(), "parse /proc/uptime: no second field");
    }
}
