//! The way out of a daemon: its threads answer what they have read, and read no further request.
//!
//! A thread that waits for a request is in read(2) of the device, by the number of a descriptor. That number is given
//! another file, a socket of ours, where whoever reads is told what the kernel says at the end of a mount, and ends.
//! Those that are still in the old read get a signal, which does nothing but have them begin that call anew. A thread that
//! works is not disturbed: the kernel begins its calls anew as well. Its answer comes out of the socket, in order and
//! before its end, and is passed on.
//!
//! A system call on our own mount would wake a thread, too, but whoever calls waits for the answer, and once the request is
//! read no signal ends that, not even SIGKILL. Killed at that moment we would never end, and who keeps the mount waits
//! for our end before it starts the daemon that could answer. Nothing here waits for one of our own answers.

use std::ffi::c_int;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use fuser::{Notifier, Session};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::error::{Errno, Error, Result};
use crate::fs::LxcFs;
use crate::keep::Kept;

/// The signal that interrupts. Nobody else sends it to us, and without a handler it is ignored.
const INTERRUPTS: Signal = Signal::SIGURG;

/// How the names of threads that serve begin. fuser gives them.
const SERVES: &str = "fuser-";

/// `FUSE_DESTROY`.
const DESTROY: u32 = 38;

/// The number of our own request. The kernel counts its own up from 0, and marks what it asks again with the highest bit.
const END: u64 = 1 << 62;

/// No answer is longer: the kernel asks for 32 pages of a directory at most, where nothing else was agreed on, and for less
/// of a file.
const LARGEST_ANSWER: usize = 132 << 10;

/// A way out of the threads of a session.
#[derive(Debug)]
pub(super) struct Exit {
    /// The number the threads read from.
    number: Kept<Notifier>,
}

impl Exit {
    /// The way out of `session`, which has the device by now and is not run yet.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn of(session: &Session<LxcFs>) -> Result<Self> {
        handle()?;
        // SAFETY: the notifier shares the channel that owns the descriptor, which is closed with the last that shares it.
        let number = unsafe { Kept::new(session.as_fd(), session.notifier()) };
        Ok(Self { number })
    }

    /// Ends the `threads` threads of the session: what they have read is answered, and what comes now waits for the next
    /// daemon. Returns whether all have ended in `patience`, or nobody asks any more.
    ///
    /// # Errors
    /// They cannot be reached.
    pub(super) fn leave(
        &self,
        device: &OwnedFd,
        threads: usize,
        patience: Duration,
    ) -> Result<bool> {
        let failed = |errno: Errno| Error::io("end", "the threads that serve", errno);
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(failed)?;
        for _ in 0..threads {
            rustix::io::write(&ours, &end()).map_err(failed)?;
        }
        let device = rustix::io::fcntl_dupfd_cloexec(device, 0).map_err(failed)?;
        let failed = |error: std::io::Error| Error::std("end", "the threads that serve", &error);
        let (tell, told) = mpsc::channel();
        // It goes on where our patience has ended: a late answer is as good, for as long as we are there.
        let pass_on = move || {
            pass_on(&ours, &device, threads);
            // Nobody waits any more.
            let _ = tell.send(());
        };
        std::thread::Builder::new().name("leaving".to_owned()).spawn(pass_on).map_err(failed)?;
        crate::keep::replace(&self.number, theirs).map_err(|errno| failed(errno.into()))?;
        interrupt().map_err(failed)?;
        Ok(told.recv_timeout(patience).is_ok())
    }
}

/// Passes on to the device what is answered, until `threads` threads have ended or nobody asks any more.
fn pass_on(answers: &OwnedFd, device: &OwnedFd, threads: usize) {
    let mut answer = vec![0; LARGEST_ANSWER];
    let mut ended = 0;
    while ended < threads {
        let mut fds =
            [PollFd::new(answers, PollFlags::IN), PollFd::new(device, PollFlags::empty())];
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let [has_answer, is_dead] = fds.map(|fd| !fd.revents().is_empty());
        if has_answer {
            match rustix::io::read(answers, &mut answer) {
                // Nobody has the number any more.
                Ok(0) | Err(_) => return,
                Ok(_) if is_end(&answer) => ended += 1,
                // Whoever asked may have gone meanwhile.
                Ok(length) => drop(rustix::io::write(device, &answer[..length])),
            }
        } else if is_dead {
            return;
        }
    }
}

/// Has the signal interrupt us, and the threads that this one starts.
fn handle() -> Result<()> {
    let failed = |errno: nix::Error| Error::std("handle", "signals", &errno.into());
    let restart =
        SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing, which may be done at any time, and no other part of us has one for this signal.
    unsafe { sigaction(INTERRUPTS, &restart) }.map_err(failed)?;
    SigSet::from(INTERRUPTS).thread_unblock().map_err(failed)
}

/// Has each thread that serves begin anew the system call it waits in.
fn interrupt() -> std::io::Result<()> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        // One that has ended meanwhile waits for nothing.
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let id = task.file_name().to_str().and_then(|id| id.parse::<c_int>().ok());
        if let Some(id) = id.filter(|_| name.starts_with(SERVES)) {
            // SAFETY: it takes three numbers, and signals none but a thread of this process.
            let _ = unsafe {
                libc::syscall(libc::SYS_tgkill, std::process::id(), id, INTERRUPTS as c_int)
            };
        }
    }
    Ok(())
}

/// What a signal does here. That it was handled is what interrupts.
const extern "C" fn nothing(_: c_int) {}

/// A `fuse_in_header` that ends whoever reads it.
fn end() -> [u8; 40] {
    let mut request = [0; 40];
    request[..4].copy_from_slice(&40_u32.to_ne_bytes());
    request[4..8].copy_from_slice(&DESTROY.to_ne_bytes());
    request[8..16].copy_from_slice(&END.to_ne_bytes());
    request
}

/// Whether a `fuse_out_header` is the answer to that.
fn is_end(answer: &[u8]) -> bool {
    answer[8..16] == END.to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_thread_in_an_old_read_is_told_to_end() {
        handle().unwrap();
        let (device, _never_written_to) = std::io::pipe().unwrap();
        let device = Arc::new(device);
        let theirs = Arc::clone(&device);
        let (tell, told) = mpsc::channel();
        let read = move || {
            tell.send(rustix::thread::gettid()).unwrap();
            let mut request = [0; 40];
            theirs.as_ref().read_exact(&mut request).map(|()| request)
        };
        let thread = std::thread::Builder::new().name(format!("{SERVES}0")).spawn(read).unwrap();
        let call = format!("/proc/self/task/{}/syscall", told.recv().unwrap().as_raw_nonzero());
        while !fs::read_to_string(&call).unwrap().starts_with(&format!("{} ", libc::SYS_read)) {
            std::thread::yield_now();
        }
        let (ours, socket) = std::os::unix::net::UnixStream::pair().unwrap();
        rustix::io::write(&ours, &end()).unwrap();
        crate::keep::replace(device.as_ref(), socket).unwrap();
        interrupt().unwrap();
        assert_eq!(thread.join().unwrap().unwrap(), end());
    }

    #[test]
    fn an_end_is_told_from_other_answers() {
        assert!(is_end(&end()), "the number is at the same place");
        assert!(!is_end(&[0; 16]));
    }
}
