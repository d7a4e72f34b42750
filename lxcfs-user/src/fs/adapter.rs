//! [`fuser::Filesystem`] for [`LxcFs`]: requests to calls, results to replies. One panic is one `EIO`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use super::LxcFs;
use super::attributes::{READ, WRITE, Who, attributes_ttl, name_ttl};
use super::handle::{Range, slice};
use super::tree::Node;
use crate::error::Errno;
use crate::keep::workers::{Operation, Working};

/// Requests that ended in a panic, in the life of this process.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many requests ended in a panic.
#[must_use]
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Calls `operation` and makes an errno of a panic in it: a fault in one request is no dead daemon.
fn guarded<T, E: From<Errno>>(operation: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(operation)).unwrap_or_else(|_| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        Err(E::from(Errno::IO))
    })
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

fn who(request: &Request) -> Who {
    Who { uid: request.uid(), gid: request.gid(), tid: request.pid() }
}

impl LxcFs {
    /// To be held until the reply is sent.
    fn begin(&self, request: &Request, operation: Operation, node: INodeNo) -> Working<'_> {
        self.workers.begin(request.unique().0, operation, node.0)
    }

    fn reply_attributes(&self, node: INodeNo, tid: u32, reply: ReplyAttr) {
        match guarded(|| self.attributes(Node::from_number(node).ok_or(Errno::NOENT)?, tid)) {
            Ok(attributes) => reply.attr(&attributes_ttl(&attributes), &attributes),
            Err(error) => reply.error(errno(error)),
        }
    }
}

/// Pages are small; a larger buffer would only make the kernel pin more of the reader's pages.
const LARGEST_READ: u32 = 16 << 10;

impl Filesystem for LxcFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Both only lower what the kernel offers, and the nearest it accepts is as good.
        let _ = config.set_max_write(LARGEST_READ);
        let _ = config.set_max_readahead(LARGEST_READ);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _working = self.begin(request, Operation::Lookup, parent);
        match guarded(|| Self::lookup(self, parent, name, request.pid())) {
            Ok(attributes) => {
                let ttl = attributes_ttl(&attributes);
                reply.entry_with_ttls(&ttl, &name_ttl(&attributes), &attributes, Generation(0));
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(
        &self,
        request: &Request,
        node: INodeNo,
        handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let _working = self.begin(request, Operation::Attributes, node);
        // Asked with a handle it is not for stat(2) but for lseek(2) to the end, which procfs refuses.
        if handle.is_some() {
            return reply.error(fuser::Errno::EINVAL);
        }
        self.reply_attributes(node, request.pid(), reply);
    }

    /// Truncation and new times are accepted and mean nothing, as in procfs; owner and mode are not ours to change.
    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _working = self.begin(request, Operation::Other, node);
        let checked = guarded(|| {
            if size.is_none() && Node::is_cgroup(node) {
                Err(Errno::ROFS)
            } else if mode.is_some() || uid.is_some() || gid.is_some() {
                Err(Errno::PERM)
            } else if size.is_some() && handle.is_some() {
                // ftruncate(2): the file was opened for writing.
                Ok(())
            } else {
                self.check(node, who(request), WRITE)
            }
        });
        match checked {
            Ok(()) => self.reply_attributes(node, request.pid(), reply),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        let _working = self.begin(request, Operation::Other, node);
        match guarded(|| self.target(node, request.pid())) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _working = self.begin(request, Operation::Open, node);
        match guarded(|| Self::open(self, node, flags, who(request), request.pid())) {
            Ok(handle) => {
                let direct = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
                reply.opened(handle, direct);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _working = self.begin(request, Operation::Read, node);
        // A read without an owner is the page cache's, for sendfile(2) or a mapping. Every container would share it.
        if owner.is_none() {
            return reply.error(fuser::Errno::EINVAL);
        }
        match guarded(|| Self::read(self, node, handle, Range { offset, size }, request.pid())) {
            Ok(page) => reply.data(slice(&page, offset, size)),
            Err(error) => {
                tracing::debug!("read: {error}");
                reply.error(errno(error.errno));
            }
        }
    }

    fn write(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match guarded(|| Self::write(self, node, handle, data, request.pid())) {
            // No longer than a request, which is 16 KiB.
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(error) => {
                tracing::debug!("write: {error}");
                reply.error(errno(error.errno));
            }
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let _working = self.begin(request, Operation::Release, node);
        self.handles.close(handle);
        self.pollers.close(handle);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(fuser::Errno::EINVAL);
    }

    fn opendir(&self, request: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match guarded(|| self.check(node, who(request), READ)) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _working = self.begin(request, Operation::List, node);
        match guarded(|| self.names(node, request.pid(), offset)) {
            Ok(names) => {
                for (next, name) in &names {
                    if reply.add(name.number, *next, name.kind, OsStr::from_bytes(&name.name)) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 4_096, 255, 4_096);
    }

    fn access(&self, request: &Request, node: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let _working = self.begin(request, Operation::Other, node);
        let wanted = |flag, bit| if mask.contains(flag) { bit } else { 0 };
        let checked = guarded(|| {
            let bits = wanted(AccessFlags::R_OK, READ) | wanted(AccessFlags::W_OK, WRITE);
            self.check(node, who(request), bits)?;
            // No file of ours can be run, not even by root; directories can be passed through by anybody.
            if mask.contains(AccessFlags::X_OK) {
                self.check_passage(node, request.pid())
            } else {
                Ok(())
            }
        });
        match checked {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        // The kernel remembers, and answers EOPNOTSUPP itself from then on.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        // Only SEEK_DATA and SEEK_HOLE are asked; a seq_file knows neither.
        reply.error(fuser::Errno::EINVAL);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    fn poll(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        notifier: PollNotifier,
        _: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let polled = notifier.handle().0;
        let _working = self.workers.begin_poll(request.unique().0, node.0, polled);
        // The kernel picks from all that is said what the caller asked for. ENOSYS would turn poll off for the mount.
        let is_waiting = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY);
        match guarded(|| Ok(Self::poll(self, node, handle, is_waiting.then_some(notifier)))) {
            Ok(events) => reply.poll(events),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        reply.error(errno(Self::cannot_make(parent, Errno::PERM)));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(errno(Self::cannot_make(parent, Errno::PERM)));
    }

    fn symlink(&self, _: &Request, parent: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(errno(Self::cannot_make(parent, Errno::PERM)));
    }

    fn link(&self, _: &Request, _: INodeNo, parent: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(errno(Self::cannot_make(parent, Errno::PERM)));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(errno(Self::cannot_make(parent, Errno::ACCESS)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(Self::cannot_change(parent, Errno::PERM)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(Self::cannot_change(parent, Errno::PERM)));
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        parent: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(Self::cannot_make(parent, Errno::PERM)));
    }
}

impl From<Errno> for crate::error::Error {
    /// A request that panicked.
    fn from(errno: Errno) -> Self {
        Self::because("serve", "a request", errno, "a panic, reported above")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_errno_and_counted() {
        let before = panics();
        let lock = crate::model::lock::lock;
        let shared = std::sync::Mutex::new(1);
        let panicking = || -> Result<u32, Errno> {
            let _held = lock(&shared);
            panic!("this is to be seen in the test's output")
        };
        assert_eq!(guarded(panicking), Err(Errno::IO));
        assert_eq!(panics(), before + 1);
        let next: Result<u32, Errno> = guarded(|| Ok(*lock(&shared)));
        assert_eq!(next, Ok(1), "the next one is served, with the same locks");
        let error: crate::error::Error = Errno::IO.into();
        assert!(error.to_string().contains("a panic"), "{error}");
    }
}
