//! `cargo xtask test`: every test there is. Nothing is skipped; what is missing is installed, or the run fails.

mod fuzz;
mod guests;
mod matrix;
mod miri;
mod soak;

use std::io::BufRead as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::vm;

pub(crate) use soak::{SoakArgs, soak};

/// Programs the root tests call, and the Debian packages they come in.
const TOOLS: [(&str, &str); 22] = [
    ("busybox", "busybox"),
    ("nproc", "coreutils"),
    ("getconf", "libc-bin"),
    ("find", "findutils"),
    ("free", "procps"),
    ("mpstat", "sysstat"),
    ("script", "bsdutils"),
    ("htop", "htop"),
    ("tmux", "tmux"),
    ("lscpu", "util-linux"),
    ("nsenter", "util-linux"),
    ("setarch", "util-linux"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("losetup", "mount"),
    ("mkfs.ext4", "e2fsprogs"),
    ("strace", "strace"),
    ("systemctl", "systemd"),
    ("python3", "python3"),
    ("crun", "crun"),
    ("runc", "runc"),
    ("lxc-start", "lxc"),
];

/// What only the suites of [`HOST_SUITES`] call; a program, or a file.
const HOST_TOOLS: [(&str, &str); 10] = [
    // And the library that Debian's lxcfs needs.
    ("fusermount3", "fuse3"),
    ("valgrind", "valgrind"),
    ("podman", "podman"),
    ("dockerd", "docker.io"),
    ("java", "openjdk-17-jre-headless"),
    ("lstopo-no-graphics", "hwloc-nox"),
    ("node", "nodejs"),
    ("numactl", "numactl"),
    ("pytest-3", "python3-pytest"),
    ("/usr/lib/python3/dist-packages/psutil/tests/test_linux.py", "python3-psutil"),
];

/// Suites for this machine alone. `engines`: podman and docker are a hundred megabytes of programs that a guest would
/// have to keep in memory, and make their containers with the runtimes of `runtimes`, which guests run too.
/// `languages`: a JVM and node, likewise. `peer`: Debian's lxcfs, which knows most on cgroup v1. `psutil`: its tests give
/// programs 5 s, too few for an emulator. `shows`: what `languages` needs, and node_exporter.
const HOST_SUITES: [&str; 5] = ["engines", "languages", "peer", "psutil", "shows"];

/// Suites for guests alone, where nothing else runs. `clock`: sets the machine's clock. `whole`: the machine's load is the
/// sum of all cgroups'.
const GUEST_SUITES: [&str; 2] = ["clock", "whole"];

/// The command line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this part; all of them is what counts
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Only this suite of the root tests, on every machine; can be given more than once
    #[arg(long = "suite", value_name = "NAME")]
    suites: Vec<String>,
    /// Only guests with this kernel: 6.1, 6.12, 6.18 or 7.3
    #[arg(long, default_value = "all")]
    kernel: vm::Choice,
}

/// A part of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Formatting, lints, invariants
    Style,
    /// Unit and property tests
    Unit,
    /// Root tests on this machine
    Root,
    /// `cargo xtask run --once`
    Run,
    /// Root tests in guests with pure cgroup v2: all of them with one kernel, what a kernel decides with three more
    Guests,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let wanted = |part| args.only.is_none_or(|only| only == part);
    if wanted(Part::Style) {
        crate::cargo(&["fmt", "--all", "--check"])?;
        crate::cargo(&[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ])?;
        crate::tidy::check()?;
    }
    if wanted(Part::Unit) {
        crate::cargo(&["test", "--workspace", "--exclude", "lxcfs-tests"])?;
        install_tools()?;
        crate::bench::instructions::check()?;
    }
    if wanted(Part::Root) || wanted(Part::Run) || wanted(Part::Guests) {
        crate::need_root("making containers and mounts")?;
        install_tools()?;
        crate::cargo(&["build", "--package", "lxcfs-user", "--package", "lxcfs-tests"])?;
    }
    let mut here = Vec::new();
    if wanted(Part::Root) {
        let binaries = suites_for(&GUEST_SUITES, args)?;
        here = matrix::run_here(&binaries, &crate::root().join("tests"))?;
    }
    if wanted(Part::Run) {
        run_once()?;
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            run_until(signal)?;
            nothing_left()?;
        }
    }
    let guests = if wanted(Part::Guests) { guests::run(args)? } else { Vec::new() };
    nothing_left()?;
    if here.is_empty() && guests.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    print!("\n{}", vm::table(&matrix::rows(&here, &guests)?));
    print!("{}", matrix::failures(&here, &guests)?);
    let passed = here.iter().all(vm::SuiteReport::passed);
    if guests.is_empty() && passed {
        return Ok(ExitCode::SUCCESS);
    }
    let guests = vm::verdict(&guests);
    Ok(if passed { guests } else { ExitCode::FAILURE })
}

