//! The kernel side: loads the eBPF programs where they can be, says why where not, and looks after their maps.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::bpf::{Accounting, Options, Unavailable};
use crate::error::{Error, Result};
use crate::source::cgroup::Supply;

/// Removals of cgroups come together: after the first is told of, so much later most have.
const TOGETHER: Duration = Duration::from_millis(100);

/// A slot whose last task is still on its way out can be given back a second later.
const SOON: Duration = Duration::from_secs(1);

/// Loads the programs. Without them the files supply everything, and the reason is logged and returned.
pub(super) fn load(slots: u32, runtime_dir: &Path) -> Result<Arc<Accounting>, String> {
    Accounting::load(&Options { slots }).map(Arc::new).map_err(|unavailable| {
        let mut reason = unavailable.to_string();
        if let Unavailable::Refused { verifier_log, .. } = &unavailable {
            let log = runtime_dir.join("lxcfs").join("verifier.log");
            if std::fs::write(&log, verifier_log).is_ok() {
                reason = format!("{reason} (see {})", log.display());
            }
        }
        tracing::info!("cgroup files supply load and CPU time, because of eBPF: {reason}");
        reason
    })
}

/// Starts the thread that gives back the slots of removed cgroups. It sleeps while none is removed.
///
/// # Errors
/// No thread can be made.
pub(super) fn maintain(accounting: Arc<Accounting>) -> Result<()> {
    let run = move || {
        loop {
            let mut fds = [PollFd::from_borrowed_fd(accounting.notifications(), PollFlags::IN)];
            // Interrupted: looking once too often does no harm.
            let _ = poll(&mut fds, None);
            std::thread::sleep(TOGETHER);
            loop {
                match accounting.maintain() {
                    Ok(done) if done.reaped.waiting > 0 => std::thread::sleep(SOON),
                    Ok(_) => break,
                    Err(error) => {
                        tracing::warn!("look after the maps: {error}");
                        break;
                    }
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("accounting".to_owned()).spawn(run);
    thread.map(|_| ()).map_err(|error| Error::std("start", "thread accounting", &error))
}

/// `supplies` with what the programs supply, or with the reason why they do not.
pub(super) fn supplies(
    mut supplies: Vec<Supply>,
    accounting: &Result<Arc<Accounting>, String>,
) -> Vec<Supply> {
    for supply in supplies.iter_mut().filter(|supply| matches!(supply.group, "cpu" | "load")) {
        supply.from = match accounting {
            Ok(_) => "eBPF programs: exact, each CPU, without timers".to_owned(),
            Err(reason) => format!("{} (no eBPF: {reason})", supply.from),
        };
    }
    supplies
}
