//! The connection to the kernel: opened once for a mount, and taken over by each daemon after the first.
//!
//! A session of fuser begins with a handshake, which a connection has only once. So the handshake is held over a pair of
//! sockets, with the kernel's request from the journal and the reply compared with the one the kernel was given; then the
//! device takes the place of the socket. The device is never cloned: what a clone has read ends in errors with it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime};

use fuser::{Config, Session, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::error::{Errno, Error, Result};
use crate::fs::LxcFs;
use crate::keep::journal::{Described, Journal};
use crate::keep::workers::{Unanswered, Workers};

const DEVICE: &str = "/dev/fuse";

/// The smallest buffer the kernel reads a request into.
const SMALLEST_BUFFER: usize = 8_192;

/// What both daemons have to agree on, as bytes of `fuse_out_header` and `fuse_init_out`: flags; and the largest write,
/// the granularity of times, the pages of a request, and more flags.
const AGREED: [std::ops::Range<usize>; 2] = [28..32, 36..52];

/// `FUSE_NOTIFY_POLL`.
const NOTIFY_POLL: i32 = 1;

/// `FUSE_NOTIFY_RESEND` (6.9): requests that were read and not answered are read again.
const NOTIFY_RESEND: i32 = 7;

/// The kernel numbers requests in steps of two; interrupts are the odd ones.
const REQUEST_STEP: u64 = 2;
/// So many requests around the latest one that is known may have been read and not noted.
const UNNOTED: u64 = 512;

/// The session of a new mount at `mount.point`, which goes into the journal.
///
/// # Errors
/// The kernel does not answer as it should.
pub(super) fn open(
    filesystem: LxcFs,
    device: &OwnedFd,
    journal: &Journal,
    mount: Described,
    config: Config,
) -> Result<Session<LxcFs>> {
    let failed = |operation| move |errno: Errno| Error::io(operation, DEVICE, errno);
    let mut request = vec![0; SMALLEST_BUFFER];
    let length = rustix::io::read(device, &mut request).map_err(failed("read from"))?;
    request.truncate(length);
    let (session, reply) = handshake(filesystem, &request, config)?;
    rustix::io::write(device, &reply).map_err(failed("answer"))?;
    journal.describe(&Described { init_request: request, init_reply: reply, ..mount });
    crate::keep::replace(&session, device).map_err(failed("take over"))?;
    Ok(session)
}

/// The session of a mount that another daemon has served. It reads nothing before it is run.
///
/// # Errors
/// What was agreed with the kernel is not what we can do.
pub(super) fn reopen(
    filesystem: LxcFs,
    device: &OwnedFd,
    journal: &Journal,
    config: Config,
) -> Result<Session<LxcFs>> {
    let before = journal.described();
    let (session, reply) = handshake(filesystem, &before.init_request, config)?;
    let differs =
        |range: std::ops::Range<usize>| reply.get(range.clone()) != before.init_reply.get(range);
    if AGREED.into_iter().any(differs) {
        let cause = "the mount was made by a version that agreed on something else with the kernel";
        return Err(Error::because("take over", before.point, Errno::PROTO, cause)
            .hint("start the other version, or unmount first"));
    }
    crate::keep::replace(&session, device)
        .map_err(|errno| Error::io("take over", DEVICE, errno))?;
    Ok(session)
}

/// Has requests that a daemon before us read and did not answer asked again, or answers them where the kernel cannot.
///
/// No thread of ours may read yet, and none of the other daemon any more.
pub(super) fn ask_again(device: &OwnedFd, journal: &Journal) {
    let unanswered = Workers::unanswered(journal);
    for deadly in Workers::settle(journal) {
        tracing::error!(
            "two daemons have ended while they worked on {} of node {}: it is answered with EIO",
            deadly.operation,
            deadly.node
        );
        answer(device, deadly.request, Errno::IO);
    }
    if rustix::io::write(device, &header(NOTIFY_RESEND, 0)).is_ok() {
        return;
    }
    for polled in unanswered.iter().filter(|unanswered| unanswered.polled.is_some()) {
        answer_poll(device, polled);
    }
    // Most callers call again by themselves. What was not noted yet is somewhere around the latest that was; a request
    // that nobody has read, or that is none, cannot be answered, and the kernel says so.
    let latest = journal.latest_request().load(std::sync::atomic::Ordering::Relaxed);
    let from = latest.saturating_sub(UNNOTED * REQUEST_STEP).max(REQUEST_STEP);
    let around = (0..2 * UNNOTED).map(|nth| from + nth * REQUEST_STEP);
    let noted = unanswered.iter().map(|unanswered| unanswered.request);
    let answered = noted.chain(around).filter(|&request| answer(device, request, Errno::INTR));
    let count = answered.count();
    if count > 0 {
        tracing::info!("{count} requests of the daemon before were answered with EINTR");
    }
}

/// Has those who wait for an event of an open file ask again, by their numbers.
pub(super) fn wake(device: &OwnedFd, waiting: &[u64]) {
    for number in waiting {
        let mut message = [0; 24];
        message[..16].copy_from_slice(&header(NOTIFY_POLL, 0));
        message[..4].copy_from_slice(&24_u32.to_ne_bytes());
        message[16..].copy_from_slice(&number.to_ne_bytes());
        // Whoever has gone is not told.
        let _ = rustix::io::write(device, &message);
    }
}

/// Whether the connection has ended, by unmounting or by force.
pub(super) fn is_dead(device: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&device, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::ERR)
}

/// Nanoseconds since 1970.
pub(super) fn since_epoch_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// See [`since_epoch_ns`].
pub(super) fn at_epoch_ns(since_ns: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(since_ns)
}

/// Lets a session have its handshake with us in the kernel's place. Returns the reply, too.
fn handshake(
    filesystem: LxcFs,
    request: &[u8],
    config: Config,
) -> Result<(Session<LxcFs>, Vec<u8>)> {
    let failed = |errno: Errno| Error::io("prepare", "a session", errno);
    let (kernel, socket) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(failed)?;
    rustix::io::write(&kernel, request).map_err(failed)?;
    let session = Session::from_fd(filesystem, socket, SessionACL::All, config)
        .map_err(|error| Error::std("prepare", "a session", &error))?;
    let mut reply = vec![0; SMALLEST_BUFFER];
    let length = rustix::io::read(&kernel, &mut reply).map_err(failed)?;
    reply.truncate(length);
    Ok((session, reply))
}

/// Answers a request with an error. Returns whether it was one.
fn answer(device: &OwnedFd, request: u64, errno: Errno) -> bool {
    rustix::io::write(device, &header(-errno.raw_os_error(), request)).is_ok()
}

/// Answers a poll with no event, and has whoever waits ask again. The kernel would make a `POLLERR` of an errno, which says that
/// there is no trigger any more.
fn answer_poll(device: &OwnedFd, unanswered: &Unanswered) {
    let mut message = [0; 24];
    message[..16].copy_from_slice(&header(0, unanswered.request));
    message[..4].copy_from_slice(&24_u32.to_ne_bytes());
    // Answered by the daemon before, just before it ended.
    let _ = rustix::io::write(device, &message);
    wake(device, unanswered.polled.as_slice());
}

/// A `fuse_out_header` with nothing behind it.
fn header(error: i32, unique: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&16_u32.to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}
