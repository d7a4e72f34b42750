//! The host's `/sys/devices/system/cpu`, by node number, to be read only.
//!
//! A node's number is the one sysfs itself gives it, which does not change while the node exists. sysfs cannot be opened
//! by number, so the paths of the nodes looked up are kept; a number that is not among them, because another daemon
//! gave it out on this mount before us, is found again by walking the tree.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::error::{Errno, Error, Result};
use crate::source::host::{Host, read_whole};

/// The tree.
#[derive(Debug)]
pub(super) struct Sysfs {
    /// `/sys/devices/system/cpu`.
    root: OwnedFd,
    /// Its number.
    cpu: u64,
    /// The path below the root of each node looked up. No more than the tree has nodes.
    paths: RwLock<HashMap<u64, Arc<[u8]>>>,
}

/// One name in a directory.
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) number: u64,
    pub(super) kind: FileType,
}

impl Sysfs {
    /// The tree in `host`'s `/sys`.
    ///
    /// # Errors
    /// It is not there.
    pub(super) fn open(host: &Host) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let failed =
            |operation| move |errno| Error::io(operation, "/sys/devices/system/cpu", errno);
        let root = rustix::fs::openat(host.sys(), "devices/system/cpu", flags, Mode::empty())
            .map_err(failed("open"))?;
        let cpu = rustix::fs::fstat(&root).map_err(failed("stat"))?.st_ino;
        Ok(Self { root, cpu, paths: RwLock::default() })
    }

    /// The number of `/sys/devices/system/cpu`.
    pub(super) const fn cpu(&self) -> u64 {
        self.cpu
    }

    pub(super) fn stat(&self, number: u64) -> Result<Stat, Errno> {
        rustix::fs::fstat(self.open_node(number, OFlags::PATH | OFlags::NOFOLLOW)?)
    }

    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> Result<Stat, Errno> {
        let path = join(&self.path(parent)?, name);
        let stat = rustix::fs::statat(&self.root, path.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
        self.remember(stat.st_ino, path);
        Ok(stat)
    }

    pub(super) fn entries(&self, number: u64) -> Result<Vec<Entry>, Errno> {
        list(self.open_node(number, OFlags::RDONLY | OFlags::DIRECTORY)?)
    }

    /// The target of a symbolic link.
    pub(super) fn target(&self, number: u64) -> Result<Vec<u8>, Errno> {
        let link = self.open_node(number, OFlags::PATH | OFlags::NOFOLLOW)?;
        Ok(rustix::fs::readlinkat(link, c"", Vec::new())?.into_bytes())
    }

    /// Appends the content of a file to `text`.
    pub(super) fn read(&self, number: u64, text: &mut Vec<u8>) -> Result<(), Errno> {
        read_whole(&self.open_node(number, OFlags::RDONLY)?, text)
    }

    fn open_node(&self, number: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        open_beneath(&self.root, &self.path(number)?, flags)
    }

    fn path(&self, number: u64) -> Result<Arc<[u8]>, Errno> {
        if number == self.cpu {
            return Ok(Arc::from(&b"."[..]));
        }
        let known = self.paths.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned();
        match known {
            Some(path) => Ok(path),
            None => self.find(number),
        }
    }

    /// Walks the tree for `number`.
    fn find(&self, number: u64) -> Result<Arc<[u8]>, Errno> {
        let mut directories = vec![b".".to_vec()];
        while let Some(directory) = directories.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            // CPUs come and go while we walk.
            let Ok(entries) = open_beneath(&self.root, &directory, flags).and_then(list) else {
                continue;
            };
            for entry in entries {
                let path = join(&directory, &entry.name);
                if entry.number == number {
                    return Ok(self.remember(number, path));
                }
                if entry.kind == FileType::Directory {
                    directories.push(path);
                }
            }
        }
        Err(Errno::NOENT)
    }

    fn remember(&self, number: u64, path: Vec<u8>) -> Arc<[u8]> {
        let path: Arc<[u8]> = Arc::from(path);
        let mut paths = self.paths.write().unwrap_or_else(PoisonError::into_inner);
        paths.insert(number, Arc::clone(&path));
        path
    }
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, b"/", name].concat()
}

/// Opens `path` below `root`: whatever the path says, nothing outside the tree is reached, and no link is followed.
fn open_beneath(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let no_links = if flags.contains(OFlags::PATH | OFlags::NOFOLLOW) {
        ResolveFlags::empty()
    } else {
        ResolveFlags::NO_SYMLINKS
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | no_links;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn list(directory: OwnedFd) -> Result<Vec<Entry>, Errno> {
    let mut entries = Vec::new();
    for entry in rustix::fs::Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let (number, kind) = (entry.ino(), entry.file_type());
            entries.push(Entry { name: name.to_owned(), number, kind });
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs() -> Sysfs {
        Sysfs::open(&Host::open().unwrap()).unwrap()
    }

    #[test]
    fn the_tree_reads_as_the_hosts_does() {
        let sysfs = sysfs();
        let stat = sysfs.lookup(sysfs.cpu(), b"possible").unwrap();
        let mut text = Vec::new();
        sysfs.read(stat.st_ino, &mut text).unwrap();
        assert_eq!(text, std::fs::read("/sys/devices/system/cpu/possible").unwrap());
        let names: Vec<_> =
            sysfs.entries(sysfs.cpu()).unwrap().into_iter().map(|e| e.name).collect();
        assert!(names.contains(&b"cpu0".to_vec()));
        let cpu0 = sysfs.lookup(sysfs.cpu(), b"cpu0").unwrap();
        let link = sysfs.lookup(cpu0.st_ino, b"subsystem").unwrap();
        assert_eq!(sysfs.target(link.st_ino).unwrap(), b"../../../../bus/cpu");
        assert_eq!(sysfs.read(link.st_ino, &mut text), Err(Errno::LOOP));
        assert_eq!(sysfs.lookup(sysfs.cpu(), b"nothing").unwrap_err(), Errno::NOENT);
    }

    #[test]
    fn a_number_given_out_by_another_daemon_is_found_again() {
        let before = sysfs();
        let cpu0 = before.lookup(before.cpu(), b"cpu0").unwrap().st_ino;
        let topology = before.lookup(cpu0, b"topology").unwrap().st_ino;
        let core = before.lookup(topology, b"core_id").unwrap().st_ino;
        let mut text = Vec::new();
        sysfs().read(core, &mut text).unwrap();
        assert_eq!(text, std::fs::read("/sys/devices/system/cpu/cpu0/topology/core_id").unwrap());
        assert_eq!(sysfs().stat(u64::MAX).unwrap_err(), Errno::NOENT);
    }
}
