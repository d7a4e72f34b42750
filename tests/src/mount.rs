//! A daemon on a mount point of its own.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

/// A running `lxcfs`. Dropping it ends it, and everything it left is an error.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    mount_point: PathBuf,
    directory: PathBuf,
}

impl Daemon {
    /// Starts one with default options, but for `--accounting files`.
    ///
    /// # Errors
    /// It does not come to serve.
    pub fn start() -> Result<Self> {
        Self::with(&[] as &[&str])
    }

    /// Starts one with further `options`.
    ///
    /// # Errors
    /// It does not come to serve.
    pub fn with<S: AsRef<OsStr>>(options: &[S]) -> Result<Self> {
        Self::start_in(new_directory()?, options)
    }

    /// Starts one in the directory of another that has ended.
    ///
    /// # Errors
    /// It does not come to serve.
    pub fn start_in<S: AsRef<OsStr>>(directory: PathBuf, options: &[S]) -> Result<Self> {
        Self::launch(command_at(&directory, &directory.join("mnt")), directory, options)
    }

    /// Starts another program than ours, or a copy of it.
    ///
    /// # Errors
    /// It does not come to serve.
    pub fn start_program_in(program: &Path, directory: PathBuf, options: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("--runtime-dir").arg(directory.join("run")).arg(directory.join("mnt"));
        Self::launch(command, directory, options)
    }

    /// Starts one that mounts at `mount_point`.
    ///
    /// # Errors
    /// It does not come to serve.
    pub fn start_at<S: AsRef<OsStr>>(mount_point: PathBuf, options: &[S]) -> Result<Self> {
        let directory = new_directory()?;
        let mut daemon = Self::launch(command_at(&directory, &mount_point), directory, options)?;
        daemon.mount_point = mount_point;
        Ok(daemon)
    }

    fn launch<S: AsRef<OsStr>>(
        mut command: Command,
        directory: PathBuf,
        options: &[S],
    ) -> Result<Self> {
        let names = |option: &S| option.as_ref() == "--accounting";
        if !options.iter().any(names) {
            // Loading the programs takes a second, ten in an emulated guest: tests that are about them ask for them.
            command.args(["--accounting", "files"]);
        }
        let child = command
            .args(options)
            .stderr(Stdio::from(fs::File::create(directory.join("log"))?))
            // A Ctrl-C is for us, and we end it in good order.
            .process_group(0)
            .spawn()
            .context("start lxcfs: is it built?")?;
        let mut daemon = Self { child, mount_point: directory.join("mnt"), directory };
        let deadline = Instant::now() + crate::patience(Duration::from_secs(10));
        while !daemon.log().contains("serving at") {
            if daemon.has_ended()? {
                bail!("lxcfs has ended: {}", daemon.log());
            }
            if Instant::now() > deadline {
                bail!("lxcfs does not come to serve: {}", daemon.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("wait for lxcfs")?.is_some())
    }

    /// The option that tells a subcommand where this daemon's runtime directory is, with a space before it.
    #[must_use]
    pub fn runtime_option(&self) -> String {
        format!(" --runtime-dir {}", self.directory.join("run").display())
    }

    /// Its pid: the keeper's, unless it has none.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The pid of the process that serves, which may be another one a moment later.
    ///
    /// # Panics
    /// None does for long.
    #[must_use]
    pub fn server(&self) -> u32 {
        let point = self.mount_point.display().to_string();
        let ask = || -> Option<u32> {
            let output = self.run(&["status", "--json", &point]).ok()?;
            let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            status["pid"].as_u64()?.try_into().ok()
        };
        let mut server = None;
        crate::wait_for("somebody to serve", || {
            server = ask();
            server.is_some()
        });
        server.expect("waited for it")
    }

    /// Waits until another process than `before` serves, and returns its pid.
    ///
    /// # Panics
    /// It does not come to that.
    #[must_use]
    pub fn server_after(&self, before: u32) -> u32 {
        let mut server = before;
        crate::wait_for("another one to serve", || {
            server = self.server();
            server != before
        });
        server
    }

    /// Where it is mounted.
    #[must_use]
    pub fn mount_point(&self) -> PathBuf {
        self.mount_point.clone()
    }

    /// Its directory, with `mnt`, `run` and `log` in it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A file below the mount point.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.mount_point().join(file)
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Runs a subcommand that speaks to this daemon.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Result<std::process::Output> {
        let runtime_dir = self.directory.join("run");
        let output = Command::new(crate::program("lxcfs"))
            .args(arguments)
            .arg("--runtime-dir")
            .arg(runtime_dir)
            .output()?;
        Ok(output)
    }

    /// What process `pid` reads in `file`, asked for from outside: nothing runs in its container.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn page_as(&self, pid: u32, file: &str) -> Result<String> {
        let (pid, point) = (pid.to_string(), self.mount_point().display().to_string());
        let output = self.run(&["cat", "--as", &pid, "--mount", &point, file])?;
        crate::printed(format!("lxcfs cat --as {pid} {file}"), output)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), signal).context("signal lxcfs")
    }

    /// Ends it with SIGTERM and waits.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// Kills it and its keeper, so that nobody keeps the mount, and waits.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn crash(&mut self) -> Result<ExitStatus> {
        let server = rustix::process::Pid::from_raw(self.server().try_into()?).context("pid 0")?;
        let server = pidfd_open(server, PidfdFlags::empty()).context("open the pidfd of lxcfs")?;
        // Or it would start another.
        self.signal(Signal::SIGSTOP)?;
        pidfd_send_signal(&server, rustix::process::Signal::KILL).context("kill lxcfs")?;
        self.signal(Signal::SIGKILL)?;
        let status = self.wait()?;
        // Its pidfd is readable when the last of its threads has let go of the files and ended.
        let mut ended = [PollFd::new(&server, PollFlags::IN)];
        let patience = crate::patience(Duration::from_secs(10));
        let count = poll(&mut ended, Some(&patience.try_into()?)).context("wait for lxcfs")?;
        ensure!(count == 1, "lxcfs does not end at a SIGKILL");
        Ok(status)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().context("wait for lxcfs")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.stop();
        }
        // A crashed daemon leaves its mounts; tests of crashes rely on them until here. The last one made is on top.
        for point in mounted_below(&self.directory).iter().rev().chain([&self.mount_point]) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A new directory with a mount point and a runtime directory in it.
///
/// # Errors
/// It cannot be made.
pub fn new_directory() -> Result<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("lxcfs-test-{}-{number}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    for below in ["mnt", "run"] {
        fs::create_dir_all(directory.join(below)).context("make a directory for the daemon")?;
    }
    Ok(directory)
}

/// The command line of a daemon in `directory`.
#[must_use]
pub fn command(directory: &Path) -> Command {
    command_at(directory, &directory.join("mnt"))
}

fn command_at(directory: &Path, mount_point: &Path) -> Command {
    let mut command = Command::new(crate::program("lxcfs"));
    command.arg("--runtime-dir").arg(directory.join("run")).arg(mount_point);
    command
}

/// Whether anything is mounted at or below `path`.
///
/// # Panics
/// mountinfo cannot be read.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    !mounted_below(path).is_empty()
}

/// The places at or below `path` at which something is mounted.
fn mounted_below(path: &Path) -> Vec<PathBuf> {
    let mut mounts = String::new();
    fs::File::open("/proc/self/mountinfo")
        .and_then(|mut file| file.read_to_string(&mut mounts))
        .expect("mountinfo can be read");
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(path)).collect()
}
