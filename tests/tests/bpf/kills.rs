//! Nobody counts anew because a daemon dies: averages and counters as a container sees them, through a kill each second.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::averages;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::counters::Counters;
use lxcfs_tests::mount::Daemon;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{as_floats, at_tick, kept, load, setting, turn};

/// Two tasks that run or wait for a CPU, and nothing else.
const BUSY: &str = "while :; do :; done & while :; do :; done &";

/// How far an average may be from what is right: it is printed with two digits.
const NEAR: f64 = 0.02;

/// Kills what serves, and waits until another does and has begun whatever it begins with.
fn strike(daemon: &Daemon) -> Result<()> {
    let server = daemon.server();
    kill(Pid::from_raw(server.try_into()?), Signal::SIGKILL)?;
    let _ = daemon.server_after(server);
    thread::sleep(lxcfs_tests::patience(Duration::from_millis(100)));
    Ok(())
}

/// None of the container's counters may be smaller than before.
fn stat(container: &mut Running, counters: &mut Counters) -> Result<()> {
    let stat = container.say("cat /proc/stat")?;
    counters.look(&stat, &["cpu", "ctxt", "processes"])?;
    ensure!(!counters.is_empty(), "no counters: {stat}");
    Ok(())
}

/// Hundredths of a second that were not idle.
fn used(counters: &Counters) -> u64 {
    (0..3).filter_map(|nth| counters.get("cpu", nth)).sum()
}

/// `LXCFS_TEST_KILLS` kills. What is right is counted by programs of our own, which nobody kills, and which `closed_form`
/// holds against the kernel's recurrence.
#[test]
fn averages_and_counters_go_on_through_kills() -> Result<()> {
    let kills = setting("LXCFS_TEST_KILLS", 7);
    let _turn = turn();
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let cgroup = Cgroup::new("kills")?;
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    container.say(BUSY)?;
    let mut counters = Counters::default();
    stat(&mut container, &mut counters)?;
    let (before, began) = (used(&counters), Instant::now());
    let mut highest = 0.0_f64;
    for nth in 0..kills {
        strike(&daemon)?;
        let (_, (shown, right)) = at_tick(|| (container.say("cat /proc/loadavg"), load(&cgroup)));
        let (shown, right) = (averages(&shown?)?, as_floats(&right));
        for (shown, right) in shown.into_iter().zip(right) {
            ensure!(
                (shown - right).abs() <= NEAR,
                "kill {nth}: {shown} is shown, {right} is right"
            );
        }
        highest = highest.max(shown[0]);
        stat(&mut container, &mut counters)?;
        thread::sleep(Duration::from_secs(1));
    }
    ensure!(highest >= 0.1, "nothing was counted: {highest}");
    stat(&mut container, &mut counters)?;
    let used = Duration::from_millis((used(&counters) - before) * 10);
    // Two tasks have one CPU at least, if somebody does not take it from them.
    ensure!(used >= began.elapsed() / 4, "{used:?} of {:?} were counted", began.elapsed());
    Ok(())
}

/// The same without programs, where the daemon samples: of a period in which none was alive, the next one makes up.
#[test]
fn sampled_averages_go_on_through_kills() -> Result<()> {
    let kills = setting("LXCFS_TEST_KILLS", 7);
    let _turn = turn();
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("sampled")?;
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    container.say(BUSY)?;
    let mut counters = Counters::default();
    stat(&mut container, &mut counters)?;
    let first = averages(&container.say("cat /proc/loadavg")?)?;
    let began = Instant::now();
    let mut periods = 0;
    for nth in 0..kills {
        strike(&daemon)?;
        let shown = averages(&container.say("cat /proc/loadavg")?)?;
        let passed = began.elapsed().as_secs() / 5;
        let is_after = |ticks: &u64| {
            let right =
                first.into_iter().zip(kept(*ticks)).map(|(first, kept)| 2.0 + (first - 2.0) * kept);
            right.zip(shown).all(|(right, shown)| (shown - right).abs() <= NEAR)
        };
        // The phase is the daemon's, and the sample of a period may be late by what the next daemon takes to start.
        let found = (periods..=passed + 1).find(is_after);
        periods = found.with_context(|| {
            format!(
                "kill {nth}: {shown:?} is on no closed form from {first:?} after {passed} periods"
            )
        })?;
        ensure!(periods + 1 >= passed, "kill {nth}: {periods} periods were counted of {passed}");
        stat(&mut container, &mut counters)?;
        thread::sleep(Duration::from_secs(1));
    }
    ensure!(periods > 0, "nothing was sampled");
    Ok(())
}
