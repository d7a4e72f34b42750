//! The filesystem as system calls see it: errnos, modes, listings, and reads of any shape.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lxcfs::model::file::File as Served;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::Container;
use lxcfs_tests::mount::Daemon;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{Mode, mknod};
use nix::unistd::{Gid, Uid, chown, ftruncate, truncate};

/// Something to try on a directory and a file name in it.
type Attempt = (&'static str, fn(&Path, &str) -> std::io::Result<()>);

/// What changes nothing on the kernel's own files and must be answered the same on ours.
const ATTEMPTS: [Attempt; 16] = [
    ("write", |dir, file| File::options().write(true).open(dir.join(file))?.write_all(b"1")),
    ("append", |dir, file| File::options().append(true).open(dir.join(file))?.write_all(b"1")),
    ("open for reading and writing", |dir, file| {
        File::options().read(true).write(true).open(dir.join(file)).map(drop)
    }),
    ("open and truncate", |dir, file| {
        File::options().write(true).truncate(true).open(dir.join(file)).map(drop)
    }),
    ("truncate", |dir, file| Ok(truncate(&dir.join(file), 0)?)),
    ("ftruncate", |dir, file| {
        let file = File::options().write(true).open(dir.join(file))?;
        Ok(ftruncate(&file, 0)?)
    }),
    ("open a directory", |dir, _| File::options().write(true).open(dir).map(drop)),
    ("create", |dir, _| File::create_new(dir.join("lxcfs-new")).map(drop)),
    ("mkdir", |dir, _| fs::create_dir(dir.join("lxcfs-new"))),
    ("mknod", |dir, _| {
        let fifo = nix::sys::stat::SFlag::S_IFIFO;
        Ok(mknod(&dir.join("lxcfs-new"), fifo, Mode::S_IRUSR, 0)?)
    }),
    ("symlink", |dir, _| symlink("target", dir.join("lxcfs-new"))),
    ("link", |dir, file| fs::hard_link(dir.join(file), dir.join("lxcfs-new"))),
    ("unlink", |dir, file| fs::remove_file(dir.join(file))),
    ("rmdir", |dir, file| fs::remove_dir(dir.join(file))),
    ("rename", |dir, file| fs::rename(dir.join(file), dir.join("lxcfs-new"))),
    ("look at what is not there", |dir, _| fs::metadata(dir.join("lxcfs-new")).map(drop)),
];

/// The errno of each attempt is the kernel's own for its own file of that name.
#[test]
fn what_cannot_be_done_has_the_kernels_errno() -> Result<()> {
    let daemon = Daemon::start()?;
    let files = ["proc/meminfo", "proc/stat", "proc/slabinfo", "sys/devices/system/cpu/online"];
    for path in files.into_iter().chain(["sys/devices/system/cpu/possible"]) {
        let path = Path::new(path);
        let directory = path.parent().context("a file has a directory")?;
        let name = path.file_name().and_then(|name| name.to_str()).context("a file has a name")?;
        for (what, attempt) in ATTEMPTS {
            let errno = |root: PathBuf| {
                attempt(&root.join(directory), name).err().and_then(|error| error.raw_os_error())
            };
            let (ours, kernels) = (errno(daemon.mount_point()), errno("/".into()));
            ensure!(ours == kernels, "{what} {}: {ours:?}, kernel {kernels:?}", path.display());
        }
    }
    Ok(())
}

/// Nothing of the host's can be changed through us, although the host's file could be.
#[test]
fn ask_629_nothing_can_be_changed() -> Result<()> {
    let daemon = Daemon::start()?;
    let uevent = daemon.path("sys/devices/system/cpu/cpu0/uevent");
    let opened = OpenOptions::new().write(true).open(&uevent);
    ensure!(opened.err().and_then(|error| error.raw_os_error()) == Some(libc_errno("EACCES")));
    for file in ["proc/meminfo", "sys/devices/system/cpu/possible"] {
        let path = daemon.path(file);
        let mode = fs::set_permissions(&path, PermissionsExt::from_mode(0o777));
        ensure!(mode.err().and_then(|error| error.raw_os_error()) == Some(libc_errno("EPERM")));
        ensure!(chown(&path, Some(Uid::from_raw(1)), Some(Gid::from_raw(1))).is_err());
    }
    Ok(())
}

fn libc_errno(name: &str) -> i32 {
    match name {
        "EPERM" => Errno::EPERM as i32,
        _ => Errno::EACCES as i32,
    }
}

/// What tells about the host's doings, or is there to be written to, is left out.
fn is_served(name: &str) -> bool {
    const LEFT_OUT: [&str; 16] = [
        "compact",
        "cpufreq",
        "cpuidle",
        "crash_hotplug",
        "crash_notes",
        "crash_notes_size",
        "driver",
        "firmware_node",
        "hotplug",
        "hugepages",
        "microcode",
        "numastat",
        "power",
        "reclaim",
        "thermal_throttle",
        "x86",
    ];
    !LEFT_OUT.contains(&name) && name != "vmstat" && !name.starts_with("memory")
}

/// Names, kinds and modes are the host's; sizes are those of a notional file: whole, and no more than a block.
#[test]
fn ask_469_522_525_the_tree_looks_like_the_hosts() -> Result<()> {
    let daemon = Daemon::start()?;
    for file in Served::ALL {
        let ours = fs::metadata(daemon.path(file.path()))?;
        let host = fs::metadata(Path::new("/").join(file.path()))?;
        ensure!(ours.mode() == host.mode(), "{file:?} has mode {:o}", ours.mode());
        ensure!(ours.uid() == 0 && ours.is_file(), "{file:?}");
        let page = fs::read(daemon.path(file.path()))?.len() as u64;
        ensure!(ours.len() >= page && ours.len() <= ours.blksize(), "{file:?}: {}", ours.len());
    }
    let trees = ["sys/devices/system/cpu", "sys/devices/system/node"].map(PathBuf::from);
    let mut directories: Vec<_> =
        trees.into_iter().filter(|tree| Path::new("/").join(tree).exists()).collect();
    let mut compared = 0;
    while let Some(directory) = directories.pop() {
        let host = Path::new("/").join(&directory);
        let names = |path: PathBuf| -> Result<Vec<_>> {
            let entries = fs::read_dir(path)?.map(|entry| {
                let entry = entry?;
                Ok((
                    entry.file_name(),
                    entry.file_type()?.is_dir(),
                    entry.file_type()?.is_symlink(),
                ))
            });
            let mut names = entries.collect::<Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        };
        let ours = names(daemon.mount_point().join(&directory))?;
        let mut hosts = names(host)?;
        hosts.retain(|(name, ..)| name.to_str().is_some_and(is_served));
        ensure!(ours == hosts, "{}: {ours:?} {hosts:?}", directory.display());
        for (name, is_directory, _) in ours {
            compared += 1;
            if is_directory {
                directories.push(directory.join(name));
            }
        }
    }
    ensure!(compared > 20, "only {compared} names");
    let target = fs::read_link(daemon.path("sys/devices/system/cpu/cpu0/subsystem"))?;
    ensure!(target == fs::read_link("/sys/devices/system/cpu/cpu0/subsystem")?);
    nix::sys::statvfs::statvfs(&daemon.mount_point()).context("statfs")?;
    Ok(())
}

/// One page for one reading, however it is cut; a new one at the start; the end is the end.
#[test]
fn w08_a_reading_is_of_one_page() -> Result<()> {
    let daemon = Daemon::start()?;
    let mut file = File::open(daemon.path("proc/stat"))?;
    let mut whole = Vec::new();
    let mut byte = [0];
    while file.read(&mut byte)? == 1 {
        whole.push(byte[0]);
        // Other readers make other pages in between.
        if whole.len() % 64 == 0 {
            fs::read(daemon.path("proc/stat"))?;
        }
    }
    let mut again = vec![0; whole.len()];
    file.read_exact_at(&mut again[7..], 7)?;
    ensure!(again[7..] == whole[7..], "a read in the middle is of the same page");
    ensure!(file.read_at(&mut byte, 1 << 40)? == 0, "far behind the end is the end");
    file.seek(SeekFrom::Start(0))?;
    let mut fresh = Vec::new();
    file.read_to_end(&mut fresh)?;
    ensure!(fresh.starts_with(b"cpu ") && fresh != whole, "a new start is a new page");
    let first = File::open(daemon.path("proc/meminfo"))?;
    ensure!(first.read_at(&mut byte, 3)? == 1, "a first read in the middle finds something");
    Ok(())
}

/// Pressure files open for reading and writing, as those who set triggers open them; other users are told no.
#[test]
fn w07_modes_decide_who_may_open() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("modes")?;
    let read_write = |file: &str| File::options().read(true).write(true).open(daemon.path(file));
    read_write("proc/pressure/memory").context("open pressure for reading and writing")?;
    let flags = OFlag::O_NONBLOCK.bits();
    File::options().read(true).custom_flags(flags).open(daemon.path("proc/stat"))?;
    fs::set_permissions(daemon.directory(), PermissionsExt::from_mode(0o755))?;
    let script = format!(
        "cat {0} > /dev/null && setpriv --reuid 4321 --clear-groups cat {1} > /dev/null && \
         ! setpriv --reuid 4321 --clear-groups cat {0}",
        daemon.path("proc/slabinfo").display(),
        daemon.path("proc/meminfo").display()
    );
    Container::new(&cgroup).sh(&script)?;
    let access = nix::unistd::faccessat(
        AT_FDCWD,
        &daemon.path("proc/meminfo"),
        nix::unistd::AccessFlags::X_OK,
        nix::fcntl::AtFlags::empty(),
    );
    ensure!(access.is_err(), "nothing is executable");
    Ok(())
}

