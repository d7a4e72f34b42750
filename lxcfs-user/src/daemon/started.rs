//! A daemon from its start to its end: a new mount or one that was kept, threads that serve it, and a quiet way out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use fuser::{Config, Session};
use sd_notify::NotifyState;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::accounting::Counting;
use super::attend::{Attendance, Outcome, Signals};
use super::found::{self, Found};
use super::leaving::Exit;
use super::mount::Mount;
use super::pidfile::Pidfile;
use super::status::Status;
use super::{Rooms, accounting, below, connection, places, sampler, upgrade};
use crate::bpf::clock::monotonic_ns;
use crate::cli::Serve;
use crate::error::{Error, Result};
use crate::fs::{Handles, LxcFs, Pollers};
use crate::keep::journal::{Described, Journal};
use crate::keep::memory::Memory;
use crate::keep::store::{self, DEVICE, JOURNAL, Store};
use crate::keep::workers::Workers;

/// How long threads may take to finish what they work on. What is not answered by then is asked again.
const LEAVING: Duration = Duration::from_secs(2);

/// A mount, and everything that makes its pages. Nothing is served yet.
pub(super) struct Started {
    mount: Mount,
    device: OwnedFd,
    parts: Parts,
    session: Session<LxcFs>,
    accounting: Result<Counting, String>,
    store: Store,
    pidfile: Option<Pidfile>,
    events: (Runtime, Signals),
}

/// What makes pages, and what it remembers.
pub(super) struct Parts {
    pub(super) journal: Arc<Journal>,
    memory: Arc<Memory>,
    handles: Arc<Handles>,
    pub(super) workers: Arc<Workers>,
    pub(super) rooms: Rooms,
}

impl Parts {
    fn new(arguments: &Serve, journal: Journal, accounting: Option<&Counting>) -> Result<Self> {
        let journal = Arc::new(journal);
        let memory = Arc::new(Memory::new(Arc::clone(&journal)));
        let handles = Arc::new(Handles::new(Arc::clone(&journal)));
        let workers = Arc::new(Workers::new(Arc::clone(&journal)));
        let rooms = Rooms::with_accounting(super::policy(arguments), accounting.cloned(), &memory)?;
        let rooms = if arguments.enable_cgroup { rooms.with_cgroups()? } else { rooms };
        Ok(Self { journal, memory, handles, workers, rooms })
    }

    /// Takes over what is mounted, with the host's files for everybody. What is known of containers is left alone.
    pub(super) fn host(
        arguments: &Serve,
        journal: Journal,
        device: &OwnedFd,
    ) -> Result<(Self, Session<LxcFs>)> {
        let parts = Self::new(arguments, journal, None)?;
        parts.rooms.road.toggle_passthrough();
        let mounted = connection::at_epoch_ns(parts.journal.described().mounted_ns);
        let filesystem = parts.rooms.filesystem(mounted, &parts.handles, &parts.workers)?;
        let pollers = filesystem.pollers();
        let session = connection::reopen(filesystem, device, &parts.journal, config(arguments))?;
        parts.take_over(device, &pollers);
        Ok((parts, session))
    }

    /// Mounts.
    fn first(
        &self,
        arguments: &Serve,
        store: Store,
        mount_point: &Path,
    ) -> Result<(Mount, OwnedFd, Session<LxcFs>)> {
        let mounted = SystemTime::now();
        let filesystem = self.rooms.filesystem(mounted, &self.handles, &self.workers)?;
        let (mount, device) = Mount::new(mount_point, &arguments.options)?;
        let described = Described {
            point: mount.point().to_owned(),
            device: mount.device_number().unwrap_or(0),
            mounted_ns: connection::since_epoch_ns(mounted),
            init_request: Vec::new(),
            init_reply: Vec::new(),
        };
        let journal = &*self.journal;
        let session = connection::open(filesystem, &device, journal, described, config(arguments))
            .inspect_err(|_| drop(mount.unmount()))?;
        for (name, descriptor) in [(DEVICE, device.as_fd()), (JOURNAL, journal.memory())] {
            store.keep(name, descriptor)?;
        }
        Ok((mount, device, session))
    }

