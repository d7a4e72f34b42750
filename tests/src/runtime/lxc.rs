//! LXC: its mount hook binds all our files, those too that no other runtime's users bind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use anyhow::{Context, Result};

use super::{CPUS, ENVIRONMENT, Ground, MEMORY, PERIOD, QUOTA, output};
use crate::cgroup::is_pure_v2;
use crate::rootfs::find;

/// What LXCFS's `lxc.mount.hook` does, for the mount point in its place.
const HOOK: &str = r#"#!/bin/sh -eu
files=FILES
for file in "$files"/proc/*; do
    target=$LXC_ROOTFS_MOUNT/proc/${file##*/}
    if [ -e "$target" ]; then mount -n --bind "$file" "$target"; fi
done
mount -n --bind "$files/sys/devices/system/cpu" "$LXC_ROOTFS_MOUNT/sys/devices/system/cpu"
"#;

/// Runs a shell script in a container.
///
/// # Errors
/// LXC fails. It does not tell of a script that fails.
pub fn run(ground: &Ground, script: &str) -> Result<String> {
    let hook = ground.directory().join("lxc.mount.hook");
    let text = HOOK.replace("FILES", &ground.mount_point().display().to_string());
    fs::write(&hook, text).context("write the hook")?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).context("write the hook")?;
    let config = ground.directory().join("lxc.conf");
    fs::write(&config, configuration(ground)?).context("write lxc.conf")?;
    let home = ground.directory().join("lxc");
    fs::create_dir(&home).context("make a directory for LXC")?;
    let mut lxc = Command::new(find("lxc-start")?);
    lxc.args(["--foreground", "--name", ground.name(), "--lxcpath"]).arg(home);
    lxc.arg("--rcfile").arg(config).args(["--", "/bin/sh", "-c", script]);
    output(&mut lxc)
}

fn configuration(ground: &Ground) -> Result<String> {
    let (root, name) = (ground.root().display().to_string(), ground.name());
    let hook = ground.directory().join("lxc.mount.hook");
    let mut text = format!(
        "lxc.rootfs.path = dir:{root}\n\
         lxc.uts.name = box\n\
         lxc.net.0.type = empty\n\
         lxc.console.path = none\n\
         lxc.tty.max = 0\n\
         lxc.apparmor.profile = unconfined\n\
         lxc.mount.auto = proc:mixed sys:mixed cgroup:mixed\n\
         lxc.hook.mount = {}\n\
         lxc.cgroup.dir.container = {name}\n\
         lxc.cgroup.dir.monitor = {name}-monitor\n\
         lxc.cgroup.dir.monitor.pivot = {name}-pivot\n",
        hook.display()
    );
    for variable in ENVIRONMENT {
        text += &format!("lxc.environment = {variable}\n");
    }
    text += &if is_pure_v2()? {
        format!(
            "lxc.cgroup2.memory.max = {MEMORY}\n\
             lxc.cgroup2.cpu.max = {QUOTA} {PERIOD}\n\
             lxc.cgroup2.cpuset.cpus = {CPUS}\n"
        )
    } else {
        format!(
            "lxc.cgroup.memory.limit_in_bytes = {MEMORY}\n\
             lxc.cgroup.cpu.cfs_period_us = {PERIOD}\n\
             lxc.cgroup.cpu.cfs_quota_us = {QUOTA}\n\
             lxc.cgroup.cpuset.cpus = {CPUS}\n"
        )
    };
    Ok(text)
}
