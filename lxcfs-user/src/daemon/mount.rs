//! Mounting and unmounting, by our own system calls: no helper program, and the filesystem type LXCFS has.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::{Errno, Error, Result};

const DEVICE: &str = "/dev/fuse";
const FILESYSTEM: &str = "fuse.lxcfs";

/// As many links in a row as the kernel follows.
const LONGEST_CHAIN: usize = 40;

/// Options of libfuse that change nothing here, because each is always or never so.
const IGNORED: [&str; 13] = [
    "allow_other",
    "allow_root",
    "auto_unmount",
    "big_writes",
    "default_permissions",
    "direct_io",
    "hard_remove",
    "intr",
    "kernel_cache",
    "nonempty",
    "entry_timeout",
    "attr_timeout",
    "fsname",
];

/// A mount of ours. Dropping it leaves it mounted: a mount outlives more than it should die of.
#[derive(Debug)]
pub(super) struct Mount {
    point: PathBuf,
}

impl Mount {
    /// Mounts at `point` and returns the device the requests come from.
    ///
    /// A mount there whose daemon has died is taken away first.
    ///
    /// # Errors
    /// No directory to mount at, something alive mounted there, no `/dev/fuse`, or no permission.
    pub(super) fn new(point: &Path, options: &[String]) -> Result<(Self, OwnedFd)> {
        let flags = parse_options(options)?;
        clear_dead(point)?;
        let point = point.canonicalize().map_err(|error| {
            Error::std("mount at", point, &error).hint("make the directory first: mkdir -p")
        })?;
        if !point.is_dir() {
            return Err(Error::io("mount at", &point, Errno::NOTDIR));
        }
        if mounted(&point).is_some_and(|mounted| mounted.kind == FILESYSTEM) {
            let cause = "another lxcfs is mounted there";
            return Err(Error::because("mount at", &point, Errno::BUSY, cause)
                .hint("stop it, or mount somewhere else"));
        }
        let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| {
                Error::io("open", DEVICE, errno)
                    .hint("the kernel needs FUSE (modprobe fuse), a container needs the device")
            })?;
        // Not default_permissions: permissions are checked in `fs`, which says why.
        let data =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let data = CString::new(data).unwrap_or_default();
        rustix::mount::mount("lxcfs", &point, FILESYSTEM, flags, data.as_c_str()).map_err(
            |errno| {
                let error = Error::io("mount at", &point, errno);
                if errno == Errno::PERM { error.hint("run as root (CAP_SYS_ADMIN)") } else { error }
            },
        )?;
        Ok((Self { point }, device))
    }

    /// A mount of ours that is there already.
    pub(super) const fn existing(point: PathBuf) -> Self {
        Self { point }
    }

    /// The kernel's device number of what is mounted there.
    pub(super) fn device_number(&self) -> Option<u64> {
        mounted(&self.point).map(|mounted| mounted.device)
    }

    /// Where it is mounted.
    pub(super) fn point(&self) -> &Path {
        &self.point
    }

    /// Unmounts. Where files are still open it disappears now and ends with the last of them.
    ///
    /// # Errors
    /// Nothing is mounted there any more, or not by us.
    pub(super) fn unmount(&self) -> Result<()> {
        match rustix::mount::unmount(&self.point, UnmountFlags::empty()) {
            Err(Errno::BUSY) => rustix::mount::unmount(&self.point, UnmountFlags::DETACH),
            done => done,
        }
        .map_err(|errno| Error::io("unmount", &self.point, errno))
    }
}

/// Takes away mounts at `point` whose daemon is dead: whatever looks at them is told `ENOTCONN`.
fn clear_dead(point: &Path) -> Result<()> {
    let is_dead = || {
        let stat = rustix::fs::stat(point);
        matches!(stat, Err(Errno::NOTCONN | Errno::CONNABORTED))
    };
    while is_dead() {
        rustix::mount::unmount(point, UnmountFlags::DETACH)
            .map_err(|errno| Error::io("unmount the dead mount at", point, errno))?;
        tracing::info!("took away a mount at {} whose daemon had died", point.display());
    }
    Ok(())
}

