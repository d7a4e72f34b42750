//! The daemon: wires the rooms, mounts, serves, and ends in good order.

mod accounting;
pub mod control;
mod mount;
mod pidfile;
mod sampler;
pub mod status;

use std::path::Path;
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use self::mount::Mount;
use self::pidfile::Pidfile;
use self::status::Status;
use crate::bpf::Accounting;
use crate::caller::{Callers, InitLookup};
use crate::cli::{Serve, Supplier};
use crate::error::{Errno, Error, Result};
use crate::files::Policy;
use crate::fs::LxcFs;
use crate::model::cpus::CpuView;
use crate::road::Road;
use crate::source::bpf::BpfMaps;
use crate::source::cgroup::CgroupFiles;
use crate::source::cgroup::hierarchy::Hierarchies;
use crate::source::host::Host;
use crate::source::{Layered, Source};

/// Everything but the mount: enough to make any page.
#[derive(Debug, Clone)]
pub struct Rooms {
    host: Arc<Host>,
    files: Arc<CgroupFiles>,
    callers: Arc<Callers>,
    /// Makes pages.
    pub road: Arc<Road>,
}

impl Rooms {
    /// Opens the host and wires the rooms, with cgroup files as the only source.
    ///
    /// # Errors
    /// `/proc`, `/sys` or every cgroup hierarchy is missing.
    pub fn open(policy: Policy, init_lookup: InitLookup) -> Result<Self> {
        Self::with_accounting(policy, init_lookup, None)
    }

    /// The same with the maps of the eBPF programs before the files.
    fn with_accounting(
        policy: Policy,
        init_lookup: InitLookup,
        accounting: Option<Arc<Accounting>>,
    ) -> Result<Self> {
        let host = Arc::new(Host::open()?);
        let mut mountinfo = Vec::new();
        host.read_proc("self/mountinfo", &mut mountinfo)
            .map_err(|errno| Error::io("read", "/proc/self/mountinfo", errno))?;
        let hierarchies = Hierarchies::open(&mountinfo)?;
        let files = Arc::new(CgroupFiles::new(hierarchies, Arc::clone(&host)));
        let callers = Callers::new(Arc::clone(&host), Arc::clone(&files), init_lookup)?;
        let callers = Arc::new(callers);
        let maps = accounting
            .map(|accounting| BpfMaps::new(accounting, Arc::clone(&files), Arc::clone(&host)))
            .map(|maps| Arc::new(maps) as Arc<dyn Source>);
        let source = Layered(maps.into_iter().chain([Arc::clone(&files) as _]).collect());
        let road =
            Road::new(Arc::clone(&callers), Arc::new(source), Arc::clone(&host) as _, policy);
        Ok(Self { host, files, callers, road: Arc::new(road) })
    }
}