    /// Takes over what is mounted, from a daemon that has ended or is about to.
    ///
    /// `goes_on` says whether the same programs go on counting.
    fn again(&self, arguments: &Serve, device: &OwnedFd, goes_on: bool) -> Result<Session<LxcFs>> {
        let mounted = connection::at_epoch_ns(self.journal.described().mounted_ns);
        let filesystem = self.rooms.filesystem(mounted, &self.handles, &self.workers)?;
        let pollers = filesystem.pollers();
        let session = connection::reopen(filesystem, device, &self.journal, config(arguments))?;
        if upgrade::is_successor() {
            upgrade::self_test(&self.rooms)?;
            self.find_containers();
            upgrade::tell(Ok(()));
            self.journal.wait_and_claim()?;
        }
        self.memory.take_over(goes_on);
        self.take_over(device, &pollers);
        Ok(session)
    }

    /// Goes on with what is open, and has asked again what was not answered.
    fn take_over(&self, device: &OwnedFd, pollers: &Pollers) {
        self.handles.take_over();
        let waiting = pollers.take_over(|wish| {
            let file = self.rooms.road.pressure_file_of(wish.resource, &wish.owner)?;
            file.set(wish.trigger)
        });
        connection::ask_again(device, &self.journal);
        connection::wake(device, &waiting);
    }

    /// Finds the containers that a daemon before us knew: the first readers need not wait for that, and what is sampled
    /// goes on being sampled.
    fn find_containers(&self) {
        for init in self.memory.inits() {
            // It may have ended.
            let _ = self.rooms.callers.find(init);
        }
    }
}

impl Started {
    /// Mounts, or takes over what is mounted.
    pub(super) fn new(
        arguments: &Serve,
        store: Store,
        mount_point: &Path,
        pidfile: &Path,
    ) -> Result<Self> {
        let create_pidfile = || match store {
            // It is about the keeper.
            Store::Keeper(_) => Ok(None),
            Store::None | Store::Systemd => Pidfile::create(pidfile).map(Some),
        };
        let is_successor = upgrade::is_successor();
        let own_pidfile = if is_successor { None } else { create_pidfile()? };
        let mut given = store::given();
        let found = found::find(&mut given, store, mount_point)?;
        let (existing, journal) = match found {
            Some(Found { mount, device, journal }) => (Some((mount, device)), journal),
            None => (None, Journal::create()?),
        };
        if !is_successor {
            journal.claim()?;
        }
        let accounting = accounting::start(arguments, found::accounting(given), &journal);
        let parts = Parts::new(arguments, journal, accounting.as_ref().ok())?;
        let events = prepare_events()?;
        let (mount, device, session) = match existing {
            Some((mount, device)) => {
                let goes_on = accounting.as_ref().is_ok_and(|counting| counting.goes_on);
                let session = parts.again(arguments, &device, goes_on)?;
                (mount, device, session)
            }
            None => parts.first(arguments, store, mount_point)?,
        };
        if let Ok(counting) = &accounting {
            accounting::keep(counting, &parts.journal, store)?;
        }
        let pidfile = if is_successor { create_pidfile()? } else { own_pidfile };
        Ok(Self { mount, device, parts, session, accounting, store, pidfile, events })
    }

