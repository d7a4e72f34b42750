//! The cgroup hierarchies that are mounted here, held by descriptors, and reading files below them.
//!
//! We never mount one: mounting cgroup2 changes its options for the whole host. A descriptor of the root taken once
//! stays good when `/sys/fs/cgroup` is unmounted or covered later.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use super::kept::Shelf;
use crate::error::{Errno, Error, Result};
use crate::model::container::FileKey;
use crate::model::cpus::CpuSet;
use crate::model::mounts::CgroupMount;
use crate::source::host::read_piece;
use crate::source::parse;

/// One mounted hierarchy.
#[derive(Debug)]
pub struct Hierarchy {
    /// Comma-separated v1 controllers, empty for v2.
    controllers: String,
    /// Its place among those mounted.
    number: usize,
    /// Where it is mounted, for messages.
    mount_point: PathBuf,
    /// The cgroup the mount shows as its root: `/`, or what a container runtime bound there.
    root: String,
    directory: OwnedFd,
}

/// All mounted hierarchies.
#[derive(Debug, Default)]
pub struct Hierarchies {
    mounted: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Finds the hierarchies in `mountinfo`, the content of `/proc/self/mountinfo`, and opens each.
    ///
    /// # Errors
    /// No hierarchy is mounted at all, or none can be opened.
    pub fn open(mountinfo: &[u8]) -> Result<Self> {
        let mut mounted: Vec<Hierarchy> = Vec::new();
        for mount in CgroupMount::all(mountinfo) {
            let CgroupMount { controllers, root, mount_point } = mount;
            if mounted.iter().any(|known| known.controllers == controllers) {
                continue;
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            if let Ok(directory) = rustix::fs::open(&mount_point, flags, Mode::empty()) {
                let number = mounted.len();
                mounted.push(Hierarchy { controllers, number, mount_point, root, directory });
            }
        }
        if mounted.is_empty() {
            let path = "/sys/fs/cgroup";
            return Err(Error::because(
                "open",
                path,
                Errno::NODEV,
                "no cgroup hierarchy is mounted",
            )
            .hint("mount -t cgroup2 none /sys/fs/cgroup"));
        }
        Ok(Self { mounted })
    }

    /// The cgroup v2 hierarchy.
    #[must_use]
    pub fn v2(&self) -> Option<&Hierarchy> {
        self.mounted.iter().find(|hierarchy| hierarchy.controllers.is_empty())
    }

    /// The v1 hierarchy of `controller`.
    #[must_use]
    pub fn v1(&self, controller: &str) -> Option<&Hierarchy> {
        let has =
            |hierarchy: &&Hierarchy| hierarchy.controllers.split(',').any(|c| c == controller);
        self.mounted.iter().find(has)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Hierarchy> {
        self.mounted.iter()
    }
}

impl Hierarchy {
    /// Comma-separated v1 controllers, empty for v2.
    #[must_use]
    pub fn controllers(&self) -> &str {
        &self.controllers
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The cgroup that is mounted there: `/`, or what a container runtime bound.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The cgroup at `path`, a path of `/proc/PID/cgroup`.
    #[must_use]
    pub fn cgroup<'a>(&'a self, path: &'a str) -> Cgroup<'a> {
        let below = path.strip_prefix(self.root.as_str()).unwrap_or(path);
        Cgroup { hierarchy: self, path: below.trim_matches('/'), shelf: None }
    }
}

/// One cgroup of a hierarchy.
#[derive(Debug, Clone, Copy)]
pub struct Cgroup<'a> {
    hierarchy: &'a Hierarchy,
    /// Relative to the hierarchy's directory, empty for its root.
    path: &'a str,
    /// Where its files are kept open, if they are.
    shelf: Option<Shelf<'a>>,
}

impl<'a> Cgroup<'a> {
    /// The same cgroup, whose files are kept open in `shelf`.
    pub(super) const fn on(self, shelf: Shelf<'a>) -> Self {
        Self { shelf: Some(shelf), ..self }
    }

    /// Whether this is the root of the hierarchy, whose numbers are the machine's.
    #[must_use]
    pub const fn is_root(&self) -> bool {
        self.path.is_empty()
    }

    /// Whether this is a v1 hierarchy.
    #[must_use]
    pub const fn is_v1(&self) -> bool {
        !self.hierarchy.controllers.is_empty()
    }

    /// The cgroup itself, its parent, and so on to the root of the hierarchy.
    pub fn ancestry(&self) -> impl Iterator<Item = Self> + use<'a> {
        let (hierarchy, shelf) = (self.hierarchy, self.shelf);
        std::iter::successors(Some(self.path), |path| match path.rfind('/') {
            Some(slash) => Some(&path[..slash]),
            None => (!path.is_empty()).then_some(""),
        })
        .map(move |path| Self { hierarchy, path, shelf })
    }

    /// Gives `take` the file's content. `Ok(None)`: this cgroup has no such file.
    ///
    /// The kernel makes such a file in one piece, see [`read_piece`].
    ///
    /// # Errors
    /// The file is there and cannot be read, or the cgroup itself is gone (`ENOENT`).
    pub fn read<T>(&self, file: &str, mut take: impl FnMut(&[u8]) -> T) -> Result<Option<T>> {
        let (hierarchy, path_length) = (self.hierarchy.number, self.path.len());
        let key = FileKey { hierarchy, path_length, name: file };
        if let Some(shelf) = self.shelf
            && let Some(fd) = shelf.get(key)
        {
            match read_piece(&fd, &mut take) {
                // The cgroup was removed. Its path tells what is there now.
                Err(Errno::NODEV) => shelf.drop(key),
                read => return read.map(Some).map_err(|errno| self.error("read", file, errno)),
            }
        }
        let Some(fd) = self.open(file, OFlags::RDONLY)? else { return Ok(None) };
        let taken = read_piece(&fd, &mut take).map_err(|errno| self.error("read", file, errno))?;
        if let Some(shelf) = self.shelf {
            shelf.put(key, fd);
        }
        Ok(Some(taken))
    }

    /// Opens the file. `Ok(None)`: this cgroup has no such file.
    ///
    /// # Errors
    /// The file is there and cannot be opened, or the cgroup itself is gone (`ENOENT`).
    pub(super) fn open(&self, file: &str, flags: OFlags) -> Result<Option<OwnedFd>> {
        match open_beneath(&self.hierarchy.directory, &self.relative(file), flags) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) if self.exists() => Ok(None),
            Err(errno) => Err(self.error("open", file, errno)),
        }
    }

    /// Reads `file` and parses it. `Ok(None)`: this cgroup has no such file.
    ///
    /// # Errors
    /// As [`Self::read`], and when `parse` finds the content malformed.
    pub fn parse<T>(&self, file: &str, parse: impl FnMut(&[u8]) -> Option<T>) -> Result<Option<T>> {
        match self.read(file, parse)? {
            Some(None) => {
                Err(Error::parse(self.display(file), "not the format the kernel documents"))
            }
            parsed => Ok(parsed.flatten()),
        }
    }

    /// The smallest limit in `file` of the cgroup and its ancestors. `None`: no limit anywhere.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn smallest(&self, file: &str) -> Result<Option<u64>> {
        let mut smallest = None;
        for level in self.ancestry() {
            if let Some(own) = level.parse(file, parse::limit)?.flatten() {
                smallest = Some(smallest.map_or(own, |smallest: u64| smallest.min(own)));
            }
        }
        Ok(smallest)
    }

    /// The cgroup's id: the inode number of its directory.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn id(&self) -> Result<u64> {
        let path = if self.is_root() { "." } else { self.path };
        let stat = rustix::fs::statat(&self.hierarchy.directory, path, AtFlags::empty());
        stat.map(|stat| stat.st_ino).map_err(|errno| self.error("stat", "", errno))
    }

    /// The cgroup's directory, open for listing.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn open_directory(&self) -> Result<OwnedFd> {
        let path = if self.is_root() { "." } else { self.path };
        open_beneath(&self.hierarchy.directory, path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|errno| self.error("open", "", errno))
    }

    /// The path of `file` in this cgroup as a person would type it.
    #[must_use]
    pub fn display(&self, file: &str) -> PathBuf {
        self.hierarchy.mount_point.join(self.path).join(file)
    }

    fn exists(&self) -> bool {
        self.is_root()
            || rustix::fs::statat(&self.hierarchy.directory, self.path, AtFlags::empty()).is_ok()
    }

    fn relative(&self, file: &str) -> String {
        if self.is_root() { file.to_owned() } else { format!("{}/{file}", self.path) }
    }

    fn error(&self, operation: &'static str, file: &str, errno: Errno) -> Error {
        Error::io(operation, self.display(file), errno)
    }
}

