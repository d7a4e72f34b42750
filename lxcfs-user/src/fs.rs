//! The filesystem: FUSE requests in, bytes and errnos out. It knows no numbers.
//!
//! Each operation says what it would answer as a `Result`; the methods of the trait only turn requests into calls and
//! results into replies. What cannot be done has the errno that procfs or sysfs gives for it.

mod adapter;
mod attributes;
mod cgroups;
mod handle;
mod pollers;
mod sysfs;
mod tree;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    FileAttr, FileHandle, FileType, INodeNo, OpenAccMode, OpenFlags, PollEvents, PollNotifier,
};
use rustix::process::{Resource, getrlimit};

pub use self::adapter::panics;
use self::attributes::{READ, Sizes, WRITE, Who};
pub use self::handle::Handles;
use self::handle::Range;
pub use self::pollers::{Pollers, Set, Wish};
use self::sysfs::Sysfs;
pub use self::tree::name_of;
use self::tree::{Directory, Node};
use crate::caller::Privilege;
use crate::error::{Errno, Error, Result};
use crate::keep::workers::Workers;
use crate::model::file::{File, Resource as PressureOf};
use crate::model::topology::{Place, Shown};
use crate::road::Road;
use crate::source::host::Host;
use crate::source::subtree::Subtrees;
use crate::source::trigger;

/// Names and permissions never change while mounted: the kernel need not ask again.
const TTL: Duration = Duration::from_secs(3_600);

/// What a cgroup's pressure file takes in one write, bytes.
const LONGEST_TRIGGER: usize = 4_096;

