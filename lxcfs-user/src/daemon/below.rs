//! Files below FUSE. A pinned link of the eBPF programs is a file that the kernel serves in its reader's own time; bound over ours,
//! everybody who is given ours from then on has it.
//!
//! The bpffs it is pinned in is mounted for it alone, so that nobody else can have made its names first, and it goes with its last
//! user: a container that has the file keeps the filesystem, and with it the links that count, whatever becomes of us.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::mount::{MountFlags, UnmountFlags};

use super::accounting::Counting;
use super::mount::kind;
use super::{Rooms, control};
use crate::bpf::{BELOW_FILE, Symbols};
use crate::cli::Serve;
use crate::error::{Errno, Error, Result};

/// Of the filesystem, in mountinfo.
const BPF: &str = "bpf";

/// The file, in our mount.
const FILE: &str = "proc/loadavg";

/// Why readers on the host cannot be shown its numbers.
const UNTOLD: &str =
    "/proc/kallsyms does not tell where they are (CONFIG_KALLSYMS_ALL, CAP_SYSLOG)";

/// What became of the wish for such files: for `lxcfs status`.
#[derive(Debug, Default)]
pub struct Below {
    outcome: OnceLock<Result<Served, String>>,
}

/// A file that the kernel serves.
#[derive(Debug, Clone, Copy)]
struct Served {
    /// Readers on the host are shown its numbers; else they get `EAGAIN`.
    on_host: bool,
}

impl Below {
    /// One line: who serves the file, and why. `None`: nobody asked for it.
    pub(super) fn line(wanted: Option<&Arc<Self>>) -> Option<String> {
        Some(match wanted?.outcome.get() {
            None => "not yet: containers are looked at".to_owned(),
            Some(Ok(Served { on_host: true })) => "the kernel, without a daemon".to_owned(),
            Some(Ok(Served { on_host: false })) => format!(
                "the kernel, without a daemon; readers on the host get EAGAIN, because {UNTOLD}"
            ),
            Some(Err(why)) => format!("this daemon, because: {why}"),
        })
    }
}

/// Has the kernel serve what it is wanted to, or takes away what a daemon before us was told to make. `Ok(None)`: nothing is
/// wanted.
///
/// # Errors
/// No thread can be made.
pub(super) fn arrange(
    arguments: &Serve,
    counting: &Result<Counting, String>,
    rooms: &Rooms,
    mount_point: &Path,
) -> Result<Option<Arc<Below>>> {
    if !arguments.kernel_files.loadavg {
        if let Err(error) = uncover(mount_point) {
            tracing::warn!("{error}");
        }
        take_down(&arguments.runtime_dir, mount_point);
        return Ok(None);
    }
    let making = Making {
        counting: counting.clone(),
        rooms: rooms.clone(),
        directory: directory(&arguments.runtime_dir, mount_point),
        mount_point: mount_point.to_owned(),
    };
    making.start().map(Some)
}

/// What is needed to make the file.
struct Making {
    counting: Result<Counting, String>,
    rooms: Rooms,
    directory: PathBuf,
    mount_point: PathBuf,
}

impl Making {
    /// Makes the file on a thread of its own: finding the containers that are older than the programs may take seconds, and the
    /// mount has to be served meanwhile.
    ///
    /// # Errors
    /// No thread can be made.
    fn start(self) -> Result<Arc<Below>> {
        let below = Arc::new(Below::default());
        let ours = Arc::clone(&below);
        let make = move || {
            let outcome = self.make();
            if let Err(why) = &outcome {
                tracing::warn!("/{FILE} is not served by the kernel: {why}");
            }
            // Set once, here.
            let _ = ours.outcome.set(outcome);
        };
        let thread = std::thread::Builder::new().name("kernel-files".to_owned()).spawn(make);
        thread.map(|_| below).map_err(|error| Error::std("start", "thread kernel-files", &error))
    }

