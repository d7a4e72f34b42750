//! A directory of a cgroup hierarchy by the kernel's number for it (open_by_handle_at(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;

use crate::error::Errno;

/// What stands for a node of such a hierarchy: its number, and that it is one (`FILEID_KERNFS`).
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    number: u64,
}

const NUMBER_BYTES: u32 = 8;
const KERNFS: i32 = 0xfe;

/// Opens the directory with that number for listing, in the filesystem that `mount`, a descriptor opened for reading, is of.
///
/// # Errors
/// There is none (`ESTALE`), it is no directory (`ENOTDIR`), or we have no `CAP_DAC_READ_SEARCH` (`EPERM`).
pub(super) fn open_directory(mount: impl AsFd, number: u64) -> Result<OwnedFd, Errno> {
    let mut handle = Handle { bytes: NUMBER_BYTES, kind: KERNFS, number };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // SAFETY: the descriptor is open for the call. The kernel reads the handle, of which `bytes` says how long it is, and
    // keeps no pointer to it.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_fd().as_raw_fd(),
            std::ptr::from_mut(&mut handle).cast(),
            flags.bits().cast_signed(),
        )
    };
    if fd < 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
