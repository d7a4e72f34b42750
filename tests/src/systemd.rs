//! A machine whose first process is Debian's systemd: namespaces and a delegated cgroup of its own, and the programs and
//! devices of this one. It has no units but those it is given, and a journal.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cgroup::Cgroup;

const SYSTEMD: &str = "/lib/systemd/systemd";

/// What any service waits for, unless it says otherwise.
const TARGETS: [&str; 3] = ["sysinit.target", "basic.target", "shutdown.target"];

/// Debian's own units that it has.
const UNITS: [&str; 3] = ["systemd-journald.service", "systemd-journald.socket", "-.slice"];

/// What its first process does before it is systemd. `$1` is the folder of the units, `$2` the program lxcfs.
const BOOT: &str = r#"
set -e
read go
mount --make-rprivate /
mount -t proc proc /proc
for folder in /run /var/lib /var/log; do mount -t tmpfs tmpfs $folder; done
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd /run/bin
cp -r "$1" /run/units
ln -s "$2" /run/bin/lxcfs
exec env -i PATH="$PATH" container=other SYSTEMD_UNIT_PATH=/run/units "$0" --unit=machine.target --show-status=no
"#;

/// A machine that runs. Dropping it ends it with all that is in it.
#[derive(Debug)]
pub struct Machine {
    unshare: Child,
    init: u32,
    visitors: PathBuf,
    directory: PathBuf,
    _cgroup: Cgroup,
}

impl Machine {
    /// Boots one that has `units`, and in which `/run/bin/lxcfs` is the program under test.
    ///
    /// # Errors
    /// systemd is not installed, or does not come up.
    pub fn boot(units: &[(&str, &str)]) -> Result<Self> {
        ensure!(Path::new(SYSTEMD).exists(), "{SYSTEMD} is missing: install systemd");
        let cgroup = Cgroup::new("systemd")?;
        let root = cgroup.unified().context("no cgroup v2 is mounted")?;
        let visitors = root.join("visitors");
        fs::create_dir(&visitors).context("make a cgroup for visitors")?;
        let directory = crate::mount::new_directory()?;
        let folder = write_units(&directory, units)?;
        let enter = format!(
            "echo $$ > {}/cgroup.procs && exec unshare -m -p -C -u -i --fork --kill-child /bin/sh -c \"$@\"",
            root.display()
        );
        let mut unshare = Command::new("/bin/sh")
            .args(["-c", &enter, "enter", BOOT, SYSTEMD])
            .arg(&folder)
            .arg(crate::program("lxcfs"))
            .stdin(Stdio::piped())
            .spawn()
            .context("start unshare")?;
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let mut init = None;
        crate::wait_for("the machine's first process", || {
            let text = fs::read_to_string(&children).unwrap_or_default();
            init = text.trim().parse().ok();
            init.is_some()
        });
        let init = init.context("waited for it")?;
        // A cgroup with processes in it cannot have controllers for those below.
        fs::write(visitors.join("cgroup.procs"), unshare.id().to_string())?;
        unshare.stdin.take().context("stdin is piped")?.write_all(b"go\n")?;
        let machine = Self { unshare, init, visitors, directory, _cgroup: cgroup };
        crate::wait_for("systemd to come up", || {
            machine.systemctl(&["is-active", "machine.target"]).is_ok_and(|text| text == "active")
        });
        Ok(machine)
    }

    /// The command line that runs `command` in it, beside its services.
    #[must_use]
    pub fn command(&self, command: &[&str]) -> Command {
        let enter = format!(
            "echo $$ > {}/cgroup.procs && exec nsenter -t {} -m -p -C -u -i \"$@\"",
            self.visitors.display(),
            self.init
        );
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &enter, "enter"]).args(command);
        shell
    }

    /// Runs a command in it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, command: &[&str]) -> Result<Output> {
        self.command(command).output().context("start nsenter")
    }

    /// Runs a shell script in it and returns what it prints.
    ///
    /// # Errors
    /// It fails.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.run(&["/bin/sh", "-c", script])?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`{script}`: {}: {stderr}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Asks systemd, and returns its answer without the end of the line.
    ///
    /// # Errors
    /// It refuses.
    pub fn systemctl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(&[&["systemctl", "--no-pager"], arguments].concat())?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "systemctl {arguments:?}: {}: {stderr}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// The journal of `unit`, newest last.
    #[must_use]
    pub fn journal(&self, unit: &str) -> String {
        let ask =
            ["journalctl", "--no-pager", "-o", "short-monotonic", "--no-hostname", "-u", unit];
        let output = self.run(&ask).map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).into_owned()
    }
}

fn write_units(directory: &Path, units: &[(&str, &str)]) -> Result<PathBuf> {
    let folder = directory.join("units");
    fs::create_dir_all(&folder)?;
    let empty = "[Unit]\nDefaultDependencies=no\n";
    for target in TARGETS {
        fs::write(folder.join(target), empty)?;
    }
    let machine =
        format!("{empty}Wants=systemd-journald.service\nAfter=systemd-journald.service\n");
    fs::write(folder.join("machine.target"), machine)?;
    for unit in UNITS {
        let from = Path::new("/lib/systemd/system").join(unit);
        if from.exists() {
            fs::copy(&from, folder.join(unit)).with_context(|| format!("copy {unit}"))?;
        }
    }
    for (name, text) in units {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().context("a unit lies in a folder")?)?;
        fs::write(path, text)?;
    }
    Ok(folder)
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
