//! Looks for requests that take long, says what they wait for, and tells systemd that we are alive.
//!
//! Once a second, and only while there are requests. What takes long is counted in looks and not by a clock: a daemon that
//! was stopped, or slept with its machine, has not been slow. A request that waits for the kernel is logged once, and
//! waits on: another daemon would have to wait as well. One that stays in our own code is a fault, and no fault may take
//! a thread for ever: where somebody keeps the mount, we end and the next daemon is asked again. What two daemons have
//! died of is answered with `EIO` ([`super::connection::ask_again`]).

use std::collections::HashMap;
use std::ffi::c_long;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior};

use crate::error::{Error, Result};
use crate::keep::store::Store;
use crate::keep::workers::{Unanswered, Workers};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// A request that is seen in so many looks and one more is older than 5 s, and told of.
const SLOW: u32 = 5;

/// A request that is seen in our own code in so many looks in a row is stuck there.
const STUCK: u32 = 30;

/// Calls that a page is made with: the number, the name, and whether the first argument is a descriptor.
const CALLS: [(c_long, &str, bool); 12] = [
    (libc::SYS_read, "read", true),
    (libc::SYS_pread64, "pread", true),
    (libc::SYS_readv, "readv", true),
    (libc::SYS_write, "write", true),
    (libc::SYS_writev, "writev", true),
    (libc::SYS_openat, "openat", true),
    (libc::SYS_ioctl, "ioctl", true),
    (libc::SYS_getdents64, "getdents", true),
    (libc::SYS_newfstatat, "fstatat", true),
    (libc::SYS_readlinkat, "readlinkat", true),
    (libc::SYS_bpf, "bpf", false),
    (libc::SYS_ppoll, "ppoll", false),
];

/// What a thread waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waits {
    /// For nobody but us.
    is_ours: bool,
    text: String,
}

/// Requests that were seen before, by number and thread.
#[derive(Debug, Default)]
struct Watch {
    seen: HashMap<(u64, u64), Seen>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    looks: u32,
    /// Of the last looks, those in a row that found it in our own code.
    ours: u32,
}

/// What a look has found out.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Slow(Unanswered, Waits),
    Stuck(Unanswered, Waits),
}

impl Watch {
    /// Takes note of what is unanswered now; `ask` says what a thread waits for.
    fn look(&mut self, unanswered: &[Unanswered], ask: impl Fn(u64) -> Waits) -> Vec<Found> {
        let key = |unanswered: &Unanswered| (unanswered.request, unanswered.thread);
        self.seen.retain(|known, _| unanswered.iter().any(|unanswered| key(unanswered) == *known));
        let mut found = Vec::new();
        for &unanswered in unanswered {
            let seen = self.seen.entry(key(&unanswered)).or_default();
            seen.looks += 1;
            if seen.looks <= SLOW {
                continue;
            }
            let waits = ask(unanswered.thread);
            seen.ours = if waits.is_ours { seen.ours + 1 } else { 0 };
            if seen.looks == SLOW + 1 {
                found.push(Found::Slow(unanswered, waits));
            } else if seen.ours == STUCK {
                found.push(Found::Stuck(unanswered, waits));
            }
        }
        found
    }
}

/// Tells systemd that we are alive, where it wants to know.
#[derive(Debug)]
pub(super) struct Watchdog {
    is_stuck: Arc<AtomicBool>,
    beat: Option<Interval>,
}

