//! Fixtures of the root integration tests: cgroups, containers and mounts that clean up after themselves.
//!
//! `cargo xtask run` builds its demonstration from the same pieces.

pub mod bench;
pub mod burden;
pub mod cgroup;
pub mod container;
pub mod counters;
pub mod counting;
pub mod debian;
pub mod machine;
pub mod mount;
pub mod rootfs;
pub mod runtime;
pub mod store;
pub mod systemd;

use std::ffi::OsStr;
use std::fmt::Display;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// The directory cargo puts our programs in: above that of tests and examples, or the program's own.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("/proc/self/exe can be read");
    let directory = exe.parent().expect("a program lies in a directory");
    let directory = if directory.ends_with("deps") || directory.ends_with("examples") {
        directory.parent().expect("both lie in the target directory")
    } else {
        directory
    };
    directory.join(name)
}

/// `duration`, longer where the machine is slower: an emulated guest says how much in `LXCFS_TEST_TIMEOUT_FACTOR`.
#[must_use]
pub fn patience(duration: Duration) -> Duration {
    let factor = std::env::var("LXCFS_TEST_TIMEOUT_FACTOR").ok().and_then(|f| f.parse().ok());
    duration * factor.unwrap_or(1)
}

/// Waits until `condition` holds, at most [`patience`] of ten seconds.
///
/// # Panics
/// It does not hold by then.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for_no_objection(what, || (!condition()).then_some("it did not hold"));
}

/// Waits until `objection` has nothing to object, as [`wait_for`] does.
///
/// # Panics
/// It objects to the end; its last objection is said.
pub fn wait_for_no_objection<T: Display>(what: &str, mut objection: impl FnMut() -> Option<T>) {
    let deadline = Instant::now() + patience(Duration::from_secs(10));
    while let Some(objection) = objection() {
        assert!(Instant::now() < deadline, "waited too long for {what}: {objection}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a program that has ended printed; `what` names it in the message.
///
/// # Errors
/// It failed, and its standard error is in the message, or what it printed is not UTF-8.
pub fn printed(what: impl Display, output: Output) -> Result<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {}: {stderr}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// The three averages of a loadavg.
///
/// # Errors
/// It does not begin with three numbers.
pub fn averages(loadavg: &str) -> Result<[f64; 3]> {
    let words: Vec<f64> = loadavg.split(' ').take(3).map(str::parse).collect::<Result<_, _>>()?;
    words.try_into().ok().with_context(|| format!("three numbers: {loadavg}"))
}

/// The number of line `name` of a meminfo, KiB.
///
/// # Errors
/// There is no such line.
pub fn kib(meminfo: &str, name: &str) -> Result<u64> {
    let number = |line: &str| {
        line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok()
    };
    meminfo.lines().find_map(number).with_context(|| format!("no {name} in: {meminfo}"))
}

/// The words with a space between them, as a shell takes them.
pub fn words<T: AsRef<OsStr>>(list: impl IntoIterator<Item = T>) -> String {
    let words: Vec<_> =
        list.into_iter().map(|word| word.as_ref().to_string_lossy().into_owned()).collect();
    words.join(" ")
}
