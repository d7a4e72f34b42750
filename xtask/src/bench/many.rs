//! Many containers: whether readings take longer, and what a daemon does while nobody reads.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;

use super::phases::{self, Effort};
use super::process::{self, Guard};
use super::reading::Place;
use super::results::{Containers, Idle};
use super::subjects::{FLOOR, Subject, program};

/// Files whose latency is looked at.
pub(super) const FILES: [&str; 3] = ["proc/loadavg", "proc/uptime", "proc/stat"];

/// Containers that sleep. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Sleepers {
    program: Guard,
    /// Removed after the program has ended.
    _cgroup: Cgroup,
}

impl Sleepers {
    /// Makes `count` containers, each with a cgroup of its own where CPU time is counted; each reads `files` once.
    pub(super) fn new(count: u32, files: &[PathBuf]) -> Result<Self> {
        let cgroup = Cgroup::new("sleepers")?;
        let mut command = Command::new(program("crowd"));
        command.arg(count.to_string());
        command.arg("--cgroup").arg(cgroup.directory_of("cpuacct")?);
        for file in files {
            command.arg("--read").arg(file);
        }
        let program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut sleepers =
            Self { program: Guard(program.context("start crowd")?), _cgroup: cgroup };
        let stdout = sleepers.program.0.stdout.take().context("stdout is piped")?;
        let line = BufReader::new(stdout).lines().next();
        ensure!(line.is_some_and(|line| line.is_ok()), "{count} containers were not made");
        Ok(sleepers)
    }
}

/// Latency with `count` containers.
pub(super) fn latency(
    place: &Place,
    subjects: &[Subject],
    count: u32,
    effort: Effort,
) -> Result<Containers> {
    let timings = FILES.iter().map(|file| {
        Ok(((*file).to_owned(), phases::timing(place, subjects, file, "cycle", effort)?))
    });
    Ok(Containers { count, timings: timings.collect::<Result<_>>()? })
}

/// What the daemons do in `seconds` while `containers` sleep, and the memory they have.
pub(super) fn idle(subjects: &[Subject], containers: u32, seconds: u64) -> Result<Idle> {
    let mut idle = Idle { containers, seconds, ..Idle::default() };
    let daemons = || subjects.iter().filter(|subject| subject.name != FLOOR);
    let mut before = Vec::new();
    // What the last readings and the containers that have ended left to do is done in a few seconds.
    std::thread::sleep(Duration::from_secs(5));
    for daemon in daemons() {
        before.push((process::wakeups(daemon.pid())?, process::cpu_ns(daemon.pid())?));
    }
    std::thread::sleep(Duration::from_secs(seconds));
    for (daemon, (wakeups, cpu_ns)) in daemons().zip(before) {
        let name = || daemon.name.clone();
        idle.wakeups.insert(name(), process::wakeups(daemon.pid())?.saturating_sub(wakeups));
        idle.cpu_ns.insert(name(), process::cpu_ns(daemon.pid())?.saturating_sub(cpu_ns));
        idle.memory.insert(name(), process::memory(daemon.pid())?);
    }
    Ok(idle)
}