    fn make(self) -> Result<Served, String> {
        let Counting { programs, .. } = self.counting.clone()?;
        programs.below()?;
        if let Some(why) = outside_of_the_host() {
            return Err(why);
        }
        let kallsyms = fs::File::open("/proc/kallsyms").map(BufReader::new);
        let lines = kallsyms.into_iter().flat_map(|lines| lines.lines().map_while(Result::ok));
        let symbols = Symbols::parse(lines);
        if let Some(symbols) = symbols {
            programs.tell_symbols(symbols);
        }
        let directory = &self.directory;
        let is_there = kind(directory).as_deref() == Some(BPF) && programs.is_below(directory);
        // Whoever made it has looked back, for the same programs.
        if !is_there {
            self.look_back()?;
            let cleared = uncover(&self.mount_point).and_then(|()| detach(directory));
            cleared.map_err(|error| error.to_string())?;
            mount(directory).map_err(|error| error.to_string())?;
            programs.pin_below(directory).map_err(|error| error.to_string())?;
        }
        bind(directory, &self.mount_point).map_err(|error| error.to_string())?;
        Ok(Served { on_host: symbols.is_some() })
    }

    /// Tells the programs of all containers that are older than they: before anybody can read, or some would get no answer.
    fn look_back(&self) -> Result<(), String> {
        let Some(maps) = &self.rooms.maps else { return Ok(()) };
        let containers = self.rooms.callers.discover().map_err(|error| error.to_string())?;
        for container in containers {
            // It may have ended; and one without a cgroup of its own has no load average of its own.
            if let Err(error) = maps.look_back(&container) {
                tracing::debug!("look back: {error}");
            }
        }
        Ok(())
    }
}

/// The programs tell the host by the machine's first namespaces.
fn outside_of_the_host() -> Option<String> {
    /// `PROC_PID_INIT_INO` and `PROC_CGROUP_INIT_INO` (include/linux/proc_ns.h).
    const FIRST: [(&str, &str); 2] =
        [("pid", "pid:[4026531836]"), ("cgroup", "cgroup:[4026531835]")];

    let differs = |(kind, first): &(&str, &str)| {
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap_or_default();
        ours != Path::new(first)
    };
    let (kind, _) = FIRST.into_iter().find(differs)?;
    Some(format!("lxcfs is in a {kind} namespace that is not the machine's first"))
}

/// Where the file of the daemon mounted at `mount_point` is pinned.
fn directory(runtime_dir: &Path, mount_point: &Path) -> PathBuf {
    control::socket_path(runtime_dir, mount_point).with_extension("bpf")
}

fn mount(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(|error| Error::std("make", directory, &error))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("lxcfs", directory, BPF, flags, c"mode=0755").map_err(|errno| {
        Error::io("mount a bpffs at", directory, errno).hint("the kernel needs CONFIG_BPF_SYSCALL")
    })
}

/// Puts the file over that of our mount, if it is not there.
fn bind(directory: &Path, mount_point: &Path) -> Result<()> {
    let target = mount_point.join(FILE);
    match kind(&target).as_deref() {
        None => {}
        Some(BPF) => return Ok(()),
        Some(other) => {
            let cause = format!("a file of type {other} is bound there");
            return Err(Error::because("bind over", &target, Errno::BUSY, cause));
        }
    }
    let failed = |errno| Error::io("bind the kernel's file over", &target, errno);
    let source = directory.join(BELOW_FILE);
    rustix::mount::mount_bind(&source, &target).map_err(failed)?;
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    rustix::mount::mount_remount(&target, flags, c"").map_err(failed)
}

/// Takes the file off our mount. The way there is through the mount, which has to be served.
fn uncover(mount_point: &Path) -> Result<()> {
    detach(&mount_point.join(FILE))
}

/// Takes the bpffs away. What is bound of it goes with our mount; who was given the file has it still.
pub(super) fn take_down(runtime_dir: &Path, mount_point: &Path) {
    let directory = directory(runtime_dir, mount_point);
    if let Err(error) = detach(&directory) {
        tracing::warn!("{error}");
    }
    // What is in it is not ours.
    let _ = fs::remove_dir(directory);
}

/// Unmounts every bpffs at a place.
fn detach(place: &Path) -> Result<()> {
    while kind(place).as_deref() == Some(BPF) {
        rustix::mount::unmount(place, UnmountFlags::DETACH)
            .map_err(|errno| Error::io("unmount", place, errno))?;
    }
    Ok(())
}
