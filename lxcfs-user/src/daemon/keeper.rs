//! The keeper: where no systemd does it, holds what outlives the daemon, and starts the daemon again.
//!
//! It is the process the user started and the one in the pidfile. It knows nothing of containers, loads no programs into
//! the kernel and answers nobody: the daemon, its child, speaks to it as to systemd, over a socket in a directory that is
//! root's alone. Where the keeper is killed, the daemon starts another, which finds it serving ([`store::ADOPTED`]).

mod backoff;
mod host;
mod messages;
mod renew;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::SignalKind;
use tokio::time::Instant;

use self::backoff::{Backoff, End, Next};
use self::host::{Host, Outcome};
use self::messages::{Message, Messages};
use super::below;
use super::connection;
use super::mount::{Mount, resolve};
use super::pidfile::Pidfile;
use super::process::{self, Process};
use super::watchdog::Watchdog;
use crate::cli::{GiveUp, Serve};
use crate::error::{Errno, Error, Result};
use crate::keep::store;

/// As many descriptors as we keep.
const ROOM: usize = 128;

/// How long a daemon may take to serve: systemd's own limit. Loading the programs takes a moment, and many times that on a machine
/// that is busy with everything else.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long it may take to leave.
const LEAVING: Duration = Duration::from_secs(10);

/// The daemon that runs now.
struct Running {
    process: Process,
    since: Instant,
    serves: bool,
    /// It was killed because it did not come to serve.
    hung: bool,
    /// Known when it was our child and has ended.
    status: Option<WaitStatus>,
}

struct Keeper<'a> {
    arguments: &'a Serve,
    held: Vec<(String, OwnedFd)>,
    messages: Messages,
    running: Option<Running>,
    backoff: Backoff,
    /// When something is due: a start, or the end of our patience with what runs.
    due: Option<Instant>,
    /// We were told to end.
    is_ending: bool,
    /// One has served: from then on we do not give up easily.
    has_served: bool,
    /// No daemon can be started.
    has_given_up: bool,
    /// The daemon may be of another program than we are.
    is_old: bool,
    /// When we become that program, if we are to.
    renews_at: Option<Instant>,
}

/// Keeps a daemon with these arguments going until told to end.
///
/// # Errors
/// What keeps it from starting, or no daemon could be kept going.
pub(super) fn run(arguments: &Serve, pidfile: &Path, mount_point: &Path) -> Result<ExitCode> {
    let _pidfile = Pidfile::create(pidfile)?;
    // A daemon that another one has started becomes our child when that one ends.
    let own = Pid::from_raw(i32::try_from(std::process::id()).unwrap_or(0));
    if let Err(errno) = rustix::process::set_child_subreaper(own) {
        tracing::warn!("{}", Error::io("become", "the parent of later daemons", errno));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::std("start", "the event loop", &error))?;
    let path = super::places::socket(&arguments.runtime_dir, mount_point);
    let ended = runtime.block_on(async {
        let (held, socket) = match store::number(store::ADOPTED) {
            Some(_) => renew::given(),
            None => (Vec::new(), None),
        };
        let path = path.with_extension("keeper");
        let messages = match socket {
            Some(socket) => Messages::adopt(socket, &path)?,
            None => Messages::listen(&path)?,
        };
        let mut keeper = Keeper {
            arguments,
            held,
            messages,
            running: None,
            backoff: Backoff::default(),
            due: None,
            is_ending: false,
            has_served: false,
            has_given_up: false,
            is_old: false,
            renews_at: None,
        };
        let mut ended = keeper.attend().await;
        while keeper.has_given_up && arguments.give_up == GiveUp::Host {
            if let Err(error) = &ended {
                tracing::error!("{error}");
            }
            ended = keeper.serve_host(mount_point).await;
        }
        keeper.unmount(mount_point);
        ended
    });
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    ended
}

