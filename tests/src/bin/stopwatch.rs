//! Measures how long files take to read: `stopwatch MODE FILE...`. Prints a line of JSON: a value for each file.
//!
//! To be run in a container. Each file is bound to a place of its own first, as a container runtime does, so that the
//! path to it is the same for all. The files take turns within a round, in another order in each: what disturbs the
//! machine for a while disturbs all of them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use lxcfs_tests::bench::{First, Rate, Timing};
use nix::mount::{MsFlags, mount};

/// What `free`, `top` and Python read at once; all of our pages but those of large machines fit.
const BUFFER_BYTES: usize = 8_192;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Open, read to the end, close
    Cycle(Rounds),
    /// Read an open file from its start
    Held(Rounds),
    /// The first reading, and later ones
    First { files: Vec<PathBuf> },
    /// Many readers at once: readings per second
    Crowd {
        #[arg(long)]
        readers: u32,
        #[arg(long)]
        rounds: u32,
        #[arg(long)]
        slice_ms: u64,
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct Rounds {
    #[arg(long)]
    rounds: u32,
    /// Readings of each file in a round
    #[arg(long)]
    readings: u32,
    files: Vec<PathBuf>,
}

fn main() -> Result<()> {
    let report = match Arguments::parse().mode {
        Mode::Cycle(rounds) => {
            let files = bound(&rounds.files)?;
            timed(&rounds, &files, |path, buffer| cycle(path, buffer))?
        }
        Mode::Held(rounds) => {
            let files: Result<Vec<_>> =
                bound(&rounds.files)?.iter().map(|path| open(path)).collect();
            timed(&rounds, &files?, |file, buffer| {
                file.read_at(buffer, 0)?;
                Ok(())
            })?
        }
        Mode::First { files } => {
            let firsts: Result<Vec<_>> = bound(&files)?.iter().map(|path| first(path)).collect();
            serde_json::to_string(&firsts?)?
        }
        Mode::Crowd { readers, rounds, slice_ms, files } => {
            let files = bound(&files)?;
            crowd(readers, rounds, Duration::from_millis(slice_ms), &files)?
        }
    };
    writeln!(std::io::stdout(), "{report}")?;
    Ok(())
}

/// Binds each file to a place in a filesystem of our own.
fn bound(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let none: Option<&str> = None;
    let place = Path::new("/mnt");
    mount(Some("places"), place, Some("tmpfs"), MsFlags::empty(), none).context("mount a tmpfs")?;
    let bind = |(number, file): (usize, &PathBuf)| {
        let to = place.join(number.to_string());
        fs::write(&to, "")?;
        mount(Some(file), &to, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("bind {}", file.display()))?;
        Ok(to)
    };
    files.iter().enumerate().map(bind).collect()
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("open {}", path.display()))
}

fn cycle(path: &Path, buffer: &mut [u8]) -> Result<()> {
    let mut file = File::open(path)?;
    while file.read(buffer)? > 0 {}
    Ok(())
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The value that as many of `sorted` are below as `percent` says.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0)
}

fn timed<T>(
    rounds: &Rounds,
    files: &[T],
    read: impl Fn(&T, &mut [u8]) -> Result<()>,
) -> Result<String> {
    let mut buffer = [0; BUFFER_BYTES];
    let mut all = vec![Vec::new(); files.len()];
    let mut timings = vec![Timing::default(); files.len()];
    for round in 0..rounds.rounds as usize {
        for turn in 0..files.len() {
            let at = (round + turn) % files.len();
            // The first of a turn finds the caches full of another daemon.
            read(&files[at], &mut buffer)?;
            let mut own = Vec::with_capacity(rounds.readings as usize);
            for _ in 0..rounds.readings {
                let start = Instant::now();
                read(&files[at], &mut buffer)?;
                own.push(nanoseconds(start));
            }
            own.sort_unstable();
            timings[at].rounds_ns.push(percentile(&own, 50));
            all[at].extend(own);
        }
    }
    for (timing, all) in timings.iter_mut().zip(&mut all) {
        all.sort_unstable();
        (timing.p50_ns, timing.p99_ns) = (percentile(all, 50), percentile(all, 99));
    }
    Ok(serde_json::to_string(&timings)?)
}

fn first(path: &Path) -> Result<First> {
    let mut buffer = [0; BUFFER_BYTES];
    // Our own code is run for the first time, too.
    cycle(Path::new("/proc/self/comm"), &mut buffer)?;
    let start = Instant::now();
    cycle(path, &mut buffer)?;
    let first_ns = nanoseconds(start);
    let mut warm = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        cycle(path, &mut buffer)?;
        warm.push(nanoseconds(start));
    }
    warm.sort_unstable();
    Ok(First { first_ns, warm_ns: percentile(&warm, 50) })
}

fn crowd(readers: u32, rounds: u32, slice: Duration, files: &[PathBuf]) -> Result<String> {
    let mut rates = vec![Rate::default(); files.len()];
    for round in 0..rounds as usize {
        for turn in 0..files.len() {
            let at = (round + turn) % files.len();
            let (stop, readings) = (AtomicBool::new(false), AtomicU64::new(0));
            let start = Instant::now();
            std::thread::scope(|scope| -> Result<()> {
                let reader = || {
                    let mut buffer = [0; BUFFER_BYTES];
                    let mut own = 0;
                    while !stop.load(Ordering::Relaxed) {
                        cycle(&files[at], &mut buffer)?;
                        own += 1;
                    }
                    readings.fetch_add(own, Ordering::Relaxed);
                    Ok(())
                };
                let threads: Vec<_> = (0..readers).map(|_| scope.spawn(reader)).collect();
                std::thread::sleep(slice);
                stop.store(true, Ordering::Relaxed);
                threads.into_iter().try_for_each(|thread| thread.join().expect("no reader panics"))
            })?;
            let rate = u128::from(readings.into_inner()) * 1_000_000_000
                / start.elapsed().as_nanos().max(1);
            rates[at].rounds_per_second.push(u64::try_from(rate)?);
        }
    }
    Ok(serde_json::to_string(&rates)?)
}
