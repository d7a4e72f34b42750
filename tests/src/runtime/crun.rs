//! crun: our files are mounts of the OCI configuration.

use std::process::Command;

use anyhow::Result;

use super::{Ground, oci, output};
use crate::cgroup::hybrid_v2;
use crate::rootfs::find;

/// Runs a shell script in a container.
///
/// # Errors
/// crun, or the script, fails.
pub fn run(ground: &Ground, script: &str) -> Result<String> {
    let bundle = oci::bundle(ground, script)?;
    let state = ground.directory().join("crun");
    let mut crun = command()?;
    crun.arg("--root").arg(state).args(["run", "--bundle"]).arg(bundle).arg(ground.name());
    output(&mut crun)
}

/// crun itself. It takes a hybrid machine for one of systemd's and fails to make a cgroup beside v1's: there it gets a
/// mount namespace without v2.
fn command() -> Result<Command> {
    let crun = find("crun")?;
    let Some(v2) = hybrid_v2()? else {
        return Ok(Command::new(crun));
    };
    let mut unshare = Command::new(find("unshare")?);
    unshare.args(["--mount", "--propagation", "private", "sh", "-c"]);
    unshare.arg(r#"umount "$0" && exec "$@""#).arg(v2).arg(crun);
    Ok(unshare)
}
