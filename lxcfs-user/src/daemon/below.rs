//! Files below FUSE. A pinned link of the eBPF programs is a file that the kernel serves in its reader's own time; bound over ours,
//! everybody who is given ours from then on has it.
//!
//! The bpffs it is pinned in is mounted for it alone, so that nobody else can have made its names first, and it goes with its last
//! user: a container that has the file keeps the filesystem, and with it the links that count, whatever becomes of us.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags};

use super::accounting::Counting;
use super::mount::kind;
use super::{Rooms, places, policy};
use crate::bpf::{Accounting, FILES_BELOW, Symbols, Unavailable, view};
use crate::cli::Serve;
use crate::error::{Errno, Error, Result};
use crate::files::{self, Reader, View};
use crate::model::cpus::CpuView;
use crate::model::file::File;

/// Of the filesystem, in mountinfo.
const BPF: &str = "bpf";

/// Where the files are, in our mount.
const PROC: &str = "proc";

/// Comparisons of idle time with the kernel's.
const CHECKS: u32 = 10;

/// How much time lies between two looks for containers that somebody asked us to make.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// Why readers on the host cannot be shown its idle time.
const IDLE_UNTOLD: &str = "this kernel keeps idle time in a way that is not known";

/// Why readers on the host cannot be shown its load average.
const UNTOLD: &str = "/proc/kallsyms does not tell where it is (CONFIG_KALLSYMS_ALL, CAP_SYSLOG)";

/// What became of the wish for such files: for `lxcfs status`.
#[derive(Debug)]
pub struct Below {
    files: Vec<&'static str>,
    outcome: OnceLock<Vec<Outcome>>,
}

/// What became of one file.
#[derive(Debug)]
struct Outcome {
    file: &'static str,
    /// What readers on the host are told, or why the daemon serves it.
    served: Result<OnHost, String>,
}

/// What readers on the host are told.
#[derive(Debug, Clone, Copy)]
enum OnHost {
    /// The host's numbers.
    Numbers,
    /// `EAGAIN`, and why.
    Again(&'static str),
}

impl Below {
    /// A line for each file that was asked for: who serves it, and why.
    pub(super) fn lines(wanted: Option<&Arc<Self>>) -> BTreeMap<&'static str, String> {
        let Some(below) = wanted else { return BTreeMap::new() };
        let line = |file| {
            let outcome = below.outcome.get().map(|all| all.iter().find(|one| one.file == file));
            let Some(outcome) = outcome.flatten() else {
                return "not yet: containers are looked at".to_owned();
            };
            match &outcome.served {
                Ok(OnHost::Numbers) => "the kernel, without a daemon".to_owned(),
                Ok(OnHost::Again(why)) => {
                    format!(
                        "the kernel, without a daemon; readers on the host get EAGAIN, because {why}"
                    )
                }
                Err(why) => format!("this daemon, because: {why}"),
            }
        };
        below.files.iter().map(|&file| (file, line(file))).collect()
    }
}

/// Has the kernel serve what it is wanted to, and takes away what a daemon before us was told to make and we are not. `Ok(None)`:
/// nothing is wanted.
///
/// # Errors
/// No thread can be made.
pub(super) fn arrange(
    arguments: &Serve,
    counting: &Result<Counting, String>,
    rooms: &Rooms,
    mount_point: &Path,
) -> Result<Option<Arc<Below>>> {
    let is_wanted = |file: &&str| arguments.kernel_files.has(file);
    let (files, unwanted): (Vec<_>, Vec<_>) = FILES_BELOW.into_iter().partition(is_wanted);
    for file in unwanted {
        if let Err(error) = uncover(mount_point, file) {
            tracing::warn!("{error}");
        }
    }
    if files.is_empty() {
        take_down(&arguments.runtime_dir, mount_point);
        return Ok(None);
    }
    let making = Making {
        files,
        counting: counting.clone(),
        rooms: rooms.clone(),
        view: policy(arguments).cpu_view,
        directory: places::pins(&arguments.runtime_dir, mount_point),
        mount_point: mount_point.to_owned(),
    };
    making.start().map(Some)
}

