//! QEMU of our own: the emulator and all its libraries unpacked, never installed.
//!
//! QEMU 7.2 of Debian 12 panics in the early boot of newer kernels with `-cpu max` in a third of
//! the runs; 10.0 does not. It runs through its own dynamic loader, so the machine's libraries do
//! not matter.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::apt::Apt;
use super::fetch;

const SUITES: [&str; 2] = ["bookworm", "bookworm-backports"];

/// An unpacked QEMU.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    tree: PathBuf,
}

impl Qemu {
    pub(crate) fn prepare(home: &Path, refresh: bool) -> Result<Self> {
        let tree = fetch::tree(home, "qemu", refresh, || {
            let apt = Apt::of(home, &SUITES)?;
            let debs = apt.with_dependencies(&["qemu-system-x86"])?;
            Ok((apt, debs))
        })?;
        Ok(Self { tree })
    }

    /// QEMU, to be given a machine; it is killed when the thread that starts it ends.
    pub(crate) fn command(&self) -> Command {
        let Self { tree } = self;
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
        let libraries = libraries.map(|dir| tree.join(dir).to_string_lossy().into_owned());
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        command.arg(tree.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(libraries.join(":"));
        command.arg(tree.join("usr/bin/qemu-system-x86_64"));
        for firmware in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(tree.join(firmware));
        }
        command.env("QEMU_MODULE_DIR", tree.join("usr/lib/x86_64-linux-gnu/qemu"));
        command
    }
}
