//! Host values that containers were shown: those served in place of a container's, counted by cause and logged when a
//! cause is new, and those that are the host's by decision.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use crate::files;
use crate::model::file::File;
use crate::model::lock::lock;

/// Causes are few: a file, an operation and an errno. The path of the first is kept as an example.
#[derive(Debug, Default)]
pub struct Fallbacks {
    causes: Mutex<BTreeMap<(&'static str, &'static str, i32), Fallback>>,
    /// Pages made for containers, in the order of [`File::ALL`].
    served: [AtomicU64; File::ALL.len()],
}

/// What of a file is the host's by decision.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Decided {
    /// The file.
    pub file: &'static str,
    /// Its lines.
    pub lines: &'static [&'static str],
    /// How many pages with them.
    pub pages: u64,
}

/// One cause.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fallback {
    /// The file that was the host's, or with `--strict` was refused.
    pub file: &'static str,
    /// The first error of this cause, in full.
    pub first: String,
    /// How many pages.
    pub pages: u64,
}

impl Fallbacks {
    /// A page of `file` was the host's, or `refused`, because of `error`.
    pub fn count(&self, file: &'static str, error: &Error, refused: bool) {
        let key = (file, error.operation, error.errno.raw_os_error());
        let is_new = {
            let mut causes = lock(&self.causes);
            let fallback = causes.entry(key).or_insert_with(|| Fallback {
                file,
                first: error.to_string(),
                pages: 0,
            });
            fallback.pages += 1;
            fallback.pages == 1
        };
        if is_new {
            let done = if refused { "readers are refused" } else { "host values are served" };
            tracing::warn!("{file}: {done}, because: {error}");
        }
    }

    /// A container was served its own page of `file`.
    pub fn served(&self, file: File) {
        let index = File::ALL.iter().position(|&known| known == file);
        if let Some(pages) = index.and_then(|index| self.served.get(index)) {
            pages.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was the host's by decision, of the files that were served.
    #[must_use]
    pub fn decided(&self) -> Vec<Decided> {
        let all = File::ALL.iter().zip(&self.served).map(|(&file, pages)| Decided {
            file: file.path(),
            lines: files::host_lines(file),
            pages: pages.load(Ordering::Relaxed),
        });
        all.filter(|decided| decided.pages > 0 && !decided.lines.is_empty()).collect()
    }

    /// All causes so far.
    #[must_use]
    pub fn list(&self) -> Vec<Fallback> {
        lock(&self.causes).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Errno;

    #[test]
    fn what_is_the_hosts_by_decision_is_no_fallback() {
        let fallbacks = Fallbacks::default();
        for file in [File::Stat, File::Stat, File::Uptime] {
            fallbacks.served(file);
        }
        let decided = fallbacks.decided();
        assert_eq!((decided.len(), decided[0].file, decided[0].pages), (1, "proc/stat", 2));
        assert!(decided[0].lines.contains(&"btime") && fallbacks.list().is_empty());
    }

    #[test]
    fn one_cause_for_many_containers() {
        let fallbacks = Fallbacks::default();
        for path in ["/a", "/b"] {
            fallbacks.count("proc/stat", &Error::io("read", path, Errno::ACCESS), false);
        }
        fallbacks.count("proc/stat", &Error::io("read", "/a", Errno::NODATA), false);
        let list = fallbacks.list();
        assert_eq!(list.len(), 2);
        let denied = list.iter().find(|fallback| fallback.first.contains("denied")).unwrap();
        assert_eq!((denied.pages, denied.file), (2, "proc/stat"));
    }
}
