//! What stat(2) says of a node, and who may do what with it.
//!
//! Permissions are checked here and not by the kernel (`default_permissions`): to check them the kernel would ask for the
//! attributes at every open, because those of our files are never valid for long (see [`Sizes`]).

use std::time::Duration;

use fuser::{FileAttr, FileType, INodeNo};

use super::sysfs::Sysfs;
use super::tree::{Directory, Node};
use super::{LxcFs, TTL};
use crate::error::Errno;
use crate::model::file::File;
use crate::model::topology::Place;
use crate::source::Machine;
use crate::source::host::Host;

/// Permission bits for one class of users.
pub(super) const READ: u16 = 4;
/// See [`READ`].
pub(super) const WRITE: u16 = 2;

/// The write permissions of a mode.
const WRITE_BITS: u32 = 0o222;

/// The smallest size and the size of every file of sysfs: a page.
const PAGE_BYTES: u32 = 4_096;

/// Who asks, as the host knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) tid: u32,
}

/// The sizes stat(2) shows for the files we make.
///
/// procfs shows 0. From kernel 6.5 on, sendfile(2) and splice(2) from a FUSE file go through the page cache and stop at
/// this size at once: a size of 0 makes busybox's `cat` print nothing. The page cache is no way for us, because it would
/// show one container's page to another; we refuse its reads, and whoever uses sendfile falls back to read(2). So the size
/// is notional, like that of a sysfs file: no smaller than any page, no larger than a block, which tells `wc` and `tail`
/// that it is none to rely on. Seeking to the end is refused as in procfs; for that, attributes are never kept.
#[derive(Debug)]
pub(super) struct Sizes([u32; File::ALL.len()]);

impl Sizes {
    /// Four times the host's page, rounded up to a power of two.
    pub(super) fn measure(host: &Host) -> Self {
        Self(File::ALL.map(|file| {
            let mut text = Vec::new();
            let length = host.read(file, &mut text).map_or(0, |()| text.len());
            let length = u32::try_from(length.saturating_mul(4)).unwrap_or(1 << 24);
            length.clamp(PAGE_BYTES, 1 << 24).next_power_of_two()
        }))
    }

    fn of(&self, node: Node) -> u32 {
        let Node::File(file) = node else { return PAGE_BYTES };
        let index = File::ALL.iter().position(|&known| known == file);
        index.map_or(PAGE_BYTES, |index| self.0[index])
    }
}

/// How long the kernel may keep the attributes: not at all for a file, so that it asks before it seeks to the end, nor in
/// the trees of `/sys`, where not every reader is shown everything.
pub(super) fn attributes_ttl(attributes: &FileAttr) -> Duration {
    match Node::from_number(attributes.ino) {
        Some(Node::Directory(_)) => TTL,
        _ => Duration::ZERO,
    }
}

/// How long the kernel may keep the name. That of a cgroup may be another one's a moment later.
pub(super) fn name_ttl(attributes: &FileAttr) -> Duration {
    if Node::is_cgroup(attributes.ino) { Duration::ZERO } else { TTL }
}

impl LxcFs {
    pub(super) fn attributes(&self, node: Node, tid: u32) -> Result<FileAttr, Errno> {
        let (kind, mode) = match node {
            Node::Directory(Directory::Cgroup) if self.subtrees.is_none() => {
                return Err(Errno::NOENT);
            }
            Node::Directory(directory) => (FileType::Directory, directory.mode()),
            Node::File(file) => {
                let mode = self.host.mode(file).ok_or(Errno::NOENT)?;
                (FileType::RegularFile, permissions(mode))
            }
            Node::Sysfs(number) => {
                return self.sysfs_attributes(&self.sysfs.place(number)?, tid, false);
            }
            Node::Cgroup(bits) => return self.cgroup_attributes(bits, tid),
        };
        Ok(self.attributes_of(node, kind, mode))
    }

