//! docker: our files are `--volume` options. The engine is one of our own that touches nothing of the machine's: no
//! network, no firewall, its files in the ground's directory.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Ground, engine_options, output};
use crate::rootfs::find;

/// How long the engine may take to serve.
const START: Duration = Duration::from_secs(20);

/// Runs a shell script in a container.
///
/// # Errors
/// docker, or the script, fails.
pub fn run(ground: &Ground, script: &str) -> Result<String> {
    let engine = Engine::start(ground)?;
    let image = ground.directory().join("image.tar");
    output(Command::new("tar").arg("-C").arg(ground.root()).arg("-cf").arg(&image).arg("."))?;
    output(engine.docker()?.arg("import").arg(&image).arg("box"))?;
    let mut docker = engine.docker()?;
    docker.arg("run").args(engine_options(ground)).args(["box", "/bin/sh", "-c", script]);
    output(&mut docker)
}

/// A running `dockerd`, with a containerd of its own. Dropping it ends both.
#[derive(Debug)]
struct Engine {
    child: Child,
    home: PathBuf,
}

impl Engine {
    fn start(ground: &Ground) -> Result<Self> {
        let home = ground.directory().join("docker");
        fs::create_dir(&home).context("make a directory for docker")?;
        let log = File::create(home.join("log")).context("make docker's log")?;
        let mut dockerd = Command::new(find("dockerd")?);
        dockerd.arg(format!("--host=unix://{}", home.join("socket").display()));
        for (option, name) in
            [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")]
        {
            dockerd.arg(option).arg(home.join(name));
        }
        dockerd.args(["--bridge=none", "--iptables=false", "--ip6tables=false"]);
        dockerd.args(["--ip-forward=false", "--ip-masq=false", "--storage-driver=vfs"]);
        dockerd.args(["--exec-opt=native.cgroupdriver=cgroupfs", "--containerd-namespace"]);
        dockerd.arg(ground.name()).stderr(log.try_clone()?).stdout(log).stdin(Stdio::null());
        let child = dockerd.spawn().context("start dockerd")?;
        let mut engine = Self { child, home };
        engine.wait_until_it_serves()?;
        Ok(engine)
    }

    fn wait_until_it_serves(&mut self) -> Result<()> {
        let deadline = Instant::now() + crate::patience(START);
        while !self.docker()?.arg("version").output()?.status.success() {
            let log = || fs::read_to_string(self.home.join("log")).unwrap_or_default();
            if let Some(status) = self.child.try_wait().context("wait for dockerd")? {
                bail!("dockerd ended with {status}: {}", log());
            }
            if Instant::now() > deadline {
                bail!("dockerd does not come to serve: {}", log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The client that came with the engine: a newer one may not speak to it.
    fn docker(&self) -> Result<Command> {
        let mut docker = Command::new(find("docker")?);
        docker.arg(format!("--host=unix://{}", self.home.join("socket").display()));
        docker.arg("--config").arg(&self.home);
        Ok(docker)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            if let Ok(pid) = i32::try_from(self.child.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let _ = self.child.wait();
        }
    }
}
