//! The filesystem: FUSE requests in, bytes and errnos out. It knows no numbers.
//!
//! Each operation says what it would answer as a `Result`; the methods of the trait only turn requests into calls and
//! results into replies. What cannot be done has the errno that procfs or sysfs gives for it.

mod adapter;
mod attributes;
mod handle;
mod sysfs;
mod tree;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{FileAttr, FileHandle, FileType, INodeNo, OpenAccMode, OpenFlags};

pub use self::adapter::panics;
use self::attributes::{READ, Sizes, WRITE, Who};
pub use self::handle::Handles;
use self::handle::Range;
use self::sysfs::Sysfs;
use self::tree::{Directory, Node};
use crate::error::{Errno, Error, Result};
use crate::keep::workers::Workers;
use crate::model::file::File;
use crate::model::topology::{Place, Shown};
use crate::road::Road;
use crate::source::host::Host;

/// Names and permissions never change while mounted: the kernel need not ask again.
const TTL: Duration = Duration::from_secs(3_600);

/// The filesystem of one mount.
#[derive(Debug)]
pub struct LxcFs {
    road: Arc<Road>,
    host: Arc<Host>,
    sysfs: Sysfs,
    handles: Arc<Handles>,
    sizes: Sizes,
    mounted: SystemTime,
    workers: Arc<Workers>,
}

/// One name of a listing.
struct Name {
    number: INodeNo,
    kind: FileType,
    name: Vec<u8>,
}

impl LxcFs {
    /// A filesystem that asks `road` for its pages, of the mount made at `mounted`.
    #[must_use]
    pub fn new(
        road: Arc<Road>,
        host: Arc<Host>,
        mounted: SystemTime,
        handles: Arc<Handles>,
        workers: Arc<Workers>,
    ) -> Self {
        let sysfs = Sysfs::new(Arc::clone(&host));
        let sizes = Sizes::measure(&host);
        Self { road, host, sysfs, handles, sizes, mounted, workers }
    }

    fn lookup(&self, parent: INodeNo, name: &OsStr, tid: u32) -> Result<FileAttr, Errno> {
        let node = match Node::from_number(parent).ok_or(Errno::NOENT)? {
            Node::Directory(directory) => {
                let entries = directory.entries();
                let found = entries.iter().find(|(known, _)| OsStr::new(known) == name);
                found.ok_or(Errno::NOENT)?.1
            }
            Node::Sysfs(number) => {
                let place = self.sysfs.place(number)?.child(name.as_bytes());
                return self.sysfs_attributes(&place.ok_or(Errno::NOENT)?, tid, true);
            }
            Node::File(_) => return Err(Errno::NOTDIR),
        };
        self.attributes(node, tid)
    }

    /// What the thread `tid` is shown of the trees, as far as it matters for `place`.
    fn shown(&self, place: &Place, tid: u32) -> Result<Shown, Errno> {
        // What is at the top and no unit is there for everybody.
        if place.unit.is_none() && !place.rest.is_empty() {
            return Ok(Shown::default());
        }
        self.road.shown(place.tree, tid).map_err(|error| error.errno)
    }

    fn names(&self, directory: INodeNo, tid: u32) -> Result<Vec<Name>, Errno> {
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
                let entries = directory.entries().into_iter();
                let there = entries.filter(|(_, node)| self.is_there(*node));
                names.extend(
                    there.map(|(name, node)| entry(name.as_bytes(), node, tree::kind(node))),
                );
            }
            Node::Sysfs(number) => {
                let place = self.sysfs.place(number)?;
                let found = self.sysfs.entries(&place, &self.shown(&place, tid)?)?;
                names.extend(found.iter().map(|found| {
                    entry(&found.name, Node::Sysfs(found.number), kind_of(found.kind))
                }));
            }
            Node::File(_) => {}
        }
        Ok(names)
    }

    /// Whether the host has what the node stands for: a file it has not is not in the listing either.
    fn is_there(&self, node: Node) -> bool {
        match node {
            Node::File(file) => self.host.mode(file).is_some(),
            Node::Sysfs(number) => {
                self.sysfs.place(number).is_ok_and(|place| self.host.tree(place.tree).is_some())
            }
            Node::Directory(_) => true,
        }
    }

    /// Checks permissions, and what sysfs checks beyond them: root may open a file of procfs for writing, of sysfs not.
    fn open(&self, node: INodeNo, flags: OpenFlags, who: Who) -> Result<FileHandle, Errno> {
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let wanted = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => READ,
            OpenAccMode::O_WRONLY => WRITE,
            OpenAccMode::O_RDWR => READ | WRITE,
        };
        self.check(node, who, wanted)?;
        match Node::from_number(node).ok_or(Errno::NOENT)? {
            Node::Directory(_) => Err(Errno::ISDIR),
            Node::Sysfs(_) | Node::File(File::CpuOnline) if writes => Err(Errno::ACCESS),
            Node::Sysfs(_) | Node::File(_) => Ok(self.handles.open()),
        }
    }

    fn read(&self, node: INodeNo, handle: FileHandle, range: Range, tid: u32) -> Result<Bytes> {
        let node = Node::from_number(node);
        self.handles.page(handle, range, || match node {
            Some(Node::File(file)) => self.road.page(file, tid),
            Some(Node::Sysfs(number)) => {
                let place = self.sysfs.place(number);
                let place =
                    place.map_err(|errno| Error::io("find", "/sys/devices/system", errno))?;
                self.road.sysfs(&place, tid)
            }
            _ => Err(Error::io("read", "/", Errno::ISDIR)),
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

    fn target(&self, node: INodeNo, tid: u32) -> Result<Vec<u8>, Errno> {
        match Node::from_number(node) {
            Some(Node::Sysfs(number)) => {
                let place = self.sysfs.place(number)?;
                self.sysfs.target(&place, &self.shown(&place, tid)?)
            }
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

const fn kind_of(kind: rustix::fs::FileType) -> FileType {
    match kind {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        _ => FileType::RegularFile,
    }
}