/// Opens `path` below `directory` and nowhere else: a path with `..` comes from a cgroup outside our namespace.
fn open_beneath(directory: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(directory, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// The CPU list in `file` of the cgroup, or of the nearest ancestor that has one that is not empty.
pub(super) fn nearest_list(cgroup: &Cgroup<'_>, file: &str) -> Result<Option<CpuSet>> {
    for level in cgroup.ancestry() {
        match level.parse(file, CpuSet::parse)? {
            Some(list) if !list.is_empty() => return Ok(Some(list)),
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestry_ends_at_the_root() {
        let directory = rustix::fs::open("/", OFlags::PATH, Mode::empty()).unwrap();
        let hierarchy = Hierarchy {
            controllers: String::new(),
            number: 0,
            mount_point: "/sys/fs/cgroup".into(),
            root: "/".to_owned(),
            directory,
        };
        let cgroup = hierarchy.cgroup("/a/b c/d");
        let paths: Vec<_> = cgroup.ancestry().map(|level| level.path).collect();
        assert_eq!(paths, ["a/b c/d", "a/b c", "a", ""]);
        assert_eq!(cgroup.display("cpu.max"), Path::new("/sys/fs/cgroup/a/b c/d/cpu.max"));
        assert!(hierarchy.cgroup("/").is_root());
    }
}