/// What is needed to make the files.
struct Making {
    files: Vec<&'static str>,
    counting: Result<Counting, String>,
    rooms: Rooms,
    view: CpuView,
    directory: PathBuf,
    mount_point: PathBuf,
}

impl Making {
    /// Makes the files on a thread of its own: finding the containers that are older than the programs may take seconds, and the
    /// mount has to be served meanwhile.
    ///
    /// # Errors
    /// No thread can be made.
    fn start(self) -> Result<Arc<Below>> {
        let below = Arc::new(Below { files: self.files.clone(), outcome: OnceLock::new() });
        let ours = Arc::clone(&below);
        let make = move || {
            let outcome = self.make();
            for Outcome { file, served } in &outcome {
                if let Err(why) = served {
                    tracing::warn!("/{PROC}/{file} is not served by the kernel: {why}");
                }
            }
            // Set once, here.
            let _ = ours.outcome.set(outcome);
        };
        let thread = std::thread::Builder::new().name("kernel-files".to_owned()).spawn(make);
        thread.map(|_| below).map_err(|error| Error::std("start", "thread kernel-files", &error))
    }

    /// Makes what can be made.
    fn make(&self) -> Vec<Outcome> {
        let possible = |file: &&'static str| -> Result<(), String> {
            let Counting { programs, .. } = self.counting.as_ref().map_err(Clone::clone)?;
            programs.below(file)?;
            outside_of_the_host().map_or(Ok(()), Err)
        };
        let files: Vec<_> = self.files.iter().map(|file| (*file, possible(file))).collect();
        let made =
            self.make_all(files.iter().filter(|(_, can)| can.is_ok()).map(|(file, _)| *file));
        let served = |file, possible: Result<(), String>| {
            possible?;
            let is_told = made.as_ref().map_err(ToString::to_string)?;
            let on_host = match (file, is_told) {
                ("loadavg", true) => OnHost::Numbers,
                ("loadavg", false) => OnHost::Again(UNTOLD),
                _ if self.idle_is_the_kernels() => OnHost::Numbers,
                _ => OnHost::Again(IDLE_UNTOLD),
            };
            bind(&self.directory, &self.mount_point, file).map_err(|error| error.to_string())?;
            Ok(on_host)
        };
        files.into_iter().map(|(file, can)| Outcome { file, served: served(file, can) }).collect()
    }

    /// Has readers on the host be told idle time as the programs make it, if that is what the kernel's own file says: where it keeps
    /// that is nothing it promises.
    fn idle_is_the_kernels(&self) -> bool {
        let Ok(Counting { programs, .. }) = &self.counting else { return false };
        programs.tell_host_idle(true);
        let ours = self.directory.join("uptime");
        let kernels = Path::new("/proc/uptime");
        let read = |path| parse_uptime(&fs::read_to_string(path).ok()?);
        let is_between = || {
            let [before, is, after] = [read(kernels)?, read(&ours)?, read(kernels)?];
            Some((0..2).all(|nth| (before[nth]..=after[nth]).contains(&is[nth])))
        };
        let is_right = (0..CHECKS).all(|_| is_between().unwrap_or(false));
        programs.tell_host_idle(is_right);
        is_right
    }

    /// Makes `files` in our directory. Returns whether readers on the host can be shown its load average.
    fn make_all(&self, files: impl Iterator<Item = &'static str> + Clone) -> Result<bool> {
        let Ok(Counting { programs, .. }) = &self.counting else { return Ok(false) };
        let is_told = files.clone().any(|file| file == "loadavg") && tell_symbols(programs);
        programs.tell_view(match self.view {
            CpuView::Cpuset => view::CPUSET,
            CpuView::Quota => view::QUOTA,
            CpuView::Host => view::HOST,
        });
        if files.clone().any(|file| file == "uptime") {
            programs.keep_idle();
        }
        let is_there = |file: &&str| programs.is_below(file, &self.directory);
        // Whoever made them has looked back, for the same programs.
        if files.clone().all(|file| is_there(&file)) {
            return Ok(is_told);
        }
        self.rooms.look_back()?;
        let failed = |error: Unavailable| {
            Error::because("make files in", &self.directory, Errno::IO, error.to_string())
        };
        if !FILES_BELOW.iter().any(is_there) {
            for file in FILES_BELOW {
                uncover(&self.mount_point, file)?;
            }
            detach(&self.directory)?;
            mount(&self.directory)?;
            programs.pin_counting(&self.directory).map_err(failed)?;
        }
        for file in files.filter(|file| !is_there(file)) {
            programs.pin_below(file, &self.directory).map_err(failed)?;
        }
        Ok(is_told)
    }
}

