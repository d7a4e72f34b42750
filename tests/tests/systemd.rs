//! The unit under a real systemd, Debian's, as the first process of a machine in namespaces: its descriptor store through
//! kills, a restart, reloads, its watchdog, its start limit and a stop, with readers that must not notice what they need not.

use std::io::Write;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lxcfs_tests::systemd::Machine;

const UNIT: &str = include_str!("../../lxcfs-user/dist/lxcfs.service");

/// The machine is a container, in which the unit does not start by itself.
const HERE: &str = "[Unit]\nConditionVirtualization=\n";

const SERVICE: &str = "lxcfs.service";
const POINT: &str = "/var/lib/lxcfs";

fn boot() -> Result<Machine> {
    let unit = UNIT.replace("/usr/bin/lxcfs", "/run/bin/lxcfs");
    Machine::boot(&[(SERVICE, &unit), ("lxcfs.service.d/here.conf", HERE)])
}

fn property(machine: &Machine, name: &str) -> Result<String> {
    machine.systemctl(&["show", "--value", "-p", name, SERVICE])
}

fn main_pid(machine: &Machine) -> Result<u32> {
    property(machine, "MainPID")?.parse().context("a pid")
}

/// Waits until another process than `before` is the daemon and serves.
fn another(machine: &Machine, before: u32) -> Result<u32> {
    let mut found = None;
    lxcfs_tests::wait_for("another daemon", || {
        std::thread::sleep(Duration::from_millis(50));
        let shown = machine.systemctl(&["show", "-p", "MainPID,SubState", SERVICE]);
        let shown = shown.unwrap_or_default();
        let now = shown.lines().find_map(|line| line.strip_prefix("MainPID=")?.parse().ok());
        let serves = shown.contains("SubState=running");
        found = now.filter(|&pid| serves && pid != before && pid != 0);
        found.is_some()
    });
    found.context("waited for it")
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
    let machine = boot()?;
    let _journal = Journal(&machine);
    live(&machine)
}

fn live(machine: &Machine) -> Result<()> {
    machine.systemctl(&["start", SERVICE])?;
    let status = machine.sh("/run/bin/lxcfs status")?;
    ensure!(status.contains("kept by            systemd"), "{status}");
    let readers = Readers::start(machine)?;
    killed_and_reloaded(machine)?;
    hardened(machine)?;
    watched(machine)?;
    readers.end()?;
    given_up(machine)?;
    stopped(machine)?;
    hidden(machine)
}

/// The descriptor store through kills and a restart, and reloads.
fn killed_and_reloaded(machine: &Machine) -> Result<()> {
    let mut daemon = main_pid(machine)?;
    machine.sh(&format!("kill -9 {daemon}"))?;
    daemon = another(machine, daemon)?;
    machine.systemctl(&["reload", SERVICE])?;
    daemon = another(machine, daemon)?;
    ensure!(property(machine, "NRestarts")? == "1", "a reload is no restart");
    let environment = machine.sh(&format!("tr '\\0' '\\n' < /proc/{daemon}/environ"))?;
    let watchdog = environment.lines().filter(|line| line.starts_with("WATCHDOG"));
    let watchdog: Vec<_> = watchdog.collect();
    ensure!(
        watchdog == ["WATCHDOG_USEC=180000000"],
        "it would not say that it is alive: {watchdog:?}"
    );
    machine.sh(&format!("kill -9 {daemon}"))?;
    daemon = another(machine, daemon)?;
    ensure!(
        property(machine, "NRestarts")? == "2",
        "one that took over is noticed as the first was"
    );
    machine.systemctl(&["restart", SERVICE])?;
    another(machine, daemon)?;
    Ok(())
}

