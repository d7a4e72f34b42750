//! A cgroup loaded in a known way, by the program `burden`.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::cgroup::Cgroup;

/// A burden that stands in a cgroup. Dropping it kills its processes.
#[derive(Debug)]
pub struct Burden(Child);

impl Burden {
    /// Starts one of `kind` and `number` (see `bin/burden.rs`).
    ///
    /// # Panics
    /// It cannot be started: is it built?
    #[must_use]
    pub fn start(kind: &str, number: u32, cgroup: &Cgroup) -> Self {
        let mut burden = Self::waiting(kind, number, cgroup);
        burden.go();
        burden
    }

    /// In its cgroup, but not yet begun.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn waiting(kind: &str, number: u32, cgroup: &Cgroup) -> Self {
        let burden = Self::outside(kind, number);
        cgroup.add(burden.pid()).expect("move a process");
        burden
    }

    /// In the cgroups of the test itself, and not yet begun: it sleeps. The kernel would charge what a running process
    /// has used since its last tick to the cgroup it is moved to, and a slow emulator's ticks are far apart.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn outside(kind: &str, number: u32) -> Self {
        // khugepaged goes last: beside what spins here, whose memory it has in hands waits seconds for it at a page fault.
        rustix::thread::disable_transparent_huge_pages(true).expect("keep khugepaged away");
        let mut command = Command::new(crate::program("burden"));
        command.args([kind, &number.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut burden = Self(command.spawn().expect("start burden: is it built?"));
        burden.said().expect("a burden that waits");
        let stat = format!("/proc/{}/stat", burden.pid());
        crate::wait_for("the burden to sleep", || {
            std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "))
        });
        burden
    }

    /// Begins.
    ///
    /// # Panics
    /// It has ended.
    pub fn go(&mut self) {
        self.0.stdin.as_mut().expect("piped").write_all(b"\n").expect("start the burden");
    }

    /// Waits until it says that it stands.
    ///
    /// # Panics
    /// It has ended.
    pub fn ready(&mut self) {
        self.said().expect("a burden that stands");
    }

    /// Waits until it says that it waits, or stands, or ends.
    ///
    /// # Errors
    /// It has ended.
    pub fn said(&mut self) -> Result<()> {
        let mut line = [0; 6];
        let stdout = self.0.stdout.as_mut().context("stdout is piped")?;
        stdout.read_exact(&mut line).context("the burden has ended")
    }

    /// Its first process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Burden {
    fn drop(&mut self) {
        self.0.kill().expect("kill a child");
        self.0.wait().expect("wait for a child");
    }
}
