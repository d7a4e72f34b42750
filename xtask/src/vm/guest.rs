//! What a caller asks of a guest and what came of it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The emulator is that much slower where it hurts; every time-out is multiplied by it, in the
/// guest by its init and in the test binaries through `LXCFS_TEST_TIMEOUT_FACTOR`.
pub(crate) const TIMEOUT_FACTOR: u32 = 10;

/// A guest: what is in it, how large it is and what it runs.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    /// Run one after the other, each in a cgroup of its own.
    pub(crate) steps: Vec<Step>,
    /// Files and folders of the host that the guest has at the same absolute paths; programs
    /// bring their dynamic loader and libraries.
    pub(crate) files: Vec<PathBuf>,
    /// Debian packages of the machine's own release, unpacked with what they depend on. Nothing
    /// of theirs is configured: what an alternative names (`w`) goes by its own name (`w.procps`).
    pub(crate) packages: Vec<String>,
    /// For every step.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            steps: Vec::new(),
            files: Vec::new(),
            packages: Vec::new(),
            environment: Vec::new(),
            memory_mib: 2048,
            cpus: 2,
        }
    }
}

/// A command in a guest.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) argv: Vec<String>,
    /// `/` where the caller does not mind.
    pub(crate) directory: PathBuf,
    /// As on the host; the guest has [`TIMEOUT_FACTOR`] times as long.
    pub(crate) timeout: Duration,
}

impl Step {
    pub(crate) fn new(name: impl Into<String>, argv: Vec<String>, timeout: Duration) -> Self {
        Self { name: name.into(), argv, directory: PathBuf::from("/"), timeout }
    }

    /// How long the guest lets it run.
    pub(crate) const fn deadline(&self) -> Duration {
        self.timeout.saturating_mul(TIMEOUT_FACTOR)
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Exit(u8),
    Signal(u8),
    /// Killed by init after its scaled time-out.
    TimedOut,
    /// The guest died or hung before it ended.
    Unfinished,
}

impl End {
    /// The status a shell would give.
    pub(crate) const fn status(self) -> u8 {
        match self {
            Self::Exit(status) => status,
            Self::Signal(signal) => 128 + signal,
            Self::TimedOut => 124,
            Self::Unfinished => 1,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(status) => write!(f, "exit {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Unfinished => f.write_str("unfinished"),
        }
    }
}

/// One command's result.
#[derive(Debug, Clone)]
pub(crate) struct StepReport {
    pub(crate) name: String,
    pub(crate) end: End,
    /// Standard output and error as they came.
    pub(crate) output: Vec<u8>,
    pub(crate) took: Duration,
}

/// One guest's result.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) steps: Vec<StepReport>,
    /// From the start of QEMU to init's first line, if it came.
    pub(crate) boot: Option<Duration>,
    /// From the start of the first QEMU to the end of the last.
    pub(crate) total: Duration,
    /// Guests that died before init's first line and were booted again.
    pub(crate) reboots: u32,
    /// Why there is no orderly end, with the end of the console.
    pub(crate) death: Option<String>,
}

impl Report {
    /// The status of the first command that failed; 1 for a guest that died.
    pub(crate) fn status(&self) -> u8 {
        let failed = self.steps.iter().map(|step| step.end.status()).find(|status| *status != 0);
        failed.unwrap_or(u8::from(self.death.is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ends: &[End], death: Option<&str>) -> Report {
        let steps = ends.iter().map(|end| StepReport {
            name: "step".to_owned(),
            end: *end,
            output: Vec::new(),
            took: Duration::ZERO,
        });
        Report {
            steps: steps.collect(),
            boot: None,
            total: Duration::ZERO,
            reboots: 0,
            death: death.map(ToOwned::to_owned),
        }
    }

    #[test]
    fn the_first_failure_gives_the_status() {
        assert_eq!(report(&[End::Exit(0), End::Exit(7), End::Signal(9)], None).status(), 7);
        assert_eq!(report(&[End::Signal(9)], None).status(), 137);
        assert_eq!(report(&[End::TimedOut], None).status(), 124);
        assert_eq!(report(&[End::Exit(0)], None).status(), 0);
    }

    #[test]
    fn a_death_is_a_failure_even_after_every_command_ended_well() {
        assert_eq!(report(&[End::Exit(0)], Some("died")).status(), 1);
        assert_eq!(report(&[End::Unfinished], Some("died")).status(), 1);
    }
}
