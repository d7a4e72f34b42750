//! The first process of a guest of `cargo xtask vm`.
//!
//! It makes the system a container host expects, runs the commands of `/vm/steps` one after the
//! other, each in a cgroup of its own, and switches off. PID 1 itself stays in the root cgroup. The
//! first serial port is the console; the second carries what the commands print, each behind the
//! mark `\x1evm-step N\x1e`; the third carries lines on how things went:
//!
//! ```text
//! started
//! step N exit STATUS MILLISECONDS
//! step N signal SIGNAL MILLISECONDS
//! step N timeout 0 MILLISECONDS
//! done
//! ```

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, PipeReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::{SetArg, cfmakeraw, tcdrain, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, chroot, sethostname, setsid};

const CGROUP: &str = "/sys/fs/cgroup";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long the pipe of an ended command may stay open in a process that left its cgroup.
const LAST_WORDS: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("--in-cgroup") {
        return enter(arguments);
    }
    if std::process::id() != 1 {
        report("guest-init is the first process of a guest; hint: cargo xtask vm");
        return ExitCode::FAILURE;
    }
    if let Err(error) = live() {
        report(&format!("guest-init: {error:#}"));
    }
    switch_off()
}

/// Everything from the first line to the last.
fn live() -> Result<()> {
    mount_all()?;
    let mut output = serial("/dev/ttyS1")?;
    let mut status = serial("/dev/ttyS2")?;
    writeln!(status, "started").context("write to /dev/ttyS2")?;
    load_modules();
    enable_controllers()?;
    if let Err(error) = loopback_up() {
        report(&format!("guest-init: {error:#}"));
    }
    for number in 0_u32.. {
        let Some(step) = Step::read(number)? else {
            break;
        };
        write!(output, "\x1evm-step {number}\x1e").context("write to /dev/ttyS1")?;
        let started = Instant::now();
        let end = step.run(&output)?;
        tcdrain(&output).context("drain /dev/ttyS1")?;
        let took_ms = started.elapsed().as_millis();
        writeln!(status, "step {number} {end} {took_ms}").context("write to /dev/ttyS2")?;
    }
    writeln!(status, "done").context("write to /dev/ttyS2")?;
    tcdrain(&status).context("drain /dev/ttyS2")
}

