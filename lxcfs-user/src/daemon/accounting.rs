//! The kernel side: loads the eBPF programs where they can be, says why where not, and looks after their maps.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::ClockId;

use super::Rooms;
use crate::bpf::clock::Clock;
use crate::bpf::{Accounting, Options, Unavailable, object_hash};
use crate::cli::{Serve, Supplier};
use crate::error::{Error, Result};
use crate::keep::journal::Journal;
use crate::keep::store::{ACCOUNTING, Store};
use crate::source::cgroup::Supply;
use crate::source::host::clock_ns;

/// Removals of cgroups come together: after the first is told of, so much later most have.
const TOGETHER: Duration = Duration::from_millis(100);

/// A slot whose last task is still on its way out can be given back a second later.
const SOON: Duration = Duration::from_secs(1);

/// Words of the journal that describe the programs that are kept.
mod note {
    /// What tells their object from another.
    pub(super) const OBJECT: usize = 0;
    /// When they began to count, nanoseconds of `CLOCK_BOOTTIME`.
    pub(super) const LOADED_NS: usize = 1;
    /// The members of their clock.
    pub(super) const CLOCK: usize = 2;
}

/// The programs that count, and since when.
#[derive(Debug, Clone)]
pub(super) struct Counting {
    pub(super) programs: Arc<Accounting>,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub(super) loaded_ns: u64,
    /// A daemon before us had loaded them.
    pub(super) goes_on: bool,
}

/// Goes on with the programs of the daemon before us, or loads them. Without them the files supply everything, and the
/// reason is logged and returned.
pub(super) fn start(
    arguments: &Serve,
    kept: Vec<(String, OwnedFd)>,
    journal: &Journal,
) -> Result<Counting, String> {
    if arguments.accounting == Supplier::Files {
        return Err("not wanted (--accounting files)".to_owned());
    }
    let word = |nth| journal.note(nth).load(Ordering::Relaxed);
    if !kept.is_empty() && word(note::OBJECT) == object_hash() {
        let clock = Clock::from_words(std::array::from_fn(|nth| word(note::CLOCK + nth)));
        match Accounting::adopt(kept, clock) {
            Ok(programs) => {
                let programs = Arc::new(programs);
                return Ok(Counting { programs, loaded_ns: word(note::LOADED_NS), goes_on: true });
            }
            Err(error) => tracing::warn!("programs that were kept cannot be used: {error}"),
        }
    }
    let programs = load(arguments.cgroups, &arguments.runtime_dir)?;
    let loaded_ns = clock_ns(ClockId::Boottime);
    programs.counts_since(loaded_ns, clock_ns(ClockId::Monotonic));
    Ok(Counting { programs, loaded_ns, goes_on: false })
}

/// Has the programs kept in place of any before them. The journal must be ours.
///
/// # Errors
/// The store cannot be reached.
pub(super) fn keep(counting: &Counting, journal: &Journal, store: Store) -> Result<()> {
    if counting.goes_on {
        return Ok(());
    }
    let set = |nth, value| journal.note(nth).store(value, Ordering::Relaxed);
    // Killed half way, the next daemon finds programs of no object it knows.
    set(note::OBJECT, 0);
    let named: Vec<_> = counting.programs.kept().map(|(name, fd)| (named(name), fd)).collect();
    for (name, _) in &named {
        store.forget(name);
    }
    for (name, descriptor) in named {
        store.keep(&name, descriptor)?;
    }
    set(note::LOADED_NS, counting.loaded_ns);
    for (nth, word) in counting.programs.clock().to_words().into_iter().enumerate() {
        set(note::CLOCK + nth, word);
    }
    set(note::OBJECT, object_hash());
    Ok(())
}

/// What a descriptor of the accounting's is called in the store.
pub(super) fn named(name: &str) -> String {
    format!("{ACCOUNTING}{name}")
}

/// Loads the programs. Without them the files supply everything, and the reason is logged and returned.
fn load(slots: u32, runtime_dir: &Path) -> Result<Arc<Accounting>, String> {
    Accounting::load(&Options { slots }).map(Arc::new).map_err(|unavailable| {
        let mut reason = unavailable.to_string();
        if let Unavailable::Refused { verifier_log, .. } = &unavailable {
            let log = super::places::verifier_log(runtime_dir);
            if std::fs::write(&log, verifier_log).is_ok() {
                reason = format!("{reason} (see {})", log.display());
            }
        }
        tracing::info!("cgroup files supply load and CPU time, because of eBPF: {reason}");
        reason
    })
}

/// Starts the thread that gives back the slots of removed cgroups, and tells what a reader of a file that the kernel serves could
/// not be told. It sleeps while there is nothing of that to do.
///
/// # Errors
/// No thread can be made.
pub(super) fn maintain(accounting: Arc<Accounting>, rooms: Rooms) -> Result<()> {
    let run = move || {
        // What a daemon before us was told and did not do.
        if let Err(error) = accounting.maintain() {
            tracing::warn!("look after the maps: {error}");
        }
        let mut asked = 0;
        loop {
            let mut fds = [PollFd::from_borrowed_fd(accounting.notifications(), PollFlags::IN)];
            // Interrupted: looking once too often does no harm.
            let _ = poll(&mut fds, None);
            std::thread::sleep(TOGETHER);
            let unknown = accounting.counters().unknown;
            if std::mem::replace(&mut asked, unknown) != unknown {
                // A container may have been given the file by a daemon that was told to make it, as we are not.
                accounting.keep_idle();
                rooms.look_for_unknown();
            }
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
    accounting: &Result<Counting, String>,
) -> Vec<Supply> {
    for supply in supplies.iter_mut().filter(|supply| matches!(supply.group, "cpu" | "load")) {
        supply.from = match accounting {
            Ok(_) => "eBPF programs: exact, each CPU, without timers".to_owned(),
            Err(reason) => format!("{} (no eBPF: {reason})", supply.from),
        };
    }
    supplies
}
