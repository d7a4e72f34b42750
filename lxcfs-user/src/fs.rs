//! The filesystem: FUSE requests in, bytes and errnos out. It knows no numbers.
//!
//! Each operation says what it would answer as a `Result`; the methods of the trait only turn requests into calls and
//! results into replies. What cannot be done has the errno that procfs or sysfs gives for it.

mod adapter;
mod handle;
mod sysfs;
mod tree;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{FileAttr, FileHandle, FileType, INodeNo, OpenAccMode, OpenFlags};
use rustix::fs::Stat;

pub use self::adapter::panics;
use self::handle::Handles;
use self::sysfs::Sysfs;
use self::tree::{Directory, Node};
use crate::error::{Errno, Result};
use crate::model::file::File;
use crate::road::Road;
use crate::source::host::Host;

/// Names and permissions never change while mounted: the kernel need not ask again.
const TTL: Duration = Duration::from_secs(3_600);

/// The write permissions of a mode.
const WRITE_BITS: u32 = 0o222;

/// The filesystem of one mount.
#[derive(Debug)]
pub struct LxcFs {
    road: Arc<Road>,
    host: Arc<Host>,
    sysfs: Sysfs,
    handles: Handles,
    mounted: SystemTime,
}

/// One name of a listing.
struct Name {
    number: INodeNo,
    kind: FileType,
    name: Vec<u8>,
}

impl LxcFs {
    /// A filesystem that asks `road` for its pages.
    ///
    /// # Errors
    /// The host's `/sys` cannot be read by node number.
    pub fn new(road: Arc<Road>, host: Arc<Host>) -> Result<Self> {
        let sysfs = Sysfs::open(&host)?;
        let mounted = SystemTime::now();
        let epoch = mounted.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Two daemons on one mount, one after the other, start a second apart: their handles never meet.
        let handles = Handles::new(epoch.as_secs() << 32);
        Ok(Self { road, host, sysfs, handles, mounted })
    }

    fn lookup(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let node = match Node::from_number(parent).ok_or(Errno::NOENT)? {
            Node::Directory(directory) => {
                let entries = directory.entries(self.sysfs.cpu());
                let found = entries.iter().find(|(known, _)| OsStr::new(known) == name);
                found.ok_or(Errno::NOENT)?.1
            }
            Node::Sysfs(number) => match self.file_in_sysfs(number, name) {
                Some(file) => Node::File(file),
                None => {
                    let stat = self.sysfs.lookup(number, name.as_bytes())?;
                    return Ok(self.sysfs_attributes(&stat));
                }
            },
            Node::File(_) => return Err(Errno::NOTDIR),
        };
        self.attributes(node)
    }

    /// The file of ours that takes the place of `name` in a directory of the host's.
    fn file_in_sysfs(&self, directory: u64, name: &OsStr) -> Option<File> {
        (directory == self.sysfs.cpu() && name == "online").then_some(File::CpuOnline)
    }

    fn attributes(&self, node: Node) -> Result<FileAttr, Errno> {
        let (kind, mode) = match node {
            Node::Directory(directory) => (FileType::Directory, directory.mode()),
            Node::File(file) => {
                let mode = self.host.mode(file).ok_or(Errno::NOENT)?;
                (FileType::RegularFile, permissions(mode))
            }
            Node::Sysfs(number) => return Ok(self.sysfs_attributes(&self.sysfs.stat(number)?)),
        };
        Ok(self.attributes_of(node, kind, mode))
    }

    fn attributes_of(&self, node: Node, kind: FileType, perm: u16) -> FileAttr {
        FileAttr {
            ino: node.number(),
            // Like procfs: how much there is to read is known when it is read.
            size: 0,
            blocks: 0,
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
            blksize: 4_096,
            flags: 0,
        }
    }

