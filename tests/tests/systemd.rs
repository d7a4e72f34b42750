//! The unit under a real systemd, Debian's, as the first process of a machine in namespaces: its descriptor store through
//! kills, a restart, reloads, its watchdog, its start limit and a stop, with readers that must not notice what they need not.

use std::io::Write;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::systemd::Machine;

const UNIT: &str = include_str!("../../lxcfs-user/dist/lxcfs.service");

/// The machine is a container, in which the unit does not start by itself.
const HERE: &str = "[Unit]\nConditionVirtualization=\n";

const SERVICE: &str = "lxcfs.service";
const POINT: &str = "/var/lib/lxcfs";

fn boot(further: &str) -> Result<Machine> {
    let unit = UNIT.replace("/usr/bin/lxcfs", "/run/bin/lxcfs");
    Machine::boot(&[
        (SERVICE, &unit),
        ("lxcfs.service.d/here.conf", HERE),
        ("lxcfs.service.d/further.conf", further),
    ])
}

fn property(machine: &Machine, name: &str) -> Result<String> {
    machine.systemctl(&["show", "--value", "-p", name, SERVICE])
}

fn main_pid(machine: &Machine) -> Result<u32> {
    property(machine, "MainPID")?.parse().context("a pid")
}

/// Waits until another process than `before` is the daemon and serves.
fn another(machine: &Machine, before: u32) -> Result<u32> {
    let serves = || {
        let now = main_pid(machine).ok().filter(|&pid| pid != before && pid != 0);
        let state = property(machine, "SubState").ok();
        now.filter(|_| state.as_deref() == Some("running"))
    };
    lxcfs_tests::wait_for("another daemon", || serves().is_some());
    serves().with_context(|| machine.journal(SERVICE))
}

/// Shows the journal in the end, whichever that is.
struct Journal<'a>(&'a Machine);

impl Drop for Journal<'_> {
    fn drop(&mut self) {
        let _ = writeln!(std::io::stdout(), "{}", self.0.journal(SERVICE));
    }
}

/// Readers in a container of the machine.
struct Readers(Child);

impl Readers {
    fn start(machine: &Machine) -> Result<Self> {
        machine.sh("mkdir -p /sys/fs/cgroup/container")?;
        let witness = lxcfs_tests::program("witness").display().to_string();
        let contain = lxcfs_tests::program("contain").display().to_string();
        let file = |how: &str, file: &str| format!("{how}:{POINT}/proc/{file}");
        let mut child = machine
            .command(&[
                &contain,
                "--procs",
                "/sys/fs/cgroup/container/cgroup.procs",
                "--",
                &witness,
                &file("path", "meminfo"),
                &file("held", "loadavg"),
                &file("pieces", "stat"),
                &file("counters", "stat"),
                &file("poller", "pressure/cpu"),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the readers")?;
        let mut up = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().context("piped")?, &mut up)?;
        ensure!(&up == b"up\n");
        Ok(Self(child))
    }

    /// None of them may have failed.
    fn end(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && text.ends_with("end\n"), "{text}");
        Ok(())
    }
}

#[test]
fn a_unit_lives_through_everything() -> Result<()> {
    let machine = boot("")?;
    let _journal = Journal(&machine);
    live(&machine)
}

fn live(machine: &Machine) -> Result<()> {
    machine.systemctl(&["start", SERVICE])?;
    let status = machine.sh("/run/bin/lxcfs status")?;
    ensure!(status.contains("kept by            systemd"), "{status}");
    let readers = Readers::start(machine)?;
    killed_and_reloaded(machine)?;
    readers.end()?;
    stopped(machine)
}

/// The descriptor store through kills and a restart, and reloads.
fn killed_and_reloaded(machine: &Machine) -> Result<()> {
    let mut daemon = main_pid(machine)?;
    for _ in 0..3 {
        machine.sh(&format!("kill -9 {daemon}"))?;
        daemon = another(machine, daemon)?;
    }
    ensure!(property(machine, "NRestarts")? == "3");
    for _ in 0..2 {
        machine.systemctl(&["reload", SERVICE])?;
        daemon = another(machine, daemon)?;
    }
    ensure!(property(machine, "NRestarts")? == "3", "a reload is no restart");
    machine.systemctl(&["restart", SERVICE])?;
    another(machine, daemon)?;
    Ok(())
}

/// A stop unmounts.
fn stopped(machine: &Machine) -> Result<()> {
    machine.systemctl(&["stop", SERVICE])?;
    ensure!(!machine.sh("cat /proc/mounts")?.contains(POINT), "it is still mounted");
    ensure!(
        property(machine, "Result")? == "success"
            && property(machine, "NFileDescriptorStore")? == "0"
    );
    Ok(())
}