/// Both numbers of an uptime, in hundredths.
fn parse_uptime(text: &str) -> Option<[u64; 2]> {
    let mut numbers = text.split_whitespace().map(|word| word.replace('.', "").parse().ok());
    Some([numbers.next()??, numbers.next()??])
}

/// Tells the programs where the kernel keeps what readers on the host are shown, if it says.
fn tell_symbols(programs: &Accounting) -> bool {
    let kallsyms = fs::File::open("/proc/kallsyms").map(BufReader::new);
    let lines = kallsyms.into_iter().flat_map(|lines| lines.lines().map_while(Result::ok));
    let symbols = Symbols::parse(lines);
    if let Some(symbols) = symbols {
        programs.tell_symbols(symbols);
    }
    symbols.is_some()
}

impl Rooms {
    /// Tells the programs what only we can know of containers: what those older than they were before, and whose init stands for
    /// one that they have not got.
    fn look_back(&self) -> Result<()> {
        let Some(maps) = &self.maps else { return Ok(()) };
        for container in self.callers.discover()? {
            // It may have ended; and one without a cgroup of its own has nothing of its own to tell.
            if let Err(error) = maps.look_back(&container) {
                tracing::debug!("look back: {error}");
            }
            if !maps.keeps_idle() {
                continue;
            }
            // Idle time is told by whoever makes the page. Not as a reader: its init may be outside of it, if it has none of its own.
            let (source, machine, policy) = self.road.parts();
            let (container, reader) = (&container, Reader::default());
            let view = View { container, source, machine, policy, reader };
            if let Err(error) = files::page(File::Uptime, &view, &mut Vec::new()) {
                tracing::debug!("look back: {error}");
            }
        }
        Ok(())
    }

    /// The same for a reader who asked for it and was told nothing.
    pub(super) fn look_for_unknown(&self) {
        if let Err(error) = self.look_back() {
            tracing::warn!("a reader of a file that the kernel serves is not told: {error}");
        }
        std::thread::sleep(BETWEEN_LOOKS);
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

fn mount(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(|error| Error::std("make", directory, &error))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("lxcfs", directory, BPF, flags, c"mode=0755").map_err(|errno| {
        Error::io("mount a bpffs at", directory, errno).hint("the kernel needs CONFIG_BPF_SYSCALL")
    })
}

/// Puts the file over that of our mount, if it is not there.
fn bind(directory: &Path, mount_point: &Path, file: &str) -> Result<()> {
    let target = mount_point.join(PROC).join(file);
    match kind(&target).as_deref() {
        None => {}
        Some(BPF) => return Ok(()),
        Some(other) => {
            let cause = format!("a file of type {other} is bound there");
            return Err(Error::because("bind over", &target, Errno::BUSY, cause));
        }
    }
    let failed = |errno| Error::io("bind the kernel's file over", &target, errno);
    let source = directory.join(file);
    rustix::mount::mount_bind(&source, &target).map_err(failed)?;
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    rustix::mount::mount_remount(&target, flags, c"").map_err(failed)
}

/// Takes the file off our mount. The way there is through the mount, which has to be served.
fn uncover(mount_point: &Path, file: &str) -> Result<()> {
    detach(&mount_point.join(PROC).join(file))
}

/// Takes the bpffs away. What is bound of it goes with our mount; who was given the file has it still.
pub(super) fn take_down(runtime_dir: &Path, mount_point: &Path) {
    let directory = places::pins(runtime_dir, mount_point);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uptime_is_two_numbers() {
        assert_eq!(parse_uptime("51019.07 36627.49\n"), Some([5_101_907, 3_662_749]));
        for text in ["", "\n", "51019.07\n", "x 1.00\n", "1.00 -1.00\n"] {
            assert_eq!(parse_uptime(text), None, "{text}");
        }
    }
}
