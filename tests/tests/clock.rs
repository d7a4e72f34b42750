//! The clock of the day is set forward and back while a container reads: only `btime` moves, as the host's does.
//!
//! For guests, whose clock is nobody else's.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::mount::Daemon;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// A clock that is ahead of the right one by so many seconds. Dropping it sets it right.
struct Ahead(i64);

impl Ahead {
    fn by(seconds: i64) -> Result<Self> {
        let command_line = std::fs::read_to_string("/proc/cmdline")?;
        ensure!(
            command_line.contains("rdinit=/init"),
            "the clock of this machine is not ours to set"
        );
        let ahead = Self(seconds);
        step(seconds)?;
        Ok(ahead)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        step(-self.0).expect("set the clock right");
    }
}

fn step(seconds: i64) -> Result<()> {
    let now = clock_gettime(ClockId::Realtime);
    let then = Timespec { tv_sec: now.tv_sec + seconds, ..now };
    clock_settime(ClockId::Realtime, then).context("set the clock")
}

/// `[uptime, idle]` and btime, seconds.
fn read(container: &mut Running) -> Result<([f64; 2], i64)> {
    let text = container.say("cat /proc/uptime; sed -n 's/^btime //p' /proc/stat")?;
    let mut words = text.split_whitespace();
    let mut word = || words.next().with_context(|| text.clone());
    Ok(([word()?.parse()?, word()?.parse()?], word()?.parse()?))
}

fn host_btime() -> Result<i64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    Ok(line.context("no btime")?.parse()?)
}

#[test]
fn a_step_of_the_clock_moves_btime_alone() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("clock")?;
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    let (began, (first, btime)) = (Instant::now(), read(&mut container)?);
    let mut before = first;
    for seconds in [100_000, -50_000, 7] {
        let _ahead = Ahead::by(seconds)?;
        // Ours is a hundredth of a second old at most.
        std::thread::sleep(Duration::from_millis(20));
        let (now, moved) = read(&mut container)?;
        let passed_s = began.elapsed().as_secs_f64();
        ensure!(now[0] - first[0] <= passed_s + 0.02, "uptime: {first:?} {now:?} in {passed_s} s");
        // Of both CPUs.
        ensure!(
            now[1] - first[1] <= 2.0 * passed_s + 0.04,
            "idle: {first:?} {now:?} in {passed_s} s"
        );
        ensure!(now[0] >= before[0] && now[1] >= before[1], "{before:?} {now:?}");
        before = now;
        ensure!((moved - btime - seconds).abs() <= 1, "{seconds} s: btime {btime}, then {moved}");
        ensure!(moved.abs_diff(host_btime()?) <= 1, "the host has another");
        // A process that starts now starts now, for ps too, which adds its start to btime.
        let started = container.say("sh -c 'date -d \"$(ps -o lstart= -p $$)\" +%s; date +%s'")?;
        let times: Vec<i64> = started.lines().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(times.len() == 2 && (times[1] - times[0]).abs() <= 2, "{started}");
    }
    let (_, after) = read(&mut container)?;
    ensure!((after - btime).abs() <= 1, "{btime} {after}");
    Ok(())
}
