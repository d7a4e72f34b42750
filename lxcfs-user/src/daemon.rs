//! The daemon: wires the rooms, mounts, serves, and ends in good order, or hands over to another.

mod accounting;
mod attend;
mod below;
mod connection;
pub mod control;
mod found;
mod keeper;
mod leaving;
mod mount;
mod pidfile;
pub mod places;
mod process;
mod sampler;
mod started;
pub mod status;
mod upgrade;
mod watchdog;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};

use self::accounting::Counting;
use self::attend::Signals;
use self::started::Started;
use crate::caller::{Callers, InitLookup};
use crate::cli::{GiveUp, Serve};
use crate::error::{Errno, Error, Result};
use crate::files::Policy;
use crate::fs::{Handles, LxcFs};
use crate::keep::memory::Memory;
use crate::keep::store::Store;
use crate::keep::workers::Workers;
use crate::model::cpus::CpuView;
use crate::road::Road;
use crate::source::bpf::BpfMaps;
use crate::source::cgroup::CgroupFiles;
use crate::source::cgroup::hierarchy::Hierarchies;
use crate::source::host::Host;
use crate::source::subtree::Subtrees;
use crate::source::{Layered, Source};

/// Everything but the mount: enough to make any page.
#[derive(Debug, Clone)]
pub struct Rooms {
    host: Arc<Host>,
    files: Arc<CgroupFiles>,
    callers: Arc<Callers>,
    /// What the eBPF programs count, where they do.
    maps: Option<Arc<BpfMaps>>,
    /// The directory `cgroup/`, where it is wanted and there is something to show.
    subtrees: Option<Arc<Subtrees>>,
    /// Makes pages.
    pub road: Arc<Road>,
}

impl Rooms {
    /// Opens the host and wires the rooms, with cgroup files as the only source.
    ///
    /// # Errors
    /// `/proc`, `/sys` or every cgroup hierarchy is missing.
    pub fn open(policy: Policy, init_lookup: InitLookup) -> Result<Self> {
        Self::new(policy, init_lookup, None, Arc::new(Memory::none()))
    }

    /// The same with the maps of the eBPF programs before the files.
    fn with_accounting(
        policy: Policy,
        accounting: Option<Counting>,
        memory: &Arc<Memory>,
    ) -> Result<Self> {
        Self::new(policy, InitLookup::Ask, accounting, Arc::clone(memory))
    }

    fn new(
        policy: Policy,
        init_lookup: InitLookup,
        accounting: Option<Counting>,
        memory: Arc<Memory>,
    ) -> Result<Self> {
        let host = Arc::new(Host::open()?);
        let mut mountinfo = Vec::new();
        host.read_proc("self/mountinfo", &mut mountinfo)
            .map_err(|errno| Error::io("read", "/proc/self/mountinfo", errno))?;
        let hierarchies = Hierarchies::open(&mountinfo)?;
        let files = Arc::new(CgroupFiles::new(hierarchies, Arc::clone(&host)));
        let (our_host, our_files) = (Arc::clone(&host), Arc::clone(&files));
        let callers = Callers::new(our_host, our_files, init_lookup, Arc::clone(&memory))?;
        let callers = Arc::new(callers);
        let maps = accounting.map(|Counting { programs, loaded_ns, .. }| {
            let (files, host) = (Arc::clone(&files), Arc::clone(&host));
            Arc::new(BpfMaps::new(programs, files, host, loaded_ns))
        });
        let first = maps.iter().map(|maps| Arc::clone(maps) as Arc<dyn Source>);
        let source = Layered(first.chain([Arc::clone(&files) as _]).collect());
        let machine = Arc::clone(&host) as _;
        let road = Road::new(Arc::clone(&callers), Arc::new(source), machine, policy, memory);
        Ok(Self { host, files, callers, maps, subtrees: None, road: Arc::new(road) })
    }

    /// The same with the directory `cgroup/`, if there is a cgroup v1 hierarchy.
    fn with_cgroups(self) -> Result<Self> {
        let subtrees = Subtrees::open(self.files.hierarchies(), Arc::clone(&self.host))?;
        if subtrees.is_none() {
            tracing::warn!(
                "--enable-cgroup: no cgroup v1 hierarchy is mounted, so there is no cgroup/"
            );
        }
        Ok(Self { subtrees: subtrees.map(Arc::new), ..self })
    }

    /// The filesystem of the mount made at `mounted`.
    fn filesystem(
        &self,
        mounted: SystemTime,
        handles: &Arc<Handles>,
        workers: &Arc<Workers>,
    ) -> Result<LxcFs> {
        let (road, host) = (Arc::clone(&self.road), Arc::clone(&self.host));
        let (handles, workers) = (Arc::clone(handles), Arc::clone(workers));
        LxcFs::new(road, host, self.subtrees.clone(), mounted, handles, workers)
    }
}

/// Serves until told to end, or keeps a daemon going that does.
///
/// # Errors
/// Whatever keeps it from starting; once it serves, only the loss of the mount ends it with an error.
pub fn serve(arguments: &Serve) -> Result<ExitCode> {
    let mount_point = arguments.mountpoint.as_deref().unwrap_or_else(|| Path::new(""));
    check(arguments)?;
    let pidfile = arguments.pidfile.clone();
    let pidfile = pidfile.unwrap_or_else(|| arguments.runtime_dir.join("lxcfs.pid"));
    // A huge page for each thread's few kilobytes of heap: 3 times the memory on kernels that make them unasked. And
    // khugepaged, which makes them, goes last: beside busy CPUs it holds a process's memory for seconds.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let store = Store::of_environment();
    if store == Store::None && !arguments.no_keeper {
        return keeper::run(arguments, &pidfile, mount_point);
    }
    raise_descriptor_limit();
    let started = Started::new(arguments, store, mount_point, &pidfile).inspect_err(|error| {
        if upgrade::is_successor() {
            upgrade::tell(Err(error));
        }
    })?;
    started.serve(arguments).map(|()| ExitCode::SUCCESS)
}

fn policy(arguments: &Serve) -> Policy {
    Policy {
        cpu_view: if arguments.enable_cfs { CpuView::Quota } else { arguments.cpu_view.into() },
        swap: !arguments.disable_swap,
        zswap: !arguments.disable_zswap,
        strict: arguments.strict,
    }
}

/// What can be said before anything is touched.
fn check(arguments: &Serve) -> Result<()> {
    if arguments.give_up == GiveUp::Host && (arguments.strict || arguments.no_keeper) {
        let cause =
            "--strict refuses the host's values, and without a keeper nobody could serve them";
        return Err(Error::because("use option", "--give-up host", Errno::INVAL, cause)
            .hint("leave one of them out"));
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
