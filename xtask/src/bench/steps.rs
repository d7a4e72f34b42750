//! Instructions of a program that callgrind cannot run, because it makes system calls that are newer than callgrind: the
//! program is stepped through, one instruction at a time, which takes some microseconds for each.
//!
//! What callgrind makes the same everywhere is the machine's own here, like the memcpy that the C library picks for its
//! CPU. That is little of what a program does.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::process::Guard;

/// Instructions of the first thread of `command`, from when it has said that it is ready, and waits for the end of its
/// input, to its own end.
pub(super) fn count(command: &mut Command) -> Result<u64> {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut guard = Guard(command.spawn().context("start what is counted")?);
    let pid = Pid::from_raw(guard.0.id().try_into()?);
    let mut said = String::new();
    let stdout = guard.0.stdout.take().context("stdout is piped")?;
    BufReader::new(stdout).read_line(&mut said).context("wait for what is counted")?;
    ensure!(said == "ready\n", "what is counted is not ready: {said}");
    ptrace::attach(pid).context("attach to what is counted")?;
    let stopped = waitpid(pid, None).context("stop what is counted")?;
    if stopped != WaitStatus::Stopped(pid, Signal::SIGSTOP) {
        bail!("what is counted did not stop: {stopped:?}");
    }
    drop(guard.0.stdin.take());
    let mut steps = 0;
    loop {
        ptrace::step(pid, None).context("take a step")?;
        match waitpid(pid, None).context("wait for a step")? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => steps += 1,
            WaitStatus::Exited(_, 0) => return Ok(steps),
            status => bail!("what is counted did not go on: {status:?}"),
        }
    }
}
