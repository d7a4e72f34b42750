//! Whoever reads is answered, whatever else happens on the machine.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};

use super::{below, number};

/// Readings that fail are told, each by a line.
const READ: &str = "n=0; while [ $n -lt 200 ]; do n=$((n+1)); \
    read line < /proc/loadavg || echo loadavg; read line < /proc/uptime || echo uptime; done 2>&1";

/// Makes cgroups below `above`, runs something in each and removes it, until it is told to end.
fn come_and_go(above: &Cgroup, ends: &AtomicBool) -> Result<u32> {
    let mut nth = 0;
    while !ends.load(Ordering::Relaxed) {
        let leaf = above.leaf(&format!("leaf-{nth}"))?;
        let script = "for file; do echo 0 > $file; done";
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).args(leaf.procs_files());
        ensure!(command.status()?.success(), "run something in a cgroup");
        leaf.empty_into(above);
        nth += 1;
    }
    Ok(nth)
}

fn is_answered(shell: &mut Running) -> Result<()> {
    let said = shell.say(READ)?;
    ensure!(said.is_empty(), "{} of 400 were not: {said}", said.lines().count());
    Ok(())
}

/// Removed cgroups are folded into their parents by a daemon that others keep from its CPU: no reader waits for that, be it of the
/// container they were in or of another.
#[test]
fn while_cgroups_come_and_go_on_a_busy_machine() -> Result<()> {
    let daemon = below()?;
    let [one, other, busy] = ["below-churned", "below-quiet", "below-busy"].map(Cgroup::new);
    let (one, other, busy) = (one?, other?, busy?);
    let mut shells = Vec::new();
    for cgroup in [&one, &other] {
        shells.push(Container::new(cgroup).files(&daemon.mount_point()).shell()?);
    }
    let _busy: Vec<_> = (0..4).map(|_| Burden::start("spin", 1, &busy)).collect();
    let ends = AtomicBool::new(false);
    let removed = std::thread::scope(|scope| {
        let churn = scope.spawn(|| come_and_go(&one, &ends));
        let answered = (0..number("LXCFS_TEST_BELOW_ROUNDS", 4))
            .try_for_each(|_| shells.iter_mut().try_for_each(is_answered));
        ends.store(true, Ordering::Relaxed);
        let removed = churn.join().expect("it returns what fails")?;
        answered.map(|()| removed)
    })?;
    ensure!(removed > 3, "only {removed} cgroups were removed");
    Ok(())
}
