//! Another process of ours: told that it ends, and sent signals that cannot reach a later one of its pid.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;

use crate::error::{Errno, Error, Result};

/// A process that was there when this was made.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: Pid,
    handle: Arc<OwnedFd>,
    ended: oneshot::Receiver<()>,
}

impl Process {
    /// The process of this pid. A thread sleeps until it ends.
    pub(super) fn watch(pid: u32) -> Result<Self> {
        let failed = |errno| Error::io("watch process", pid.to_string(), errno);
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed(Errno::SRCH))?;
        let handle = Arc::new(pidfd_open(pid, PidfdFlags::empty()).map_err(failed)?);
        let (sender, ended) = oneshot::channel();
        let watched = Arc::clone(&handle);
        let wait = move || {
            let mut fds = [PollFd::new(&*watched, PollFlags::IN)];
            while poll(&mut fds, None) == Err(Errno::INTR) {}
            // Nobody asks any more when we are ending, too.
            let _ = sender.send(());
        };
        // The thread begins with what its maker blocks: signals are for the event loop, which may hold them for a moment.
        let ours = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(wait);
        if let Ok(ours) = ours {
            // It was in place a moment ago.
            let _ = ours.thread_set_mask();
        }
        thread.map_err(|error| Error::std("start", "thread watch", &error))?;
        Ok(Self { pid, handle, ended })
    }

    /// Returns when it has ended. To be called again if it is dropped half way, and not after it has returned.
    pub(super) async fn ended(&mut self) {
        // A thread that is gone has nothing left to wait for either.
        let _ = (&mut self.ended).await;
    }

    /// Sends a signal, unless it has ended.
    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended just now, which we are told next.
        let _ = pidfd_send_signal(&self.handle, signal);
    }
}

/// Waits for the end of `process`; for ever, if there is none.
pub(super) async fn ended(process: Option<&mut Process>) {
    match process {
        Some(process) => process.ended().await,
        None => std::future::pending().await,
    }
}
