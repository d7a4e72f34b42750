//! A daemon from its start to its end: a new mount or one that was kept, threads that serve it, and a quiet way out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{Config, Session};
use sd_notify::NotifyState;
use tokio::sync::oneshot;

use super::attend::{Attendance, Outcome, Signals};
use super::found::{self, Found};
use super::mount::Mount;
use super::pidfile::Pidfile;
use super::status::Status;
use super::{Rooms, accounting, connection, control, sampler, upgrade};
use crate::bpf::Accounting;
use crate::cli::{Serve, Supplier};
use crate::error::{Error, Result};
use crate::fs::{Handles, LxcFs};
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
    accounting: Result<Arc<Accounting>, String>,
    store: Store,
    pidfile: Option<Pidfile>,
}

/// What makes pages, and what it remembers.
struct Parts {
    journal: Arc<Journal>,
    memory: Arc<Memory>,
    handles: Arc<Handles>,
    workers: Arc<Workers>,
    rooms: Rooms,
}

impl Parts {
    fn new(
        arguments: &Serve,
        journal: Journal,
        accounting: Option<&Arc<Accounting>>,
    ) -> Result<Self> {
        let journal = Arc::new(journal);
        let memory = Arc::new(Memory::new(Arc::clone(&journal)));
        let handles = Arc::new(Handles::new(Arc::clone(&journal)));
        let workers = Arc::new(Workers::new(Arc::clone(&journal)));
        let rooms =
            Rooms::with_accounting(super::policy(arguments), accounting.map(Arc::clone), &memory)?;
        Ok(Self { journal, memory, handles, workers, rooms })
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
    fn again(&self, arguments: &Serve, device: &OwnedFd) -> Result<Session<LxcFs>> {
        let mounted = connection::at_epoch_ns(self.journal.described().mounted_ns);
        let filesystem = self.rooms.filesystem(mounted, &self.handles, &self.workers)?;
        let session = connection::reopen(filesystem, device, &self.journal, config(arguments))?;
        if upgrade::is_successor() {
            upgrade::self_test(&self.rooms)?;
            self.find_containers();
            upgrade::tell(Ok(()));
            self.journal.wait_and_claim()?;
        }
        self.memory.take_over();
        self.handles.take_over();
        connection::ask_again(device, &self.journal);
        Ok(session)
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
        let accounting = match arguments.accounting {
            Supplier::Files => Err("not wanted (--accounting files)".to_owned()),
            Supplier::Auto => accounting::load(arguments.cgroups, &arguments.runtime_dir),
        };
        let parts = Parts::new(arguments, journal, accounting.as_ref().ok())?;
        let (mount, device, session) = match existing {
            Some((mount, device)) => {
                let session = parts.again(arguments, &device)?;
                (mount, device, session)
            }
            None => parts.first(arguments, store, mount_point)?,
        };
        let pidfile = if is_successor { create_pidfile()? } else { own_pidfile };
        Ok(Self { mount, device, parts, session, accounting, store, pidfile })
    }

    /// Serves until there is a reason to end, and ends.
    pub(super) fn serve(self, arguments: &Serve) -> Result<()> {
        let Self { mount, device, parts, session, accounting, store, pidfile } = self;
        let Parts { ref journal, ref memory, ref workers, ref rooms, .. } = parts;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::std("start", "the event loop", &error))?;
        let signals = runtime.block_on(async { Signals::new() })?;
        let ended = run_session(move || session.run())
            .map_err(|error| Error::std("serve", mount.point(), &error))?;
        super::forget_ended(Arc::clone(&rooms.callers))?;
        match &accounting {
            Ok(accounting) => accounting::maintain(Arc::clone(accounting))?,
            Err(_) => {
                let (callers, files) = (Arc::clone(&rooms.callers), Arc::clone(&rooms.files));
                sampler::start(callers, files, Arc::clone(memory))?;
            }
        }
        parts.find_containers();
        memory.settle();
        let status = Status {
            mount_point: mount.point().to_owned(),
            policy: super::policy(arguments),
            supplies: accounting::supplies(rooms.files.supplies(), &accounting),
            store,
        };
        let socket = control::socket_path(&arguments.runtime_dir, mount.point());
        let held = [(DEVICE, device.as_fd()), (JOURNAL, journal.memory())];
        let held: Vec<(String, BorrowedFd<'_>)> =
            held.into_iter().map(|(name, held)| (name.to_owned(), held)).collect();
        let status = Arc::new(status);
        let (road, socket) = (&rooms.road, socket.as_path());
        let attendance = Attendance { road, status, socket, store, held, signals, ended };
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
                mount.unmount().or_else(super::already_unmounted)
            }
            Outcome::Told | Outcome::Succeeded => {
                leave(workers, usize::from(arguments.threads), mount.point());
                journal.let_go();
                Ok(())
            }
        }
    }
}

/// Brings the threads to rest: what they have read is answered, and what comes now waits for the next daemon.
fn leave(workers: &Workers, threads: usize, mount_point: &Path) {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let ask = || {
        let number = ASKED.fetch_add(1, Ordering::Relaxed);
        // No such name: the answer is never remembered. When nobody answers any more, the thread ends with us.
        let name: PathBuf = mount_point.join(format!(".rest-{number}"));
        let ask = move || {
            let _ = rustix::fs::stat(name);
        };
        let _ = std::thread::Builder::new().name("rest".to_owned()).spawn(ask);
    };
    if !workers.rest(threads, LEAVING, ask) {
        tracing::warn!("a request takes long: the next daemon will be asked again");
    }
}

fn config(arguments: &Serve) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(usize::from(arguments.threads));
    config
}

/// Runs the session on threads of its own and tells when it has ended: somebody unmounted it.
fn run_session(
    run: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> std::io::Result<oneshot::Receiver<std::io::Result<()>>> {
    let (sender, ended) = oneshot::channel();
    std::thread::Builder::new().name("session".to_owned()).spawn(move || {
        // Nobody waits any more when we are ending ourselves.
        let _ = sender.send(run());
    })?;
    Ok(ended)
}
