//! Reads files until its standard input ends: `witness HOW:FILE...`. Then prints for each how many readings there were,
//! how many failed or were wrong, and which took long (`when/how long`, milliseconds), and fails if any was wrong.
//!
//! * `path` opens, reads and closes; `held` reads a file that stays open; `pieces` reads a few bytes at a time, and holds
//!   the pieces against the rest of the same page.
//! * `counters` reads `/proc/stat` and looks whether a counter fell.
//! * `poller` sets a trigger on a pressure file and polls it; at the end it makes the pressure itself and must be told.
//! * `calm` is `path` on a file of a daemon that nothing happens to: what takes long there is the machine.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use lxcfs_tests::counters::Counters;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

/// Between two readings: readers are not to be a load.
const PAUSE: Duration = Duration::from_millis(3);

/// What is worth a line.
const LONG: Duration = Duration::from_millis(5);

/// How long a poll lasts that is told nothing, and how long one may be told nothing under pressure: the window of the trigger
/// is two seconds.
const POLL_MS: u16 = 50;
const TOLD: Duration = Duration::from_secs(20);

/// More than any page.
const LARGEST: usize = 1 << 20;

#[derive(Debug, Default)]
struct Seen {
    readings: u64,
    failed: u64,
    /// When, since 1970, and how long.
    long: Vec<(u128, u128)>,
    first: Option<String>,
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let ended = AtomicBool::new(false);
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = arguments
            .iter()
            .map(|argument| {
                let ended = &ended;
                (argument, scope.spawn(move || witness(argument, ended)))
            })
            .collect();
        let _ = writeln!(std::io::stdout(), "up");
        // Whatever comes: its end is what we wait for.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        ended.store(true, Ordering::Relaxed);
        let results = threads.into_iter().map(|(argument, thread)| {
            let seen = thread.join().unwrap_or_else(|_| bail!("the reader panicked"));
            seen.map(|seen| (argument.clone(), seen))
        });
        results.collect::<Result<Vec<_>>>()
    })?;
    let mut failed = 0;
    for (argument, seen) in results {
        let Seen { readings, long, first, failed: wrong } = &seen;
        let first = first.as_deref().unwrap_or("-");
        let long: Vec<_> = long.iter().map(|(when, took)| format!("{when}/{took}")).collect();
        let line = format!("{argument} {readings} {wrong} {}, {first}", long.join(","));
        writeln!(std::io::stdout(), "{line}")?;
        failed += seen.failed;
    }
    writeln!(std::io::stdout(), "end")?;
    ensure!(failed == 0, "{failed} readings were wrong");
    Ok(())
}

fn witness(argument: &str, ended: &AtomicBool) -> Result<Seen> {
    let (how, path) = argument.split_once(':').context("HOW:FILE")?;
    if how == "poller" {
        return poll_until(path, ended);
    }
    let held = File::open(path)?;
    let mut counters = Counters::default();
    let mut seen = Seen::default();
    while !ended.load(Ordering::Relaxed) {
        let mut longest = Duration::ZERO;
        let began = Instant::now();
        let read = match how {
            "path" | "calm" => whole(path),
            "held" => again(&held),
            "pieces" => pieces(path, seen.readings, &mut longest),
            "counters" => count(path, &mut counters),
            _ => bail!("{how} is no way to read"),
        };
        // Of many pieces, the one that took longest counts.
        let took = if longest.is_zero() { began.elapsed() } else { longest };
        if took > LONG {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            seen.long.push((now.as_millis(), took.as_millis()));
        }
        seen.readings += 1;
        if let Err(error) = read {
            seen.failed += 1;
            seen.first.get_or_insert_with(|| format!("{error:#}").replace('\n', " "));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(seen)
}

/// Polls a trigger of its own until the end, and then until it is told of an event.
fn poll_until(path: &str, ended: &AtomicBool) -> Result<Seen> {
    let mut file =
        File::options().read(true).write(true).open(path).context("open for a trigger")?;
    file.write_all(b"some 10000 2000000\0").context("set a trigger")?;
    let mut seen = Seen::default();
    let ask = || -> Result<PollFlags> {
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut fds, POLL_MS) {
            Ok(_) | Err(Errno::EINTR) => fds[0].revents().context("known events"),
            Err(error) => Err(error).context("poll"),
        }
    };
    let poll_once = || -> Result<bool> {
        let mut events = ask()?;
        if events.contains(PollFlags::POLLERR) {
            // Before 6.9 the kernel makes that of a poll that a daemon has read and died before it noted it.
            events = ask()?;
        }
        ensure!(!events.contains(PollFlags::POLLERR), "the trigger is gone: {events:?}");
        Ok(events.contains(PollFlags::POLLPRI))
    };
    while !ended.load(Ordering::Relaxed) {
        seen.readings += 1;
        if let Err(error) = poll_once() {
            seen.failed += 1;
            seen.first.get_or_insert_with(|| format!("{error:#}"));
            // There is none that could be waited for.
            std::thread::sleep(PAUSE);
        }
    }
    let is_over = AtomicBool::new(false);
    let told = std::thread::scope(|scope| {
        // Twice as many as can run.
        for _ in 0..2 * std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let until = Instant::now() + lxcfs_tests::patience(TOLD);
        let mut told = false;
        while !told && Instant::now() < until {
            // What went wrong has been counted.
            told = poll_once().unwrap_or(false);
        }
        is_over.store(true, Ordering::Relaxed);
        told
    });
    if !told {
        seen.failed += 1;
        seen.first.get_or_insert_with(|| "no event, for all the pressure".to_owned());
    }
    Ok(seen)
}

/// Reads once more where it is told to: kernels before 6.9 cannot ask the next daemon themselves.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    match file.read_at(buffer, offset) {
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
            file.read_at(buffer, offset)
        }
        read => read,
    }
}

fn whole(path: &str) -> Result<()> {
    check(&std::fs::read(path)?)
}

fn again(file: &File) -> Result<()> {
    let mut page = vec![0; LARGEST];
    let length = read_at(file, &mut page, 0)?;
    let end = read_at(file, &mut [0; 64], length as u64)?;
    ensure!(end == 0, "{end} bytes behind the end");
    check(&page[..length])
}

/// The pieces are of one page if it still says the same when it is read once more without a return to its start.
fn pieces(path: &str, number: u64, longest: &mut Duration) -> Result<()> {
    let file = File::open(path)?;
    let mut page = Vec::new();
    let mut piece = vec![0; 1 + usize::try_from(number % 97)?];
    loop {
        let began = Instant::now();
        let length = read_at(&file, &mut piece, page.len() as u64)?;
        *longest = began.elapsed().max(*longest);
        if length == 0 {
            break;
        }
        page.extend_from_slice(&piece[..length]);
        if page.len() % 5 == 0 {
            std::thread::sleep(Duration::from_micros(300));
        }
    }
    check(&page)?;
    let mut rest = vec![0; LARGEST];
    let length = read_at(&file, &mut rest, 1)?;
    // A page that was read in one piece is not kept.
    ensure!(page.len() <= piece.len() || page[1..] == rest[..length], "pieces of two pages");
    Ok(())
}

fn count(path: &str, counters: &mut Counters) -> Result<()> {
    let text = std::fs::read_to_string(path)?;
    check(text.as_bytes())?;
    // Not `ctxt`: without eBPF it is the host's.
    counters.look(&text, &["cpu", "processes", "btime"])
}

fn check(page: &[u8]) -> Result<()> {
    ensure!(page.ends_with(b"\n"), "half a page of {} bytes", page.len());
    ensure!(!page.contains(&0), "a hole");
    Ok(())
}
