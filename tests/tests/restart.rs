//! A mount that outlives its daemon: killed, ended, upgraded, stopped and given up, with readers that must not notice.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use lxcfs::model::lock::lock;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::mount::{self, Daemon};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

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
    /// Readings that took long: when they ended, milliseconds since 1970, and how long they took.
    long: Vec<(u64, u64)>,
    /// The same of a daemon that nothing happens to: what the machine itself is late by.
    calm: Vec<(u64, u64)>,
}

impl Seen {
    fn longest(&self) -> Duration {
        Duration::from_millis(self.long.iter().map(|&(_, took)| took).max().unwrap_or(0))
    }

    /// For most of the strikes that began at `strikes`, no reading took longer, until the next one.
    fn typical(long: &[(u64, u64)], strikes: &[u64]) -> Duration {
        let ends = strikes.iter().skip(1).copied().chain([u64::MAX]);
        let longest = |(began, ended)| {
            let during = long.iter().filter(|(when, _)| (began..ended).contains(when));
            during.map(|&(_, took)| took).max().unwrap_or(0)
        };
        let mut each: Vec<_> = strikes.iter().copied().zip(ends).map(longest).collect();
        each.sort_unstable();
        Duration::from_millis(each.get(each.len() / 2).copied().unwrap_or(0))
    }
}

/// What takes `alone` where nothing else runs: each CPU is shared by as many as wait for it.
fn with_load(alone: Duration) -> Result<Duration> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let whole = text.split('.').next().context("no load")?.parse::<u32>()?;
    let cpus = u32::try_from(std::thread::available_parallelism()?.get())?;
    Ok(lxcfs_tests::patience(alone) * (1 + whole / cpus))
}

fn now_ms() -> Result<u64> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis().try_into()?)
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
            path("poller", "proc/pressure/cpu"),
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
            let long = next()?.split(',').filter_map(|entry| {
                let (when, took) = entry.split_once('/')?;
                Some((when.parse().ok()?, took.parse().ok()?))
            });
            if failed != "0" {
                seen.failures.push(format!("{what}: {failed} of {readings}: {}", next()?));
            }
            if what.starts_with("calm:") {
                seen.calm.extend(long);
            } else {
                seen.long.extend(long);
                seen.readings += readings;
            }
        }
    }
}

/// Does something to the daemon again and again under readers, who must not fail, nor wait longer than `limit`.
fn storm(
    options: &[&str],
    what: &str,
    limit: Duration,
    mut strike: impl FnMut(&Daemon) -> Result<()>,
) -> Result<()> {
    let _alone = lock(&STORMS);
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
    let mut strikes = Vec::new();
    for _ in 0..times() {
        std::thread::sleep(Duration::from_millis(200));
        strikes.push(now_ms()?);
        strike(&daemon)?;
    }
    std::thread::sleep(Duration::from_millis(200));
    ensure!(inode()? == before, "the mount or its files are others");
    let seen = readers.end()?;
    writeln!(
        std::io::stdout(),
        "{what}, {} times: {} readings, longest {:?}, mostly {:?}, of a calm daemon {:?}",
        times(),
        seen.readings,
        seen.longest(),
        Seen::typical(&seen.long, &strikes),
        Seen::typical(&seen.calm, &strikes)
    )?;
    // A machine with other things to do is late now and then, and always where it has no time at all.
    let limit = with_load(limit)? + 2 * Seen::typical(&seen.calm, &strikes);
    let typical = Seen::typical(&seen.long, &strikes);
    ensure!(typical <= limit, "readings took {typical:?}, more than {limit:?}");
    ensure!(seen.failures.is_empty(), "{:#?}\n{}", seen.failures, daemon.log());
    ensure!(daemon.stop()?.code() == Some(0), "{}", daemon.log());
    ensure!(!mount::is_mounted(&daemon.mount_point()));
    Ok(())
}

#[test]
fn w30_nobody_notices_a_kill() -> Result<()> {
    let limit = Duration::from_millis(250);
    storm(&[], "killed", limit, |daemon| {
        let server = daemon.server();
        signal(server, Signal::SIGKILL)?;
        let _ = daemon.server_after(server);
        Ok(())
    })
}

#[test]
fn counting_goes_on_through_kills() -> Result<()> {
    let limit = Duration::from_millis(250);
    storm(&COUNTED, "killed with programs in the kernel", limit, |daemon| {
        let server = daemon.server();
        signal(server, Signal::SIGKILL)?;
        let _ = daemon.server_after(server);
        Ok(())
    })
}

