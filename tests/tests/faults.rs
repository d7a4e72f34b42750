//! Faults of LXCFS that show in behaviour, each shut out by the test of its number.
//!
//! Most numbers are in the names of tests beside what they are about: `w` and `b` faults of LXCFS and of its first
//! releases, `ask` what its users complained of. `xtask/src/tidy/faults.rs` lists them all.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::Container;
use lxcfs_tests::mount::Daemon;
use lxcfs_tests::patience;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::prelude::*;

/// The slowest of reads made one after another until `end`.
fn slowest(path: &Path, end: &AtomicBool) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    let mut reads = 0;
    while reads < 50 || !end.load(Ordering::Relaxed) {
        let start = Instant::now();
        ensure!(!fs::read(path)?.is_empty(), "an empty page");
        slowest = slowest.max(start.elapsed());
        reads += 1;
    }
    Ok(slowest)
}

fn load(text: &str) -> Result<procfs::LoadAverage> {
    procfs::LoadAverage::from_read(text.as_bytes()).with_context(|| text.to_owned())
}

/// LXCFS counts the tasks of three levels.
#[test]
fn w22_load_is_of_cgroups_at_any_depth() -> Result<()> {
    for source in ["auto", "files"] {
        let daemon = Daemon::with(&["--accounting", source])?;
        let top = Cgroup::new("deep")?;
        let mut below = vec![top.leaf("1")?];
        for level in 2..=8 {
            let next = below[below.len() - 1].leaf(&level.to_string())?;
            below.push(next);
        }
        let mut container = Container::new(&top).shell()?;
        container.enter(&below[7])?;
        container.say("for n in 1 2 3 4 5; do sleep 100 & done")?;
        let shown =
            load(&container.say(&format!("cat {}", daemon.path("proc/loadavg").display()))?)?;
        ensure!((6..=8).contains(&shown.max), "{source}: {shown:?}");
    }
    Ok(())
}

/// A reload of LXCFS stops all readers for seconds and forgets all loads.
#[test]
fn w25_a_reload_stops_no_reader_and_forgets_no_load() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("reload")?;
    let loadavg = daemon.path("proc/loadavg").display().to_string();
    let mut container = Container::new(&cgroup).shell()?;
    container
        .say(&format!("(while :; do :; done) & (while :; do :; done) & cat {loadavg}; sleep 11"))?;
    let before = load(&container.say(&format!("cat {loadavg}"))?)?;
    ensure!(before.one >= 0.1, "{before:?}");
    let end = AtomicBool::new(false);
    let path = daemon.path("proc/uptime");
    let slowest = std::thread::scope(|scope| {
        let reader = scope.spawn(|| slowest(&path, &end));
        for _ in 0..5 {
            daemon.signal(Signal::SIGUSR1)?;
            std::thread::sleep(Duration::from_millis(50));
        }
        end.store(true, Ordering::Relaxed);
        reader.join().expect("no panic")
    })?;
    ensure!(slowest < patience(Duration::from_secs(1)), "{slowest:?}");
    let after = load(&container.say(&format!("cat {loadavg}"))?)?;
    ensure!(after.one >= before.one, "{before:?} {after:?}");
    Ok(())
}

/// LXCFS has a reader whose container ends meanwhile wait for two seconds, and all others with it.
#[test]
fn b06_readers_that_end_in_a_lookup_stall_nobody() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("ending")?;
    let files: Vec<_> = ["stat", "loadavg", "uptime"]
        .map(|file| daemon.path("proc").join(file).display().to_string())
        .into();
    let end = AtomicBool::new(false);
    let path = daemon.path("proc/uptime");
    let slowest = std::thread::scope(|scope| {
        let reader = scope.spawn(|| slowest(&path, &end));
        let storm = || -> Result<()> {
            for round in 0..20 {
                // Each is a container that the daemon has not seen, and is killed while it looks.
                let script = format!("while :; do cat {} > /dev/null; done", files.join(" "));
                let running = Container::new(&cgroup).spawn(&["/bin/sh", "-c", &script])?;
                std::thread::sleep(Duration::from_millis(5 + round));
                drop(running);
            }
            Ok(())
        };
        let done = storm();
        end.store(true, Ordering::Relaxed);
        let slowest = reader.join().expect("no panic");
        done.and(slowest)
    })?;
    ensure!(slowest < patience(Duration::from_secs(1)), "{slowest:?}");
    Ok(())
}

/// LXCFS looks containers up under one lock, with the help of a process in the container.
#[test]
fn b07_a_stopped_container_stalls_nobody() -> Result<()> {
    let daemon = Daemon::start()?;
    let (stopped, other) = (Cgroup::new("stopped")?, Cgroup::new("other")?);
    stopped.limit_memory(128 << 20)?;
    other.limit_memory(64 << 20)?;
    let running = Container::new(&stopped).spawn(&["/bin/sleep", "100"])?;
    let init = running.init();
    kill(Pid::from_raw(init.try_into()?), Signal::SIGSTOP)?;
    let meminfo = daemon.path("proc/meminfo");
    let start = Instant::now();
    // Its own page, asked for from outside, is one that nothing in it can help to make.
    let mut namespaces = Command::new("nsenter");
    namespaces.args(["-t", &init.to_string(), "-C", "-p", "head", "-1"]).arg(&meminfo);
    let own = String::from_utf8(namespaces.output()?.stdout)?;
    ensure!(own.contains(" 131072 kB"), "{own}");
    let theirs = Container::new(&other).sh(&format!("head -1 {}", meminfo.display()))?;
    ensure!(theirs.contains(" 65536 kB"), "{theirs}");
    ensure!(start.elapsed() < patience(Duration::from_secs(5)), "{:?}", start.elapsed());
    Ok(())
}

/// LXCFS took the age of /proc/1 for the uptime, which the kernel makes anew when it drops its caches.
#[test]
fn ask_165_184_191_223_dropped_caches_reset_no_uptime() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("uptime")?;
    let uptime = daemon.path("proc/uptime").display().to_string();
    let mut container = Container::new(&cgroup).shell()?;
    let seconds =
        |text: String| -> Result<f64> { Ok(text.split(' ').next().context("empty")?.parse()?) };
    container.say("sleep 2")?;
    let before = seconds(container.say(&format!("cat {uptime}"))?)?;
    fs::write("/proc/sys/vm/drop_caches", "2")?;
    let after = seconds(container.say(&format!("cat {uptime}"))?)?;
    ensure!(before >= 2.0 && after >= before && after < 60.0, "{before} {after}");
    Ok(())
}

/// `ps` adds what /proc/PID/stat counts from the host's boot to btime: another btime puts starts in the future.
#[test]
fn ask_164_169_189_no_process_starts_in_the_future() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("btime")?;
    let container = Container::new(&cgroup).files(&daemon.mount_point());
    let text = container.sh("date +%s; date -d \"$(ps -o lstart= -p 1)\" +%s")?;
    let times: Vec<i64> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(times.len() == 2 && (times[0] - times[1]).abs() <= 30, "{text}");
    let btime =
        |stat: &str| stat.lines().find(|line| line.starts_with("btime ")).map(str::to_owned);
    let ours = btime(&container.sh("cat /proc/stat")?);
    ensure!(ours.is_some() && ours == btime(&fs::read_to_string("/proc/stat")?), "{ours:?}");
    Ok(())
}
