//! One daemon after the other, without a gap: the new one starts beside the old, shows that it works, and takes over.
//!
//! The old one starts the new program with all that it holds. The new one makes ready as at any start, up to the moment
//! where it would read requests, makes every page once, and says so in one line on its standard output. Then the old
//! one brings its threads to rest, so that no request is half done, lets go of the journal and leaves. A new program that
//! says anything else, or nothing, has changed nothing.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::Rooms;
use crate::error::{Errno, Error, Result};
use crate::files::{self, Reader, View};
use crate::keep::store;
use crate::model::file::File;

/// Set for a daemon that is started beside another.
pub(super) const SUCCESSOR: &str = "LXCFS_SUCCESSOR";

/// What a new daemon says that is ready to serve.
const READY: &str = "ready";

/// How long a new program may take to show that it works: it may load programs into the kernel.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this process is to take over from the one that started it.
pub(super) fn is_successor() -> bool {
    std::env::var_os(SUCCESSOR).is_some()
}

/// Tells the daemon before us how the start went.
pub(super) fn tell(result: Result<(), &Error>) {
    let line = result.map_or_else(|error| error.to_string(), |()| READY.to_owned());
    // It may be gone by now, and then serves no more anyway.
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Makes every page of the machine once, for a reader in a container.
///
/// # Errors
/// A page cannot be made, neither for a container nor for the host.
pub(super) fn self_test(rooms: &Rooms) -> Result<()> {
    let container = rooms.callers.ourselves()?;
    let (source, machine, policy) = rooms.road.parts();
    for file in File::ALL {
        let view =
            View { container: &container, source, machine, policy, reader: Reader::default() };
        let mut page = Vec::new();
        let made = files::page(file, &view, &mut page).or_else(|_| machine.read(file, &mut page));
        // Nobody reads a file that this host does not have.
        made.or_else(|error| if error.errno == Errno::NOENT { Ok(()) } else { Err(error) })?;
    }
    Ok(())
}

/// Starts `program` as the next daemon and waits until it says that it is ready to take over. `prepare` has the last word on
/// what it is started with.
///
/// # Errors
/// It is not, and says why; nothing has changed.
pub(super) fn start(
    program: &Path,
    descriptors: &[(String, BorrowedFd<'_>)],
    prepare: impl FnOnce(&mut Command),
) -> Result<u32> {
    let mut command = Command::new(program);
    let mut arguments = std::env::args_os();
    std::os::unix::process::CommandExt::arg0(&mut command, arguments.next().unwrap_or_default());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    // systemd will wait for its beats as for ours, and has named us.
    command.env_remove("WATCHDOG_PID");
    command.args(arguments).env(SUCCESSOR, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    prepare(&mut command);
    let mut child = store::start(&mut command, descriptors)?;
    let failed = |cause: String| Error::because("upgrade to", program, Errno::IO, cause);
    match first_line(&mut child) {
        Some(line) if line == READY => Ok(child.id()),
        said => {
            let _ = child.kill();
            let status = child.wait().map_or_else(|error| error.to_string(), |s| s.to_string());
            let said = said.filter(|line| !line.is_empty());
            Err(failed(said.unwrap_or_else(|| format!("it did not show that it works ({status})")))
                .hint("the old daemon goes on"))
        }
    }
}

/// The first line the child prints within [`PATIENCE`].
fn first_line(child: &mut Child) -> Option<String> {
    let stdout = child.stdout.take()?;
    let (sender, receiver) = mpsc::channel();
    let read = move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        // Nobody waits any more if it took too long.
        let _ = sender.send(read.is_ok().then(|| line.trim_end().to_owned()));
    };
    std::thread::Builder::new().name("successor".to_owned()).spawn(read).ok()?;
    receiver.recv_timeout(PATIENCE).ok().flatten()
}
