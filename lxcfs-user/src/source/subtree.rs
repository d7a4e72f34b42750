//! The directories and files of the mounted cgroup v1 hierarchies, each directory by the kernel's own number for it.
//!
//! The kernel numbers every cgroup, gives no number out twice while it runs, and opens a directory by it. So a number that
//! somebody has been given needs no memory of ours, finds its cgroup under whatever name, and nothing once that is removed.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Stat};

use super::cgroup::hierarchy::Hierarchies;
use super::handle::open_directory;
use super::host::{Host, read_whole};
use crate::error::{Errno, Error, Result};
use crate::model::container::CgroupPaths;
use crate::model::subtree::below;

/// The hierarchies there can be, by their first controller or their name. A number given out has the place in this list in
/// it, and the next version has to know it: what is new is added at the end.
const KNOWN: [&str; 18] = [
    "cpuset",
    "cpu",
    "cpuacct",
    "blkio",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "perf_event",
    "net_prio",
    "hugetlb",
    "pids",
    "rdma",
    "misc",
    "debug",
    "name=systemd",
    "name=elogind",
    "name=openrc",
];

/// As much as the kernel lists at a time for us.
const LIST_BYTES: usize = 8 << 10;

/// The hierarchies.
#[derive(Debug)]
pub struct Subtrees {
    host: Arc<Host>,
    tops: Vec<Top>,
}

/// What is mounted of one hierarchy.
#[derive(Debug)]
pub struct Top {
    /// Comma-separated controllers, as in `/proc/PID/cgroup`.
    pub controllers: String,
    /// Which of those there can be.
    pub hierarchy: usize,
    /// The number of its directory.
    pub number: u64,
    /// The cgroup that is mounted, without slashes around it.
    root: String,
    directory: OwnedFd,
}

/// One directory.
#[derive(Debug)]
pub struct Directory {
    descriptor: OwnedFd,
    /// Its path from the top.
    pub path: Vec<u8>,
}

/// One name in a directory.
#[derive(Debug)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// The kernel's number for what it names.
    pub number: u64,
    /// The kind of that.
    pub kind: FileType,
    /// Where the listing goes on behind it.
    pub next: u64,
}

impl Subtrees {
    /// Those of `hierarchies`. `Ok(None)`: no cgroup v1 hierarchy is mounted.
    ///
    /// # Errors
    /// The kernel does not let us open directories by number.
    pub fn open(hierarchies: &Hierarchies, host: Arc<Host>) -> Result<Option<Self>> {
        let mut tops = Vec::new();
        for hierarchy in hierarchies.iter().filter(|mounted| !mounted.controllers().is_empty()) {
            let controllers = hierarchy.controllers().to_owned();
            let first = controllers.split(',').next();
            let Some(place) = KNOWN.iter().position(|&known| Some(known) == first) else {
                tracing::warn!("the hierarchy of {controllers} is not known, nor shown in cgroup/");
                continue;
            };
            let directory = hierarchy.cgroup("/").open_directory()?;
            let failed = |errno| Error::io("open by number", hierarchy.mount_point(), errno);
            let number = rustix::fs::fstat(&directory).map_err(failed)?.st_ino;
            open_directory(&directory, number).map_err(|errno| {
                failed(errno)
                    .hint("--enable-cgroup takes CAP_DAC_READ_SEARCH and open_by_handle_at(2)")
            })?;
            let root = hierarchy.root().trim_matches('/').to_owned();
            tops.push(Top { controllers, hierarchy: place, number, root, directory });
        }
        Ok((!tops.is_empty()).then_some(Self { host, tops }))
    }

    /// What is mounted of each.
    #[must_use]
    pub fn tops(&self) -> &[Top] {
        &self.tops
    }

    /// What is mounted of one of [`KNOWN`].
    ///
    /// # Errors
    /// Nothing (`ENOENT`).
    pub fn top(&self, hierarchy: usize) -> Result<&Top, Errno> {
        self.tops.iter().find(|top| top.hierarchy == hierarchy).ok_or(Errno::NOENT)
    }

    /// The directory with that number.
    ///
    /// # Errors
    /// There is none any more (`ENOENT`).
    pub fn directory(&self, hierarchy: usize, number: u64) -> Result<Directory, Errno> {
        let top = self.top(hierarchy)?;
        let descriptor = open_directory(&top.directory, number).map_err(|errno| match errno {
            Errno::STALE | Errno::NOTDIR => Errno::NOENT,
            errno => errno,
        })?;
        // Where the mount is now, or was when it was covered or unmounted, comes first in both.
        let (top, path) = (self.path_of(&top.directory)?, self.path_of(&descriptor)?);
        let top = top.strip_suffix(b"/").unwrap_or(&top);
        let below = below(top, &path).ok_or(Errno::NOENT)?;
        let path = below.strip_prefix(b"/").unwrap_or(below).to_owned();
        Ok(Directory { descriptor, path })
    }

    fn path_of(&self, fd: &OwnedFd) -> Result<Vec<u8>, Errno> {
        let link = format!("thread-self/fd/{}", fd.as_raw_fd());
        Ok(rustix::fs::readlinkat(self.host.proc(), link, Vec::new())?.into_bytes())
    }
}

impl Top {
    /// The path of the reader's own cgroup from the top, of all its `cgroups`. `None`: it is not below the top.
    #[must_use]
    pub fn own<'a>(&self, cgroups: &'a CgroupPaths) -> Option<&'a [u8]> {
        let (_, path) = cgroups.iter().find(|(controllers, _)| *controllers == self.controllers)?;
        below(self.root.as_bytes(), path.trim_matches('/').as_bytes())
    }
}