/// A line on the console.
fn report(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Restarts the machine, which ends an emulator that is told so (`-no-reboot`). There are several ways to restart and the
/// kernel tries them all, but one to power off, and an emulated machine that was suspended ignores it now and then.
fn switch_off() -> ExitCode {
    nix::unistd::sync();
    match reboot(RebootMode::RB_AUTOBOOT) {
        Ok(never) => match never {},
        Err(error) => report(&format!("guest-init: switch off: {error}")),
    }
    ExitCode::FAILURE
}

/// Gives the root a parent, so that a container runtime can pivot away from it, then mounts what
/// a distribution's init would.
fn mount_all() -> Result<()> {
    let plain = MsFlags::empty();
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    attach("/", "/vm/root", "", MsFlags::MS_BIND, "")?;
    chdir("/vm/root").context("enter /vm/root")?;
    attach("/vm/root", "/", "", MsFlags::MS_MOVE, "")?;
    chroot(".").context("change the root to /vm/root")?;
    // The kernel's first root is writable for everyone.
    fs::set_permissions("/", Permissions::from_mode(0o755)).context("set the mode of /")?;
    attach("dev", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=755")?;
    attach("proc", "/proc", "proc", safe, "")?;
    attach("sys", "/sys", "sysfs", safe, "")?;
    for (path, options) in [("/tmp", "mode=1777"), ("/run", "mode=755")] {
        // Files the caller put there would be hidden.
        if fs::read_dir(path).with_context(|| format!("list {path}"))?.next().is_none() {
            attach("tmpfs", path, "tmpfs", plain, options)?;
        }
    }
    for path in ["/dev/pts", "/dev/shm"] {
        fs::create_dir_all(path).with_context(|| format!("create {path}"))?;
    }
    attach("devpts", "/dev/pts", "devpts", plain, "mode=620,ptmxmode=666")?;
    attach("shm", "/dev/shm", "tmpfs", plain, "mode=1777")?;
    attach("bpf", "/sys/fs/bpf", "bpf", safe, "mode=700")?;
    attach("debugfs", "/sys/kernel/debug", "debugfs", safe, "")?;
    attach("tracefs", "/sys/kernel/tracing", "tracefs", safe, "")?;
    attach("cgroup2", CGROUP, "cgroup2", safe, "nsdelegate,memory_recursiveprot")?;
    attach("", "/", "", MsFlags::MS_SHARED | MsFlags::MS_REC, "")?;
    sethostname("guest").context("set the host name")
}

fn attach(source: &str, target: &str, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(source), target, Some(kind), flags, Some(options))
        .with_context(|| format!("mount {kind} {source:?} on {target}"))
}

/// A serial port that passes every byte as it is.
fn serial(path: &str) -> Result<File> {
    let port = OpenOptions::new().read(true).write(true).open(path);
    let port = port.with_context(|| format!("open {path}"))?;
    let mut settings = tcgetattr(&port).with_context(|| format!("ask {path}"))?;
    cfmakeraw(&mut settings);
    tcsetattr(&port, SetArg::TCSANOW, &settings).with_context(|| format!("set {path}"))?;
    Ok(port)
}

/// Loads the modules of `/vm/modules`; one that does not load is told on the console, and the
/// command that needs it will say what it misses.
fn load_modules() {
    for path in fs::read_to_string("/vm/modules").unwrap_or_default().lines() {
        let loaded = File::open(path).map_err(anyhow::Error::from).and_then(|file| {
            match finit_module(&file, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(Errno::EEXIST) => Ok(()),
                Err(error) => Err(error.into()),
            }
        });
        if let Err(error) = loaded {
            report(&format!("guest-init: load {path}: {error}"));
        }
    }
}

/// Every controller the kernel has, for the children of the root.
fn enable_controllers() -> Result<()> {
    let path = Path::new(CGROUP).join("cgroup.controllers");
    let controllers = fs::read_to_string(&path).context("read the root's controllers")?;
    for controller in controllers.split_whitespace() {
        fs::write(Path::new(CGROUP).join("cgroup.subtree_control"), format!("+{controller}"))
            .with_context(|| format!("enable the controller {controller}"))?;
    }
    Ok(())
}

fn loopback_up() -> Result<()> {
    let mut ip = Command::new("/bin/busybox");
    let status = ip.args(["ip", "link", "set", "lo", "up"]).status().context("start busybox")?;
    if !status.success() {
        bail!("set the loopback up: {status}");
    }
    Ok(())
}

/// One command of `/vm/steps`.
struct Step {
    argv: Vec<String>,
    environment: Vec<(String, String)>,
    directory: PathBuf,
    deadline: Duration,
    cgroup: PathBuf,
}

impl Step {
    /// The step of that number, if there is one.
    fn read(number: u32) -> Result<Option<Self>> {
        let dir = PathBuf::from(format!("/vm/steps/{number}"));
        if !dir.is_dir() {
            return Ok(None);
        }
        let text = |path: PathBuf| {
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let environment = text("/vm/environment".into())?;
        let deadline_ms = text(dir.join("deadline_ms"))?.parse().context("read deadline_ms")?;
        Ok(Some(Self {
            argv: list(&text(dir.join("argv"))?),
            environment: variables(&environment),
            directory: text(dir.join("directory"))?.into(),
            deadline: Duration::from_millis(deadline_ms),
            cgroup: Path::new(CGROUP).join(format!("vm-step-{number}")),
        }))
    }

    /// Runs it to its end, and its children with it; gives `exit N`, `signal N` or `timeout 0`.
    fn run(&self, output: &File) -> Result<String> {
        fs::create_dir(&self.cgroup)
            .with_context(|| format!("create {}", self.cgroup.display()))?;
        let (reader, writer) = io::pipe().context("make a pipe")?;
        let child = Command::new("/init")
            .arg("--in-cgroup")
            .args([&self.cgroup, &self.directory])
            .args(&self.argv)
            .env_clear()
            .envs([("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8"), ("TERM", "dumb")])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(writer.try_clone().context("share the pipe")?)
            .stderr(writer)
            .spawn();
        let child = child.context("start /init --in-cgroup")?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("read the child's id")?);
        let ended = copy_all(reader, output.try_clone().context("share the port")?);
        let watchdog = Watchdog::start(self.cgroup.clone(), self.deadline);
        let status = reap_until(pid)?;
        let timed_out = watchdog.stop();
        kill(&self.cgroup);
        let _ = ended.recv_timeout(LAST_WORDS);
        self.remove_cgroup();
        if timed_out { Ok("timeout 0".to_owned()) } else { ending(status) }
    }

    /// What was killed may need a moment to leave.
    fn remove_cgroup(&self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        report(&format!("guest-init: {} stays: it is in use", self.cgroup.display()));
    }
}

/// Items that end with a zero byte each.
fn list(text: &str) -> Vec<String> {
    text.split_terminator('\0').map(ToOwned::to_owned).collect()
}

/// `NAME=VALUE` items.
fn variables(text: &str) -> Vec<(String, String)> {
    let items = text.split_terminator('\0').filter_map(|item| item.split_once('='));
    items.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// How init says a command ended.
fn ending(status: WaitStatus) -> Result<String> {
    Ok(match status {
        WaitStatus::Signaled(_, signal, _) => format!("signal {}", signal as i32),
        WaitStatus::Exited(_, status) => format!("exit {status}"),
        other => bail!("the command ended with {other:?}"),
    })
}

/// Waits for `child`, and for every orphan that ends before it.
fn reap_until(child: Pid) -> Result<WaitStatus> {
    loop {
        let status = waitpid(None, None).context("wait for the command")?;
        if status.pid() == Some(child) {
            return Ok(status);
        }
    }
}

/// Copies the pipe to the port in a thread, and tells when there is no more.
fn copy_all(mut from: PipeReader, mut to: File) -> mpsc::Receiver<()> {
    let (ended, receiver) = mpsc::channel();
    thread::spawn(move || {
        if let Err(error) = io::copy(&mut from, &mut to) {
            report(&format!("guest-init: copy the output: {error}"));
        }
        let _ = ended.send(());
    });
    receiver
}

fn kill(cgroup: &Path) {
    let path = cgroup.join("cgroup.kill");
    if let Err(error) = fs::write(&path, "1") {
        report(&format!("guest-init: write {}: {error}", path.display()));
    }
}

/// Kills a cgroup that is there for too long.
struct Watchdog {
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<bool>,
}

impl Watchdog {
    fn start(cgroup: PathBuf, deadline: Duration) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let too_long = stopped.recv_timeout(deadline).is_err();
            if too_long {
                kill(&cgroup);
            }
            too_long
        });
        Self { stop, thread }
    }

    /// Whether it had to kill.
    fn stop(self) -> bool {
        let _ = self.stop.send(());
        self.thread.join().unwrap_or(false)
    }
}

