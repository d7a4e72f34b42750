//! Two questions to a pid namespace (ioctl_nsfs(2)): which process is your init, and which is your parent.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::ioctl::{Opcode, opcode};

use crate::error::Errno;

/// The ioctl type of namespace files (include/uapi/linux/nsfs.h).
const NSIO: u8 = 0xb7;
const GET_PARENT: Opcode = opcode::none(NSIO, 2);
/// Since 6.11.
const GET_TGID_FROM_PIDNS: Opcode = opcode::read::<libc::c_int>(NSIO, 7);

/// The init of the pid namespace `namespace`, as a pid in ours.
///
/// # Errors
/// `ENOTTY` on kernels before 6.11; `ESRCH` when the namespace has no init any more, or is not below ours.
pub(super) fn init_of(namespace: impl AsFd) -> Result<u32, Errno> {
    let init_of_its_own: libc::c_int = 1;
    // SAFETY: the descriptor is open for the call, and this ioctl takes its argument by value and writes no memory.
    let pid = unsafe {
        libc::ioctl(namespace.as_fd().as_raw_fd(), GET_TGID_FROM_PIDNS as _, init_of_its_own)
    };
    u32::try_from(pid).map_err(|_| last_errno())
}

/// The parent of the pid namespace `namespace`.
///
/// # Errors
/// `EPERM` when the parent is above ours.
pub(super) fn parent_of(namespace: impl AsFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the descriptor is open for the call, and this ioctl takes no argument.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), GET_PARENT as _) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: a successful NS_GET_PARENT returns a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