/// The lines that take something from the daemon are in effect, and it lacks nothing.
fn hardened(machine: &Machine) -> Result<()> {
    let daemon = main_pid(machine)?;
    let status = machine.sh(&format!("cat /proc/{daemon}/status"))?;
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).with_context(|| format!("no {name}"))
    };
    // SYS_ADMIN, SYS_PTRACE, DAC_OVERRIDE, SYS_RESOURCE.
    let allowed = 1 << 21 | 1 << 19 | 1 << 1 | 1 << 24;
    let capabilities = u64::from_str_radix(value("CapBnd")?, 16)?;
    ensure!(capabilities & !allowed == 0 && capabilities != 0, "{status}");
    ensure!(value("Seccomp")? == "2" && value("NoNewPrivs")? == "1", "{status}");
    let report = machine.sh("/run/bin/lxcfs status")?;
    ensure!(report.contains("load               eBPF programs"), "{report}");
    let journal = machine.journal(SERVICE);
    let is_refused = journal.contains("not permitted") || journal.contains("not implemented");
    ensure!(!is_refused, "the journal says of what");
    let is_counted =
        machine.sh("cat /sys/fs/cgroup/container/cgroup.controllers")?.contains("memory");
    // On a hybrid host memory is not counted here.
    ensure!(!is_counted || report.contains("No container was shown a host value"), "{report}");
    Ok(())
}

/// A daemon that does not move is ended by systemd and another started.
fn watched(machine: &Machine) -> Result<()> {
    further(machine, "[Service]\nWatchdogSec=6\n")?;
    let daemon = main_pid(machine)?;
    ensure!(property(machine, "WatchdogUSec")? == "6s");
    // For longer than that it says that it is alive.
    std::thread::sleep(Duration::from_secs(7));
    ensure!(main_pid(machine)? == daemon, "it was taken for dead");
    machine.sh(&format!("kill -STOP {daemon}"))?;
    another(machine, daemon)?;
    ensure!(machine.journal(SERVICE).contains("Watchdog timeout"), "ended by something else");
    further(machine, "")
}

/// A program that fails whenever it is started: systemd ends it, readers are told, and the next start works.
fn given_up(machine: &Machine) -> Result<()> {
    let daemon = main_pid(machine)?;
    machine.sh("mv /run/bin/lxcfs /run/bin/works; printf '#!/bin/sh\nexit 3\n' > /run/bin/lxcfs; chmod 755 /run/bin/lxcfs")?;
    machine.sh(&format!("kill -9 {daemon}"))?;
    let reading = machine.run(&["cat", &format!("{POINT}/proc/uptime")])?;
    ensure!(!reading.status.success(), "somebody has answered");
    lxcfs_tests::wait_for("the unit to fail", || {
        property(machine, "ActiveState").is_ok_and(|state| state == "failed")
    });
    let journal = machine.journal(SERVICE);
    ensure!(journal.contains("Start request repeated too quickly"), "not by the start limit");
    machine.sh("mv /run/bin/works /run/bin/lxcfs")?;
    machine.systemctl(&["reset-failed", SERVICE])?;
    machine.systemctl(&["start", SERVICE])?;
    machine.sh(&format!("cat {POINT}/proc/uptime")).map(|_| ())
}

/// What the unit says of lines that it has not: with each of them, nobody outside sees the mount.
fn hidden(machine: &Machine) -> Result<()> {
    for line in ["ProtectSystem=yes", "ProtectKernelLogs=yes"] {
        further(machine, &format!("[Service]\n{line}\n"))?;
        ensure!(!machine.sh("cat /proc/mounts")?.contains(POINT), "{line} hides nothing");
    }
    Ok(())
}

/// Starts the unit again, with these lines.
fn further(machine: &Machine, lines: &str) -> Result<()> {
    machine.sh(&format!("printf '{lines}' > /run/units/{SERVICE}.d/further.conf"))?;
    machine.systemctl(&["daemon-reload"])?;
    // So that starts are not counted; a unit that was stopped is not known any more, and its starts neither.
    let _ = machine.systemctl(&["reset-failed", SERVICE]);
    machine.systemctl(&["restart", SERVICE]).map(|_| ())
}

/// A stop unmounts, also where the daemon is one that systemd has not started.
fn stopped(machine: &Machine) -> Result<()> {
    let daemon = main_pid(machine)?;
    machine.systemctl(&["reload", SERVICE])?;
    another(machine, daemon)?;
    machine.systemctl(&["stop", SERVICE])?;
    ensure!(!machine.sh("cat /proc/mounts")?.contains(POINT), "it is still mounted");
    ensure!(
        property(machine, "Result")? == "success"
            && property(machine, "NFileDescriptorStore")? == "0"
    );
    Ok(())
}
