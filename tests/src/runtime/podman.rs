//! podman: our files are `--volume` options.

use std::process::Command;

use anyhow::Result;

use super::{Ground, engine_options, output};
use crate::rootfs::find;

/// Runs a shell script in a container. Everything podman keeps is in the ground's directory.
///
/// # Errors
/// podman, or the script, fails.
pub fn run(ground: &Ground, script: &str) -> Result<String> {
    let home = ground.directory().join("podman");
    let mut podman = Command::new(find("podman")?);
    for (option, folder) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
        podman.arg(option).arg(home.join(folder));
    }
    podman.args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"]);
    podman.args(["--runtime=runc", "run"]).args(engine_options(ground));
    // Limits that a root without CAP_SYS_RESOURCE can set.
    podman.args(["--ulimit=nofile=1024:20000", "--ulimit=nproc=30000:30000"]);
    podman.arg("--rootfs").arg(ground.root()).args(["/bin/sh", "-c", script]);
    output(&mut podman)
}
