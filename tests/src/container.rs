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

    /// Also in the cgroup with this `cgroup.procs`.
    #[must_use]
    pub fn also_in(mut self, procs_file: PathBuf) -> Self {
        self.procs_files.push(procs_file);
        self
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

    /// Starts a container whose init is a shell that does as it is told: see [`Running::say`].
    ///
    /// # Errors
    /// `contain` cannot be started.
    pub fn shell(&self) -> Result<Running> {
        let mut shell = self.spawn(&["/bin/sh"])?;
        shell.say(":")?;
        Ok(shell)
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

/// Compresses to a third: a page that is all the same byte is not written to swap at all, and one that does not
/// compress is not taken by zswap. The command returns when a child of it holds the memory.
const HOLD: &str = r"
import os, signal, sys
reader, writer = os.pipe()
if os.fork():
    os.close(writer)
    sys.exit(0 if os.read(reader, 1) else 'the memory was not had')
held = (os.urandom(1024) + bytes(3072)) * (int(sys.argv[1]) << 8)
os.close(1)
os.write(writer, b'+')
signal.pause()
";

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

    /// Has the shell that is the container's init run `script`, and returns what that prints.
    ///
    /// # Errors
    /// The container has ended.
    pub fn say(&mut self, script: &str) -> Result<String> {
        use std::io::Write;

        const END: &str = "-- end --";
        let stdin = self.child.stdin.as_mut().context("stdin is piped")?;
        // What the script starts must not read the scripts that follow.
        writeln!(stdin, "{{ {script}\n}} < /dev/null; echo '{END}'")?;
        let mut text = String::new();
        loop {
            match self.line() {
                Ok(line) if line == END => return Ok(text),
                Ok(line) => text.extend([line.as_str(), "\n"]),
                Err(error) => return Err(error.context(format!("after {text}"))),
            }
        }
    }

    /// Has the shell start a container in its container, whose shell does from then on as it is told.
    ///
    /// # Errors
    /// It does not start.
    pub fn nest(&mut self, container: &Container) -> Result<()> {
        use std::io::Write;

        let command = container.command(&["/bin/sh", "-c", "'echo up; exec /bin/sh'"]);
        let line = std::iter::once(command.get_program()).chain(command.get_args());
        writeln!(self.child.stdin.as_mut().context("stdin is piped")?, "{}", crate::words(line))?;
        // The outer shell has to have read its line before the next one comes, for it would take that too.
        ensure!(self.line()? == "up", "the inner container does not start");
        Ok(())
    }

    /// Moves the shell to `cgroup`, by its own hand.
    ///
    /// # Errors
    /// It may not.
    pub fn enter(&mut self, cgroup: &Cgroup) -> Result<()> {
        let files = crate::words(cgroup.procs_files());
        let said = self.say(&format!("for f in {files}; do echo $$ > $f || echo $f; done"))?;
        ensure!(said.is_empty(), "refused: {said}");
        Ok(())
    }

    /// Has a process of the container hold `mib` MiB for as long as the container lives.
    ///
    /// # Errors
    /// The memory is not had.
    pub fn hold(&mut self, mib: u64) -> Result<()> {
        let said = self.say(&format!("python3 -c \"{HOLD}\" {mib} 2>&1 && echo held"))?;
        ensure!(said == "held\n", "{said}");
        Ok(())
    }

    /// The CPUs of the container: those in each of its files, which must all be the same.
    ///
    /// # Errors
    /// They are not the same.
    pub fn cpus(&mut self) -> Result<Vec<u32>> {
        let list = |text: &str| -> Result<Vec<u32>> {
            text.split_whitespace().map(|number| Ok(number.parse()?)).collect()
        };
        let rows = self.say("sed -n 's/^cpu\\([0-9][0-9]*\\) .*/\\1/p' /proc/stat")?;
        let stanzas = self.say("sed -n 's/^processor[^0-9]*//p' /proc/cpuinfo")?;
        let online = self.say("cat /sys/devices/system/cpu/online")?;
        let cpus = list(&rows)?;
        ensure!(list(&stanzas)? == cpus, "stat has {rows}, cpuinfo {stanzas}");
        let shown = if cpus == [0, 1] { "0-1\n" } else { &rows };
        ensure!(online == shown, "stat has {rows}, online {online}");
        Ok(cpus)
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