#[test]
fn nobody_notices_an_end_of_the_daemon() -> Result<()> {
    let limit = Duration::from_millis(250);
    storm(&[], "ended", limit, |daemon| {
        let server = daemon.server();
        signal(server, Signal::SIGTERM)?;
        let _ = daemon.server_after(server);
        Ok(())
    })
}

#[test]
fn w29_nobody_notices_an_upgrade() -> Result<()> {
    let mut by_signal = false;
    let limit = Duration::from_millis(50);
    storm(&COUNTED, "upgraded", limit, |daemon| {
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
    })
}

/// It wakes its threads then, and must not wait for them where no SIGKILL reaches: whoever keeps the mount would wait for
/// its end for ever.
#[test]
fn a_daemon_that_is_killed_while_it_leaves_is_gone() -> Result<()> {
    let daemon = Daemon::start()?;
    let mut was_killed = 0_u32;
    for nth in 0..3 * u64::from(times()) {
        let server = daemon.server();
        let pid = rustix::process::Pid::from_raw(server.try_into()?).context("pid 0")?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        signal(server, Signal::SIGTERM)?;
        // It takes a few milliseconds, and each moment of them is as good as another.
        std::thread::sleep(lxcfs_tests::patience(Duration::from_micros(nth * 137 % 4_000)));
        // By its pidfd: it may have left by now, and its number be somebody else's.
        let killed = pidfd_send_signal(&process, rustix::process::Signal::KILL);
        was_killed += u32::from(killed.is_ok());
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        let patience = lxcfs_tests::patience(Duration::from_secs(10));
        ensure!(poll(&mut ended, Some(&patience.try_into()?))? == 1, "{nth}: it does not end");
        ensure!(!fs::read_to_string(daemon.path("proc/meminfo"))?.is_empty());
        let _ = daemon.server_after(server);
    }
    ensure!(was_killed > 0, "it has always left before");
    Ok(())
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
    ensure!(daemon.server() == server, "somebody else serves");
    ensure!(seen.longest() >= stopped / 2, "{:?} was the longest reading", seen.longest());
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

/// An upgrade is one of the keeper, too: it becomes the new program, in place, and keeps on.
#[test]
fn a_keeper_is_upgraded_with_its_daemon() -> Result<()> {
    let (mut daemon, first) = of_a_copy(&[])?;
    let (other, keeper) = (daemon.directory().join("other"), daemon.pid());
    copy_program(&other)?;
    let cgroup = Cgroup::new("renewed")?;
    let calm = Daemon::start()?;
    let readers = Readers::start(&daemon, &calm, &cgroup)?;
    let point = daemon.mount_point().display().to_string();
    let runs = |program: &Path| {
        let exe = fs::read_link(format!("/proc/{keeper}/exe"));
        exe.is_ok_and(|exe| exe == program)
    };
    let upgrade = |daemon: &Daemon, to: &Path| -> Result<()> {
        let server = daemon.server();
        let to = to.to_str().context("an odd path")?;
        let output = daemon.run(&["upgrade", to, "--mount", &point])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let _ = daemon.server_after(server);
        Ok(())
    };
    let held = || fs::read_dir(format!("/proc/{keeper}/fd")).map_or(usize::MAX, Iterator::count);
    let before = held();
    for program in [&other, &first, &other] {
        upgrade(&daemon, program)?;
        lxcfs_tests::wait_for("the keeper to be the new program", || runs(program));
        let server = daemon.server();
        signal(server, Signal::SIGKILL)?;
        let _ = daemon.server_after(server);
    }
    let seen = readers.end()?;
    ensure!(seen.failures.is_empty(), "{:#?}\n{}", seen.failures, daemon.log());
    lxcfs_tests::wait_for("no descriptor to be left", || held() <= before);
    // Told to end while it becomes another program, it ends.
    upgrade(&daemon, &first)?;
    // Also where nobody asks for anything, all threads have left.
    ensure!(!daemon.log().contains("takes long"), "{}", daemon.log());
    ensure!(daemon.stop()?.code() == Some(0), "{}", daemon.log());
    ensure!(!mount::is_mounted(&daemon.mount_point()));
    ensure!(fs::read_dir(daemon.directory().join("run/lxcfs"))?.next().is_none());
    Ok(())
}

/// A daemon of a program of its own, and that program.
fn of_a_copy(options: &[&str]) -> Result<(Daemon, PathBuf)> {
    let directory = mount::new_directory()?;
    let program = directory.join("lxcfs");
    copy_program(&program)?;
    Ok((Daemon::start_program_in(&program, directory, options)?, program))
}

fn copy_program(to: &Path) -> Result<()> {
    // Not fs::copy: another test may fork while it writes, and the program then be too busy to run.
    let copied = Command::new("cp").arg(lxcfs_tests::program("lxcfs")).arg(to).status()?;
    ensure!(copied.success());
    Ok(())
}

/// Puts one that fails at once in the place of a program.
fn break_program(program: &Path) -> Result<()> {
    fs::remove_file(program)?;
    fs::write(program, "#!/bin/sh\nexit 3\n")?;
    Ok(fs::set_permissions(program, fs::Permissions::from_mode(0o755))?)
}

/// A daemon that cannot be started any more: readers wait, for a bounded time, and are told.
#[test]
fn what_cannot_be_started_is_given_up() -> Result<()> {
    let (mut daemon, program) = of_a_copy(&[])?;
    break_program(&program)?;
    let held = fs::File::open(daemon.path("proc/meminfo"))?;
    let server = daemon.server();
    let began = Instant::now();
    signal(server, Signal::SIGKILL)?;
    let read = std::os::unix::fs::FileExt::read_at(&held, &mut [0; 64], 0);
    let waited = began.elapsed();
    ensure!(read.is_err(), "somebody has answered");
    let limit = with_load(Duration::from_secs(15))?;
    ensure!(waited > Duration::from_secs(1) && waited < limit, "given up after {waited:?}");
    ensure!(daemon.wait()?.code() == Some(1), "{}", daemon.log());
    ensure!(daemon.log().contains("10 times in a row"), "{}", daemon.log());
    ensure!(!mount::is_mounted(&daemon.mount_point()));
    Ok(())
}

/// The same where the keeper is to show the host's files then: loudly, until a daemon can be started again.
#[test]
fn what_is_given_up_may_show_the_host() -> Result<()> {
    let (mut daemon, program) = of_a_copy(&["--give-up", "host"])?;
    let cgroup = Cgroup::new("given-up")?;
    cgroup.limit_memory(128 << 20)?;
    let mut container = Container::new(&cgroup).shell()?;
    let ask = format!("head -n 1 {}", daemon.path("proc/meminfo").display());
    let mut total = || container.say(&ask);
    ensure!(total()?.contains(" 131072 kB"));
    fs::remove_file(&program)?;
    signal(daemon.server(), Signal::SIGKILL)?;
    let began = Instant::now();
    let hosts = fs::read_to_string("/proc/meminfo")?;
    ensure!(hosts.starts_with(total()?.trim_end()), "the host's: {hosts}");
    let (waited, limit) = (began.elapsed(), with_load(Duration::from_secs(15))?);
    ensure!(waited > Duration::from_secs(1) && waited < limit, "given up after {waited:?}");
    let log = daemon.log();
    ensure!(log.contains("10 times in a row") && log.contains("NO DAEMON CAN BE STARTED"), "{log}");
    let point = daemon.mount_point().display().to_string();
    let status = String::from_utf8(daemon.run(&["status", &point])?.stdout)?;
    ensure!(status.contains("GIVEN UP") && daemon.server() == daemon.pid(), "{status}");
    ensure!(fs::write(daemon.path("proc/meminfo"), "x").is_err(), "nothing can be written");
    // What still fails changes nothing; what works again takes over, and knows the container as before.
    let upgrade = |daemon: &Daemon| daemon.run(&["upgrade", "--mount", &point]);
    ensure!(!upgrade(&daemon)?.status.success() && daemon.server() == daemon.pid());
    copy_program(&program)?;
    let output = upgrade(&daemon)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let server = daemon.server_after(daemon.pid());
    ensure!(total()?.contains(" 131072 kB"), "{}", daemon.log());
    ensure!(!daemon.log().contains("takes long"), "{}", daemon.log());
    signal(server, Signal::SIGKILL)?;
    ensure!(total()?.contains(" 131072 kB"), "it is kept as any other");
    let _ = daemon.server_after(server);
    ensure!(daemon.stop()?.code() == Some(0), "{}", daemon.log());
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