    pub(super) fn attributes_of(&self, node: Node, kind: FileType, perm: u16) -> FileAttr {
        let is_file = kind == FileType::RegularFile;
        let size = if is_file { self.sizes.of(node) } else { 0 };
        FileAttr {
            ino: node.number(),
            size: u64::from(size),
            // Full blocks, or `cp` looks for holes.
            blocks: u64::from(size / 512),
            atime: self.mounted,
            mtime: self.mounted,
            ctime: self.mounted,
            crtime: self.mounted,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: size.max(PAGE_BYTES),
            flags: 0,
        }
    }

    /// The host's attributes for the thread `tid`, or, where `anybody`, for some reader. Without leave to write: through
    /// us nothing of the host can be changed.
    pub(super) fn sysfs_attributes(
        &self,
        place: &Place,
        tid: u32,
        anybody: bool,
    ) -> Result<FileAttr, Errno> {
        let stat = self.sysfs.stat(place, &self.shown(place, tid)?, anybody)?;
        let kind = match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::Directory => FileType::Directory,
            rustix::fs::FileType::Symlink => FileType::Symlink,
            _ => FileType::RegularFile,
        };
        let read_only =
            if kind == FileType::RegularFile { stat.st_mode & !WRITE_BITS } else { stat.st_mode };
        let node = Node::Sysfs(self.sysfs.number(place));
        Ok(FileAttr {
            uid: stat.st_uid,
            gid: stat.st_gid,
            ..self.attributes_of(node, kind, permissions(read_only))
        })
    }

    /// Whether `who` may do all of `wanted` ([`READ`], [`WRITE`]) with the node.
    ///
    /// The host's root may do anything, as with CAP_DAC_OVERRIDE. The root of a user namespace is any user here.
    pub(super) fn check(&self, node: INodeNo, who: Who, wanted: u16) -> Result<(), Errno> {
        let node = Node::from_number(node).ok_or(Errno::NOENT)?;
        // What is not shown is not there, not even for root. What is no CPU's or node's is shown to all.
        let attributes = match node {
            Node::Sysfs(number) if who.uid == 0 && Sysfs::is_for_all(number) => return Ok(()),
            Node::Sysfs(_) | Node::Cgroup(_) => self.attributes(node, who.tid)?,
            _ if who.uid == 0 => return Ok(()),
            _ => self.attributes(node, who.tid)?,
        };
        if who.uid != 0 && !may(&attributes, who, wanted) {
            return Err(Errno::ACCESS);
        }
        let is_read_only = wanted & WRITE != 0 && matches!(node, Node::Cgroup(_));
        if is_read_only { Err(Errno::ROFS) } else { Ok(()) }
    }
}

impl LxcFs {
    /// Whether a path may lead through the node.
    pub(super) fn check_passage(&self, node: INodeNo, tid: u32) -> Result<(), Errno> {
        let node = Node::from_number(node).ok_or(Errno::NOENT)?;
        let is_directory = self.attributes(node, tid)?.kind == FileType::Directory;
        if is_directory { Ok(()) } else { Err(Errno::ACCESS) }
    }
}

/// Whether the mode lets `who` do all of `wanted`.
const fn may(attributes: &FileAttr, who: Who, wanted: u16) -> bool {
    let class = if who.uid == attributes.uid {
        attributes.perm >> 6
    } else if who.gid == attributes.gid {
        attributes.perm >> 3
    } else {
        attributes.perm
    };
    class & wanted == wanted
}

/// The permission bits of a mode.
fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o777).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn the_class_of_a_user_decides() {
        let attributes = |perm| FileAttr {
            ino: INodeNo(1),
            size: 0,
            blocks: 0,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4_096,
            flags: 0,
        };
        let (root, user) = (Who { uid: 0, gid: 0, tid: 0 }, Who { uid: 1000, gid: 1000, tid: 0 });
        let member = Who { uid: 1000, gid: 0, tid: 0 };
        assert!(may(&attributes(0o400), root, READ) && !may(&attributes(0o400), user, READ));
        assert!(may(&attributes(0o440), member, READ) && !may(&attributes(0o440), user, READ));
        assert!(may(&attributes(0o666), user, READ | WRITE));
        assert!(!may(&attributes(0o444), user, READ | WRITE));
    }
}
