//! Loads a cgroup in a known way: `burden KIND [NUMBER]`. Starts when a line comes on standard input, so that it can be
//! put where it belongs first, and answers with a line when the burden stands.
//!
//! * `spin N`: N threads that run without end; `nice N`: the same, but anybody else goes first
//! * `sleep N`: N threads that sleep
//! * `vfork N`: N children that wait in the kernel for a child of theirs, uninterruptible
//! * `fork N`: N forks, one after the other, then sleep
//! * `storm SECONDS`: threads that wake each other, forks, vforks, threads that come and go, but anybody else goes
//!   first; then sleep
//! * `hog GIB`: takes and touches that much memory

use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().context("which burden?")?;
    let number: u64 = arguments.next().map_or(Ok(1), |number| number.parse())?;
    writeln!(std::io::stdout(), "waits")?;
    let mut go = [0];
    std::io::stdin().read_exact(&mut go).context("wait for the start")?;
    if matches!(kind.as_str(), "nice" | "storm") {
        rustix::process::nice(19).context("go last")?;
    }
    match kind.as_str() {
        "spin" | "nice" => threads(number, spin),
        "sleep" => threads(number, sleep),
        "vfork" => (0..number).try_for_each(|_| vfork())?,
        "fork" => (0..number).try_for_each(|_| fork_once())?,
        "hog" => hog(number)?,
        "storm" => storm(Duration::from_secs(number))?,
        other => bail!("no burden is called {other}"),
    }
    writeln!(std::io::stdout(), "ready")?;
    if matches!(kind.as_str(), "spin" | "nice") { spin() } else { sleep() }
}

/// `number` threads in all: this one joins in last.
fn threads(number: u64, what: fn() -> !) {
    for _ in 1..number {
        thread::spawn(move || what());
    }
}

fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

fn sleep() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3_600));
    }
}

/// A child that is uninterruptible for as long as its own child sleeps.
fn vfork() -> Result<()> {
    // SAFETY: this process has one thread in this mode, so the child may do as it likes.
    if let ForkResult::Child = unsafe { nix::unistd::fork() }? {
        with_parent()?;
        let mut stack = vec![0; 64 * 1024];
        let child = Box::new(|| {
            let _ = with_parent();
            sleep()
        });
        // SAFETY: the child shares our memory and runs on a stack of its own, and we do not go on while it lives.
        unsafe {
            nix::sched::clone(
                child,
                &mut stack,
                CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK,
                None,
            )
        }?;
    }
    Ok(())
}

/// Whoever is left when its parent dies dies too.
fn with_parent() -> Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
}

fn fork_once() -> Result<()> {
    // SAFETY: the child ends at once and does nothing that a lock held elsewhere could stop.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            // SAFETY: ends the process without running anything of ours.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => wait(child),
    }
}

/// A child for which we wait in the kernel until it ends.
fn vfork_once() -> Result<()> {
    let mut stack = vec![0; 64 * 1024];
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    let signal = Some(nix::libc::SIGCHLD);
    // SAFETY: the child shares our memory, ends at once, and runs on a stack that outlives it: we wait for it.
    let child = unsafe { nix::sched::clone(Box::new(|| 0), &mut stack, flags, signal) }?;
    wait(child)
}

/// Touches every page of so many gibibytes.
fn hog(gib: u64) -> Result<()> {
    let mut held = Vec::new();
    for _ in 0..usize::try_from(gib << 10)? {
        held.push(vec![1; 1 << 20]);
    }
    std::hint::black_box(&held);
    Ok(())
}

fn wait(child: Pid) -> Result<()> {
    waitpid(child, None).context("wait for a child")?;
    Ok(())
}

fn storm(length: Duration) -> Result<()> {
    let end = Instant::now() + length;
    let (ping, pong) = (mpsc::sync_channel::<()>(0), mpsc::sync_channel::<()>(0));
    thread::spawn(move || while ping.1.recv().is_ok() && pong.0.send(()).is_ok() {});
    let echo = thread::spawn(move || {
        while Instant::now() < end && ping.0.send(()).is_ok() && pong.1.recv().is_ok() {}
    });
    while Instant::now() < end {
        fork_once()?;
        vfork_once()?;
        let short = thread::spawn(|| thread::sleep(Duration::from_micros(50)));
        short.join().expect("a thread that sleeps");
    }
    echo.join().expect("a thread that waits");
    Ok(())
}
