//! A descriptor store in the place of systemd's: takes what a daemon has kept, and is what the next one is started from.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// What it was sent, and the socket that is sent to.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    socket: UnixDatagram,
    /// The descriptors, with their names.
    pub held: Vec<(String, OwnedFd)>,
    /// Names that were to be forgotten.
    pub forgotten: Vec<String>,
}

impl Store {
    /// An empty one, with its socket in `directory`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn new(directory: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(directory.join("notify")).context("make a socket")?;
        let patience = crate::patience(Duration::from_secs(10));
        socket.set_read_timeout(Some(patience)).context("set a time-out")?;
        let directory = directory.to_owned();
        Ok(Self { directory, socket, held: Vec::new(), forgotten: Vec::new() })
    }

    /// The command line of a daemon at `mnt` that keeps here, and that logs to `NAME.log`.
    ///
    /// # Errors
    /// The log cannot be made.
    pub fn command(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(crate::program("lxcfs"));
        let log = fs::File::create(self.log_file(name)).context("make a log")?;
        command
            .args(["--accounting", "files", "--runtime-dir"])
            .arg(self.directory.join(format!("run-{name}")))
            .arg(self.directory.join("mnt"))
            .env("NOTIFY_SOCKET", self.directory.join("notify"))
            .env("FDSTORE", "128")
            .stdin(Stdio::null())
            .stderr(log);
        fs::create_dir_all(self.directory.join(format!("run-{name}")))?;
        Ok(command)
    }

    /// What the daemon `name` logged.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.log_file(name)).unwrap_or_default()
    }

    fn log_file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// Takes what is sent until a daemon says that it serves.
    ///
    /// # Errors
    /// None does for long.
    pub fn until_ready(&mut self) -> Result<()> {
        loop {
            let (text, descriptors) = self.receive()?;
            let value = |name: &str| {
                text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            };
            let name = value("FDNAME").unwrap_or_default().to_owned();
            if value("READY") == Some("1") {
                return Ok(());
            } else if value("FDSTOREREMOVE") == Some("1") {
                self.held.retain(|(known, _)| *known != name);
                self.forgotten.push(name);
            } else {
                self.held.extend(descriptors.into_iter().map(|held| (name.clone(), held)));
            }
        }
    }

    /// What is held under `name`, once more.
    ///
    /// # Errors
    /// Nothing is.
    pub fn get(&self, name: &str) -> Result<(String, OwnedFd)> {
        let held = self.held.iter().find(|(known, _)| known == name);
        let (name, held) = held.with_context(|| format!("{name} is not held"))?;
        Ok((name.clone(), held.try_clone().context("duplicate a descriptor")?))
    }

    fn receive(&self) -> Result<(String, Vec<OwnedFd>)> {
        let mut text = [0; 4_096];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let received =
            recvmsg(self.socket.as_fd(), &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
                .context("wait for a message of the daemon")?;
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(rights) => descriptors.extend(rights),
                _ => bail!("something else than descriptors was sent"),
            }
        }
        Ok((String::from_utf8_lossy(&text[..received.bytes]).into_owned(), descriptors))
    }
}
