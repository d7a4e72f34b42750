//! The system calls of a daemon for one reading, by strace.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// System calls for one reading.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// On `/dev/fuse`.
    pub(super) fuse: f64,
    /// All others, by name.
    pub(super) other: BTreeMap<String, f64>,
}

const FEW: u32 = 20;
const MANY: u32 = 220;

/// What `read` of more readings takes more than of few: what a new container costs once is in both.
pub(super) fn of_one_reading(pid: u32, read: &dyn Fn(u32) -> Result<()>) -> Result<Calls> {
    let (few, many) = (traced(pid, &|| read(FEW))?, traced(pid, &|| read(MANY))?);
    let readings = f64::from(MANY - FEW);
    let mut calls = Calls::default();
    for (name, count) in many {
        let once = few.get(&name).copied().unwrap_or(0);
        let each = (f64::from(count) - f64::from(once)) / readings;
        if name == FUSE {
            calls.fuse = each;
        } else if each > 0.01 {
            calls.other.insert(name, each);
        }
    }
    Ok(calls)
}

/// The key for calls on the device.
const FUSE: &str = "/dev/fuse";

fn traced(pid: u32, what: &dyn Fn() -> Result<()>) -> Result<BTreeMap<String, u32>> {
    let trace = std::env::temp_dir().join(format!("lxcfs-bench-{pid}.strace"));
    let mut strace = attach(pid, &trace)?;
    let done = what();
    // Told so, strace lets go of the daemon and ends.
    kill(Pid::from_raw(strace.id().try_into()?), Signal::SIGINT).context("end strace")?;
    strace.wait().context("wait for strace")?;
    let text = fs::read_to_string(&trace).context("read the trace")?;
    let _ = fs::remove_file(&trace);
    done?;
    Ok(count(&text))
}

/// Starts strace and waits until it has the daemon.
fn attach(pid: u32, trace: &Path) -> Result<Child> {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y", "-s", "0", "-o"]).arg(trace).args(["-p", &pid.to_string()]);
    let strace = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("run strace; install it: apt-get install strace")?;
    let is_traced = || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        threads
            .map(|thread| fs::read_to_string(thread.path().join("status")))
            .all(|status| status.is_ok_and(|status| !status.contains("TracerPid:\t0\n")))
    };
    lxcfs_tests::wait_for("strace to attach", is_traced);
    Ok(strace)
}

/// Counts the calls in a trace with `-f -y`, lines like `12 read(3</dev/fuse>, ...`. The second half of a call that was
/// interrupted in the trace (`<... read resumed>`) is no call of its own.
fn count(trace: &str) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for line in trace.lines() {
        let Some((_, call)) = line.split_once(' ') else { continue };
        let Some((name, arguments)) = call.trim_start().split_once('(') else { continue };
        if name.contains([' ', '<', '+', '-']) {
            continue;
        }
        let first = arguments.split(',').next().unwrap_or_default();
        let key = if first.contains(FUSE) { FUSE } else { name };
        *counts.entry(key.to_owned()).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_on_the_device_are_told_apart() {
        let trace = "7 read(3</dev/fuse>, \"\"..., 16) = 80\n7 pread64(9</proc/stat>, \"\"..., 9, 0) = 9\n\
            8 read(3</dev/fuse>,  <unfinished ...>\n8 <... read resumed>\"\"..., 16) = 80\n\
            7 writev(3</dev/fuse>, [...], 2) = 16\n9 +++ exited with 0 +++\n9 --- SIGINT {} ---\n";
        let counts = count(trace);
        assert_eq!(counts.get(FUSE), Some(&3));
        assert_eq!(counts.get("pread64"), Some(&1));
        assert_eq!(counts.len(), 2);
    }
}
