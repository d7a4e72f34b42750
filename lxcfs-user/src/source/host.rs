//! The machine itself: `/proc`, `/sys`, the clock.
//!
//! Files are opened once, before we mount, and read by position from then on. Nothing mounted later over `/proc` (our
//! own files, most likely) can make a request wait for itself.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};

use nix::sys::personality::{self, Persona};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::time::ClockId;

use super::sheet::Sheet;
use super::trigger::PressureFile;
use super::{Machine, Text};
use crate::error::{Errno, Error, Result};
use crate::model::file::{File, Resource};
use crate::model::lock::lock;
use crate::model::topology::Tree;

/// The personality of a 32-bit program on a 64-bit kernel.
const PER_LINUX32: i32 = 8;

/// Whether cpuinfo is another one for a program with the personality of a 32-bit one: on arm64 it is.
pub const CPUINFO_GOES_BY_READER: bool = cfg!(target_arch = "aarch64");

/// The host's files by descriptor.
#[derive(Debug)]
pub struct Host {
    /// A `/proc` of our own pid namespace that nothing can be mounted over.
    proc: OwnedFd,
    /// A `/sys` likewise.
    sys: OwnedFd,
    /// The directories of `/sys/devices/system`, in the order of [`Tree::ALL`].
    trees: [Option<OwnedFd>; Tree::ALL.len()],
    /// Kept descriptors in the order of [`File::ALL`]; `Err` is why the machine has no such file.
    files: Vec<Result<OwnedFd, Errno>>,
    /// What was last read of each, and when.
    recent: [Mutex<Recent>; File::ALL.len()],
}

/// A file as it was at a moment, nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Default)]
struct Recent {
    at_ns: u64,
    text: Text,
}

/// How long a file is as good as new: a tick of `USER_HZ`, the unit of the times in it.
const RECENT_NS: u64 = 10_000_000;

impl Host {
    /// Opens everything.
    ///
    /// # Errors
    /// `/proc` or `/sys` is not there. A single file that is missing is an error when it is read.
    pub fn open() -> Result<Self> {
        let proc = open_tree("proc", "/proc")?;
        let sys = open_tree("sysfs", "/sys")?;
        let files = File::ALL
            .iter()
            .map(|&file| open_usual(&proc, &sys, file.path(), OFlags::RDONLY))
            .collect();
        let trees = Tree::ALL.map(|tree| {
            let path = format!("sys/devices/system/{}", tree.name());
            open_usual(&proc, &sys, &path, OFlags::PATH | OFlags::DIRECTORY).ok()
        });
        Ok(Self { proc, sys, trees, files, recent: Default::default() })
    }

    /// The host's `/proc`, for looking up processes.
    #[must_use]
    pub const fn proc(&self) -> &OwnedFd {
        &self.proc
    }

    /// The host's `/sys`.
    #[must_use]
    pub const fn sys(&self) -> &OwnedFd {
        &self.sys
    }

    /// The directory `/sys/devices/system/cpu` or `node`; `None` where the machine has none.
    #[must_use]
    pub fn tree(&self, tree: Tree) -> Option<&OwnedFd> {
        self.trees.get(tree as usize)?.as_ref()
    }

    /// The permissions of the host's `file`; `None` where this machine has no such file.
    #[must_use]
    pub fn mode(&self, file: File) -> Option<u32> {
        let fd = self.files[slot(file)].as_ref().ok()?;
        Some(rustix::fs::fstat(fd).ok()?.st_mode & 0o777)
    }

    /// Opens the host's `file` anew: what is kept is for reading, and shared.
    ///
    /// # Errors
    /// The errno of opening it.
    pub(super) fn reopen(&self, file: File, flags: OFlags) -> Result<OwnedFd, Errno> {
        let kept = self.files[slot(file)].as_ref().map_err(|errno| *errno)?;
        self.reopen_kept(kept, flags)
    }

    /// The file behind `fd`, opened anew.
    fn reopen_kept(&self, fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = format!("self/fd/{}", fd.as_raw_fd());
        rustix::fs::openat(&self.proc, path, flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// Appends `/proc/<path>` to `text`.
    ///
    /// # Errors
    /// The errno of opening or reading it.
    pub fn read_proc(&self, path: &str, text: &mut Vec<u8>) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.proc, path, flags, Mode::empty())?;
        read_whole(&fd, text)
    }
}