    /// Serves until there is a reason to end, and ends.
    pub(super) fn serve(self, arguments: &Serve) -> Result<()> {
        let Self { mount, device, parts, session, accounting, store, pidfile, events } = self;
        let (runtime, signals) = events;
        let Parts { ref journal, ref memory, ref workers, ref rooms, .. } = parts;
        let (ended, exit) = run(session, mount.point())?;
        tell_gap(journal);
        super::forget_ended(Arc::clone(&rooms.callers))?;
        match &accounting {
            Ok(counting) => accounting::maintain(Arc::clone(&counting.programs), rooms.clone())?,
            Err(_) => {
                let (callers, files) = (Arc::clone(&rooms.callers), Arc::clone(&rooms.files));
                sampler::start(callers, files, Arc::clone(memory))?;
            }
        }
        parts.find_containers();
        memory.settle();
        let below = below::arrange(arguments, &accounting, rooms, mount.point())?;
        let status = Status {
            mount_point: mount.point().to_owned(),
            policy: super::policy(arguments),
            supplies: accounting::supplies(rooms.files.supplies(), &accounting),
            store,
            workers: Arc::clone(workers),
            has_given_up: false,
            below,
        };
        let socket = places::socket(&arguments.runtime_dir, mount.point());
        let held = held(&device, journal, accounting.as_ref().ok());
        let status = Arc::new(status);
        let (road, socket) = (&rooms.road, socket.as_path());
        let workers = Arc::clone(workers);
        let attendance = Attendance { road, status, socket, store, held, signals, ended, workers };
        let served = runtime.block_on(attendance.wait());
        let _ = std::fs::remove_file(socket);
        let outcome = served?;
        // The next daemon may have to lock it before we have gone.
        drop(pidfile);
        match outcome {
            Outcome::Unmounted => Ok(()),
            Outcome::Told if store == Store::None && arguments.leave_mounted => Ok(()),
            // Nobody may listen: a daemon started by hand is notified to no one.
            Outcome::Told if store == Store::None => {
                let _ = sd_notify::notify(&[NotifyState::Stopping]);
                below::take_down(&arguments.runtime_dir, mount.point());
                mount.unmount().or_else(super::already_unmounted)
            }
            Outcome::Told | Outcome::Succeeded => {
                if let Ok(counting) = &accounting {
                    rooms.road.look_again();
                    counting.programs.retire();
                }
                journal.left_ns().store(monotonic_ns(), Ordering::Relaxed);
                leave(&exit, &device, arguments);
                journal.let_go();
                Ok(())
            }
        }
    }
}

/// What the next daemon is to be given, by name.
fn held<'a>(
    device: &'a OwnedFd,
    journal: &'a Journal,
    counting: Option<&'a Counting>,
) -> Vec<(String, BorrowedFd<'a>)> {
    let mount = [(DEVICE, device.as_fd()), (JOURNAL, journal.memory())];
    let mount = mount.into_iter().map(|(name, held)| (name.to_owned(), held));
    let counted = counting.into_iter().flat_map(|counting| counting.programs.kept());
    mount.chain(counted.map(|(name, held)| (accounting::named(name), held))).collect()
}

/// Ends the threads: what they have read is answered, and what comes now waits for the next daemon.
pub(super) fn leave(exit: &Exit, device: &OwnedFd, arguments: &Serve) {
    match exit.leave(device, arguments.threads.into(), LEAVING) {
        Ok(true) => {}
        Ok(false) => tracing::warn!("a request takes long: the next daemon will be asked again"),
        Err(error) => tracing::error!("{error}"),
    }
}

/// Says how long nobody has read requests.
fn tell_gap(journal: &Journal) {
    match journal.left_ns().swap(0, Ordering::Relaxed) {
        0 => {}
        left_ns => {
            let waited = Duration::from_nanos(monotonic_ns().saturating_sub(left_ns));
            tracing::info!("took over: requests have waited for {waited:?} at most");
        }
    }
}

fn prepare_events() -> Result<(Runtime, Signals)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // What answers on the control socket goes when it has: an idle daemon has nobody who wakes up to leave.
        .thread_keep_alive(Duration::from_millis(10))
        .build()
        .map_err(|error| Error::std("start", "the event loop", &error))?;
    let signals = runtime.block_on(async { Signals::new() })?;
    Ok((runtime, signals))
}

fn config(arguments: &Serve) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(usize::from(arguments.threads));
    config
}

/// Runs the session on threads of its own and tells when it has ended: somebody unmounted it. Returns the way out of it, too.
pub(super) fn run(
    session: Session<LxcFs>,
    mount_point: &Path,
) -> Result<(oneshot::Receiver<std::io::Result<()>>, Exit)> {
    let exit = Exit::of(&session)?;
    let (sender, ended) = oneshot::channel();
    let run = move || {
        // Nobody waits any more when we are ending ourselves.
        let _ = sender.send(session.run());
    };
    let thread = std::thread::Builder::new().name("session".to_owned()).spawn(run);
    thread.map(|_| (ended, exit)).map_err(|error| Error::std("serve", mount_point, &error))
}
