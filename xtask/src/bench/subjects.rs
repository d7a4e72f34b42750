//! The filesystems that are compared: each a daemon on a mount point of its own.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where all of them are mounted. A fixed place: what a run that was killed has left is found by the next one.
const BASE: &str = "/run/lxcfs-bench";

/// Long enough to load the programs on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name of the floor.
pub(super) const FLOOR: &str = "null";
/// Our own name.
pub(super) const OURS: &str = "lxcfs";
/// The name of Debian's.
pub(super) const DEBIAN: &str = "debian";
/// The name of the kernel's own files, which no daemon serves.
pub(super) const KERNEL: &str = "kernel";

/// The name of our files that no daemon serves either.
pub(super) const BELOW: &str = "below";

/// Those there are.
pub(super) const BELOW_FILES: [&str; 2] = ["proc/loadavg", "proc/uptime"];

/// A daemon that runs. Dropping it ends it and takes its mount away.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) name: String,
    point: PathBuf,
    child: Child,
}

impl Subject {
    /// Starts the null filesystem.
    pub(super) fn floor() -> Result<Self> {
        let mut command = daemon(&program("nullfs"));
        let point = place(FLOOR)?;
        command.arg(&point);
        Self::start(FLOOR, point, command, FLOOR)
    }

    /// Starts ours, with further `options`.
    pub(super) fn ours(options: &[&str]) -> Result<Self> {
        let point = place(OURS)?;
        let runtime = Path::new(BASE).join("run");
        fs::create_dir_all(&runtime)?;
        let mut command = daemon(&program("lxcfs"));
        command.arg("--runtime-dir").arg(runtime).args(options).arg(&point);
        Self::start(OURS, point, command, "proc/uptime")
    }

    /// Starts a program with the command line of LXCFS. `libraries` is where its own library is.
    pub(super) fn like_lxcfs(name: &str, program: &Path, libraries: Option<&Path>) -> Result<Self> {
        let mode = fs::metadata(program).with_context(|| program.display().to_string())?;
        let can_run = mode.is_file() && mode.permissions().mode() & 0o111 != 0;
        ensure!(can_run, "{} cannot be executed", program.display());
        let point = place(name)?;
        let mut command = daemon(program);
        command.arg("-f").arg("-p").arg(Path::new(BASE).join(format!("{name}.pid"))).arg(&point);
        if let Some(libraries) = libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        Self::start(name, point, command, "proc/uptime")
    }

    fn start(name: &str, point: PathBuf, mut command: Command, ready: &str) -> Result<Self> {
        let log = Path::new(BASE).join(format!("{name}.log"));
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        let mut subject = Self { name: name.to_owned(), point, child };
        let deadline = Instant::now() + PATIENCE;
        while fs::read(subject.point.join(ready)).is_err() {
            let ended = subject.ended();
            if ended.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(&log).unwrap_or_default();
                let last = said.lines().last().unwrap_or("nothing").to_owned();
                let how = ended.unwrap_or_else(|| "does not come to serve".to_owned());
                bail!("{name} {how}; it said: {last}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(subject)
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("has ended ({status})"))
    }

    /// Its pid.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where `file` (`proc/stat`) is to be read, if it has that file.
    pub(super) fn path(&self, file: &str) -> Option<PathBuf> {
        let path = self.point.join(if self.name == FLOOR { FLOOR } else { file });
        path.exists().then_some(path)
    }

    /// The files it has below `proc`, and `cpu/online`.
    pub(super) fn files(&self) -> Result<Vec<String>> {
        let mut files = Vec::new();
        let mut folders = vec!["proc".to_owned()];
        while let Some(folder) = folders.pop() {
            let list = fs::read_dir(self.point.join(&folder)).with_context(|| folder.clone())?;
            for entry in list.flatten() {
                let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
                let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if is_folder { folders.push(path) } else { files.push(path) }
            }
        }
        files.sort_unstable();
        files.push("sys/devices/system/cpu/online".to_owned());
        Ok(files)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if self.ended().is_none() {
            if let Ok(pid) = i32::try_from(self.child.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let deadline = Instant::now() + Duration::from_secs(5);
            while self.ended().is_none() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // A daemon that crashed has left its mount.
        let _ = umount2(&self.point, MntFlags::MNT_DETACH);
    }
}

/// One of our programs as it is shipped, and not as `xtask` itself is built.
pub(super) fn program(name: &str) -> PathBuf {
    let debug = lxcfs_tests::program(name);
    debug
        .parent()
        .and_then(Path::parent)
        .map_or(debug.clone(), |target| target.join("release").join(name))
}

/// Our file below FUSE, if there is one.
pub(super) fn below(file: &str) -> Option<PathBuf> {
    let name = format!("{BASE}/{OURS}").trim_matches('/').replace('/', "-");
    let pins = Path::new(BASE).join("run/lxcfs").join(format!("{name}.bpf"));
    let pinned = pins.join(Path::new(file).file_name()?);
    (BELOW_FILES.contains(&file) && pinned.exists()).then_some(pinned)
}

/// Waits for the files below FUSE to be made, and takes them off our mount: both ways are to be measured.
pub(super) fn uncover() -> Result<()> {
    BELOW_FILES.into_iter().try_for_each(uncover_one)
}

fn uncover_one(file: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = status()?;
        let from = &status["kernel_files"][file.trim_start_matches("proc/")];
        let from = from.as_str().unwrap_or("nobody").to_owned();
        if from.starts_with("the kernel") {
            let covered = Path::new(BASE).join(OURS).join(file);
            return umount2(&covered, MntFlags::empty()).context("uncover the daemon's file");
        }
        ensure!(from.starts_with("not yet") && Instant::now() < deadline, "served by {from}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What our daemon says supplies CPU time.
pub(super) fn accounting() -> Result<String> {
    let status = status()?;
    let supplies = status["supplies"].as_array().context("it supplies nothing")?;
    let cpu = supplies.iter().find(|supply| supply["group"] == "cpu");
    Ok(cpu.and_then(|cpu| cpu["from"].as_str()).unwrap_or("nothing").to_owned())
}

/// What our daemon says of itself.
fn status() -> Result<serde_json::Value> {
    let mut status = Command::new(program("lxcfs"));
    status.args(["status", "--json", "--runtime-dir"]).arg(Path::new(BASE).join("run"));
    let output = status.arg(Path::new(BASE).join(OURS)).output().context("ask lxcfs")?;
    serde_json::from_slice(&output.stdout).context("its status")
}

/// A command that ends with us, and not by a Ctrl-C that is meant for us.
fn daemon(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.process_group(0);
    command
}

/// The mount point of `name`, with nothing mounted there any more.
fn place(name: &str) -> Result<PathBuf> {
    let point = Path::new(BASE).join(name);
    // A dead mount cannot even be looked at; each call takes one away.
    while umount2(&point, MntFlags::MNT_DETACH).is_ok() {}
    fs::create_dir_all(&point).with_context(|| format!("make {}", point.display()))?;
    Ok(point)
}

/// Takes away what this run, or one that was killed, has left at our place.
pub(super) fn clear() {
    if let Some(pins) = below(BELOW_FILES[0]).as_deref().and_then(Path::parent) {
        let _ = umount2(pins, MntFlags::MNT_DETACH);
    }
    for name in fs::read_dir(BASE).into_iter().flatten().flatten() {
        while umount2(&name.path(), MntFlags::MNT_DETACH).is_ok() {}
    }
    let _ = fs::remove_dir_all(BASE);
}
