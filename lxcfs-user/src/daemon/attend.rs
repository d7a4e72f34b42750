//! What a serving daemon waits for: signals, the end of its mount, questions on the control socket, and its keeper.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::control::{self, Upgrade};
use super::process::{self, Process};
use super::status::Status;
use super::upgrade;
use super::watchdog::Watchdog;
use crate::error::{Errno, Error, Result};
use crate::keep::store::{self, Store};
use crate::keep::workers::Workers;
use crate::road::Road;

/// How long whoever asked for an upgrade may take to read the answer.
const TELLING: Duration = Duration::from_secs(1);

/// The signals a daemon is told things by.
pub(super) struct Signals {
    pub(super) terminate: Signal,
    pub(super) interrupt: Signal,
    pub(super) hang_up: Signal,
    pub(super) reload: Signal,
    pub(super) toggle: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self> {
        let of = |kind| signal(kind).map_err(|error| Error::std("handle", "signals", &error));
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
            hang_up: of(SignalKind::hangup())?,
            reload: of(SignalKind::user_defined1())?,
            toggle: of(SignalKind::user_defined2())?,
        })
    }
}

/// Why a daemon serves no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was told to end.
    Told,
    /// Somebody else has unmounted.
    Unmounted,
    /// Another daemon is ready to take over.
    Succeeded,
}

/// What is needed to wait.
pub(super) struct Attendance<'a> {
    pub(super) road: &'a Arc<Road>,
    pub(super) status: Arc<Status>,
    pub(super) socket: &'a Path,
    pub(super) store: Store,
    /// What outlives us.
    pub(super) held: Vec<(String, BorrowedFd<'a>)>,
    pub(super) signals: Signals,
    pub(super) ended: oneshot::Receiver<std::io::Result<()>>,
    pub(super) workers: Arc<Workers>,
}

impl Attendance<'_> {
    /// Waits for the reason to end.
    pub(super) async fn wait(mut self) -> Result<Outcome> {
        let mount_point = self.status.mount_point.clone();
        let mut upgrades = self.listen();
        tracing::info!("serving at {}", mount_point.display());
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        let mut keeper = watch(self.store);
        let mut watchdog = Watchdog::start(Arc::clone(&self.workers), self.store)?;
        loop {
            tokio::select! {
                _ = self.signals.terminate.recv() => return Ok(Outcome::Told),
                _ = self.signals.interrupt.recv() => return Ok(Outcome::Told),
                _ = self.signals.hang_up.recv() => return Ok(Outcome::Told),
                _ = self.signals.reload.recv() => match self.upgrade(None) {
                    Ok(()) => return Ok(Outcome::Succeeded),
                    Err(error) => tracing::error!("{error}"),
                },
                Some(Upgrade { program, answer, answered }) = upgrades.recv() => {
                    let upgraded = self.upgrade(program).map_err(|error| error.to_string());
                    let _ = answer.send(upgraded.clone());
                    match upgraded {
                        Ok(()) => {
                            // Whoever asked is told, or has gone.
                            let _ = tokio::time::timeout(TELLING, answered).await;
                            return Ok(Outcome::Succeeded);
                        }
                        Err(error) => tracing::error!("{error}"),
                    }
                }
                () = watchdog.beat() => {}
                _ = self.signals.toggle.recv() => {
                    let on = self.road.toggle_passthrough();
                    tracing::warn!("passthrough of the host's files is {}", if on { "on" } else { "off" });
                }
                () = process::ended(keeper.as_mut()) => {
                    tracing::warn!("the keeper is gone: starting another");
                    keeper = match self.start_keeper() {
                        Ok(pid) => watch(Store::Keeper(pid)),
                        Err(error) => {
                            tracing::error!("nobody keeps the mount: {error}");
                            None
                        }
                    };
                }
                result = &mut self.ended => return match result {
                    Ok(Ok(())) => {
                        tracing::info!("{} was unmounted", mount_point.display());
                        Ok(Outcome::Unmounted)
                    }
                    Ok(Err(error)) => Err(Error::std("serve", &mount_point, &error)),
                    Err(_) => Err(Error::because("serve", &mount_point, Errno::IO, "its thread panicked")),
                },
            }
        }
    }

    fn listen(&self) -> mpsc::Receiver<Upgrade> {
        let (sender, receiver) = mpsc::channel(1);
        match control::listen(self.socket) {
            Ok(listener) => {
                let (road, status) = (Arc::clone(self.road), Arc::clone(&self.status));
                tokio::spawn(control::serve(listener, road, status, sender));
            }
            Err(error) => tracing::warn!("`lxcfs status` will not work: {error}"),
        }
        receiver
    }

    /// Has another daemon made ready. Requests are served meanwhile; signals and questions wait.
    fn upgrade(&self, program: Option<PathBuf>) -> Result<()> {
        let program = match program {
            Some(program) => program,
            None => store::program()?,
        };
        tracing::info!("starting {} beside this daemon", program.display());
        let pid = upgrade::start(&program, &self.held, |_| {})?;
        tracing::info!("pid {pid} is ready and takes over");
        let _ = sd_notify::notify(&[NotifyState::MainPid(pid)]);
        Ok(())
    }

    /// Starts a keeper that finds us serving, and returns its pid.
    fn start_keeper(&self) -> Result<u32> {
        let mut command = Command::new(store::program()?);
        let mut arguments = std::env::args_os();
        std::os::unix::process::CommandExt::arg0(
            &mut command,
            arguments.next().unwrap_or_default(),
        );
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.args(arguments).stdin(Stdio::null());
        let ours =
            ["NOTIFY_SOCKET", "WATCHDOG_USEC", store::STORE, store::KEEPER, upgrade::SUCCESSOR];
        for name in ours {
            command.env_remove(name);
        }
        command.env(store::ADOPTED, std::process::id().to_string());
        Ok(store::start(&mut command, &self.held)?.id())
    }
}

/// Our keeper, to be told of its end.
fn watch(store: Store) -> Option<Process> {
    let Store::Keeper(pid) = store else { return None };
    Process::watch(pid).inspect_err(|error| tracing::warn!("{error}")).ok()
}