/// Programs read in many ways: by size, to the end, from the end, by sendfile(2). All of them must get the page.
#[test]
fn every_way_of_reading_gets_the_page() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("ways")?;
    cgroup.limit_memory(128 << 20)?;
    let meminfo = daemon.path("proc/meminfo").display().to_string();
    let cpuinfo = daemon.path("proc/cpuinfo").display().to_string();
    let copy = daemon.directory().join("copy").display().to_string();
    let script = format!(
        "set -e; cat {cpuinfo} > {copy}.want; \
         busybox cat {cpuinfo} | cmp - {copy}.want; \
         cp {cpuinfo} {copy} && cmp {copy} {copy}.want; \
         dd if={cpuinfo} status=none | cmp - {copy}.want; \
         head -c 100000 {cpuinfo} | cmp - {copy}.want; \
         grep -c . {cpuinfo} > /dev/null; \
         test $(wc -c < {cpuinfo}) = $(wc -c < {copy}.want); \
         test $(wc -c {cpuinfo} | cut -d' ' -f1) = $(wc -c < {copy}.want); \
         tail -n 3 {cpuinfo} > {copy} && tail -n 3 {copy}.want | cmp - {copy}; \
         tac {cpuinfo} | tac | cmp - {copy}.want; \
         awk '/MemTotal/ {{ print $2 }}' {meminfo}; busybox head -n 1 {meminfo}"
    );
    let text = Container::new(&cgroup).sh(&script)?;
    ensure!(text.starts_with("131072\nMemTotal:         131072 kB\n"), "{text}");
    let mut file = File::open(&meminfo)?;
    let end = file.seek(SeekFrom::End(0)).err().and_then(|error| error.raw_os_error());
    ensure!(end == Some(Errno::EINVAL as i32), "as in procfs: {end:?}");
    Ok(())
}