/// The path of a mount point without links, found without a look at what is mounted there: nobody may serve it now.
pub(super) fn resolve(point: &Path) -> PathBuf {
    let mut path = point.to_owned();
    for _ in 0..LONGEST_CHAIN {
        let parent = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return path,
        };
        let (Ok(parent), Some(name)) = (parent.canonicalize(), path.file_name()) else {
            return path;
        };
        let resolved = parent.join(name);
        match std::fs::read_link(&resolved) {
            Ok(target) => path = parent.join(target),
            Err(_) => return resolved,
        }
    }
    path
}

/// What is mounted at a place.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    device: u64,
    kind: String,
}

/// The type of what is mounted at `point` and nowhere above it.
pub(super) fn kind(point: &Path) -> Option<String> {
    mounted(point).map(|mounted| mounted.kind)
}

/// What is mounted at `point` and nowhere above it.
fn mounted(point: &Path) -> Option<Mounted> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let escaped = point.to_str()?.replace(' ', "\\040");
    let mut all = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(2);
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
        let kind = filesystem.split(' ').next().unwrap_or_default().to_owned();
        (fields.nth(1)? == escaped).then_some(Mounted { device, kind })
    });
    // The last line of a place is what is on top.
    all.next_back()
}

fn parse_options(options: &[String]) -> Result<MountFlags> {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for option in options.iter().filter(|option| !option.is_empty()) {
        match option.as_str() {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" => flags -= MountFlags::RDONLY,
            "suid" => flags -= MountFlags::NOSUID,
            "nosuid" => flags |= MountFlags::NOSUID,
            "dev" => flags -= MountFlags::NODEV,
            "nodev" => flags |= MountFlags::NODEV,
            "exec" => flags -= MountFlags::NOEXEC,
            "noexec" => flags |= MountFlags::NOEXEC,
            "atime" => flags -= MountFlags::NOATIME,
            "noatime" => flags |= MountFlags::NOATIME,
            other if IGNORED.contains(&other.split('=').next().unwrap_or_default()) => {
                tracing::debug!("mount option {other} is always decided the same way");
            }
            other => {
                return Err(Error::because("use mount option", other, Errno::INVAL, "unknown")
                    .hint("see -o in lxcfs --help"));
            }
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &str) -> Result<MountFlags> {
        parse_options(&options.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_add_up_and_unknown_ones_are_refused() {
        let plain = parsed("allow_other,entry_timeout=0.5,nonempty,").unwrap();
        assert_eq!(plain, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC);
        assert!(parsed("ro,exec").unwrap().contains(MountFlags::RDONLY));
        assert!(!parsed("ro,exec").unwrap().contains(MountFlags::NOEXEC));
        let error = parsed("allow_othr").unwrap_err().to_string();
        assert_eq!(error, "use mount option allow_othr: unknown (see -o in lxcfs --help)");
    }

    #[test]
    fn a_mount_point_is_resolved_like_any_path() {
        for path in ["/proc", "/proc/self", "/dev/fd", "src", "/"] {
            let ours = resolve(Path::new(path));
            assert_eq!(ours, Path::new(path).canonicalize().unwrap(), "{path}");
        }
        assert_eq!(resolve(Path::new("/nonexistent/x")), Path::new("/nonexistent/x"));
    }

    #[test]
    fn the_type_of_a_mount_is_that_of_its_own_place() {
        let proc = mounted(Path::new("/proc")).unwrap();
        assert_eq!(proc.kind, "proc");
        assert_eq!(proc.device, rustix::fs::stat("/proc").unwrap().st_dev);
        assert_eq!(mounted(Path::new("/proc/self")), None);
    }
}
