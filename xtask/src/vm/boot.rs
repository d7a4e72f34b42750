//! One guest from power-on to power-off.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::guest::{End, Guest, Report, Step, StepReport};
use super::kernel::Kernel;
use super::qemu::Qemu;
use super::shell;
use super::stream::{Display, Split, Status};

/// To init's first line; ten seconds are usual, a loaded machine may need some minutes.
const BOOT_DEADLINE: Duration = Duration::from_secs(300);

/// For init to notice, to kill and to switch off: on top of the deadlines of the commands, and once it is done with them.
const POWER_OFF_DEADLINE: Duration = Duration::from_secs(60);

const CONSOLE_LINES: usize = 40;
const POLL: Duration = Duration::from_millis(50);

/// What a boot needs beside the guest's description.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine<'a> {
    pub(crate) qemu: &'a Qemu,
    pub(crate) kernel: &'a Kernel,
    pub(crate) initramfs: &'a Path,
    /// For the logs of the serial ports.
    pub(crate) folder: &'a Path,
}

/// How one boot went.
#[derive(Debug)]
struct Boot {
    steps: Vec<StepReport>,
    /// Time to init's first line, if it came.
    started: Option<Duration>,
    death: Option<String>,
}

/// Boots the guest. One that dies before init's first line proves nothing about us: it is booted
/// once more, and that is counted and told.
pub(crate) fn boot(machine: Machine<'_>, guest: &Guest, display: &mut Display) -> Result<Report> {
    let power_on = Instant::now();
    let mut reboots = 0;
    let last = loop {
        let once = boot_once(machine, guest, display)?;
        if once.started.is_some() || reboots == 1 {
            break once;
        }
        reboots += 1;
        let why = once.death.unwrap_or_default();
        eprintln!("vm: {}: died before init started, booting again: {why}", machine.kernel.series);
    };
    let Boot { steps, started, death } = last;
    let total = power_on.elapsed();
    Ok(Report { steps, boot: started, total, reboots, death })
}

fn boot_once(machine: Machine<'_>, guest: &Guest, display: &mut Display) -> Result<Boot> {
    let power_on = Instant::now();
    let mut running = Running::start(machine, guest)?;
    let names = guest.steps.iter().map(|step| step.name.clone());
    let mut split = Split::new(names.collect());
    let commands: Duration = guest.steps.iter().map(Step::deadline).sum();
    let (mut started, mut done) = (None, None);
    let hung = loop {
        match running.output.recv_timeout(POLL) {
            Ok(bytes) => split.push(&bytes, |bytes| display.show(bytes)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break None,
        }
        let status = running.status()?;
        if started.is_none() && status.started {
            started = Some(power_on.elapsed());
        }
        if done.is_none() && status.done {
            done = Some(power_on.elapsed());
        }
        let deadline = match (started, done) {
            (_, Some(done)) => done + POWER_OFF_DEADLINE,
            (Some(boot), None) => boot + commands + POWER_OFF_DEADLINE,
            (None, None) => BOOT_DEADLINE,
        };
        if power_on.elapsed() > deadline {
            break Some(deadline);
        }
    };
    let exit = if hung.is_some() { running.kill()? } else { running.wait()? };
    split.finish(|bytes| display.show(bytes));
    display.finish();
    let status = running.status()?;
    if status.started && started.is_none() {
        started = Some(power_on.elapsed());
    }
    let death = match (hung, status.done) {
        (Some(deadline), _) => Some(format!("hung: QEMU was killed after {deadline:.0?}")),
        (None, false) => Some(format!("died: QEMU ended with {exit} and init was not done")),
        (None, true) => None,
    };
    let death = death.map(|death| format!("{death}\n{}", running.last_words()));
    Ok(Boot { steps: steps(guest, &status, split), started, death })
}

/// A result for every step: one without a status line did not end.
fn steps(guest: &Guest, status: &Status, mut split: Split) -> Vec<StepReport> {
    let steps = guest.steps.iter().enumerate().map(|(index, step)| {
        let (end, took) =
            status.steps.get(&index).copied().unwrap_or((End::Unfinished, Duration::ZERO));
        StepReport { name: step.name.clone(), end, output: split.take(index), took }
    });
    steps.collect()
}

/// A QEMU process. Dropped, it is killed.
struct Running {
    child: Child,
    output: Receiver<Vec<u8>>,
    console: PathBuf,
    status: PathBuf,
    complaints: PathBuf,
}

impl Running {
    fn start(machine: Machine<'_>, guest: &Guest) -> Result<Self> {
        let Machine { qemu, kernel, initramfs, folder } = machine;
        let [console, status, complaints] =
            ["console.log", "status.log", "qemu.log"].map(|name| folder.join(name));
        for log in [&console, &status] {
            File::create(log).with_context(|| format!("create {}", log.display()))?;
        }
        let stderr = File::create(&complaints)
            .with_context(|| format!("create {}", complaints.display()))?;
        let mut command = qemu.command();
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35"]);
        command.args(["-nodefaults", "-no-reboot", "-nographic"]);
        command.args(["-m", &guest.memory_mib.to_string(), "-smp", &guest.cpus.to_string()]);
        command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
        command.args(["-append", "console=ttyS0 panic=-1 rdinit=/init"]);
        command.args(["-serial".into(), format!("file:{}", console.display())]);
        command.args(["-serial", "stdio"]);
        command.args(["-serial".into(), format!("file:{}", status.display())]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().context("start QEMU through setpriv (util-linux)")?;
        let output = read_all(child.stdout.take().context("take QEMU's output")?);
        Ok(Self { child, output, console, status, complaints })
    }

    fn status(&self) -> Result<Status> {
        let text = fs::read_to_string(&self.status)
            .with_context(|| format!("read {}", self.status.display()))?;
        Ok(Status::parse(&text))
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().context("wait for QEMU")
    }

    fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().context("kill QEMU")?;
        self.wait()
    }

    /// What QEMU complained about and the end of the console.
    fn last_words(&self) -> String {
        let read = |path| fs::read(path).unwrap_or_default();
        let (console, complaints) = (read(&self.console), read(&self.complaints));
        let console = String::from_utf8_lossy(&console).replace('\r', "");
        let complaints = String::from_utf8_lossy(&complaints).into_owned();
        format!(
            "{complaints}--- the end of the console\n{}\n---",
            shell::tail(&console, CONSOLE_LINES)
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended, which is the usual case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads in a thread of its own, so that a silent guest still has a deadline.
fn read_all(mut from: ChildStdout) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count) = from.read(&mut buffer) {
            if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
