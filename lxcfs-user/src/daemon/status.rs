//! What `lxcfs status` tells: what supplies what here, and what was served from the host.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::below::Below;
use crate::files::Policy;
use crate::keep::store::Store;
use crate::keep::workers::Workers;
use crate::model::cpus::CpuView;
use crate::road::Road;
use crate::road::fallback::{Decided, Fallback};
use crate::source::cgroup::Supply;

/// What does not change while the daemon runs.
#[derive(Debug)]
pub struct Status {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// What the operator decided.
    pub policy: Policy,
    /// Which source supplies which group.
    pub supplies: Vec<Supply>,
    /// Who keeps the mount when the daemon dies.
    pub store: Store,
    /// Who answers.
    pub workers: Arc<Workers>,
    /// It is the keeper who answers, because no daemon can be started.
    pub has_given_up: bool,
    /// The files that the kernel serves, if any were wanted.
    pub below: Option<Arc<Below>>,
}

/// A report of one moment.
#[derive(Debug, Serialize)]
pub struct Report {
    version: &'static str,
    pid: u32,
    /// Who keeps the mount when this process dies: `systemd`, `keeper` or `nobody`.
    kept_by: &'static str,
    /// The keeper's pid, where it is one of ours.
    keeper: Option<u32>,
    mount_point: PathBuf,
    cpu_view: CpuView,
    swap: bool,
    zswap: bool,
    /// Whether readers are refused instead of shown the host's.
    strict: bool,
    /// Whether everybody is shown the host's files (`SIGUSR2`).
    passthrough: bool,
    /// Whether it is the keeper who answers, with the host's files, because no daemon can be started.
    has_given_up: bool,
    /// Containers known now.
    containers: usize,
    /// Requests that ended in a panic.
    panics: u64,
    /// Requests that took more than 5 s.
    slow: u64,
    /// Who serves those files of `/proc` that the kernel was wanted to.
    kernel_files: BTreeMap<&'static str, String>,
    supplies: Vec<Supply>,
    fallbacks: Vec<Fallback>,
    decided: Vec<Decided>,
}

impl Status {
    /// The report of now.
    #[must_use]
    pub fn now(&self, road: &Road) -> Report {
        Report {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            kept_by: match self.store {
                Store::None => "nobody",
                Store::Systemd => "systemd",
                Store::Keeper(_) => "keeper",
            },
            keeper: match self.store {
                Store::Keeper(pid) => Some(pid),
                Store::None | Store::Systemd => None,
            },
            mount_point: self.mount_point.clone(),
            cpu_view: self.policy.cpu_view,
            swap: self.policy.swap,
            zswap: self.policy.zswap,
            strict: self.policy.strict,
            passthrough: road.is_passthrough(),
            has_given_up: self.has_given_up,
            containers: road.callers().containers().len(),
            panics: crate::fs::panics(),
            slow: self.workers.slow().load(Ordering::Relaxed),
            kernel_files: Below::lines(self.below.as_ref()),
            supplies: self.supplies.clone(),
            fallbacks: road.fallbacks().list(),
            decided: road.fallbacks().decided(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mount_point = self.mount_point.display();
        writeln!(f, "lxcfs {} at {mount_point}, pid {}", self.version, self.pid)?;
        match self.keeper {
            Some(keeper) => writeln!(f, "  kept by            keeper, pid {keeper}")?,
            None => writeln!(f, "  kept by            {}", self.kept_by)?,
        }
        writeln!(f, "  containers known   {}", self.containers)?;
        writeln!(f, "  cpu view           {}", format!("{:?}", self.cpu_view).to_lowercase())?;
        if self.has_given_up {
            writeln!(
                f,
                "  GIVEN UP           no daemon can be started: everybody is shown the host's files (`lxcfs upgrade` tries again)"
            )?;
        } else if self.passthrough {
            writeln!(
                f,
                "  PASSTHROUGH        everybody is shown the host's files (SIGUSR2 ends it)"
            )?;
        }
        if self.panics > 0 {
            writeln!(f, "  PANICS             {} requests answered with EIO", self.panics)?;
        }
        if self.slow > 0 {
            writeln!(f, "  slow requests      {} took more than 5 s, see the log", self.slow)?;
        }
        for (file, who) in &self.kernel_files {
            writeln!(f, "  {:<18} served by {who}", format!("/proc/{file}"))?;
        }
        writeln!(f, "\nWhat supplies what:")?;
        for Supply { group, from } in &self.supplies {
            writeln!(f, "  {group:<18} {from}")?;
        }
        if !self.decided.is_empty() {
            writeln!(f, "\nThe host's by decision, because it describes the machine (FILES.md):")?;
        }
        for Decided { file, lines, pages } in &self.decided {
            writeln!(f, "  {file:<18} {pages} pages: {}", lines.join(", "))?;
        }
        if self.fallbacks.is_empty() {
            return writeln!(f, "\nNo container was shown a host value in place of its own.");
        }
        let done = if self.strict { "Refused to" } else { "Host values shown to" };
        writeln!(f, "\n{done} containers, for want of their own:")?;
        for Fallback { file, first, pages } in &self.fallbacks {
            writeln!(f, "  {file:<18} {pages} pages, because: {first}")?;
        }
        Ok(())
    }
}