impl Watchdog {
    /// Starts the thread that looks. To be called where there is an event loop.
    ///
    /// # Errors
    /// No thread can be made.
    pub(super) fn start(workers: Arc<Workers>, store: Store) -> Result<Self> {
        let is_stuck = Arc::new(AtomicBool::new(false));
        let tell_stuck = Arc::clone(&is_stuck);
        let run = move || {
            workers.watch();
            let mut watch = Watch::default();
            loop {
                for found in watch.look(&workers.look(PAUSE), waits) {
                    match found {
                        Found::Slow(unanswered, waits) => {
                            workers.slow().fetch_add(1, Ordering::Relaxed);
                            tracing::warn!(
                                "{} takes more than 5 s: {}",
                                what(&unanswered),
                                waits.text
                            );
                        }
                        Found::Stuck(unanswered, waits) => {
                            tell_stuck.store(true, Ordering::Relaxed);
                            tracing::error!(
                                "{} is stuck in lxcfs: {}",
                                what(&unanswered),
                                waits.text
                            );
                            if store != Store::None {
                                std::process::abort();
                            }
                        }
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(run)
            .map_err(|error| Error::std("start", "thread watchdog", &error))?;
        Ok(Self { is_stuck, beat: interval() })
    }

    /// One that only tells that its event loop runs.
    pub(super) fn of_event_loop() -> Self {
        Self { is_stuck: Arc::default(), beat: interval() }
    }

    /// Says that we are alive each time it is due, and never returns.
    pub(super) async fn beat(&mut self) {
        let Some(beat) = &mut self.beat else { return std::future::pending().await };
        loop {
            beat.tick().await;
            if !self.is_stuck.load(Ordering::Relaxed) {
                // A message that is lost is followed by another in time.
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            }
        }
    }
}

/// Twice in the time that systemd waits for us.
fn interval() -> Option<Interval> {
    let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero())?;
    let mut interval = tokio::time::interval(limit / 2);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Some(interval)
}

fn what(unanswered: &Unanswered) -> String {
    format!("a {} of {}", unanswered.operation, crate::fs::name_of(unanswered.node))
}

/// What a thread of ours waits for, as far as `/proc` tells.
fn waits(thread: u64) -> Waits {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/self/task/{thread}/{name}"));
        text.unwrap_or_default().trim().to_owned()
    };
    let file = |number: u64| {
        let file = fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
        Some(file.display().to_string())
    };
    explain(&read("syscall"), &read("wchan"), file)
}

/// The same from the text of the files `syscall` and `wchan`; `file` names the file of a descriptor.
fn explain(call: &str, wchan: &str, file: impl Fn(u64) -> Option<String>) -> Waits {
    let mut words = call.split(' ');
    let number = words.next().unwrap_or_default();
    if number == "running" {
        return Waits { is_ours: true, text: "it runs".to_owned() };
    }
    let Ok(number) = number.parse::<c_long>() else {
        return Waits { is_ours: false, text: "the kernel does not say for what".to_owned() };
    };
    if number == libc::SYS_futex {
        return Waits { is_ours: true, text: "it waits for another thread of lxcfs".to_owned() };
    }
    let known = CALLS.into_iter().find(|(known, ..)| *known == number);
    let name =
        known.map_or_else(|| format!("system call {number}"), |(_, name, _)| name.to_owned());
    let argument = words.next().and_then(|word| u64::from_str_radix(word.get(2..)?, 16).ok());
    let of = argument.filter(|_| known.is_some_and(|(.., has_file)| has_file)).and_then(file);
    let of = of.map_or_else(String::new, |file| format!(" of {file}"));
    let at = if matches!(wchan, "" | "0") { String::new() } else { format!(" ({wchan})") };
    Waits { is_ours: false, text: format!("the kernel works on {name}{of}{at}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u64) -> Unanswered {
        Unanswered { request: number, operation: "read", node: 17, thread: 5, polled: None }
    }

    fn waits(is_ours: bool) -> Waits {
        Waits { is_ours, text: String::new() }
    }

    #[test]
    fn a_request_is_slow_once_and_another_of_its_thread_is_not() {
        let mut watch = Watch::default();
        let mut slow = |number| watch.look(&[request(number)], |_| waits(false)).len();
        let counts: Vec<usize> = (0..50).map(|_| slow(1)).collect();
        assert_eq!(counts.iter().sum::<usize>(), 1);
        assert_eq!(counts[5], 1, "seen for five pauses");
        assert!((2..50).all(|number| slow(number) == 0));
    }

    #[test]
    fn only_what_stays_in_our_code_is_stuck() {
        let mut watch = Watch::default();
        let mut stuck = |is_ours| {
            let found = watch.look(&[request(1)], |_| waits(is_ours));
            found.iter().any(|found| matches!(found, Found::Stuck(..)))
        };
        assert!(!(0..100).any(|_| stuck(false)));
        assert!(!(0..29).any(|_| stuck(true)));
        assert!(!stuck(false), "it went on");
        assert!(!(0..29).any(|_| stuck(true)));
        assert!(stuck(true));
    }

    #[test]
    fn what_a_thread_waits_for_is_said_in_words() {
        let file = |number| (number == 5).then(|| "/sys/fs/cgroup/a/memory.stat".to_owned());
        let read = format!("{} 0x5 0x7f12 0x1000 0x0 0x0 0x0 0x7ffd 0x7f", libc::SYS_pread64);
        let kernel = explain(&read, "mem_cgroup_flush_stats", file);
        assert!(!kernel.is_ours);
        let text =
            "the kernel works on pread of /sys/fs/cgroup/a/memory.stat (mem_cgroup_flush_stats)";
        assert_eq!(kernel.text, text);
        assert_eq!(explain("9999 0x5", "0", file).text, "the kernel works on system call 9999");
        assert_eq!(explain("-1 0x7ffd 0x7f", "", file).text, "the kernel works on system call -1");
        assert!(explain("running", "0", file).is_ours);
        assert!(explain(&format!("{} 0x5", libc::SYS_futex), "futex_wait", file).is_ours);
        assert!(!explain("", "", file).is_ours, "a thread that has just ended");
    }

    #[test]
    fn a_thread_that_waits_for_a_lock_of_ours_is_seen_in_it() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let lock = Arc::new(std::sync::Mutex::new(()));
        let held = lock.lock().unwrap();
        let theirs = Arc::clone(&lock);
        let thread = std::thread::spawn(move || {
            sender.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            drop(theirs.lock());
        });
        let id = u64::try_from(receiver.recv().unwrap()).unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while super::waits(id).text != "it waits for another thread of lxcfs" {
            assert!(std::time::Instant::now() < until, "{:?}", super::waits(id));
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(held);
        thread.join().unwrap();
    }
}
