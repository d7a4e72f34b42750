//! Reads files in every way there is: `hammer READS FILE...`. Prints how many reads there were, and fails at the first
//! that fails or finds half a page.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

const THREADS: u64 = 4;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let reads: u64 = arguments.next().context("how many reads?")?.parse()?;
    let files: Vec<_> = arguments.collect();
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let files = &files;
                let own = reads / THREADS + u64::from(thread < reads % THREADS);
                scope.spawn(move || -> Result<u64> {
                    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (thread + 1));
                    for path in files {
                        hammer(path, own, &mut random).with_context(|| format!("read {path}"))?;
                    }
                    Ok(own * files.len() as u64)
                })
            })
            .collect();
        let counts = threads.into_iter().map(|thread| thread.join().expect("no reader panics"));
        counts.sum::<Result<u64>>()
    })?;
    writeln!(std::io::stdout(), "{done} reads")?;
    Ok(())
}

/// xorshift: which reads there are must not depend on the machine.
struct Random(u64);

impl Random {
    const fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn hammer(path: &str, reads: u64, random: &mut Random) -> Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 70_000];
    for _ in 0..reads {
        let largest = if random.below(4) == 0 { 70_000 } else { 300 };
        let size = 1 + usize::try_from(random.below(largest))?;
        match random.below(6) {
            0 => file = File::open(path)?,
            1 => {
                file.seek(SeekFrom::Start(random.below(2_000)))?;
            }
            2 => {
                file.seek(SeekFrom::Start(0))?;
                let mut page = Vec::new();
                file.read_to_end(&mut page)?;
                check(path, &page)?;
            }
            3 => {
                file.read_at(&mut buffer[..size], random.below(10_000))?;
            }
            4 => {
                let read = file.read_at(&mut buffer[..size], 0)?;
                ensure!(read > 0 || may_be_empty(path), "nothing at the start");
            }
            _ => {
                // Wherever the position is, also behind the end: any count is right.
                let _ = file.read(&mut buffer[..size])?;
            }
        }
    }
    Ok(())
}

/// A page ends with a whole line, and every line begins like one of its file.
fn check(path: &str, page: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(page)?;
    ensure!(text.ends_with('\n') || (text.is_empty() && may_be_empty(path)), "half a page: {text}");
    ensure!(!text.contains('\0'), "a hole: {text:?}");
    let first = text.split(char::is_whitespace).next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let begins = match name {
        "meminfo" => first == "MemTotal:",
        "stat" => first == "cpu",
        "swaps" => first == "Filename",
        "slabinfo" => first == "slabinfo",
        "cpu" | "io" | "memory" => first == "some",
        "loadavg" | "uptime" => first.parse::<f64>().is_ok(),
        _ => true,
    };
    ensure!(begins, "begins with {first}");
    Ok(())
}

/// A container that used no disk has no line.
fn may_be_empty(path: &str) -> bool {
    path.ends_with("diskstats")
}