impl Machine for Host {
    fn read(&self, file: File, text: &mut Vec<u8>) -> Result<()> {
        let read = match &self.files[slot(file)] {
            Ok(fd) if is_long(file) => {
                self.reopen_kept(fd, OFlags::RDONLY).and_then(|fd| read_whole(&fd, text))
            }
            Ok(fd) if file == File::Swaps => read_whole(fd, text),
            Ok(fd) => read_piece(fd, |piece| text.extend_from_slice(piece)),
            Err(errno) => Err(*errno),
        };
        read.map_err(|errno| Error::io("read", full_path(file), errno))
    }

    fn read_cpuinfo(&self, is_32bit: bool, text: &mut Vec<u8>) -> Result<()> {
        // The kernel goes by the personality of the thread that reads, which is ours.
        let _as_reader = is_32bit.then(Personality::of_32bit);
        self.read(File::Cpuinfo, text)
    }

    fn read_recent(&self, file: File) -> Result<Text> {
        // The clock of the kernel's own ticks: coarse enough, and read without a system call everywhere.
        let now_ns = clock_ns(ClockId::MonotonicCoarse);
        let recent = &self.recent[slot(file)];
        {
            let recent = lock(recent);
            if !recent.text.is_empty() && now_ns.saturating_sub(recent.at_ns) < RECENT_NS {
                return Ok(Arc::clone(&recent.text));
            }
        }
        let mut text = Vec::with_capacity(STEP);
        self.read(file, &mut text)?;
        let text = Text::new(Sheet::new(text));
        let mut recent = lock(recent);
        // Of two readers at once the later one may have been here first.
        if now_ns >= recent.at_ns {
            *recent = Recent { at_ns: now_ns, text: Arc::clone(&text) };
        }
        Ok(text)
    }

    fn read_sys(&self, path: &str, text: &mut Vec<u8>) -> Result<()> {
        let below = Tree::ALL.into_iter().find_map(|tree| {
            let below = path.strip_prefix("sys/devices/system/")?.strip_prefix(tree.name())?;
            Some((self.tree(tree)?, below.strip_prefix('/')?))
        });
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        // A CPU's cpufreq is a link to its policy, in the same tree.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        below
            .ok_or(Errno::NOENT)
            .and_then(|(tree, below)| {
                rustix::fs::openat2(tree, below, flags, Mode::empty(), resolve)
            })
            .and_then(|fd| match rustix::fs::fstat(&fd)?.st_mode & 0o004 {
                // We may read what the reader may not: for root alone is for nobody.
                0 => Err(Errno::NOENT),
                _ => read_whole(&fd, text),
            })
            .map_err(|errno| Error::io("read", format!("/{path}"), errno))
    }

    fn boottime_ns(&self) -> u64 {
        clock_ns(ClockId::Boottime)
    }

    fn page_bytes(&self) -> u64 {
        rustix::param::page_size() as u64
    }

    fn ticks_per_second(&self) -> u64 {
        static TICKS: OnceLock<u64> = OnceLock::new();
        *TICKS.get_or_init(rustix::param::clock_ticks_per_second)
    }

    fn pressure_file(&self, resource: Resource) -> Result<PressureFile> {
        let file = File::Pressure(resource);
        let opened = self.reopen(file, OFlags::RDWR);
        let failed = |errno| Error::io("open", full_path(file), errno);
        opened.map(|fd| PressureFile::new(fd, full_path(file).into())).map_err(failed)
    }
}

/// Whether the kernel makes the file in pieces. Between two readers of one descriptor it would make everything up to each
/// piece anew, and if a line has become longer meanwhile, cut it wrongly.
const fn is_long(file: File) -> bool {
    matches!(file, File::Cpuinfo | File::Diskstats | File::Slabinfo | File::Vmstat)
}

/// The calling thread's personality, until it is dropped.
struct Personality(Option<Persona>);

impl Personality {
    /// `PER_LINUX32` of personality(2).
    fn of_32bit() -> Self {
        // Where it is refused, the reader gets the text for a 64-bit program.
        Self(personality::set(Persona::from_bits_retain(PER_LINUX32)).ok())
    }
}

impl Drop for Personality {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            let _ = personality::set(before);
        }
    }
}