/// The filesystem of one mount.
#[derive(Debug)]
pub struct LxcFs {
    road: Arc<Road>,
    host: Arc<Host>,
    sysfs: Sysfs,
    /// `None`: there is no `cgroup/`.
    subtrees: Option<Arc<Subtrees>>,
    handles: Arc<Handles>,
    pollers: Arc<Pollers>,
    /// Whether the kernel lets only the privileged open pressure files for writing.
    triggers_take_privilege: bool,
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
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(
        road: Arc<Road>,
        host: Arc<Host>,
        subtrees: Option<Arc<Subtrees>>,
        mounted: SystemTime,
        handles: Arc<Handles>,
        workers: Arc<Workers>,
    ) -> Result<Self> {
        let sysfs = Sysfs::new(Arc::clone(&host));
        let sizes = Sizes::measure(&host);
        let triggers_take_privilege = trigger::takes_privilege(&host);
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::from(u32::MAX));
        let most = usize::try_from(descriptors / 8).unwrap_or(usize::MAX);
        let pollers = Arc::new(Pollers::new(most, handles.journal())?);
        Ok(Self {
            road,
            host,
            sysfs,
            subtrees,
            handles,
            pollers,
            triggers_take_privilege,
            sizes,
            mounted,
            workers,
        })
    }

    /// The triggers set through this filesystem.
    #[must_use]
    pub fn pollers(&self) -> Arc<Pollers> {
        Arc::clone(&self.pollers)
    }

    fn lookup(&self, parent: INodeNo, name: &OsStr, tid: u32) -> Result<FileAttr, Errno> {
        let node = match Node::from_number(parent).ok_or(Errno::NOENT)? {
            Node::Directory(Directory::Cgroup) => return self.cgroup_top(name),
            Node::Directory(directory) => {
                let entries = directory.entries();
                let found = entries.iter().find(|(known, _)| OsStr::new(known) == name);
                found.ok_or(Errno::NOENT)?.1
            }
            Node::Sysfs(number) => {
                let place = self.sysfs.place(number)?.child(name.as_bytes());
                return self.sysfs_attributes(&place.ok_or(Errno::NOENT)?, tid, true);
            }
            Node::Cgroup(bits) => return self.cgroup_lookup(bits, name),
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

    /// The names in the directory from `offset` on, each with the offset behind it.
    fn names(&self, directory: INodeNo, tid: u32, offset: u64) -> Result<Vec<(u64, Name)>, Errno> {
        let node = Node::from_number(directory).ok_or(Errno::NOENT)?;
        if let Node::Cgroup(bits) = node {
            return self.cgroup_names(bits, tid, offset);
        }
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok((1..).zip(self.all_names(node, tid)?).skip(skipped).collect())
    }

    fn all_names(&self, node: Node, tid: u32) -> Result<Vec<Name>, Errno> {
        let parent = match node {
            Node::Directory(directory) => Node::Directory(directory.parent()),
            Node::Sysfs(_) => Node::Directory(Directory::System),
            Node::File(_) | Node::Cgroup(_) => return Err(Errno::NOTDIR),
        };
        let entry = |name: &[u8], node: Node, kind| Name {
            number: node.number(),
            kind,
            name: name.to_owned(),
        };
        let mut names =
            vec![entry(b".", node, FileType::Directory), entry(b"..", parent, FileType::Directory)];
        match node {
            Node::Directory(Directory::Cgroup) => names.extend(self.cgroup_tops()),
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
            Node::File(_) | Node::Cgroup(_) => {}
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
            Node::Directory(Directory::Cgroup) => self.subtrees.is_some(),
            Node::Directory(_) | Node::Cgroup(_) => true,
        }
    }

    /// Checks permissions, and what sysfs checks beyond them: root may open a file of procfs for writing, of sysfs not.
    fn open(
        &self,
        node: INodeNo,
        flags: OpenFlags,
        who: Who,
        tid: u32,
    ) -> Result<FileHandle, Errno> {
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
            Node::File(File::Pressure(_)) if writes => {
                let privilege = self.privilege(tid)?;
                let handle = self.handles.open();
                self.pollers.open(handle, privilege != Privilege::None);
                Ok(handle)
            }
            Node::Sysfs(_) | Node::File(_) | Node::Cgroup(_) => Ok(self.handles.open()),
        }
    }

    /// What who opens a pressure file for writing may ask for. The kernel decides it at the open, too.
    fn privilege(&self, tid: u32) -> Result<Privilege, Errno> {
        let privilege = self.road.callers().privilege(tid).map_err(|error| error.errno)?;
        let is_refused = self.triggers_take_privilege && privilege != Privilege::OnHost;
        if is_refused { Err(Errno::PERM) } else { Ok(privilege) }
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
            Some(Node::Cgroup(bits)) => self.cgroup_page(bits, tid),
            _ => Err(Error::io("read", "/", Errno::ISDIR)),
        })
    }

    /// A file of procfs without a write operation says `EIO`; of sysfs, it cannot have been opened for writing.
    fn write(&self, node: INodeNo, handle: FileHandle, text: &[u8], tid: u32) -> Result<()> {
        let failed = |errno| Error::io("write", "/", errno);
        match Node::from_number(node) {
            Some(Node::File(File::Pressure(resource))) => {
                self.set_trigger(resource, handle, text, tid)
            }
            _ => Err(failed(Errno::IO)),
        }
    }

    /// Sets a trigger on the file whose page the writer reads. Errors come in the kernel's order.
    fn set_trigger(
        &self,
        resource: PressureOf,
        handle: FileHandle,
        text: &[u8],
        tid: u32,
    ) -> Result<()> {
        let failed = |errno| Error::io("set a trigger in", File::Pressure(resource).path(), errno);
        if text.len() > LONGEST_TRIGGER {
            return Err(failed(Errno::TOOBIG));
        }
        let claim = self.pollers.claim(handle).map_err(failed)?;
        let trigger = claim.parse(text).map_err(failed)?;
        let (file, owner) = self.road.pressure_file(resource, tid)?;
        claim.fulfil(Wish { owner, resource, trigger }, || file.set(trigger))
    }

    /// What poll(2) says. Files without a trigger are always ready.
    fn poll(&self, node: INodeNo, handle: FileHandle, waiter: Option<PollNotifier>) -> PollEvents {
        match Node::from_number(node) {
            Some(Node::File(File::Pressure(_))) => self.pollers.poll(handle, waiter),
            _ => pollers::READY,
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
    fn cannot_make(parent: INodeNo, sysfs_says: Errno) -> Errno {
        match Node::from_number(parent) {
            Some(Node::Directory(directory)) if directory.is_procfs() => Errno::NOENT,
            _ => Self::cannot_change(parent, sysfs_says),
        }
    }

    /// Nor can anything be changed. A mount of cgroups that is read-only says that it is.
    fn cannot_change(node: INodeNo, others_say: Errno) -> Errno {
        if Node::is_cgroup(node) { Errno::ROFS } else { others_say }
    }
}

const fn kind_of(kind: rustix::fs::FileType) -> FileType {
    match kind {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        _ => FileType::RegularFile,
    }
}
