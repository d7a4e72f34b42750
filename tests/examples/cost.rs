//! What the programs cost: `cargo run --release --package lxcfs-tests --example cost`, as root.
//!
//! Nothing, programs that do nothing, and ours take turns, and each figure is the smallest of many short windows: others
//! that want the CPU make a window longer, never shorter. Nanoseconds per run are the kernel's own
//! (`kernel.bpf_stats_enabled`), and what a run of nothing takes is its own part in them.

#![expect(clippy::float_arithmetic, reason = "figures for people")]

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::programs::loaded_programs;
use lxcfs::bpf::btf::{Btf, Kind};
use lxcfs::bpf::{Accounting, Options};
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::machine::Setting;
use nix::libc;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid};

const ROUNDS: usize = 12;
const WINDOWS: usize = 25;
const HOT: [&str; 4] = ["sched_switch", "sched_wakeup", "sched_wakeup_new", "sched_process_fork"];

fn main() -> Result<()> {
    let mut stdout = std::io::stdout();
    let _stats = Setting::set("/proc/sys/kernel/bpf_stats_enabled", "0")?;
    let mut best = BTreeMap::new();
    let mut costs = BTreeMap::new();
    for round in 0..ROUNDS {
        for subject in ["nothing", "empty programs", "our programs"] {
            let empty = if subject == "empty programs" { load_empty()? } else { Vec::new() };
            let ours = if subject == "our programs" { Some(load_ours()?) } else { None };
            // Measuring each run costs more than a run: times with, rounds without it.
            if round % 3 == 0 && subject != "nothing" {
                let _on = Setting::set("/proc/sys/kernel/bpf_stats_enabled", "1")?;
                per_run(subject, &mut costs)?;
            } else {
                keep(&mut best, ("ping-pong on one CPU, us", subject), ping_pong()?);
                keep(&mut best, ("fork, exit and wait, us", subject), forks()?);
            }
            if let Some(ours) = &ours {
                reads(ours, &mut best)?;
            }
            drop(empty);
        }
    }
    for ((what, subject), smallest) in &best {
        writeln!(stdout, "{what:<28} {subject:<16} {smallest:8.3}")?;
    }
    for name in HOT {
        let of = |subject| costs.get(&(subject, name.to_owned())).copied().unwrap_or(f64::NAN);
        let (empty, ours) = (of("empty programs"), of("our programs"));
        let net = ours - empty;
        writeln!(stdout, "{name:<20} {ours:7.1} ns a run, empty {empty:6.1}, net {net:7.1}")?;
    }
    Ok(())
}

fn keep<K: Ord>(best: &mut BTreeMap<K, f64>, what: K, value: f64) {
    let smallest = best.entry(what).or_insert(value);
    *smallest = smallest.min(value);
}

fn load_ours() -> Result<Accounting> {
    Accounting::load(&Options::default()).map_err(|error| anyhow::anyhow!("{error}"))
}

/// Nanoseconds of each run, by program, while tasks switch and fork.
fn per_run(subject: &'static str, costs: &mut BTreeMap<(&'static str, String), f64>) -> Result<()> {
    let read = || -> BTreeMap<String, (u128, u64)> {
        let programs = loaded_programs().filter_map(Result::ok);
        let known = programs.filter_map(|program| {
            let name = program.name_as_str()?.to_owned();
            let name = HOT.iter().find(|hot| hot.starts_with(name.as_str()))?;
            Some(((*name).to_owned(), (program.run_time().as_nanos(), program.run_count())))
        });
        known.collect()
    };
    for _ in 0..WINDOWS {
        let before = read();
        windows(1, 300, ping_pong_once)?;
        windows(1, 20, fork_once)?;
        for (name, (time, runs)) in read() {
            let (time_before, runs_before) = before.get(&name).copied().unwrap_or_default();
            let runs = runs - runs_before;
            if runs > 10 {
                let each = (time - time_before) as f64 / runs as f64;
                keep(costs, (subject, name), each);
            }
        }
    }
    Ok(())
}

/// Microseconds of one call, the smallest mean of `count` windows.
fn windows(
    count: usize,
    calls: u32,
    make: impl Fn() -> Result<Box<dyn FnMut() -> Result<()>>>,
) -> Result<f64> {
    let mut call = make()?;
    let mut smallest = f64::MAX;
    for _ in 0..count {
        let began = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        smallest = smallest.min((began.elapsed() / calls).as_secs_f64() * 1e6);
    }
    Ok(smallest)
}

fn ping_pong() -> Result<f64> {
    windows(WINDOWS, 2_000, ping_pong_once)
}

