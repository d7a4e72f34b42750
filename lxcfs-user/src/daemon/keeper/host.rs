//! The last resort of `--give-up host`: no daemon can be started, and the keeper answers readers with the host's files.
//!
//! It finds no containers, loads no programs and reads nothing of what daemons have written down of containers, which
//! stays as it is for the next one. It does not try again by itself: what failed ten times fails. Told to, by SIGUSR1 or
//! `lxcfs upgrade`, it has a daemon made ready as any daemon has, and is the keeper of that one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::renew;
use crate::cli::Serve;
use crate::daemon::attend::Signals;
use crate::daemon::control::{self, Upgrade};
use crate::daemon::mount::{Mount, resolve};
use crate::daemon::started::{self, Parts};
use crate::daemon::status::Status;
use crate::daemon::watchdog::Watchdog;
use crate::daemon::{places, policy, upgrade};
use crate::error::{Errno, Error, Result};
use crate::keep::journal::Journal;
use crate::keep::store::{self, DEVICE, JOURNAL, Store};

/// How often the log says it again.
const REMINDER: Duration = Duration::from_secs(60);

/// Why it is over.
#[derive(Debug)]
pub(super) enum Outcome {
    /// We were told to end, or somebody has unmounted.
    Ended,
    /// A daemon serves again.
    Succeeded(u32),
}

/// What it takes.
#[derive(Debug)]
pub(super) struct Host<'a> {
    pub(super) arguments: &'a Serve,
    pub(super) held: &'a [(String, OwnedFd)],
    pub(super) mount_point: &'a Path,
}

impl Host<'_> {
    /// Serves until told to end, or until a daemon does. `prepare` makes a daemon one of this keeper's.
    pub(super) async fn serve(&self, prepare: impl Fn(&mut Command)) -> Result<Outcome> {
        let mut signals = Signals::new()?;
        // The threads that are made here outlive us, and would take signals while the keeper holds them to become another program.
        renew::hold_signals();
        let device = self.held(DEVICE)?;
        let journal = Journal::open(self.held(JOURNAL)?)?;
        let mount = Mount::existing(resolve(self.mount_point));
        journal.described().is(mount.point(), mount.device_number())?;
        journal.claim()?;
        let (parts, session) = Parts::host(self.arguments, journal, &device)?;
        let warn = || {
            tracing::error!(
                "NO DAEMON CAN BE STARTED: every container is shown the HOST's files at {}, until `lxcfs upgrade`",
                mount.point().display()
            );
        };
        // Before the first reader is answered.
        warn();
        let (mut ended, exit) = started::run(session, mount.point())?;
        let mut watchdog = Watchdog::start(Arc::clone(&parts.workers), Store::None)?;
        renew::listen_again();
        let socket = places::socket(&self.arguments.runtime_dir, mount.point());
        let mut upgrades = self.listen(&parts, &socket, mount.point());
        let mut reminder = tokio::time::interval_at(Instant::now() + REMINDER, REMINDER);
        let outcome = loop {
            tokio::select! {
                _ = signals.terminate.recv() => break Outcome::Ended,
                _ = signals.interrupt.recv() => break Outcome::Ended,
                _ = signals.hang_up.recv() => break Outcome::Ended,
                _ = signals.toggle.recv() => {}
                () = watchdog.beat() => {}
                _ = reminder.tick() => warn(),
                _ = signals.reload.recv() => match self.start(None, &prepare) {
                    Ok(pid) => break Outcome::Succeeded(pid),
                    Err(error) => tracing::error!("{error}"),
                },
                Some(Upgrade { program, answer, answered }) = upgrades.recv() => {
                    let started = self.start(program, &prepare);
                    let _ = answer.send(started.as_ref().map(|_| ()).map_err(ToString::to_string));
                    if let Ok(pid) = started {
                        let _ = tokio::time::timeout(Duration::from_secs(1), answered).await;
                        break Outcome::Succeeded(pid);
                    }
                }
                served = &mut ended => match served {
                    Ok(Ok(())) => break Outcome::Ended,
                    Ok(Err(error)) => return Err(Error::std("serve", mount.point(), &error)),
                    Err(_) => return Err(Error::because("serve", mount.point(), Errno::IO, "its thread panicked")),
                },
            }
        };
        let _ = std::fs::remove_file(&socket);
        if matches!(outcome, Outcome::Succeeded(_)) {
            started::leave(&exit, &device, self.arguments);
            parts.journal.let_go();
        }
        Ok(outcome)
    }

    /// A descriptor that is kept, once more.
    fn held(&self, name: &str) -> Result<OwnedFd> {
        let held = self.held.iter().find(|(known, _)| known == name).map(|(_, held)| held);
        let held = held.ok_or_else(|| Error::io("find", name, Errno::NOENT))?;
        held.try_clone().map_err(|error| Error::std("use", name, &error))
    }

    fn listen(&self, parts: &Parts, socket: &Path, point: &Path) -> mpsc::Receiver<Upgrade> {
        let (sender, receiver) = mpsc::channel(1);
        let status = Status {
            mount_point: point.to_owned(),
            policy: policy(self.arguments),
            supplies: Vec::new(),
            store: Store::Keeper(std::process::id()),
            workers: Arc::clone(&parts.workers),
            has_given_up: true,
            below: None,
        };
        match control::listen(socket) {
            Ok(listener) => {
                let road = Arc::clone(&parts.rooms.road);
                tokio::spawn(control::serve(listener, road, Arc::new(status), sender));
            }
            Err(error) => tracing::warn!("`lxcfs status` will not work: {error}"),
        }
        receiver
    }

    fn start(&self, program: Option<PathBuf>, prepare: impl Fn(&mut Command)) -> Result<u32> {
        let program = program.map_or_else(store::program, Ok)?;
        tracing::info!("starting {} in place of the host's files", program.display());
        let held = self.held.iter().map(|(name, held)| (name.clone(), held.as_fd()));
        let held: Vec<(String, BorrowedFd<'_>)> = held.collect();
        upgrade::start(&program, &held, prepare)
    }
}
