//! Descriptors by number: those a process is born with, and those another library has opened.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;

use crate::error::{Errno, Result};

/// Takes over a descriptor that this process was started with. Programs it starts do not get it.
///
/// # Errors
/// No such descriptor is open.
pub(super) fn take(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: whoever started us says in the environment that the number is ours, and nobody else in this process was
    // told of it. A number that is not open is found out by the next call, and a number below 3 is never given.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    match rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC) {
        Ok(()) => Ok(descriptor),
        Err(errno) => {
            // Closing it is no help: it is not there.
            std::mem::forget(descriptor);
            Err(errno)
        }
    }
}

/// Makes the number of `target` a second number of `by`'s file, at once: nobody ever finds it closed.
///
/// # Errors
/// The kernel refuses, and `target` is what it was.
pub(crate) fn replace(target: impl AsFd, by: impl AsFd) -> Result<(), Errno> {
    let (target, by) = (target.as_fd().as_raw_fd(), by.as_fd().as_raw_fd());
    // SAFETY: both numbers are open, because they are borrowed. The owner of `target` goes on owning that number.
    let result = unsafe { libc::dup3(by, target, libc::O_CLOEXEC) };
    if result < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}

/// A descriptor of another owner, for as long as a `Keeper` that keeps it open is there.
#[derive(Debug)]
pub(crate) struct Kept<Keeper> {
    number: RawFd,
    _keeper: Keeper,
}

impl<Keeper> Kept<Keeper> {
    /// The number of `descriptor`.
    ///
    /// # Safety
    /// `keeper` keeps it open while it lives.
    pub(crate) unsafe fn new(descriptor: BorrowedFd<'_>, keeper: Keeper) -> Self {
        Self { number: descriptor.as_raw_fd(), _keeper: keeper }
    }
}

impl<Keeper> AsFd for Kept<Keeper> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open while the keeper lives, which is longer than we are borrowed.
        unsafe { BorrowedFd::borrow_raw(self.number) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_number_gets_another_file() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let target: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        replace(&target, &reader).unwrap();
        drop(reader);
        writer.write_all(b"x").unwrap();
        drop(writer);
        let mut text = String::new();
        std::fs::File::from(target).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn a_number_that_is_not_open_is_refused() {
        assert_eq!(take(900_000).unwrap_err(), Errno::BADF);
    }
}