/// Serves until told to end.
///
/// # Errors
/// Whatever keeps it from starting; once it serves, only the loss of the mount ends it with an error.
pub fn serve(arguments: &Serve) -> Result<()> {
    let mount_point = arguments.mountpoint.as_deref().unwrap_or_else(|| Path::new(""));
    check(arguments)?;
    let policy = Policy {
        cpu_view: if arguments.enable_cfs { CpuView::Quota } else { arguments.cpu_view.into() },
        swap: !arguments.disable_swap,
        zswap: !arguments.disable_zswap,
        strict: arguments.strict,
    };
    raise_descriptor_limit();
    // A huge page for each thread's few kilobytes of heap: 3 times the memory on kernels that make them unasked.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let pidfile = arguments.pidfile.clone();
    let pidfile = pidfile.unwrap_or_else(|| arguments.runtime_dir.join("lxcfs.pid"));
    let _pidfile = Pidfile::create(&pidfile)?;
    let accounting = match arguments.accounting {
        Supplier::Files => Err("not wanted (--accounting files)".to_owned()),
        Supplier::Auto => accounting::load(arguments.cgroups, &arguments.runtime_dir),
    };
    let loaded = accounting.as_ref().ok().map(Arc::clone);
    let rooms = Rooms::with_accounting(policy, InitLookup::Ask, loaded)?;
    let filesystem = LxcFs::new(Arc::clone(&rooms.road), Arc::clone(&rooms.host))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::std("start", "the event loop", &error))?;
    let signals = runtime.block_on(async { Signals::new() })?;

    let (mount, device) = Mount::new(mount_point, &arguments.options)?;
    let mut config = Config::default();
    config.n_threads = Some(usize::from(arguments.threads));
    let ended = Session::from_fd(filesystem, device, SessionACL::All, config)
        .and_then(|session| run_session(move || session.run()))
        .map_err(|error| Error::std("serve", mount.point(), &error))
        .inspect_err(|_| drop(mount.unmount()))?;
    forget_ended(Arc::clone(&rooms.callers))?;
    match &accounting {
        Ok(accounting) => accounting::maintain(Arc::clone(accounting))?,
        Err(_) => sampler::start(Arc::clone(&rooms.callers), Arc::clone(&rooms.files))?,
    }

    let status = Status {
        mount_point: mount.point().to_owned(),
        policy,
        supplies: accounting::supplies(rooms.files.supplies(), &accounting),
    };
    let socket = control::socket_path(&arguments.runtime_dir, mount.point());
    let served = runtime.block_on(attend(&rooms.road, status, &socket, signals, ended));
    // Nobody may listen: a daemon started by hand is notified to no one.
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    let _ = std::fs::remove_file(&socket);
    if served.is_ok() { mount.unmount().or_else(already_unmounted) } else { served }
}

/// What can be said before anything is touched.
fn check(arguments: &Serve) -> Result<()> {
    if arguments.enable_cgroup {
        let cause =
            "a cgroup tree through lxcfs has let containers escape; cgroup namespaces replace it";
        return Err(Error::because("use option", "--enable-cgroup", Errno::INVAL, cause)
            .hint("leave it out"));
    }
    if !geteuid().is_root() {
        return Err(Error::because("serve", "lxcfs", Errno::PERM, "mounting takes root")
            .hint("sudo lxcfs MOUNTPOINT"));
    }
    Ok(())
}

/// Each known container takes a descriptor or two, and there may be thousands.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, fewer containers are remembered at a time.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
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

/// Starts the thread that waits for containers to end.
fn forget_ended(callers: Arc<Callers>) -> Result<()> {
    let wait = move || {
        loop {
            callers.wait_and_forget();
        }
    };
    let thread = std::thread::Builder::new().name("endings".to_owned()).spawn(wait);
    thread.map(|_| ()).map_err(|error| Error::std("start", "thread endings", &error))
}

/// Somebody else may have been faster.
fn already_unmounted(error: Error) -> Result<()> {
    if error.errno == Errno::INVAL { Ok(()) } else { Err(error) }
}

/// The signals a daemon is told things by.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    reload: Signal,
    toggle: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
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

/// Waits for signals and for the end of the session, and answers on the control socket meanwhile.
async fn attend(
    road: &Arc<Road>,
    status: Status,
    socket: &Path,
    mut signals: Signals,
    mut ended: oneshot::Receiver<std::io::Result<()>>,
) -> Result<()> {
    let mount_point = status.mount_point.clone();
    match control::listen(socket) {
        Ok(listener) => {
            tokio::spawn(control::serve(listener, Arc::clone(road), Arc::new(status)));
        }
        Err(error) => tracing::warn!("`lxcfs status` will not work: {error}"),
    }
    tracing::info!("serving at {}", mount_point.display());
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hang_up.recv() => return Ok(()),
            _ = signals.reload.recv() => tracing::info!("SIGUSR1: there is nothing to reload"),
            _ = signals.toggle.recv() => {
                let on = road.toggle_passthrough();
                tracing::warn!("passthrough of the host's files is {}", if on { "on" } else { "off" });
            }
            result = &mut ended => return match result {
                Ok(Ok(())) => {
                    tracing::info!("{} was unmounted", mount_point.display());
                    Ok(())
                }
                Ok(Err(error)) => Err(Error::std("serve", &mount_point, &error)),
                Err(_) => Err(Error::because("serve", &mount_point, Errno::IO, "its thread panicked")),
            },
        }
    }
}
