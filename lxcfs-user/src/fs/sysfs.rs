//! The host's `/sys/devices/system/cpu` and `node` as a tree of nodes: which names there are, of what kind and mode.
//!
//! A node is a [`Place`], and its number is made from that alone: the tree, the unit, and a hash of the path below the
//! unit. Paths are the same below every unit, so the few there are can be kept; a number whose path is not among them,
//! because another daemon gave it out on this mount before us, is found again by walking the tree.
//!
//! Names are looked up for everybody alike, because the kernel keeps them for everybody. Whether a unit is shown is
//! decided by each operation on what is behind the name, for the reader who asks.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::error::Errno;
use crate::model::hash::folded;
use crate::model::topology::{Place, Shown, Tree};
use crate::source::host::Host;

/// The bits of a number that are a hash of the path.
const PATH_BITS: u32 = 44;
const PATH: u64 = (1 << PATH_BITS) - 1;
/// The bits above, with the unit and 1 added to it.
const UNIT: u64 = (1 << 17) - 1;
/// The bit above these: the tree.
const TREE_BIT: u32 = PATH_BITS + 17;

/// Read by everybody.
const READABLE: u32 = 0o004;

/// Both trees.
#[derive(Debug)]
pub(super) struct Sysfs {
    host: Arc<Host>,
    /// The path behind each hash. No more than a unit has files.
    paths: RwLock<HashMap<u64, Arc<[u8]>>>,
}

/// One name in a directory.
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) number: u64,
    pub(super) kind: FileType,
}

/// The number of the top of `tree`.
pub(super) const fn top(tree: Tree) -> u64 {
    (tree as u64) << TREE_BIT
}

impl Sysfs {
    pub(super) fn new(host: Arc<Host>) -> Self {
        Self { host, paths: RwLock::default() }
    }

    /// The place of `number`.
    ///
    /// # Errors
    /// There is none (`ENOENT`).
    pub(super) fn place(&self, number: u64) -> Result<Place, Errno> {
        let tree = Tree::ALL.into_iter().find(|&tree| tree as u64 == number >> TREE_BIT);
        let tree = tree.ok_or(Errno::NOENT)?;
        let unit = u32::try_from(number >> PATH_BITS & UNIT).ok().and_then(|n| n.checked_sub(1));
        let rest = match number & PATH {
            0 => Arc::from([]),
            hash => self.path(tree, hash)?,
        };
        Ok(Place { tree, unit, rest })
    }

    /// Whether what is behind `number` is no unit's, and so shown to everybody.
    pub(super) const fn is_for_all(number: u64) -> bool {
        number >> PATH_BITS & UNIT == 0
    }

    /// The number of `place`.
    pub(super) fn number(&self, place: &Place) -> u64 {
        let unit = place.unit.map_or(0, |unit| u64::from(unit) + 1);
        let hash = hash(&place.rest);
        if hash != 0 {
            self.remember(hash, &place.rest);
        }
        top(place.tree) | unit << PATH_BITS | hash
    }

    /// What is behind `place` for a reader who is shown `shown`, or, where `anybody`, for some reader.
    ///
    /// # Errors
    /// Nothing is, or nothing that everybody may read (`ENOENT`).
    pub(super) fn stat(&self, place: &Place, shown: &Shown, anybody: bool) -> Result<Stat, Errno> {
        let theirs = place.host_path(shown);
        let own = || place.host_path(&Shown::default()).filter(|_| anybody);
        let found = theirs.and_then(|path| self.stat_at(place, &path).ok());
        found.or_else(|| self.stat_at(place, &own()?).ok()).ok_or(Errno::NOENT)
    }