    /// The host's attributes, without leave to write: through us nothing of the host can be changed.
    fn sysfs_attributes(&self, stat: &Stat) -> FileAttr {
        let kind = match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::Directory => FileType::Directory,
            rustix::fs::FileType::Symlink => FileType::Symlink,
            _ => FileType::RegularFile,
        };
        let read_only =
            if kind == FileType::RegularFile { stat.st_mode & !WRITE_BITS } else { stat.st_mode };
        FileAttr {
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            ..self.attributes_of(Node::Sysfs(stat.st_ino), kind, permissions(read_only))
        }
    }

    fn names(&self, directory: INodeNo) -> Result<Vec<Name>, Errno> {
        let node = Node::from_number(directory).ok_or(Errno::NOENT)?;
        let parent = match node {
            Node::Directory(directory) => Node::Directory(directory.parent()),
            Node::Sysfs(_) => Node::Directory(Directory::System),
            Node::File(_) => return Err(Errno::NOTDIR),
        };
        let entry = |name: &[u8], node: Node, kind| Name {
            number: node.number(),
            kind,
            name: name.to_owned(),
        };
        let mut names =
            vec![entry(b".", node, FileType::Directory), entry(b"..", parent, FileType::Directory)];
        match node {
            Node::Directory(directory) => {
                let entries = directory.entries(self.sysfs.cpu()).into_iter();
                let there = entries.filter(|(_, node)| self.is_there(*node));
                names.extend(
                    there.map(|(name, node)| entry(name.as_bytes(), node, tree::kind(node))),
                );
            }
            Node::Sysfs(number) => names.extend(self.sysfs.entries(number)?.iter().map(|found| {
                let ours = self.file_in_sysfs(number, OsStr::from_bytes(&found.name));
                let node = ours.map_or(Node::Sysfs(found.number), Node::File);
                entry(&found.name, node, kind_of(found.kind))
            })),
            Node::File(_) => {}
        }
        Ok(names)
    }

    /// Whether the host has what the node stands for: a file it has not is not in the listing either.
    fn is_there(&self, node: Node) -> bool {
        match node {
            Node::File(file) => self.host.mode(file).is_some(),
            Node::Directory(_) | Node::Sysfs(_) => true,
        }
    }

    /// Permissions were checked by the kernel (`default_permissions`); what is left is what sysfs checks itself.
    fn open(&self, node: INodeNo, flags: OpenFlags) -> Result<FileHandle, Errno> {
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        match Node::from_number(node).ok_or(Errno::NOENT)? {
            Node::Directory(_) => Err(Errno::ISDIR),
            Node::Sysfs(_) | Node::File(File::CpuOnline) if writes => Err(Errno::ACCESS),
            Node::Sysfs(_) | Node::File(_) => Ok(self.handles.open()),
        }
    }

    fn read(&self, node: INodeNo, handle: FileHandle, offset: u64, tid: u32) -> Result<Bytes> {
        let node = Node::from_number(node);
        self.handles.page(handle, offset, || match node {
            Some(Node::File(file)) => self.road.page(file, tid),
            Some(Node::Sysfs(number)) => {
                let mut text = Vec::with_capacity(4_096);
                let read = self.sysfs.read(number, &mut text);
                let failed =
                    |errno| crate::error::Error::io("read", "/sys/devices/system/cpu", errno);
                read.map_err(failed).map(|()| Bytes::from(text))
            }
            _ => Err(crate::error::Error::io("read", "/", Errno::ISDIR)),
        })
    }

    /// A file of procfs without a write operation says `EIO`; of sysfs, it cannot have been opened for writing.
    fn write(&self, node: INodeNo) -> Errno {
        match Node::from_number(node) {
            // A trigger cannot be set through us: to the kernel, too, what it cannot parse is invalid.
            Some(Node::File(File::Pressure(_))) => Errno::INVAL,
            _ => Errno::IO,
        }
    }

    fn target(&self, node: INodeNo) -> Result<Vec<u8>, Errno> {
        match Node::from_number(node) {
            Some(Node::Sysfs(number)) => self.sysfs.target(number),
            _ => Err(Errno::INVAL),
        }
    }

    /// Nothing can be made here. procfs does not find the name; sysfs finds that it may not be there.
    fn cannot_make(&self, parent: INodeNo, sysfs_says: Errno) -> Errno {
        match Node::from_number(parent) {
            Some(Node::Directory(directory)) if directory.is_procfs() => Errno::NOENT,
            _ => sysfs_says,
        }
    }
}

/// The permission bits of a mode.
fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o777).unwrap_or(0)
}

const fn kind_of(kind: rustix::fs::FileType) -> FileType {
    match kind {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        _ => FileType::RegularFile,
    }
}
