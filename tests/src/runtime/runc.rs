//! runc: our files are mounts of the OCI configuration. Over `/proc` it binds those of a fixed list only.

use std::process::Command;

use anyhow::Result;

use super::{Ground, oci, output};
use crate::rootfs::find;

/// Runs a shell script in a container.
///
/// # Errors
/// runc, or the script, fails.
pub fn run(ground: &Ground, script: &str) -> Result<String> {
    let bundle = oci::bundle(ground, script)?;
    let state = ground.directory().join("runc");
    let mut runc = Command::new(find("runc")?);
    runc.arg("--root").arg(state).args(["run", "--bundle"]).arg(bundle).arg(ground.name());
    output(&mut runc)
}