    fn stat_at(&self, place: &Place, path: &[u8]) -> Result<Stat, Errno> {
        // A CPU's cpufreq is a link to its policy; the policies themselves are not served.
        let follow = &*place.rest == b"cpufreq";
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let (tree, path) = self.split(place.tree, path)?;
        let stat = if place.rest.starts_with(b"cpufreq/") {
            rustix::fs::fstat(open_beneath(tree, path, OFlags::PATH)?)?
        } else {
            rustix::fs::statat(tree, path, flags)?
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::RegularFile && stat.st_mode & READABLE == 0 {
            return Err(Errno::NOENT);
        }
        Ok(stat)
    }

    /// The names in the directory at `place`.
    pub(super) fn entries(&self, place: &Place, shown: &Shown) -> Result<Vec<Entry>, Errno> {
        let path = place.host_path(shown).ok_or(Errno::NOENT)?;
        let mut entries = Vec::new();
        for (name, kind) in self.list(place.tree, &path)? {
            let Some(child) = self.child_shown(place, &name, shown) else { continue };
            let name = child.path().into_bytes();
            let name = name.rsplit(|&byte| byte == b'/').next().unwrap_or_default().to_owned();
            let is_cpufreq = kind == FileType::Symlink && &*child.rest == b"cpufreq";
            let kind = if is_cpufreq { FileType::Directory } else { kind };
            // Also where only root may read it, it is not there.
            if kind != FileType::RegularFile || self.stat(&child, shown, false).is_ok() {
                entries.push(Entry { name, number: self.number(&child), kind });
            }
        }
        let units = shown.units(place.tree).filter(|_| *place == Place::top(place.tree));
        for unit in units.iter().flat_map(|units| units.iter()) {
            let name = format!("{}{unit}", place.tree.name()).into_bytes();
            if let Some(child) = place.child(&name) {
                entries.push(Entry {
                    name,
                    number: self.number(&child),
                    kind: FileType::Directory,
                });
            }
        }
        Ok(entries)
    }

    /// The place that the host's `name` in the directory `place` is shown as.
    fn child_shown(&self, place: &Place, name: &[u8], shown: &Shown) -> Option<Place> {
        let child = place.child(name)?;
        if child.unit != place.unit {
            // A unit: listed by what is shown, where not all are.
            return shown.units(place.tree).is_none().then_some(child);
        }
        match child.link() {
            None => Some(child),
            Some(host) => {
                let other = if place.tree == Tree::Cpu { Tree::Node } else { Tree::Cpu };
                place.child(format!("{}{}", other.name(), shown.shown(other, host)?).as_bytes())
            }
        }
    }

    /// The target of the link at `place`.
    pub(super) fn target(&self, place: &Place, shown: &Shown) -> Result<Vec<u8>, Errno> {
        if let Some(target) = place.link_target() {
            return self.stat(place, shown, false).map(|_| target.into_bytes());
        }
        let path = place.host_path(shown).ok_or(Errno::NOENT)?;
        let (tree, path) = self.split(place.tree, &path)?;
        Ok(rustix::fs::readlinkat(tree, path, Vec::new())?.into_bytes())
    }

    /// The descriptor of `tree`, and what of `path` is below it.
    fn split<'a>(&self, tree: Tree, path: &'a [u8]) -> Result<(&OwnedFd, &'a [u8]), Errno> {
        let below = path.strip_prefix(tree.name().as_bytes()).unwrap_or(path);
        let below = below.strip_prefix(b"/").unwrap_or(below);
        let directory = self.host.tree(tree).ok_or(Errno::NOENT)?;
        Ok((directory, if below.is_empty() { b"." } else { below }))
    }