/// `--in-cgroup CGROUP DIRECTORY COMMAND...`: becomes the command, in that cgroup and folder.
fn enter(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let (Some(cgroup), Some(directory), Some(program)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        report("guest-init: --in-cgroup wants a cgroup, a folder and a command");
        return ExitCode::FAILURE;
    };
    if let Err(error) = fs::write(Path::new(&cgroup).join("cgroup.procs"), "0") {
        report(&format!("guest-init: enter {cgroup}: {error}"));
        return ExitCode::FAILURE;
    }
    let _ = setsid();
    let error = Command::new(&program).args(arguments).current_dir(&directory).exec();
    report(&format!("guest-init: run {program} in {directory}: {error}"));
    let missing = error.kind() == io::ErrorKind::NotFound;
    ExitCode::from(if missing { 127 } else { 126 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_empty_items() {
        assert_eq!(list("sh\0-c\0\0"), ["sh", "-c", ""]);
        assert_eq!(list(""), Vec::<String>::new());
    }

    #[test]
    fn a_value_may_hold_the_equals_sign() {
        assert_eq!(variables("A=b=c\0D=\0"), [("A".into(), "b=c".into()), ("D".into(), "".into())]);
    }

    #[test]
    fn a_signal_is_not_an_exit() {
        let pid = Pid::from_raw(7);
        assert_eq!(ending(WaitStatus::Exited(pid, 7)).unwrap(), "exit 7");
        let killed = WaitStatus::Signaled(pid, nix::sys::signal::Signal::SIGKILL, false);
        assert_eq!(ending(killed).unwrap(), "signal 9");
    }
}