impl Keeper<'_> {
    async fn attend(&mut self) -> Result<ExitCode> {
        let mut signals = super::Signals::new()?;
        let mut children = tokio::signal::unix::signal(SignalKind::child())
            .map_err(|error| Error::std("handle", "signals", &error))?;
        renew::listen_again();
        match store::number(store::ADOPTED) {
            _ if self.running.is_some() => {}
            Some(pid) => self.adopt(pid)?,
            None => self.start()?,
        }
        let mut watchdog = Watchdog::of_event_loop();
        loop {
            let due = self.due.unwrap_or_else(|| Instant::now() + PATIENCE);
            let ended = process::ended(self.running.as_mut().map(|running| &mut running.process));
            // In this order: a signal that came before signals were held would be lost to the program we become, and what a daemon
            // said before it ended comes before its end.
            let next = tokio::select! {
                biased;
                _ = signals.terminate.recv() => self.end(),
                _ = signals.interrupt.recv() => self.end(),
                _ = signals.hang_up.recv() => self.end(),
                _ = signals.reload.recv() => { self.signal(Signal::USR1); None }
                _ = signals.toggle.recv() => { self.signal(Signal::USR2); None }
                message = self.messages.receive() => { self.take(message)?; None }
                _ = children.recv() => { self.reap(); None }
                () = ended => { self.reap(); self.ended()? }
                () = watchdog.beat() => None,
                () = tokio::time::sleep_until(self.renews_at.unwrap_or(due)), if self.renews_at.is_some() => {
                    self.renew();
                    None
                }
                () = tokio::time::sleep_until(due) => self.overdue()?,
            };
            if let Some(code) = next {
                return Ok(code);
            }
        }
    }

    fn start(&mut self) -> Result<()> {
        self.due = Some(Instant::now() + PATIENCE);
        // Whose program we were to become has ended: signals are held, and we become another, when the next one serves.
        self.is_old |= self.renews_at.take().is_some();
        // It would inherit that they are held.
        renew::listen_again();
        let mut arguments = std::env::args_os();
        let mut command = Command::new(store::program()?);
        std::os::unix::process::CommandExt::arg0(
            &mut command,
            arguments.next().unwrap_or_default(),
        );
        // Signals of a terminal are for us to pass on.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.args(arguments);
        self.make_ours(&mut command);
        let held = self.held.iter().map(|(name, held)| (name.clone(), held.as_fd()));
        let child = store::start(&mut command, &held.collect::<Vec<_>>())?;
        self.running = Some(Running::new(child.id(), false)?);
        Ok(())
    }

    /// The same where readers wait: a program that is not there now, as while it is being replaced, may be in a moment.
    fn start_again(&mut self) -> Result<Option<ExitCode>> {
        match self.start() {
            Ok(()) => Ok(None),
            Err(error) => self.after(End::NeverServed, &error.to_string()),
        }
    }

    /// Has what it starts speak to us.
    fn make_ours(&self, command: &mut Command) {
        command
            .env("NOTIFY_SOCKET", self.messages.path())
            .env(store::STORE, ROOM.to_string())
            .env(store::KEEPER, std::process::id().to_string())
            .env_remove("WATCHDOG_USEC")
            .env_remove(store::ADOPTED);
    }

    /// Answers readers ourselves, until a daemon can be started again.
    async fn serve_host(&mut self, mount_point: &Path) -> Result<ExitCode> {
        self.has_given_up = false;
        let host = Host { arguments: self.arguments, held: &self.held, mount_point };
        match host.serve(|command| self.make_ours(command)).await? {
            Outcome::Ended => Ok(ExitCode::SUCCESS),
            Outcome::Succeeded(pid) => {
                self.backoff = Backoff::default();
                self.is_old = true;
                self.running = Some(Running::new(pid, true)?);
                self.attend().await
            }
        }
    }

    fn adopt(&mut self, pid: u32) -> Result<()> {
        self.running = Some(Running::new(pid, true)?);
        self.has_served = true;
        tracing::info!("lxcfs has another keeper, pid {}", std::process::id());
        Ok(())
    }

    /// Takes what our children have left: as the first process of a container, of everybody.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(running) =
                self.running.as_mut().filter(|running| running.process.pid == pid)
            {
                running.status = Some(status);
            }
        }
    }

    /// The daemon has ended.
    fn ended(&mut self) -> Result<Option<ExitCode>> {
        let Some(running) = self.running.take() else { return Ok(None) };
        let code = running.status.and_then(|status| status.exit_status());
        if self.is_ending {
            return Ok(Some(ExitCode::SUCCESS));
        }
        let device = self.held.iter().find(|(name, _)| name == store::DEVICE);
        let is_dead = device.is_none_or(|(_, device)| connection::is_dead(device));
        if !self.has_served || (is_dead && code == Some(0)) {
            // It never came to serve and has said why; or somebody else has unmounted.
            let code = code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Ok(Some(ExitCode::from(code)));
        }
        let how = running.status.map_or("for an unknown reason".to_owned(), describe);
        let end = match running {
            Running { hung: true, .. } => End::Hung,
            Running { serves: false, .. } => End::NeverServed,
            Running { status: Some(status), .. } if was_told(status) => End::Told,
            Running { since, .. } => End::Crashed { after: since.elapsed() },
        };
        self.after(end, &how)
    }

    /// Starts the daemon again, or gives it up.
    fn after(&mut self, end: End, how: &str) -> Result<Option<ExitCode>> {
        match self.backoff.after(end) {
            Next::StartIn(delay) => {
                tracing::warn!("the daemon ended ({how}): starting it again in {delay:?}");
                if delay.is_zero() {
                    return self.start_again();
                }
                self.due = Some(Instant::now() + delay);
                Ok(None)
            }
            Next::GiveUp(tries) => {
                self.has_given_up = true;
                let cause = format!("the daemon ended {tries} times in a row, last {how}");
                let error = Error::because("keep up", self.point(), Errno::IO, cause);
                Err(match self.arguments.give_up {
                    GiveUp::Abort => {
                        error.hint("readers get ENOTCONN until lxcfs is started again")
                    }
                    GiveUp::Host => error,
                })
            }
        }
    }

    /// Something should have happened by now.
    fn overdue(&mut self) -> Result<Option<ExitCode>> {
        self.due = None;
        match &mut self.running {
            None => return self.start_again(),
            Some(running) if !running.serves || self.is_ending => {
                tracing::error!("the daemon does not come to an end or a beginning: killing it");
                running.hung = true;
                running.process.signal(Signal::KILL);
            }
            Some(_) => {}
        }
        Ok(None)
    }

    fn take(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Serves => {
                let is_first = !std::mem::replace(&mut self.has_served, true);
                if let Some(running) = &mut self.running {
                    running.serves = true;
                    running.since = Instant::now();
                    self.due = self.due.filter(|_| self.is_ending);
                }
                if std::mem::take(&mut self.is_old) && !self.is_ending {
                    renew::hold_signals();
                    self.renews_at = Some(Instant::now() + renew::SOON);
                }
                if is_first {
                    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
                }
            }
            Message::Daemon(pid) => {
                self.running = Some(Running::new(pid, true)?);
                self.is_old = true;
            }
            Message::Keep(name, descriptors) if self.held.len() < ROOM => {
                self.held.extend(descriptors.into_iter().map(|held| (name.clone(), held)));
            }
            Message::Forget(name) => self.held.retain(|(known, _)| *known != name),
            Message::Keep(..) | Message::Nothing => {}
        }
        Ok(())
    }

    /// Becomes the program of the daemon, which serves by now.
    fn renew(&mut self) {
        self.renews_at = None;
        if let Some(running) = self.running.as_ref().filter(|_| !self.is_ending) {
            self.become_program_of(running);
        }
        renew::listen_again();
    }

    fn become_program_of(&self, running: &Running) {
        let pid = running.process.pid.as_raw_nonzero().get().unsigned_abs();
        let held = self.held.iter().map(|(name, held)| (name.as_str(), held.as_fd()));
        let held = held.chain([(renew::MESSAGES, self.messages.socket())]);
        let held: Vec<_> = held.map(|(name, held)| (name.to_owned(), held)).collect();
        if let Err(error) = renew::renew(pid, &held) {
            tracing::warn!("the keeper goes on as it is: {error}");
        }
    }

    fn end(&mut self) -> Option<ExitCode> {
        self.is_ending = true;
        self.due = Some(Instant::now() + LEAVING);
        self.signal(Signal::TERM);
        // With no daemon there is nobody to wait for.
        self.running.is_none().then_some(ExitCode::SUCCESS)
    }

    fn signal(&self, signal: Signal) {
        if let Some(running) = &self.running {
            running.process.signal(signal);
        }
    }

    fn point(&self) -> PathBuf {
        self.arguments.mountpoint.clone().unwrap_or_default()
    }

    /// Whatever made us end, nobody will serve the mount any more.
    fn unmount(&mut self, mount_point: &Path) {
        let device = self.held.iter().find(|(name, _)| name == store::DEVICE);
        let point = resolve(mount_point);
        below::take_down(&self.arguments.runtime_dir, &point);
        if device.is_some_and(|(_, device)| !connection::is_dead(device))
            && !self.arguments.leave_mounted
            && let Err(error) = Mount::existing(point).unmount()
        {
            tracing::warn!("{error}");
        }
        self.held.clear();
    }
}

impl Running {
    fn new(pid: u32, serves: bool) -> Result<Self> {
        let process = Process::watch(pid)?;
        Ok(Self { process, since: Instant::now(), serves, hung: false, status: None })
    }
}

/// Whether somebody ended it, and not a fault of its own.
fn was_told(status: WaitStatus) -> bool {
    status.exit_status() == Some(0)
        || status.terminating_signal() == Some(Signal::KILL.as_raw())
        || status.terminating_signal() == Some(Signal::TERM.as_raw())
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("with status {code}"),
        (_, Some(signal)) => format!("by signal {signal}"),
        _ => "somehow".to_owned(),
    }
}
