//! A mount that outlives its daemon: killed, ended, upgraded, stopped and given up, with readers that must not notice.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::mount::{self, Daemon};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often each thing is done; `cargo xtask soak` does it more often.
fn times() -> u32 {
    std::env::var("LXCFS_TEST_RESTARTS").ok().and_then(|n| n.parse().ok()).unwrap_or(10)
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(pid.try_into()?), signal).with_context(|| format!("{signal} to {pid}"))
}

/// A file of the mount, bound to another place.
struct Bound(PathBuf);

impl Bound {
    fn new(daemon: &Daemon, file: &str) -> Result<Self> {
        let bound = daemon.directory().join(file.replace('/', "-"));
        fs::write(&bound, "")?;
        nix::mount::mount(
            Some(&daemon.path(file)),
            &bound,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .context("bind a file")?;
        Ok(Self(bound))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Readers in a container, of every kind.
struct Readers {
    witness: Running,
    _bound: Bound,
}

/// One storm at a time: they would be each other's noise.
static STORMS: Mutex<()> = Mutex::new(());

/// With the programs in the kernel, which go on counting meanwhile.
const COUNTED: [&str; 2] = ["--accounting", "auto"];

/// What they saw.
#[derive(Debug, Default)]
struct Seen {
    readings: u64,
    failures: Vec<String>,
    longest: Duration,
    /// The longest reading of a daemon that nothing happens to: what the machine itself is late by.
    noise: Duration,
}

impl Readers {
    fn start(daemon: &Daemon, calm: &Daemon, cgroup: &Cgroup) -> Result<Self> {
        let bound = Bound::new(daemon, "proc/uptime")?;
        let path = |how: &str, file: &str| format!("{how}:{}", daemon.path(file).display());
        let program = lxcfs_tests::program("witness").display().to_string();
        let command = [
            program,
            path("path", "proc/meminfo"),
            format!("path:{}", bound.0.display()),
            path("held", "proc/loadavg"),
            path("pieces", "proc/stat"),
            path("counters", "proc/stat"),
            path("path", "sys/devices/system/cpu/cpu0/topology/core_id"),
            format!("calm:{}", calm.path("proc/meminfo").display()),
            format!("calm:{}", calm.path("proc/stat").display()),
            format!("calm:{}", calm.path("proc/uptime").display()),
        ];
        let command: Vec<_> = command.iter().map(String::as_str).collect();
        let mut witness = Container::new(cgroup).spawn(&command)?;
        ensure!(witness.line()? == "up");
        Ok(Self { witness, _bound: bound })
    }

    fn end(mut self) -> Result<Seen> {
        drop(self.witness.child.stdin.take());
        let mut seen = Seen::default();
        loop {
            let line = self.witness.line()?;
            if line == "end" {
                return Ok(seen);
            }
            let mut words = line.splitn(5, ' ');
            let mut next = || words.next().context("too few words");
            let (what, readings, failed) = (next()?, next()?.parse::<u64>()?, next()?);
            let longest = Duration::from_micros(next()?.parse()?);
            if failed != "0" {
                seen.failures.push(format!("{what}: {failed} of {readings}: {}", next()?));
            }
            if what.starts_with("calm:") {
                seen.noise = seen.noise.max(longest);
            } else {
                seen.longest = seen.longest.max(longest);
                seen.readings += readings;
            }
        }
    }
}

/// Does something to the daemon again and again under readers, and says what they saw.
fn storm(
    options: &[&str],
    what: &str,
    mut strike: impl FnMut(&Daemon) -> Result<()>,
) -> Result<Seen> {
    let _alone = STORMS.lock().unwrap_or_else(PoisonError::into_inner);
    // How long a process waits for a CPU is not what is measured. The daemons and the readers inherit it.
    rustix::process::setpriority_process(None, -19).context("go before others")?;
    let (mut daemon, calm) = (Daemon::with(options)?, Daemon::start()?);
    let cgroup = Cgroup::new("restart")?;
    let inode = || -> Result<(u64, u64)> {
        let metadata = fs::metadata(daemon.path("proc/stat"))?;
        Ok((metadata.dev(), metadata.ino()))
    };
    let before = inode()?;
    let readers = Readers::start(&daemon, &calm, &cgroup)?;
    for _ in 0..times() {
        std::thread::sleep(Duration::from_millis(200));
        strike(&daemon)?;
    }
    std::thread::sleep(Duration::from_millis(200));
    ensure!(inode()? == before, "the mount or its files are others");
    let seen = readers.end()?;
    writeln!(
        std::io::stdout(),
        "{what}, {} times: {} readings, longest {:?}, of a calm daemon {:?}",
        times(),
        seen.readings,
        seen.longest,
        seen.noise
    )?;
    ensure!(seen.failures.is_empty(), "{:#?}\n{}", seen.failures, daemon.log());
    ensure!(daemon.stop()?.code() == Some(0), "{}", daemon.log());
    ensure!(!mount::is_mounted(&daemon.mount_point()));
    Ok(seen)
}

/// Holds the longest reading against `limit`, and what the machine is late by itself: of that the calm daemon has seen
/// less, because fewer processes have to run for one of its readings.
fn within(seen: &Seen, limit: Duration) -> Result<()> {
    let limit = lxcfs_tests::patience(limit) + 2 * seen.noise;
    ensure!(seen.longest <= limit, "a reading took {:?}, more than {limit:?}", seen.longest);
    Ok(())
}

#[test]
fn w30_nobody_notices_a_kill() -> Result<()> {
    let seen = storm(&[], "killed", |daemon| {
        let server = daemon.server();
        signal(server, Signal::SIGKILL)?;
        let _ = daemon.server_after(server);
        Ok(())
    })?;
    within(&seen, Duration::from_millis(250))
}

#[test]
fn counting_goes_on_through_kills() -> Result<()> {
    let seen = storm(&COUNTED, "killed with programs in the kernel", |daemon| {
        let server = daemon.server();
        signal(server, Signal::SIGKILL)?;
        let _ = daemon.server_after(server);
        Ok(())
    })?;
    within(&seen, Duration::from_millis(250))
}

#[test]
fn nobody_notices_an_end_of_the_daemon() -> Result<()> {
    let seen = storm(&[], "ended", |daemon| {
        let server = daemon.server();
        signal(server, Signal::SIGTERM)?;
        let _ = daemon.server_after(server);
        Ok(())
    })?;
    within(&seen, Duration::from_millis(250))
}

#[test]
fn w29_nobody_notices_an_upgrade() -> Result<()> {
    let mut by_signal = false;
    let seen = storm(&COUNTED, "upgraded", |daemon| {
        let server = daemon.server();
        by_signal = !by_signal;
        if by_signal {
            daemon.signal(Signal::SIGUSR1)?;
        } else {
            let point = daemon.mount_point().display().to_string();
            let output = daemon.run(&["upgrade", "--mount", &point])?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        let _ = daemon.server_after(server);
        Ok(())
    })?;
    within(&seen, Duration::from_millis(50))
}

#[test]
fn a_stopped_daemon_is_waited_for() -> Result<()> {
    let stopped = Duration::from_secs(if times() > 10 { 10 } else { 2 });
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("stopped")?;
    let calm = Daemon::start()?;
    let readers = Readers::start(&daemon, &calm, &cgroup)?;
    let server = daemon.server();
    signal(server, Signal::SIGSTOP)?;
    std::thread::sleep(stopped);
    signal(server, Signal::SIGCONT)?;
    std::thread::sleep(Duration::from_millis(200));
    let seen = readers.end()?;
    ensure!(seen.failures.is_empty(), "{:?}", seen.failures);
    ensure!(seen.longest >= stopped / 2 && daemon.server() == server);
    Ok(())
}

#[test]
fn b10_a_program_that_does_not_work_changes_nothing() -> Result<()> {
    let daemon = Daemon::start()?;
    let server = daemon.server();
    let point = daemon.mount_point().display().to_string();
    let liar = daemon.directory().join("liar");
    fs::write(&liar, "#!/bin/sh\necho I will not\n")?;
    fs::set_permissions(&liar, fs::Permissions::from_mode(0o755))?;
    let liar = liar.display().to_string();
    for (program, cause) in [
        ("/bin/false", "it did not show that it works"),
        ("/nonexistent", "No such file"),
        (&liar, "I will not"),
    ] {
        let output = daemon.run(&["upgrade", program, "--mount", &point])?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && stderr.contains(cause), "{program}: {stderr}");
        ensure!(daemon.server() == server);
        ensure!(!fs::read_to_string(daemon.path("proc/meminfo"))?.is_empty());
    }
    ensure!(daemon.log().contains("the old daemon goes on"), "{}", daemon.log());
    Ok(())
}

#[test]
fn a_keeper_that_is_killed_is_replaced() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let server = daemon.server();
    daemon.signal(Signal::SIGKILL)?;
    daemon.wait()?;
    let pidfile = daemon.directory().join("run/lxcfs.pid");
    let keeper = || fs::read_to_string(&pidfile).ok()?.trim().parse::<u32>().ok();
    lxcfs_tests::wait_for("another keeper", || {
        daemon.log().contains("another keeper") && keeper().is_some_and(|pid| pid != daemon.pid())
    });
    ensure!(daemon.server() == server, "the daemon serves on");
    // And it keeps, as the first one did.
    signal(server, Signal::SIGKILL)?;
    ensure!(!fs::read_to_string(daemon.path("proc/meminfo"))?.is_empty());
    let next = daemon.server_after(server);
    let keeper = keeper().context("no pid in the pidfile")?;
    signal(keeper, Signal::SIGTERM)?;
    lxcfs_tests::wait_for("both to end", || {
        !Path::new(&format!("/proc/{keeper}/fd/0")).exists()
            && !Path::new(&format!("/proc/{next}/fd/0")).exists()
    });
    ensure!(!mount::is_mounted(&daemon.mount_point()) && !pidfile.exists());
    Ok(())
}

/// A daemon that cannot be started any more: readers wait, for a bounded time, and are told.
#[test]
fn what_cannot_be_started_is_given_up() -> Result<()> {
    let directory = mount::new_directory()?;
    let program = directory.join("lxcfs");
    // Not fs::copy: another test may fork while it writes, and the program then be too busy to run.
    let copied = Command::new("cp").arg(lxcfs_tests::program("lxcfs")).arg(&program).status()?;
    ensure!(copied.success());
    let mut daemon = Daemon::start_program_in(&program, directory, &[])?;
    fs::remove_file(&program)?;
    fs::write(&program, "#!/bin/sh\nexit 3\n")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let held = fs::File::open(daemon.path("proc/meminfo"))?;
    let server = daemon.server();
    let began = Instant::now();
    signal(server, Signal::SIGKILL)?;
    let read = std::os::unix::fs::FileExt::read_at(&held, &mut [0; 64], 0);
    let waited = began.elapsed();
    ensure!(read.is_err(), "somebody has answered");
    let limit = lxcfs_tests::patience(Duration::from_secs(15));
    ensure!(waited > Duration::from_secs(1) && waited < limit, "given up after {waited:?}");
    ensure!(daemon.wait()?.code() == Some(1), "{}", daemon.log());
    ensure!(daemon.log().contains("10 times in a row"), "{}", daemon.log());
    ensure!(!mount::is_mounted(&daemon.mount_point()));
    Ok(())
}

#[test]
fn without_a_keeper_one_process_does_it_all() -> Result<()> {
    let mut daemon = Daemon::with(&["--no-keeper"])?;
    ensure!(daemon.server() == daemon.pid());
    ensure!(daemon.stop()?.code() == Some(0), "{}", daemon.log());
    ensure!(!mount::is_mounted(&daemon.mount_point()));
    let mut daemon = Daemon::with(&["--leave-mounted"])?;
    ensure!(daemon.stop()?.code() == Some(0), "{}", daemon.log());
    ensure!(mount::is_mounted(&daemon.mount_point()), "it was to be left");
    Ok(())
}
