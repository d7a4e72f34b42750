//! Runs the program `stopwatch` in a limited container, and pins it.

use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::Container;
use serde::de::DeserializeOwned;

use super::subjects::program;

/// A place to read in: the container's cgroup, and the CPUs it may use.
#[derive(Debug)]
pub(super) struct Place {
    cgroup: Cgroup,
    cpus: Vec<usize>,
}

impl Place {
    /// A cgroup with limits no reading comes near, and readers on `cpus`.
    pub(super) fn new(cpus: &[usize]) -> Result<Self> {
        let cgroup = Cgroup::new("bench")?;
        cgroup.limit_memory(256 << 20)?;
        // Far more than one reader has use for: it is not to be throttled.
        cgroup.limit_cpu(800_000, 100_000)?;
        Ok(Self { cgroup, cpus: cpus.to_vec() })
    }

    /// The same cgroup, other CPUs.
    pub(super) fn on(mut self, cpus: &[usize]) -> Self {
        self.cpus = cpus.to_vec();
        self
    }

    /// What `stopwatch` says of `files`, with `arguments` before them.
    pub(super) fn measure<T: DeserializeOwned>(
        &self,
        arguments: &[String],
        files: &[PathBuf],
    ) -> Result<T> {
        let output = self.run(arguments, files)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "stopwatch {arguments:?} {files:?}: {said}");
        serde_json::from_slice(&output.stdout).context("read what stopwatch says")
    }

    fn run(&self, arguments: &[String], files: &[PathBuf]) -> Result<Output> {
        let stopwatch = program("stopwatch");
        let stopwatch = stopwatch.to_str().context("an odd path")?;
        let contain = Container::new(&self.cgroup).command(&[stopwatch]);
        let cpus: Vec<_> = self.cpus.iter().map(ToString::to_string).collect();
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", &cpus.join(",")]).arg(contain.get_program()).args(contain.get_args());
        pinned.args(arguments).args(files).output().context("run stopwatch in a container")
    }
}

/// The arguments of a mode with rounds.
pub(super) fn rounds(mode: &str, rounds: u32, readings: u32) -> Vec<String> {
    let numbers = [rounds.to_string(), readings.to_string()];
    let [rounds, readings] = numbers;
    [mode.to_owned(), "--rounds".to_owned(), rounds, "--readings".to_owned(), readings].to_vec()
}
