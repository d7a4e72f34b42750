//! Host values served in place of a container's: counted by cause, and logged when a cause is new.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// Causes are few: a file, an operation and an errno. The path of the first is kept as an example.
#[derive(Debug, Default)]
pub struct Fallbacks {
    causes: Mutex<BTreeMap<(&'static str, &'static str, i32), Fallback>>,
}

/// One cause.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fallback {
    /// The file that was the host's.
    pub file: &'static str,
    /// The first error of this cause, in full.
    pub first: String,
    /// How many pages.
    pub pages: u64,
}

impl Fallbacks {
    /// A page of `file` was the host's because of `error`.
    pub fn count(&self, file: &'static str, error: &Error) {
        let key = (file, error.operation, error.errno.raw_os_error());
        let is_new = {
            let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
            let fallback = causes.entry(key).or_insert_with(|| Fallback {
                file,
                first: error.to_string(),
                pages: 0,
            });
            fallback.pages += 1;
            fallback.pages == 1
        };
        if is_new {
            tracing::warn!("{file}: host values are served, because: {error}");
        }
    }

    /// All causes so far.
    #[must_use]
    pub fn list(&self) -> Vec<Fallback> {
        self.causes.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Errno;

    #[test]
    fn one_cause_for_many_containers() {
        let fallbacks = Fallbacks::default();
        for path in ["/a", "/b"] {
            fallbacks.count("proc/stat", &Error::io("read", path, Errno::ACCESS));
        }
        fallbacks.count("proc/stat", &Error::io("read", "/a", Errno::NODATA));
        let list = fallbacks.list();
        assert_eq!(list.len(), 2);
        let denied = list.iter().find(|fallback| fallback.first.contains("denied")).unwrap();
        assert_eq!((denied.pages, denied.file), (2, "proc/stat"));
    }
}