fn forks() -> Result<f64> {
    windows(WINDOWS, 30, fork_once)
}

/// A byte to another thread and back, both on CPU 0: two wake-ups and two switches.
fn ping_pong_once() -> Result<Box<dyn FnMut() -> Result<()>>> {
    let (mut here, mut to_there): (PipeReader, PipeWriter) = {
        let (there_reads, to_there) = std::io::pipe()?;
        let (here, to_here) = std::io::pipe()?;
        thread::spawn(move || echo(there_reads, to_here));
        (here, to_there)
    };
    pin(0)?;
    Ok(Box::new(move || {
        to_there.write_all(&[1])?;
        Ok(here.read_exact(&mut [0])?)
    }))
}

fn echo(mut from: PipeReader, mut to: PipeWriter) -> Result<()> {
    pin(0)?;
    let mut byte = [0];
    while from.read(&mut byte)? == 1 {
        to.write_all(&byte)?;
    }
    Ok(())
}

fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

fn fork_once() -> Result<Box<dyn FnMut() -> Result<()>>> {
    Ok(Box::new(|| {
        // SAFETY: the child ends at once and does nothing that a lock held elsewhere could stop.
        match unsafe { nix::unistd::fork() }? {
            ForkResult::Child => {
                // SAFETY: ends the process without running anything of ours.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => waitpid(child, None)?,
        };
        Ok(())
    }))
}

/// Microseconds of a read of one container's numbers.
fn reads(ours: &Accounting, best: &mut BTreeMap<(&'static str, &'static str), f64>) -> Result<()> {
    let cgroup = Cgroup::new("cost")?;
    let mut burden = Burden::start("sleep", 3, &cgroup);
    burden.ready();
    let root = Accounting::plan()?.root;
    let directory = root.join(cgroup.path().trim_start_matches('/'));
    let slot = ours.slot_of(fs::metadata(directory)?.ino()).context("it has had a task")?;
    let load = windows_of(|| ours.load_under(black_box(slot)));
    keep(best, ("read one load, us", "our programs"), load);
    let cpus = windows_of(|| ours.cpus_under(black_box(slot)));
    keep(best, ("read one's CPU times, us", "our programs"), cpus);
    Ok(())
}

fn windows_of<T>(mut call: impl FnMut() -> T) -> f64 {
    let mut smallest = Duration::MAX;
    for _ in 0..200 {
        let began = Instant::now();
        (0..500).for_each(|_| drop(black_box(call())));
        smallest = smallest.min(began.elapsed() / 500);
    }
    smallest.as_secs_f64() * 1e6
}

/// Programs that return at once, at the tracepoints of the hot path.
fn load_empty() -> Result<Vec<OwnedFd>> {
    let types = fs::read("/sys/kernel/btf/vmlinux")?;
    let types = Btf::parse(&types)?;
    let mut held = Vec::new();
    for name in HOT {
        let point = types.find(&format!("btf_trace_{name}"), Kind::Typedef).context(name)?;
        let program = load_return_0(name, point)?;
        held.push(attach(&program)?);
    }
    Ok(held)
}

/// The part of `union bpf_attr` for `BPF_PROG_LOAD` up to the last member used.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
    program_btf_fd: u32,
    func_info_size: u32,
    func_info: u64,
    func_info_count: u32,
    line_info_size: u32,
    line_info: u64,
    line_info_count: u32,
    attach_btf_id: u32,
}

fn load_return_0(name: &str, attach_btf_id: u32) -> Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_TRACING: u32 = 26;
    const BPF_TRACE_RAW_TP: u32 = 23;
    // `r0 = 0; exit`.
    let instructions: [u64; 2] = [0xb7, 0x95];
    let mut attr = LoadAttr {
        program_type: BPF_PROG_TYPE_TRACING,
        instruction_count: 2,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: BPF_TRACE_RAW_TP,
        attach_btf_id,
        ..LoadAttr::default()
    };
    for (to, from) in attr.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the kernel reads `attr` of that size, and what it points at, which all outlive the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<LoadAttr>())
    };
    descriptor(fd)
}

fn attach(program: &OwnedFd) -> Result<OwnedFd> {
    const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
    let attr: [u64; 2] = [0, program.as_raw_fd().cast_unsigned().into()];
    // SAFETY: as above; without a name the program's own attachment is used.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_RAW_TRACEPOINT_OPEN, &raw const attr, size_of_val(&attr))
    };
    descriptor(fd)
}

fn descriptor(fd: libc::c_long) -> Result<OwnedFd> {
    let fd = i32::try_from(nix::errno::Errno::result(fd)?)?;
    // SAFETY: a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
