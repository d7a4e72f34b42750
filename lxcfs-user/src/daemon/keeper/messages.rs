//! What daemons tell their keeper: the part of systemd's protocol that they speak.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use crate::error::{Error, Result};

/// The longest message, and the most descriptors in one.
const LONGEST: usize = 4_096;
const MOST: usize = 16;

/// One message.
#[derive(Debug)]
pub(super) enum Message {
    /// `READY=1`
    Serves,
    /// `MAINPID=`: another process is the daemon.
    Daemon(u32),
    /// `FDSTORE=1`
    Keep(String, Vec<OwnedFd>),
    /// `FDSTOREREMOVE=1`
    Forget(String),
    /// Nothing that concerns us.
    Nothing,
}

/// The socket. Its directory is root's alone.
#[derive(Debug)]
pub(super) struct Messages {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Messages {
    pub(super) fn listen(path: &Path) -> Result<Self> {
        crate::daemon::control::make_room(path)?;
        let socket =
            UnixDatagram::bind(path).map_err(|error| Error::std("listen on", path, &error))?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// The socket of the keeper before, which is bound there.
    pub(super) fn adopt(socket: OwnedFd, path: &Path) -> Result<Self> {
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        let failed = |error| Error::std("listen on", path, &error);
        socket.set_nonblocking(true).map_err(failed)?;
        let socket = UnixDatagram::from_std(socket).map_err(failed)?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// To be passed on.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next message. To be called again if it is dropped half way.
    pub(super) async fn receive(&self) -> Message {
        let received = self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await;
        received.unwrap_or_else(|error| {
            tracing::warn!("{}", Error::std("receive on", &self.path, &error));
            Message::Nothing
        })
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        // It may be in the place of another keeper's by now, and is then of no use to that either.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn receive(socket: &UnixDatagram) -> std::io::Result<Message> {
    let mut text = [0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut parts, &mut ancillary, flags)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Ok(Message::Nothing);
    }
    Ok(parse(&String::from_utf8_lossy(&text[..received.bytes]), descriptors))
}

fn parse(text: &str, descriptors: Vec<OwnedFd>) -> Message {
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let name = || value("FDNAME").unwrap_or("stored").to_owned();
    if value("FDSTORE") == Some("1") {
        Message::Keep(name(), descriptors)
    } else if value("FDSTOREREMOVE") == Some("1") {
        Message::Forget(name())
    } else if let Some(pid) = value("MAINPID").and_then(|pid| pid.parse().ok()) {
        Message::Daemon(pid)
    } else if value("READY") == Some("1") {
        Message::Serves
    } else {
        Message::Nothing
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_one_message_at_most(
            text in "((FDSTORE|FDSTOREREMOVE|FDNAME|MAINPID|READY)(=(-?[0-9]{0,12}|.{0,3}))?\n?){0,4}|.*"
        ) {
            match parse(&text, Vec::new()) {
                Message::Keep(..) => prop_assert!(text.contains("FDSTORE=1")),
                Message::Forget(_) => prop_assert!(text.contains("FDSTOREREMOVE=1")),
                Message::Daemon(pid) => prop_assert!(text.contains(&pid.to_string())),
                Message::Serves => prop_assert!(text.contains("READY=1")),
                Message::Nothing => {}
            }
        }
    }

    #[test]
    fn messages_are_understood() {
        let parse = |text| parse(text, Vec::new());
        assert!(matches!(parse("READY=1\nSTATUS=x\n"), Message::Serves));
        assert!(matches!(parse("MAINPID=12\n"), Message::Daemon(12)));
        assert!(matches!(parse("FDSTORE=1\nFDNAME=x\n"), Message::Keep(name, _) if name == "x"));
        let forget = parse("FDSTOREREMOVE=1\nFDNAME=x");
        assert!(matches!(forget, Message::Forget(name) if name == "x"));
        for text in ["", "READY=0", "MAINPID=x", "WATCHDOG=1", "\0"] {
            assert!(matches!(parse(text), Message::Nothing), "{text}");
        }
    }
}
