//! When things started: what the tools make of btime, uptime and start times, in the host's time namespace and in others.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::mount::Daemon;
use lxcfs_tests::patience;

fn now_s() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Seconds between starting something and asking about it that a busy machine may need.
fn slack_s() -> u64 {
    patience(std::time::Duration::from_secs(10)).as_secs()
}

fn shell() -> Result<(Daemon, Cgroup, Running)> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("time")?;
    let container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    Ok((daemon, cgroup, container))
}

fn number(text: &str) -> Result<u64> {
    text.trim().parse().with_context(|| format!("no number: {text}"))
}

/// ps adds the start of a process to btime. The sum is now, whatever the time namespace adds to the start.
#[test]
fn a_process_that_starts_now_starts_now() -> Result<()> {
    let (_daemon, _cgroup, mut container) = shell()?;
    let ask = "date -d \"$(ps -o lstart= -p $$)\" +%s";
    for offset_s in ["", "100000", "-3"] {
        let began = now_s()?;
        let command = match offset_s {
            "" => format!("sh -c '{ask}'"),
            offset => format!("unshare -T --boottime {offset} --fork sh -c '{ask}'"),
        };
        let started = number(&container.say(&command)?)?;
        let range = began.saturating_sub(2)..=now_s()? + 2;
        ensure!(range.contains(&started), "offset {offset_s}: {started}, not in {range:?}");
    }
    Ok(())
}

/// Where the namespace's time begins with the container, the age of a process is right, too.
#[test]
fn ages_are_right_in_a_time_namespace_of_the_containers_own() -> Result<()> {
    let (_daemon, _cgroup, mut container) = shell()?;
    // Offsets of unshare are whole seconds: the namespace's time begins no earlier than the container.
    container.say("sleep 1.1")?;
    let up = std::fs::read_to_string("/proc/uptime")?;
    let up = up.split('.').next().context("empty")?;
    let age = container
        .say(&format!("unshare -T --boottime -{up} --fork sh -c 'sleep 1; ps -o etimes= -p $$'"))?;
    ensure!(number(&age)? <= slack_s(), "{age}");
    Ok(())
}

/// `uptime -s` is the container's start, and the host's boot is no secret and no other than the host's.
#[test]
fn the_container_is_up_since_its_start() -> Result<()> {
    let began = now_s()?;
    let (_daemon, _cgroup, mut container) = shell()?;
    let since = number(&container.say("date -d \"$(uptime -s)\" +%s")?)?;
    ensure!(since + 2 >= began && since <= now_s()? + 1, "up since {since}, made at {began}");
    let ours = container.say("grep btime /proc/stat")?;
    let stat = std::fs::read_to_string("/proc/stat")?;
    ensure!(stat.lines().any(|line| line == ours.trim()), "{ours}");
    Ok(())
}

/// `who -b` reads no file of ours: it tells what the container's own utmp says, which its init writes.
#[test]
fn who_tells_what_the_utmp_of_the_container_says() -> Result<()> {
    // A record of kind `BOOT_TIME`, 2, and its seconds (utmp(5)).
    const RECORD: &str = "import struct, sys; sys.stdout.buffer.write(struct.pack(\"<hxxi32s4s32s256shhiii16s20s\", \
         2, 0, b\"~\", b\"~~\", b\"reboot\", b\"\", 0, 0, 0, int(sys.argv[1]), 0, b\"\", b\"\"))";
    let (daemon, _cgroup, mut container) = shell()?;
    let utmp = daemon.directory().join("utmp").display().to_string();
    let began = now_s()?;
    container.say(&format!("python3 -c '{RECORD}' {began} > {utmp}"))?;
    let said = container
        .say(&format!("date -d \"$(LC_ALL=C who -b {utmp} | sed 's/.*system boot *//')\" +%s"))?;
    ensure!(number(&said)? == began - began % 60, "{began}: {said}");
    Ok(())
}
