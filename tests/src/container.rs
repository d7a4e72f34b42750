//! A container: namespaces of its own, a cgroup, and our files bound over its own. Made by the program `contain`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cgroup::Cgroup;

/// What a container is made of.
#[derive(Debug, Clone, Default)]
pub struct Container {
    procs_files: Vec<PathBuf>,
    files: Option<PathBuf>,
    options: Vec<&'static str>,
}

impl Container {
    /// A container in `cgroup`, with namespaces of its own.
    #[must_use]
    pub fn new(cgroup: &Cgroup) -> Self {
        Self { procs_files: cgroup.procs_files(), ..Self::default() }
    }

    /// A container in the cgroups of the test itself.
    #[must_use]
    pub fn without_cgroup() -> Self {
        Self::default()
    }

    /// A container in the root cgroup of every hierarchy, where nothing is counted for it alone.
    ///
    /// # Errors
    /// No hierarchy is mounted.
    pub fn in_root_cgroup() -> Result<Self> {
        Ok(Self { procs_files: crate::cgroup::root_procs_files()?, ..Self::default() })
    }

    /// With the files mounted at `mount_point` bound over its own.
    #[must_use]
    pub fn files(mut self, mount_point: &Path) -> Self {
        self.files = Some(mount_point.to_owned());
        self
    }

    /// Sharing the cgroup namespace it is started from.
    #[must_use]
    pub fn sharing_cgroup_namespace(mut self) -> Self {
        self.options.push("--share-cgroup");
        self
    }

    /// Sharing the pid namespace it is started from, like `docker run --pid=host`.
    #[must_use]
    pub fn sharing_pid_namespace(mut self) -> Self {
        self.options.push("--share-pid");
        self
    }

    /// In a user namespace whose root is an ordinary user outside.
    #[must_use]
    pub fn in_user_namespace(mut self) -> Self {
        self.options.push("--user");
        self
    }

    /// The command line that runs `command` in the container.
    #[must_use]
    pub fn command(&self, command: &[&str]) -> Command {
        let mut contain = Command::new(crate::program("contain"));
        for file in &self.procs_files {
            contain.arg("--procs").arg(file);
        }
        if let Some(files) = &self.files {
            contain.arg("--files").arg(files);
        }
        contain.args(&self.options).arg("--").args(command);
        contain
    }

    /// Runs a shell script in the container and returns what it prints.
    ///
    /// # Errors
    /// The container cannot be made, or the script fails; its standard error is in the message.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.run(&["/bin/sh", "-c", script])?;
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(
            output.status.success(),
            "`{script}` ended with {}: {stdout}{stderr}",
            output.status
        );
        Ok(stdout.into_owned())
    }

    /// Runs a command in the container.
    ///
    /// # Errors
    /// `contain` cannot be started.
    pub fn run(&self, command: &[&str]) -> Result<Output> {
        self.command(command).output().context("start contain: is it built?")
    }

    /// Starts a command in the container and leaves it running.
    ///
    /// # Errors
    /// `contain` cannot be started.
    pub fn spawn(&self, command: &[&str]) -> Result<Running> {
        let mut command = self.command(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().context("start contain: is it built?")?;
        Ok(Running { child })
    }
}

/// A container that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    /// `contain`, the parent of the container's init. It takes the container with it.
    pub child: Child,
}

impl Running {
    /// The container's init, as we see it.
    ///
    /// # Panics
    /// It does not appear.
    #[must_use]
    pub fn init(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let mut init = None;
        crate::wait_for("the container's init", || {
            let text = std::fs::read_to_string(&children).unwrap_or_default();
            // Its maker is `contain`'s child before it is.
            init = text.split_whitespace().next().and_then(|pid| pid.parse().ok()).filter(|pid| {
                let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
                comm.is_ok_and(|comm| comm != "contain\n")
            });
            init.is_some()
        });
        init.expect("waited for it")
    }

    /// Waits until the container has printed a line, and returns it.
    ///
    /// # Errors
    /// It ends first.
    pub fn line(&mut self) -> Result<String> {
        use std::io::Read;

        let stdout = self.child.stdout.as_mut().context("stdout is piped")?;
        let mut line = Vec::new();
        let mut byte = [0];
        while stdout.read(&mut byte)? == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        ensure!(byte == *b"\n", "the container ended: {}", String::from_utf8_lossy(&line));
        Ok(String::from_utf8(line)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
