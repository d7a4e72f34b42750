//! Containers made by the runtimes people use, one module for each: all with the same limits, the same root filesystem
//! and our files bound the way that runtime's users do it, and one set of assertions for all of them.

pub mod crun;
pub mod docker;
pub mod lxc;
pub mod oci;
pub mod podman;
pub mod runc;
pub mod view;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cgroup::Reserved;
use crate::mount::Daemon;
use crate::rootfs;

/// The limits: memory, the time of one CPU, and the second CPU alone.
pub const MEMORY: u64 = 256 << 20;
/// Microseconds in every period.
pub const QUOTA: u64 = 100_000;
/// Microseconds.
pub const PERIOD: u64 = 100_000;
/// A list.
pub const CPUS: &str = "1";

/// What a container's programs are started with.
pub const ENVIRONMENT: [&str; 3] = ["PATH=/usr/bin", "TERM=dumb", "LC_ALL=C"];

/// What the README of LXCFS binds, and every runtime allows.
const FILES: [&str; 9] = [
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/slabinfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "sys/devices/system/cpu",
];

/// What a container is made from: a root filesystem, our files, and a name for its cgroups. Dropping it kills what is in
/// those cgroups and removes them, then ends the daemon.
#[derive(Debug)]
pub struct Ground {
    cgroup: Reserved,
    daemon: Daemon,
    files: &'static [&'static str],
}

impl Ground {
    /// Starts a daemon and makes a root filesystem.
    ///
    /// # Errors
    /// A program is not installed, or the daemon does not serve.
    pub fn new(name: &str) -> Result<Self> {
        let ground = Self { cgroup: Reserved::new(name), daemon: Daemon::start()?, files: &FILES };
        rootfs::make(&ground.root())?;
        Ok(ground)
    }

    /// The same without our files: what the container would see by itself.
    ///
    /// # Errors
    /// As above.
    pub fn bare(name: &str) -> Result<Self> {
        Ok(Self { files: &[], ..Self::new(name)? })
    }

    /// The name of the container and its cgroup, a child of the root of every hierarchy.
    #[must_use]
    pub fn name(&self) -> &str {
        self.cgroup.name()
    }

    /// The root filesystem.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.directory().join("rootfs")
    }

    /// Where a runtime can keep what it wants to; it goes with us.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.daemon.directory()
    }

    /// Where our files are mounted.
    #[must_use]
    pub fn mount_point(&self) -> PathBuf {
        self.daemon.mount_point()
    }

    /// What to bind: from where, over what.
    pub fn binds(&self) -> impl Iterator<Item = (PathBuf, PathBuf)> {
        self.files.iter().map(|file| (self.daemon.path(file), Path::new("/").join(file)))
    }
}

/// How a runtime runs a shell script in a container on that ground; it returns what the script prints.
pub type Run = fn(&Ground, &str) -> Result<String>;

/// Runs a container and asserts that its programs see it, and that no page had to be the host's.
///
/// # Errors
/// What is wrong, all of it.
pub fn check(name: &str, run: Run) -> Result<()> {
    let ground = Ground::new(name)?;
    let started = Instant::now();
    let text = run(&ground, &view::script())?;
    let wrong = view::wrong(&text, started.elapsed());
    ensure!(wrong.is_empty(), "{wrong:#?}\n{text}");
    let point = ground.mount_point().display().to_string();
    let status = ground.daemon.run(&["status", "--json", &point])?;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    let fallbacks = status["fallbacks"].as_array().context("status lists fallbacks")?;
    ensure!(fallbacks.is_empty(), "the host's pages were served: {status:#}");
    Ok(())
}

/// Runs a command to its end and returns what it prints.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("start {name}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} ended with {}: {stdout}{stderr}", output.status);
    Ok(stdout)
}

/// The options of podman and docker, which are the same.
fn engine_options(ground: &Ground) -> Vec<String> {
    let mut options = vec![
        "--rm".to_owned(),
        "--network=none".to_owned(),
        format!("--memory={MEMORY}"),
        format!("--cpu-quota={QUOTA}"),
        format!("--cpu-period={PERIOD}"),
        format!("--cpuset-cpus={CPUS}"),
        format!("--cgroup-parent=/{}", ground.name()),
    ];
    options.extend(ENVIRONMENT.iter().map(|variable| format!("--env={variable}")));
    let volumes = ground.binds();
    options.extend(
        volumes.map(|(from, to)| format!("--volume={}:{}:ro", from.display(), to.display())),
    );
    options
}
