//! The clock of the day is set forward and back while a container reads, and the machine is suspended: what time means
//! in each file.
//!
//! For guests, whose clock is nobody else's.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lxcfs::model::lock::lock;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::mount::Daemon;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// Of the numbers of a line of `/proc/stat`.
const IDLE: usize = 3;

/// A clock that is ahead of the right one by so many seconds. Dropping it sets it right.
struct Ahead(i64);

/// The clocks, until it is dropped.
///
/// # Errors
/// This is no guest.
fn ours() -> Result<MutexGuard<'static, ()>> {
    static CLOCKS: Mutex<()> = Mutex::new(());
    let command_line = std::fs::read_to_string("/proc/cmdline")?;
    let is_guest = command_line.contains("rdinit=/init");
    ensure!(is_guest, "the clock of this machine is not ours to set");
    Ok(lock(&CLOCKS))
}

impl Ahead {
    fn by(seconds: i64) -> Result<Self> {
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
    let _ours = ours()?;
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

/// Suspends the machine until the clock on its battery wakes it; returns how long it slept by the kernel's count, seconds.
///
/// Once: from then on an emulated machine is awake at once, because the alarm has been.
#[expect(clippy::float_arithmetic, reason = "seconds as /proc/uptime has them")]
fn suspend() -> Result<f64> {
    let before = clocks();
    std::fs::write("/sys/class/rtc/rtc0/wakealarm", "+4").context("set the alarm")?;
    std::fs::write("/sys/power/state", "mem").context("suspend the machine")?;
    let after = clocks();
    let asleep = (after[0] - before[0]) - (after[1] - before[1]);
    ensure!(asleep > 1.0, "the machine slept for {asleep} s");
    Ok(asleep)
}

/// Time since the start, with what the machine was suspended and without, seconds.
#[expect(clippy::float_arithmetic, reason = "seconds as /proc/uptime has them")]
fn clocks() -> [f64; 2] {
    [ClockId::Boottime, ClockId::Monotonic].map(|clock| {
        let now = clock_gettime(clock);
        now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
    })
}

/// What a container reads before and after.
#[derive(Debug)]
struct Reading {
    uptime: [f64; 2],
    btime: i64,
    /// Of the first line of `/proc/stat`.
    ticks: Vec<u64>,
}

impl Reading {
    fn of(container: &mut Running) -> Result<Self> {
        let (uptime, btime) = read(container)?;
        let text = container.say("sed -n 's/^cpu  //p' /proc/stat")?;
        let ticks = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { uptime, btime, ticks })
    }
}

/// A suspended machine is an idle one to the container: up, at the same start, and without use of its CPUs.
#[test]
fn a_suspended_machine_is_up_and_idle() -> Result<()> {
    let _ours = ours()?;
    let daemons =
        [Daemon::with(&["--accounting", "files"])?, Daemon::with(&["--accounting", "auto"])?];
    let cgroup = Cgroup::new("suspend")?;
    let start = |daemon: &Daemon| Container::new(&cgroup).files(&daemon.mount_point()).shell();
    let mut containers = [start(&daemons[0])?, start(&daemons[1])?];
    let [up, awake] = clocks();
    let before = [Reading::of(&mut containers[0])?, Reading::of(&mut containers[1])?];
    let asleep = suspend()?;
    let after = [Reading::of(&mut containers[0])?, Reading::of(&mut containers[1])?];
    let [passed, awake] = [clocks()[0] - up, clocks()[1] - awake];
    for (before, after) in before.iter().zip(&after) {
        let said = format!("{before:?} {after:?}, {asleep} of {passed} s asleep");
        let grown = |nth: usize| after.uptime[nth] - before.uptime[nth];
        ensure!((asleep - 0.02..passed + 0.02).contains(&grown(0)), "{said}");
        // Of both CPUs.
        ensure!((2.0 * asleep - 0.04..2.0 * passed + 0.04).contains(&grown(1)), "idle: {said}");
        ensure!((after.btime - before.btime).abs() <= 1, "{said}");
        let grown = before.ticks.iter().zip(&after.ticks).map(|(old, new)| new.checked_sub(*old));
        let grown: Vec<u64> = grown.collect::<Option<_>>().context("a counter fell")?;
        let idle = grown.get(IDLE).with_context(|| said.clone())?;
        let busy: u64 = grown.iter().sum::<u64>() - idle;
        ensure!(busy as f64 / 100.0 <= 2.0 * awake, "used: {said}");
        ensure!(*idle as f64 / 100.0 >= 2.0 * asleep - 0.04, "idle ticks: {said}");
    }
    Ok(())
}