/// What sendfile(2) and a mapping would read comes from a cache that all containers share: never through us.
#[test]
fn the_shared_page_cache_is_never_filled() -> Result<()> {
    let daemon = Daemon::start()?;
    let file = File::open(daemon.path("proc/meminfo"))?;
    let (_reader, writer) = nix::unistd::pipe()?;
    // Before 6.5 it reads as read(2) does; since then it would fill the cache, and is refused. Newer kernels make EIO of
    // any refusal.
    match nix::sys::sendfile::sendfile(&writer, &file, None, 4_096) {
        Ok(sent) => ensure!(sent > 0, "sendfile found an empty file"),
        Err(errno) => ensure!(matches!(errno, Errno::EINVAL | Errno::EIO), "{errno}"),
    }
    let cached = Command::new("python3")
        .arg("-c")
        .arg("import mmap, sys; f = open(sys.argv[1]); mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)")
        .arg(daemon.path("proc/meminfo"))
        .output()?;
    ensure!(!cached.status.success(), "a mapping was made");
    Ok(())
}

/// Random reads of every file from several threads: offsets, sizes, seeks, all at once. `LXCFS_TEST_READS` says how many
/// for each file.
#[test]
fn reads_of_any_shape_never_fail() -> Result<()> {
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let reads: u64 =
        std::env::var("LXCFS_TEST_READS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    let cgroup = Cgroup::new("reads")?;
    cgroup.limit_memory(256 << 20)?;
    let reader = lxcfs_tests::program("hammer").display().to_string();
    let files = Served::ALL.map(|file| daemon.path(file.path()).display().to_string());
    let mut command = vec![reader, reads.to_string()];
    command.extend(files);
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    for container in [Container::new(&cgroup), Container::in_root_cgroup()?] {
        let text = lxcfs_tests::printed("hammer", container.run(&command)?)?;
        ensure!(text.contains(&format!("{} reads", reads * Served::ALL.len() as u64)), "{text}");
    }
    Ok(())
}