    fn list(&self, tree: Tree, path: &[u8]) -> Result<Vec<(Vec<u8>, FileType)>, Errno> {
        let (directory, path) = self.split(tree, path)?;
        let directory = open_beneath(directory, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let entries = rustix::fs::Dir::new(directory)?.map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_bytes().to_owned(), entry.file_type()))
        });
        entries.collect()
    }

    fn path(&self, tree: Tree, hash: u64) -> Result<Arc<[u8]>, Errno> {
        let known = self.paths.read().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned();
        known.or_else(|| self.find(tree, hash)).ok_or(Errno::NOENT)
    }

    /// Walks the tree for the path with that hash.
    fn find(&self, tree: Tree, wanted: u64) -> Option<Arc<[u8]>> {
        let everything = Shown::default();
        let mut directories = vec![Place::top(tree)];
        while let Some(directory) = directories.pop() {
            // CPUs come and go while we walk.
            for entry in self.entries(&directory, &everything).unwrap_or_default() {
                let Some(child) = directory.child(&entry.name) else { continue };
                if hash(&child.rest) == wanted {
                    return Some(child.rest);
                }
                if entry.kind == FileType::Directory {
                    directories.push(child);
                }
            }
        }
        None
    }

    fn remember(&self, hash: u64, path: &Arc<[u8]>) {
        let known = self.paths.read().unwrap_or_else(PoisonError::into_inner).contains_key(&hash);
        if !known {
            let mut paths = self.paths.write().unwrap_or_else(PoisonError::into_inner);
            paths.insert(hash, Arc::clone(path));
        }
    }
}

/// 0 is the empty path's alone.
fn hash(path: &[u8]) -> u64 {
    if path.is_empty() { 0 } else { folded(path, PATH_BITS) }
}

/// Opens `path` below `tree`: whatever the path says, nothing outside the tree is reached.
fn open_beneath(tree: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(tree, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cpus::{CpuSet, CpuView, Cpus};

    fn sysfs() -> Sysfs {
        Sysfs::new(Arc::new(Host::open().unwrap()))
    }

    fn place(path: &str) -> Place {
        let parts = path.split('/');
        parts.fold(Place::top(Tree::Cpu), |place, name| place.child(name.as_bytes()).unwrap())
    }

    fn names(sysfs: &Sysfs, place: &Place, shown: &Shown) -> Vec<String> {
        let entries = sysfs.entries(place, shown).unwrap().into_iter();
        entries.map(|entry| String::from_utf8(entry.name).unwrap()).collect()
    }

    #[test]
    fn a_reader_finds_the_units_shown_and_no_other() {
        let sysfs = sysfs();
        let one = CpuSet::parse(b"1").unwrap();
        let cpus = Cpus::decide(CpuView::Cpuset, &CpuSet::parse(b"0-1").unwrap(), Some(&one), None);
        let shown = Shown { cpus: Some(cpus), nodes: None };
        let top = Place::top(Tree::Cpu);
        let found = names(&sysfs, &top, &shown);
        let units: Vec<_> =
            found.iter().filter(|name| Tree::Cpu.unit(name.as_bytes()).is_some()).collect();
        assert_eq!(units, ["cpu1"]);
        assert!(names(&sysfs, &top, &Shown::default()).contains(&"cpu0".to_owned()));
        let core = place("cpu0/topology/core_id");
        assert_eq!(sysfs.stat(&core, &shown, false).unwrap_err(), Errno::NOENT);
        assert!(sysfs.stat(&core, &shown, true).is_ok());
        assert!(sysfs.stat(&place("cpu1/topology/core_id"), &shown, false).is_ok());
        let link = place("cpu1/subsystem");
        assert_eq!(sysfs.target(&link, &shown).unwrap(), b"../../../../bus/cpu");
    }

    #[test]
    fn a_number_given_out_by_another_daemon_is_found_again() {
        for path in ["cpu0/topology/core_id", "cpu1", "possible", "cpu1/subsystem"] {
            let place = place(path);
            let number = sysfs().number(&place);
            assert_eq!(sysfs().place(number).unwrap(), place, "{path}");
        }
        assert_eq!(sysfs().place(top(Tree::Node)).unwrap(), Place::top(Tree::Node));
        assert_eq!(sysfs().place(u64::MAX).unwrap_err(), Errno::NOENT);
        assert_eq!(sysfs().place(3).unwrap_err(), Errno::NOENT);
    }
}