fn install_tools() -> Result<()> {
    let missing: Vec<_> = TOOLS
        .iter()
        .chain(&HOST_TOOLS)
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("> apt-get install {}", missing.join(" "));
    let apt = |arguments: &[&str]| -> Result<()> {
        let status = Command::new("apt-get")
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null())
            .status()
            .context("run apt-get; install by hand what is missing")?;
        ensure!(status.success(), "apt-get {} failed", arguments.join(" "));
        Ok(())
    };
    apt(&["update", "-q"])?;
    apt(&[&["install", "-qy", "--no-install-recommends"], missing.as_slice()].concat())
}

/// Whether a program of that name, or the file of that absolute path, is there.
fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// `cargo xtask run --once`, at a place of its own.
fn run_once() -> Result<()> {
    let point = std::env::temp_dir().join(format!("lxcfs-test-run-{}", std::process::id()));
    let point = point.to_str().context("the temporary directory has an odd name")?.to_owned();
    crate::cargo(&["xtask", "run", "--once", "--mount", &point])
}

/// `cargo xtask run`, which serves until the signal and then takes everything away.
fn run_until(signal: Signal) -> Result<()> {
    let point = std::env::temp_dir().join(format!("lxcfs-test-run-{}", std::process::id()));
    println!("> cargo xtask run, ended by {signal}");
    let mut run = Command::new(std::env::current_exe()?)
        .args(["run", "--mount"])
        .arg(&point)
        .stdout(Stdio::piped())
        .spawn()
        .context("start xtask run")?;
    let stdout = run.stdout.take().context("stdout is piped")?;
    let mut lines = std::io::BufReader::new(stdout).lines();
    let serves = lines.by_ref().any(|line| line.is_ok_and(|line| line.starts_with("Serving")));
    kill(Pid::from_raw(run.id().try_into()?), signal).context("signal xtask run")?;
    // It goes on printing, and would be ended by a closed pipe.
    let rest = lines.count();
    let status = run.wait().context("wait for xtask run")?;
    ensure!(serves && status.success(), "xtask run: {status}, {rest} lines after the signal");
    ensure!(!point.exists(), "{} was left", point.display());
    Ok(())
}

/// The suites that were asked for, or all, but for those that run `elsewhere`.
fn suites_for(elsewhere: &[&str], args: &Args) -> Result<Vec<(String, PathBuf)>> {
    let mut binaries = test_binaries()?;
    for name in elsewhere.iter().copied().chain(args.suites.iter().map(String::as_str)) {
        let is_known = binaries.iter().any(|(known, _)| known == name);
        let names =
            || binaries.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        ensure!(is_known, "there is no suite {name}; there are {}", names());
    }
    binaries.retain(|(name, _)| {
        let is_wanted = args.suites.is_empty() || args.suites.contains(name);
        is_wanted && !elsewhere.contains(&name.as_str())
    });
    Ok(binaries)
}

/// The binaries of the root tests, by name.
fn test_binaries() -> Result<Vec<(String, PathBuf)>> {
    let output = Command::new("cargo")
        .args(["test", "--package", "lxcfs-tests", "--no-run", "--message-format", "json"])
        .current_dir(crate::root())
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    ensure!(output.status.success(), "the root tests do not build");
    let messages = serde_json::Deserializer::from_slice(&output.stdout);
    let mut binaries = Vec::new();
    for message in messages.into_iter::<serde_json::Value>() {
        let message = message.context("read cargo's messages")?;
        let is_test = message["target"]["kind"][0] == "test";
        if let (true, Some(path), Some(name)) =
            (is_test, message["executable"].as_str(), message["target"]["name"].as_str())
        {
            binaries.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    if binaries.is_empty() {
        bail!("cargo named no test binary");
    }
    Ok(binaries)
}

/// Fails when a test left a mount, a cgroup or a disk. Swap that is on keeps its disk.
fn nothing_left() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    let left: Vec<_> = mounts.lines().filter(|line| line.contains("lxcfs-test-")).collect();
    ensure!(left.is_empty(), "mounts were left: {left:#?}");
    let points = mounts.lines().filter(|line| line.contains(" - cgroup"));
    for point in points.filter_map(|line| line.split(' ').nth(4)) {
        let entries = std::fs::read_dir(point).with_context(|| format!("list {point}"))?;
        let names = entries.flatten().map(|entry| entry.file_name());
        let left: Vec<_> =
            names.filter(|name| name.to_string_lossy().starts_with("lxcfs-test-")).collect();
        ensure!(left.is_empty(), "cgroups were left in {point}: {left:?}");
    }
    for disk in std::fs::read_dir("/sys/block").context("list /sys/block")?.flatten() {
        // Only a loop device in use has this file.
        let image = std::fs::read_to_string(disk.path().join("loop/backing_file"));
        let left = image.is_ok_and(|image| image.contains("lxcfs-test-"));
        ensure!(!left, "a disk was left: {}", disk.path().display());
    }
    Ok(())
}
