//! Whoever reads is answered, whatever else happens on the machine.

use std::process::Command;

use anyhow::{Result, ensure};
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};

use super::{below, beside, number};

/// Readings that fail are told, each by a line.
const READ: &str = "n=0; while [ $n -lt 100 ]; do n=$((n+1)); \
    read line < /proc/loadavg || echo loadavg; read line < /proc/uptime || echo uptime; done 2>&1";

/// Makes so many cgroups below `above`, one after the other, runs something in each and removes it.
fn come_and_go(above: &Cgroup, cgroups: u32) -> Result<()> {
    for nth in 0..cgroups {
        let leaf = above.leaf(&format!("leaf-{nth}"))?;
        let script = "for file; do echo 0 > $file; done";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).args(leaf.procs_files());
        ensure!(command.status()?.success(), "run something in a cgroup");
        leaf.empty_into(above);
    }
    Ok(())
}

fn is_answered(shell: &mut Running) -> Result<()> {
    let said = shell.say(READ)?;
    ensure!(said.is_empty(), "{} of 200 were not: {said}", said.lines().count());
    Ok(())
}

/// Removed cgroups are folded into their parents by a daemon that others keep from its CPU: no reader waits for that, be it of the
/// container they were in or of another.
#[test]
fn while_cgroups_come_and_go_on_a_busy_machine() -> Result<()> {
    let _beside = beside();
    let daemon = below()?;
    let [one, other, busy] = ["below-churned", "below-quiet", "below-busy"].map(Cgroup::new);
    let (one, other, busy) = (one?, other?, busy?);
    let mut shells = Vec::new();
    for cgroup in [&one, &other] {
        shells.push(Container::new(cgroup).files(&daemon.mount_point()).shell()?);
    }
    let _busy: Vec<_> = (0..2).map(|_| Burden::start("spin", 1, &busy)).collect();
    let cgroups = number("LXCFS_TEST_BELOW_CGROUPS", 50);
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| come_and_go(&one, cgroups));
        while !churn.is_finished() {
            shells.iter_mut().try_for_each(is_answered)?;
        }
        churn.join().expect("it returns what fails")
    })
}