impl Directory {
    /// What is in the directory under `name`; the directory itself without one.
    ///
    /// # Errors
    /// Nothing is (`ENOENT`).
    pub fn stat(&self, name: Option<&[u8]>) -> Result<Stat, Errno> {
        match name {
            Some(name) => {
                let name = OsStr::from_bytes(name);
                rustix::fs::statat(&self.descriptor, name, AtFlags::SYMLINK_NOFOLLOW)
            }
            None => rustix::fs::fstat(&self.descriptor),
        }
    }

    /// The names from where an entry said the listing goes on, or from its start, which is 0: some of them, none at the end.
    ///
    /// # Errors
    /// The directory is gone (`ENOENT`).
    pub fn list(&self, from: u64) -> Result<Vec<Entry>, Errno> {
        rustix::fs::seek(&self.descriptor, SeekFrom::Start(from))?;
        let mut buffer = [MaybeUninit::uninit(); LIST_BYTES];
        let mut listed = RawDir::new(&self.descriptor, &mut buffer);
        let mut entries = Vec::new();
        while let Some(entry) = listed.next() {
            let entry = entry?;
            entries.push(Entry {
                name: entry.file_name().to_bytes().to_owned(),
                number: entry.ino(),
                kind: entry.file_type(),
                next: entry.next_entry_cookie(),
            });
            if listed.is_buffer_empty() {
                break;
            }
        }
        Ok(entries)
    }

    /// Of `names`, in that order, those that are there, from the one at `from` on.
    #[must_use]
    pub fn pick(&self, names: &[&[u8]], from: u64) -> Vec<Entry> {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let there = (1..).zip(names).skip(from).filter_map(|(next, name)| {
            let stat = self.stat(Some(name)).ok()?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            Some(Entry { name: name.to_vec(), number: stat.st_ino, kind, next })
        });
        there.collect()
    }

    /// The first name of a file that is `wanted`.
    ///
    /// # Errors
    /// There is none (`ENOENT`), or the directory is gone.
    pub fn find_file(&self, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>, Errno> {
        let mut from = 0;
        loop {
            let entries = self.list(from)?;
            from = entries.last().ok_or(Errno::NOENT)?.next;
            let is_wanted =
                |entry: &Entry| entry.kind == FileType::RegularFile && wanted(&entry.name);
            if let Some(found) = entries.into_iter().find(is_wanted) {
                return Ok(found.name);
            }
        }
    }

    /// The content of the file called `name`, one part of a path.
    ///
    /// # Errors
    /// Those of the kernel for a file that is for writing only (`EINVAL`), or whose cgroup was removed meanwhile (`ENODEV`).
    pub fn read(&self, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let name = OsStr::from_bytes(name);
        let file = rustix::fs::openat2(&self.descriptor, name, flags, Mode::empty(), resolve)?;
        let mut text = Vec::with_capacity(4_096);
        read_whole(&file, &mut text).map(|()| text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(controllers: &str, root: &str) -> Top {
        let directory = rustix::fs::open("/", OFlags::RDONLY, Mode::empty()).unwrap();
        let (controllers, root) = (controllers.to_owned(), root.to_owned());
        Top { controllers, hierarchy: 0, number: 1, root, directory }
    }

    #[test]
    fn the_readers_own_cgroup_is_below_what_is_mounted_or_nowhere() {
        let cgroups =
            CgroupPaths::parse(b"3:cpu,cpuacct:/lxc/c 1\n2:name=systemd:/\n1:pids:/../x\n");
        assert_eq!(top("cpu,cpuacct", "").own(&cgroups), Some(&b"lxc/c 1"[..]));
        assert_eq!(top("cpu,cpuacct", "lxc").own(&cgroups), Some(&b"c 1"[..]));
        assert_eq!(top("cpu,cpuacct", "lxc/c").own(&cgroups), None, "begins alike");
        assert_eq!(top("cpu", "").own(&cgroups), None, "another hierarchy");
        assert_eq!(top("name=systemd", "").own(&cgroups), Some(&b""[..]));
        assert_eq!(top("pids", "lxc").own(&cgroups), None);
    }

    #[test]
    fn names_are_listed_from_where_the_listing_stopped() {
        let host = Arc::new(Host::open().unwrap());
        let descriptor = rustix::fs::openat(host.proc(), "self", OFlags::RDONLY, Mode::empty());
        let directory = Directory { descriptor: descriptor.unwrap(), path: Vec::new() };
        let all = directory.list(0).unwrap();
        let middle = all.len() / 2;
        let rest = directory.list(all[middle].next).unwrap();
        assert_eq!(rest[0].name, all[middle + 1].name);
        let picked = directory.pick(&[b".", b"no such", b"status"], 1);
        assert_eq!((picked.len(), &*picked[0].name, picked[0].next), (1, &b"status"[..], 3));
        assert_eq!(directory.find_file(|name| name.starts_with(b"statu")), Ok(b"status".to_vec()));
        assert_eq!(directory.find_file(|name| name == b"task"), Err(Errno::NOENT), "no file");
        assert!(directory.read(b"status").unwrap().starts_with(b"Name:"));
        assert_eq!(directory.read(b"../uptime").unwrap_err(), Errno::XDEV, "nothing outside");
    }
}
