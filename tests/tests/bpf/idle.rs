//! An idle container costs nothing: its load decays by itself, and nobody wakes up for it.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::mount::Daemon;

use super::{accounting, at_tick, kept, setting, turn};

/// How often any thread of the process has gone to sleep or was made to wait.
fn switches(pid: u32) -> Result<u64> {
    let mut switches = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        for line in status.lines().filter(|line| line.contains("voluntary_ctxt_switches")) {
            let (_, count) = line.split_once(':').context("a number")?;
            switches += count.trim().parse::<u64>()?;
        }
    }
    Ok(switches)
}

/// Events since the start of which the programs tell the daemon; groups of others' are among them.
fn notices() -> u64 {
    let counters = accounting().counters();
    let anomalies = counters.no_storage + counters.no_slot + counters.deferred_moves;
    counters.removals + counters.unlinked + anomalies
}

/// The three averages the container is shown, read by nobody in it: who reads runs, and may do so at a sample.
fn averages(daemon: &Daemon, container: &Running) -> Result<[f64; 3]> {
    lxcfs_tests::averages(&daemon.page_as(container.init(), "loadavg")?)
}

/// `LXCFS_TEST_IDLE_CONTAINERS` of them for `LXCFS_TEST_IDLE_SECONDS`.
#[test]
fn idle_containers_decay_and_wake_nobody() -> Result<()> {
    let count = setting("LXCFS_TEST_IDLE_CONTAINERS", 8);
    let window = Duration::from_secs(setting("LXCFS_TEST_IDLE_SECONDS", 11));
    let _turn = turn();
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    // It is asked for this, and wakes up to answer.
    let server = daemon.server();
    let mut containers = Vec::new();
    for _ in 0..count {
        let cgroup = Cgroup::new("idle")?;
        let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
        let [one, ..] = lxcfs_tests::averages(&container.say("cat /proc/loadavg")?)?;
        ensure!(one < 0.3, "it has just begun: {one}");
        containers.push((container, cgroup));
    }
    let (first, _) = &mut containers[0];
    first.say("while :; do :; done & a=$!; while :; do :; done & sleep 6; kill $a $!")?;
    // A group removed before has told all it had to.
    while accounting().maintain()?.reaped.waiting > 0 {
        thread::sleep(Duration::from_millis(300));
    }
    let (start, before) = at_tick(|| averages(&daemon, &containers[0].0));
    let before = before?;
    ensure!(before[0] >= 0.1, "two tasks at one sample at least: {before:?}");
    // Some seconds after the last request nobody looks any more whether one takes long.
    lxcfs_tests::wait_for("the daemon to come to rest", || {
        let before = switches(server).ok();
        thread::sleep(Duration::from_secs(2));
        before.is_some() && switches(server).ok() == before
    });
    let (told, awake) = (notices(), switches(server)?);
    thread::sleep(window);
    let (awake, told) = (switches(server)? - awake, notices() - told);
    // Others' groups may be removed meanwhile: each wakes one thread, which looks a few times.
    ensure!(awake <= 6 * told, "{awake} wake-ups of the daemon, {told} notices");
    let (end, after) = at_tick(|| averages(&daemon, &containers[0].0));
    let after = after?;
    let ticks = end - start;
    ensure!(ticks >= window.as_secs() / 6, "{ticks} ticks");
    for ((before, after), kept) in before.into_iter().zip(after).zip(kept(ticks)) {
        ensure!((after - before * kept).abs() < 0.0101, "{ticks} ticks: {before}, then {after}");
    }
    Ok(())
}