/// Nanoseconds of `clock`, which never reads negative for the clocks we use.
#[must_use]
pub fn clock_ns(clock: ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Where [`Host::files`] has `file`.
fn slot(file: File) -> usize {
    File::ALL.iter().position(|&known| known == file).unwrap_or_default()
}

/// The file's path on the host.
fn full_path(file: File) -> String {
    format!("/{}", file.path())
}

/// A new instance of `kind`, mounted nowhere; where that is not allowed (in a container), the one at `path`.
fn open_tree(kind: &str, path: &str) -> Result<OwnedFd> {
    let detached = || {
        let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    detached()
        .or_else(|_: Errno| rustix::fs::open(path, flags, Mode::empty()))
        .map_err(|errno| Error::io("open", path, errno))
}

/// Opens a host file or directory to keep; `path` is below `/`.
///
/// What is at its usual place wins if another filesystem is mounted there: in a container that is the outer lxcfs,
/// whose view is the machine we live on.
fn open_usual(proc: &OwnedFd, sys: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    let (tree, below) = match path.strip_prefix("proc/") {
        Some(below) => (proc, below),
        None => (sys, path.trim_start_matches("sys/")),
    };
    if let Ok(fd) = rustix::fs::open(format!("/{path}"), flags, Mode::empty()) {
        let kind = rustix::fs::fstatfs(&fd)?.f_type;
        if kind != rustix::fs::fstatfs(tree)?.f_type {
            return Ok(fd);
        }
    }
    rustix::fs::openat(tree, below, flags, Mode::empty())
}

/// The kernel renders at most a page at a time for most files; more room saves a call on the long ones.
const STEP: usize = 8 << 10;

/// What nearly every file that is made in one piece fits in, bytes.
const PIECE: usize = 4 << 10;

/// Appends everything from the start of the file to `text`, by position: the descriptor can be shared.
pub(crate) fn read_whole(fd: &OwnedFd, text: &mut Vec<u8>) -> Result<(), Errno> {
    let start = text.len();
    read_on(fd, start, text)
}

/// Gives `take` the content of a file that the kernel makes in one piece (`single_open`, and every cgroup file that is no
/// list): what does not fill the room is all there is, and no second call has to ask whether there is more.
///
/// The room is the stack's: most such files are a line, and memory for it would take longer than reading it.
pub(crate) fn read_piece<T>(fd: &OwnedFd, take: impl FnOnce(&[u8]) -> T) -> Result<T, Errno> {
    let mut room = [MaybeUninit::uninit(); PIECE];
    let (piece, left) = rustix::io::pread(fd, &mut room[..], 0)?;
    if !left.is_empty() {
        return Ok(take(piece));
    }
    let mut text = piece.to_vec();
    read_on(fd, 0, &mut text)?;
    Ok(take(&text))
}

/// Appends the rest of a file of which `text` has what lies behind `start`.
fn read_on(fd: &OwnedFd, start: usize, text: &mut Vec<u8>) -> Result<(), Errno> {
    /// No file of the kernel comes near; a file that does is not one of the kernel's.
    const MOST: usize = 64 << 20;

    loop {
        text.reserve(STEP);
        let offset = (text.len() - start) as u64;
        match rustix::io::pread(fd, rustix::buffer::spare_capacity(text), offset) {
            Ok(0) => return Ok(()),
            Ok(_) if text.len() - start > MOST => return Err(Errno::FBIG),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                text.truncate(start);
                return Err(errno);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_personality_lasts_as_long_as_the_reading() {
        let own = || std::fs::read_to_string("/proc/thread-self/personality").unwrap();
        let before = own();
        {
            let _as_reader = Personality::of_32bit();
            assert_eq!(own(), "00000008\n");
        }
        assert_eq!(own(), before);
        let (mut text, mut again) = (Vec::new(), Vec::new());
        Host::open().unwrap().read_cpuinfo(true, &mut text).unwrap();
        Host::open().unwrap().read_cpuinfo(false, &mut again).unwrap();
        assert!(text.starts_with(&again[..9]), "{}", String::from_utf8_lossy(&text));
        assert_eq!(own(), before);
    }

    #[test]
    fn the_live_host_can_be_read_twice_from_one_descriptor() {
        let host = Host::open().unwrap();
        for _ in 0..2 {
            let mut text = Vec::new();
            host.read(File::Meminfo, &mut text).unwrap();
            assert!(text.starts_with(b"MemTotal:"), "{}", String::from_utf8_lossy(&text));
            host.read(File::Uptime, &mut text).unwrap();
        }
        assert!(host.boottime_ns() > 0);
    }
}
