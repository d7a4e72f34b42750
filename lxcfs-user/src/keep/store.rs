//! The descriptor store: who keeps what outlives us, and what we were given from it.
//!
//! systemd's protocol (`sd_pid_notify_with_fds`, `sd_listen_fds`) is spoken with whoever started us: systemd itself, or
//! the keeper of our own, which answers to it as well. A program that starts us without either keeps nothing.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use rustix::io::FdFlags;
use sd_notify::NotifyState;

use super::descriptors::take;
use crate::error::{Error, Result};

/// The `/dev/fuse` of the mount, in the store.
pub const DEVICE: &str = "lxcfs-device";
/// Its journal.
pub const JOURNAL: &str = "lxcfs-journal";
/// How the names of what the accounting keeps begin.
pub const ACCOUNTING: &str = "lxcfs-bpf-";

/// How many descriptors the store takes. Set by systemd from 254 on, by our unit before, and by our keeper.
pub const STORE: &str = "FDSTORE";
/// `name=number,...`: the descriptors that a process of ours starts us with.
const GIVEN: &str = "LXCFS_GIVEN";
/// The process that says so: the one that started us, or the one we are, which was another program. A process further down the line inherits the words and not the descriptors.
const GIVEN_BY: &str = "LXCFS_GIVEN_BY";
/// The keeper's pid.
pub const KEEPER: &str = "LXCFS_KEEPER";

/// The pid of a daemon that serves and looks for a keeper.
pub const ADOPTED: &str = "LXCFS_ADOPTED";

/// Who keeps the mount when we die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Nobody.
    None,
    /// systemd, or something else that takes descriptors as it does.
    Systemd,
    /// The keeper of our own, by its pid.
    Keeper(u32),
}

impl Store {
    /// The store we were started with.
    #[must_use]
    pub fn of_environment() -> Self {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if !is_set(STORE) || !is_set("NOTIFY_SOCKET") {
            return Self::None;
        }
        match number(KEEPER) {
            Some(keeper) => Self::Keeper(keeper),
            None => Self::Systemd,
        }
    }

    /// Has `descriptor` kept under `name`.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub fn keep(self, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
        if self == Self::None {
            return Ok(());
        }
        // Looked at for hang-ups, the device would wake the store at every request.
        let state =
            [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        sd_notify::notify_with_fds(&state, &[descriptor])
            .map_err(|error| Error::std("keep a descriptor as", name, &error))
    }

    /// Has nothing kept under `name` any more.
    pub fn forget(self, name: &str) {
        if self != Self::None {
            // A store that cannot be reached keeps nothing for long either.
            let _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
        }
    }
}

/// The descriptors this process was started with, with their names. To be called once: they are taken.
#[must_use]
pub fn given() -> Vec<(String, OwnedFd)> {
    let parent =
        rustix::process::getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
    let by = number(GIVEN_BY).filter(|by| Some(*by) == parent || *by == std::process::id());
    let ours = std::env::var(GIVEN).ok().filter(|_| by.is_some());
    let numbers: Vec<(String, RawFd)> = match ours {
        Some(text) => parse(&text),
        None => sd_notify::listen_fds_with_names()
            .map(|listed| listed.map(|(number, name)| (name, number)).collect())
            .unwrap_or_default(),
    };
    let mut given = Vec::new();
    let mut taken = HashSet::new();
    // A number can be owned once, whoever names it how often.
    for (name, number) in numbers.into_iter().filter(|(_, number)| taken.insert(*number)) {
        match take(number) {
            Ok(descriptor) => given.push((name, descriptor)),
            Err(errno) => tracing::warn!("{}", Error::io("take over descriptor", name, errno)),
        }
    }
    given
}

/// Starts a program of ours and gives it `descriptors`.
///
/// # Errors
/// It cannot be started.
pub fn start(command: &mut Command, descriptors: &[(String, BorrowedFd<'_>)]) -> Result<Child> {
    let program = command.get_program().to_owned();
    let child = passing_on(command, descriptors, Command::spawn);
    child.map_err(|error| Error::std("start", program, &error))
}

/// Becomes a program of ours, in place and with `descriptors`. Returns only if it cannot.
pub fn become_program(command: &mut Command, descriptors: &[(String, BorrowedFd<'_>)]) -> Error {
    let program = command.get_program().to_owned();
    let error = passing_on(command, descriptors, std::os::unix::process::CommandExt::exec);
    Error::std("become", program, &error)
}

fn passing_on<T>(
    command: &mut Command,
    descriptors: &[(String, BorrowedFd<'_>)],
    run: impl FnOnce(&mut Command) -> T,
) -> T {
    let set = |flags| {
        for (name, descriptor) in descriptors {
            if let Err(errno) = rustix::io::fcntl_setfd(descriptor, flags) {
                tracing::warn!("{}", Error::io("pass on", name, errno));
            }
        }
    };
    command.env(GIVEN, text_of(descriptors)).env(GIVEN_BY, std::process::id().to_string());
    // We start nothing else meanwhile.
    set(FdFlags::empty());
    let result = run(command);
    set(FdFlags::CLOEXEC);
    result
}

/// The program we are, where its file is now: it may have been replaced since we were started.
///
/// # Errors
/// `/proc` does not tell.
pub fn program() -> Result<PathBuf> {
    let program =
        std::env::current_exe().map_err(|error| Error::std("read", "/proc/self/exe", &error))?;
    let text = program.as_os_str().as_encoded_bytes();
    Ok(match text.strip_suffix(b" (deleted)") {
        Some(path) => PathBuf::from(OsStr::from_bytes(path)),
        None => program,
    })
}

/// What a process is told that is given `descriptors`.
fn text_of(descriptors: &[(String, BorrowedFd<'_>)]) -> String {
    let item = |(name, descriptor): &(String, BorrowedFd<'_>)| {
        format!("{name}={}", descriptor.as_raw_fd())
    };
    descriptors.iter().map(item).collect::<Vec<_>>().join(",")
}

fn parse(text: &str) -> Vec<(String, RawFd)> {
    let item = |item: &str| {
        let (name, number) = item.split_once('=')?;
        let number = number.parse().ok().filter(|number| *number > 2)?;
        Some((name.to_owned(), number))
    };
    text.split(',').filter_map(item).collect()
}

/// The number in a variable of the environment.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_words_name_no_standard_stream(text in "([a-z-]{0,3}=?-?[0-9]{0,12},?){0,5}|.*") {
            prop_assert!(parse(&text).iter().all(|(_, number)| *number > 2));
        }
    }

    #[test]
    fn names_and_numbers_survive_the_environment() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let text = text_of(&[("a".to_owned(), file.as_fd()), ("b".to_owned(), file.as_fd())]);
        let number = file.as_raw_fd();
        assert_eq!(parse(&text), [("a".to_owned(), number), ("b".to_owned(), number)]);
        assert!(parse("x=1,y,=,z=-4,").is_empty(), "0, 1 and 2 are never given");
    }
}
