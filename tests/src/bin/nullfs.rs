//! The floor under every FUSE file: `nullfs MOUNTPOINT` serves one file, `null`, whose page is always the same.
//!
//! It stands on the settings of `lxcfs` and does nothing for a request but answer it. What it takes, no file of a FUSE
//! filesystem on this library can do without.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use clap::Parser;
use fuser::{
    Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    Request, Session, SessionACL,
};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

/// As long as a loadavg or an uptime may be.
const PAGE: &[u8] = b"0.00 0.01 0.05 1/100 12345, and as much again: sixty bytes.\n";

const ROOT: INodeNo = INodeNo(1);
const NULL: INodeNo = INodeNo(2);

const TTL: Duration = Duration::from_secs(3_600);

#[derive(Debug, Parser)]
struct Arguments {
    mountpoint: PathBuf,
    /// Threads that answer
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let device = attach(&arguments.mountpoint)?;
    let mut config = Config::default();
    config.n_threads = Some(arguments.threads);
    let session = Session::from_fd(Null, device, SessionACL::All, config).context("serve")?;
    session.run().context("serve")
}

/// Mounts with the options of `lxcfs`.
fn attach(point: &Path) -> Result<OwnedFd> {
    let device = open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .context("open /dev/fuse")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    mount(Some("nullfs"), point, Some("fuse.nullfs"), flags, Some(data.as_str()))
        .with_context(|| format!("mount at {}", point.display()))?;
    Ok(device)
}

/// The filesystem: a directory with one file.
struct Null;

fn attributes(node: INodeNo) -> FileAttr {
    let is_root = node == ROOT;
    FileAttr {
        ino: node,
        size: if is_root { 0 } else { 4_096 },
        blocks: 8,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: if is_root { FileType::Directory } else { FileType::RegularFile },
        perm: if is_root { 0o755 } else { 0o444 },
        nlink: if is_root { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4_096,
        flags: 0,
    }
}

impl Filesystem for Null {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // As in `lxcfs`: both only lower what the kernel offers.
        let _ = config.set_max_write(16 << 10);
        let _ = config.set_max_readahead(16 << 10);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "null" {
            reply.entry_with_ttls(&Duration::ZERO, &TTL, &attributes(NULL), Generation(0));
        } else {
            reply.error(fuser::Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &attributes(node));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(1), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(if offset == 0 { PAGE } else { &[] });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }
}
