//! What the kernel knows of a running process: CPU time, switches, memory, where it may run.

use std::fs;
use std::process::Child;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process of ours, which ends with this.
#[derive(Debug)]
pub(super) struct Guard(pub(super) Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The threads of `pid`.
fn threads(pid: u32) -> Result<Vec<u32>> {
    let list = fs::read_dir(format!("/proc/{pid}/task")).context("list threads")?;
    Ok(list.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Time on a CPU of all its threads, nanoseconds.
pub(super) fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for tid in threads(pid)? {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat"))?;
        let first = text.split_whitespace().next().context("empty schedstat")?;
        sum += first.parse::<u64>()?;
    }
    Ok(sum)
}

/// How often its threads have been given a CPU.
pub(super) fn wakeups(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for tid in threads(pid)? {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat"))?;
        let third = text.split_whitespace().nth(2).context("short schedstat")?;
        sum += third.parse::<u64>()?;
    }
    Ok(sum)
}

/// Lets every thread run on `cpus` only.
pub(super) fn pin(pid: u32, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu).context("a CPU number out of range")?;
    }
    for tid in threads(pid)? {
        sched_setaffinity(Pid::from_raw(tid.try_into()?), &set).context("pin a thread")?;
    }
    Ok(())
}

/// Memory of a process, KiB.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct MemoryKib {
    /// What is its alone: heap and stacks.
    pub(super) anonymous: u64,
    /// Pages of its program and libraries.
    pub(super) program: u64,
    /// Pages of eBPF maps it has looked at: the kernel's memory, mapped.
    pub(super) maps: u64,
}

impl MemoryKib {
    /// What the target is about.
    pub(super) const fn without_maps(self) -> u64 {
        self.anonymous + self.program
    }
}

/// Memory of `pid`, from its smaps.
pub(super) fn memory(pid: u32) -> Result<MemoryKib> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).context("read smaps")?;
    let mut memory = MemoryKib::default();
    let (mut is_map, mut resident) = (false, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let kib = || words.clone().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
        match first {
            "Rss:" => resident = kib(),
            // Behind Rss: what of it belongs to no file.
            "Anonymous:" => {
                memory.anonymous += kib();
                let files = if is_map { &mut memory.maps } else { &mut memory.program };
                *files += resident.saturating_sub(kib());
            }
            _ if !first.ends_with(':') => is_map = line.contains("bpf-map"),
            _ => {}
        }
    }
    Ok(memory)
}
