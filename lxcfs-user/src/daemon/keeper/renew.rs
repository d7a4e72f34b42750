//! A keeper becomes the program of its daemon: in place, with its pid, its child and all that it holds. Otherwise an upgrade
//! would leave the old program running for ever.
//!
//! The program has shown that it works, as the daemon. Where it cannot be run, nothing has changed. Signals wait meanwhile,
//! and so do messages: the socket is one of the descriptors that are passed on.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use crate::error::{Error, Result};
use crate::keep::store;

/// The socket of the keeper before, among what we were given.
pub(super) const MESSAGES: &str = "lxcfs-messages";

/// What the event loop takes to see signals that were there before.
pub(super) const SOON: Duration = Duration::from_millis(5);

/// Becomes the program that `daemon` runs, unless it is the one we run.
///
/// # Errors
/// It cannot be run, and everything is as it was.
pub(super) fn renew(daemon: u32, held: &[(String, BorrowedFd<'_>)]) -> Result<()> {
    let program = format!("/proc/{daemon}/exe");
    let failed = |error: std::io::Error| Error::std("look at", &program, &error);
    let (theirs, ours) = (std::fs::metadata(&program), std::fs::metadata("/proc/self/exe"));
    let (theirs, ours) = (theirs.map_err(failed)?, ours.map_err(failed)?);
    if (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
        return Ok(());
    }
    let name = std::fs::read_link(&program).map_err(failed)?;
    tracing::info!("the keeper becomes {}", name.display());
    // Not by its name, where another one may be by now that has not shown anything.
    let mut command = Command::new(&program);
    let mut arguments = std::env::args_os();
    command.arg0(arguments.next().unwrap_or_default()).args(arguments);
    command.env(store::ADOPTED, daemon.to_string());
    Err(store::become_program(&mut command, held))
}

/// Has signals wait from now on. Those that came before are seen within [`SOON`].
pub(super) fn hold_signals() {
    // They are signals, and this is a thread: there is nothing to fail.
    let _ = handled().thread_block();
}

/// Has signals delivered that have waited, also those that a keeper before us, in this process, has left. To be called when
/// they are handled.
pub(super) fn listen_again() {
    // As above.
    let _ = handled().thread_unblock();
}

/// Signals that would end us, or be lost, while nobody handles them.
fn handled() -> SigSet {
    [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGCHLD,
    ]
    .into_iter()
    .collect()
}

/// What we were given, and the socket of the keeper before apart from it.
pub(super) fn given() -> (Vec<(String, OwnedFd)>, Option<OwnedFd>) {
    let (sockets, held) = store::given().into_iter().partition(|(name, _)| name == MESSAGES);
    let sockets: Vec<(String, OwnedFd)> = sockets;
    (held, sockets.into_iter().next().map(|(_, socket)| socket))
}
