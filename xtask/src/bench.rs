//! `cargo xtask bench`: the read path against a file that does nothing, against Debian's lxcfs, and against the kernel.
//!
//! Where daemon and reader run decides more than what they do: on one CPU a round trip takes a third of what it takes on
//! two. So everything is pinned to one, all take turns within a round, and what counts are ratios within a round.

#![allow(
    clippy::float_arithmetic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "statistics: ratios and shares of times that are far from any limit"
)]

mod chart;
mod check;
pub(crate) mod instructions;
mod many;
mod phases;
mod process;
mod reading;
mod report;
mod results;
mod stats;
mod steps;
mod subjects;
mod syscalls;
mod targets;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use self::phases::Effort;
use self::reading::Place;
use self::results::{Machine, Noise, Results};
use self::subjects::{BELOW, DEBIAN, FLOOR, OURS, Subject};

/// The command line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Another program with the command line of LXCFS to measure
    #[arg(long, value_name = "PATH")]
    peer: Vec<PathBuf>,
    /// Fewer rounds, fewer containers, a shorter idle: minutes become one
    #[arg(long)]
    quick: bool,
    /// The most containers
    #[arg(long, default_value_t = 10_000)]
    containers: u32,
    /// Where results go: bench.md, bench.json, bench.svg
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    /// Only the latency of each file and the system calls of some, and fail where one is more than 20 % slower than it was, or
    /// takes a call more; ends with 3 where the machine is too noisy to tell
    #[arg(long)]
    check: bool,
    /// Keep the ratios of this run, and the instructions of each page and lookup, as those that are compared with
    #[arg(long, conflicts_with = "check")]
    store: bool,
    /// Only the instructions of each page and lookup, against those that are kept; with --store, keep them
    #[arg(long, conflicts_with = "check")]
    instructions: bool,
}

const FULL: Effort = Effort {
    rounds: 120,
    readings: 30,
    cold_containers: 60,
    slice_ms: 200,
    slices: 6,
    cost_readings: 20_000,
};

const QUICK: Effort = Effort {
    rounds: 40,
    readings: 25,
    cold_containers: 20,
    slice_ms: 100,
    slices: 3,
    cost_readings: 4_000,
};

/// Mostly the latency, but as sure as it can be: a verdict follows.
const CHECK: Effort = Effort { rounds: 120, cost_readings: 1_000, ..QUICK };

/// Files whose cost and throughput are looked at.
const SOME_FILES: [&str; 3] = ["proc/loadavg", "proc/meminfo", "proc/stat"];

/// A run in progress.
struct Run<'a> {
    args: &'a Args,
    effort: Effort,
    /// The CPU everything is pinned to, and all there are.
    cpu: usize,
    cpus: Vec<usize>,
    subjects: Vec<Subject>,
    results: Results,
    bar: ProgressBar,
    interrupted: Arc<AtomicBool>,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if args.instructions {
        return if args.store { instructions::store() } else { instructions::check() }
            .map(|()| ExitCode::SUCCESS);
    }
    crate::need_root("measuring")?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("handle signals")?;
    }
    crate::cargo(&["build", "--release", "--package", "lxcfs-user"])?;
    let programs = ["--bin", "crowd", "--bin", "nullfs", "--bin", "stopwatch"];
    crate::cargo(&[&["build", "--release", "--package", "lxcfs-tests"], &programs[..]].concat())?;
    // The program that makes containers is the one of the tests.
    crate::cargo(&["build", "--package", "lxcfs-tests", "--bin", "contain"])?;
    if args.check {
        return check(args, &interrupted);
    }
    let mut results = measure(args, &interrupted)?;
    results.targets = targets::all(&results);
    let report = report::markdown(&results);
    fs::create_dir_all(&args.out).context("make the folder for the results")?;
    fs::write(args.out.join("bench.md"), &report).context("write bench.md")?;
    fs::write(args.out.join("bench.json"), serde_json::to_string(&results)?)?;
    chart::draw(&results, &args.out.join("bench.svg"))?;
    println!("{report}");
    if args.store {
        check::store(&results)?;
        instructions::store()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What `--check` ends with where nothing can be said.
const NO_VERDICT: u8 = 3;

/// So many runs make a verdict, each with daemons of its own, so that what one start or one moment has decided does not.
const RUNS: usize = 3;

/// So many are made at most: those of no use, by their own noise, do not count.
const MOST_RUNS: usize = 6;

/// Compares with what is kept.
fn check(args: &Args, interrupted: &Arc<AtomicBool>) -> Result<ExitCode> {
    let mut runs = Vec::new();
    for _ in 0..MOST_RUNS {
        let results = measure(args, interrupted)?;
        match targets::unusable(&results) {
            None => runs.push(results),
            Some(why) => println!("Nothing can be said of this run: {why}."),
        }
        if runs.len() == RUNS {
            return check::check(&runs).map(|()| ExitCode::SUCCESS);
        }
    }
    println!("No verdict: this machine is not quiet enough.");
    Ok(ExitCode::from(NO_VERDICT))
}

fn measure(args: &Args, interrupted: &Arc<AtomicBool>) -> Result<Results> {
    let measured = measure_all(args, Arc::clone(interrupted));
    subjects::clear();
    measured
}

fn measure_all(args: &Args, interrupted: Arc<AtomicBool>) -> Result<Results> {
    let cpus: Vec<usize> = (0..std::thread::available_parallelism()?.get()).collect();
    let cpu = cpus.last().copied().unwrap_or(0);
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{elapsed:>4} [{bar:40}] {pos}/{len} {msg}")?);
    let effort = match args {
        Args { check: true, .. } => CHECK,
        Args { quick: true, .. } => QUICK,
        _ => FULL,
    };
    let results = Results { machine: machine(cpu, cpus.len())?, ..Results::default() };
    let mut run = Run { args, effort, cpu, cpus, subjects: Vec::new(), results, bar, interrupted };
    let before = stolen()?;
    run.start()?;
    run.files()?;
    run.costs()?;
    if !args.check {
        run.crowds()?;
        run.many()?;
    }
    let after = stolen()?;
    let steal = (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64;
    let files = run.results.cycle.values();
    let doubts = files.map(|by| Some(stats::doubt(by.get(OURS)?, by.get(FLOOR)?)));
    let doubt = doubts.map(|doubt| doubt.unwrap_or(f64::NAN)).max_by(f64::total_cmp);
    run.results.noise = Noise { doubt: doubt.unwrap_or(f64::NAN), steal };
    run.bar.finish_and_clear();
    Ok(std::mem::take(&mut run.results))
}

impl Run<'_> {
    /// Says what is measured now, and stops where somebody wants it or a daemon has died.
    fn step(&mut self, what: &str) -> Result<()> {
        self.bar.inc(1);
        self.bar.set_message(what.to_owned());
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let (results, mut died) = (&mut self.results, false);
        self.subjects.retain_mut(|subject| match subject.ended() {
            None => true,
            Some(how) => {
                died |= [FLOOR, OURS].contains(&subject.name.as_str());
                results.absent.insert(subject.name.clone(), how);
                false
            }
        });
        if died {
            bail!("a daemon of ours died: {:?}", self.results.absent);
        }
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        let cgroups = (self.args.containers + 6_000).to_string();
        let ours = Subject::ours(&[
            "--no-keeper",
            "--cgroups",
            &cgroups,
            "--kernel-files",
            "loadavg,uptime",
        ])?;
        self.subjects = vec![Subject::floor()?, ours];
        if let Err(why) = subjects::uncover() {
            self.results.absent.insert(BELOW.to_owned(), format!("{why:#}"));
        }
        self.results.machine.accounting = subjects::accounting()?;
        let debian = lxcfs_tests::debian::lxcfs()
            .and_then(|(program, library)| Subject::like_lxcfs(DEBIAN, &program, Some(&library)));
        let peers = self.args.peer.iter().enumerate().map(|(nth, path)| {
            let name = format!("peer{}", nth + 1);
            let subject = Subject::like_lxcfs(&name, path, None);
            (name, subject)
        });
        for (name, subject) in std::iter::once((DEBIAN.to_owned(), debian)).chain(peers) {
            match subject {
                Ok(subject) => self.subjects.push(subject),
                Err(why) => {
                    self.results.absent.insert(name, format!("{why:#}"));
                }
            }
        }
        self.pin(&[self.cpu])
    }

    fn pin(&self, cpus: &[usize]) -> Result<()> {
        self.subjects.iter().try_for_each(|subject| process::pin(subject.pid(), cpus))
    }

    fn files(&mut self) -> Result<()> {
        let files = self.subjects[1].files()?;
        let place = Place::new(&[self.cpu])?;
        self.bar.set_length(2 * files.len() as u64 + 30);
        for file in &files {
            self.step(file)?;
            let timings = phases::timing(&place, &self.subjects, file, "cycle", self.effort)?;
            self.results.cycle.insert(file.clone(), timings);
            if !self.args.check {
                self.step(file)?;
                let timings = phases::timing(&place, &self.subjects, file, "held", self.effort)?;
                self.results.held.insert(file.clone(), timings);
            }
        }
        if !self.args.check {
            self.step("first reads of containers")?;
            self.results.cold = phases::cold(&place, &self.subjects, self.effort)?;
        }
        Ok(())
    }

    fn costs(&mut self) -> Result<()> {
        let place = Place::new(&[self.cpu])?;
        for file in SOME_FILES {
            self.step(&format!("cost of {file}"))?;
            let costs = phases::costs(&place, &self.subjects, file, self.effort)?;
            self.results.costs.insert(file.to_owned(), costs);
        }
        Ok(())
    }

    fn crowds(&mut self) -> Result<()> {
        let files: &[_] = if self.args.quick { &SOME_FILES[..1] } else { &SOME_FILES };
        let mut place = Place::new(&[self.cpu])?;
        for (pinned, cpus) in [(true, vec![self.cpu]), (false, self.cpus.clone())] {
            place = place.on(&cpus);
            self.pin(&cpus)?;
            for file in files {
                for readers in [1, 4, 16, 64] {
                    self.step(&format!("{readers} readers of {file}"))?;
                    let crowd = phases::crowd(&place, &self.subjects, file, readers, self.effort)?;
                    self.results.crowds.push(results::Crowd { pinned, ..crowd });
                }
            }
        }
        self.pin(&[self.cpu])
    }

    /// One container, then a thousand that sleep, then as many as are wanted.
    fn many(&mut self) -> Result<()> {
        let place = Place::new(&[self.cpu])?;
        let mut sleepers = Vec::new();
        let most =
            if self.args.quick { self.args.containers.min(1_000) } else { self.args.containers };
        let mut made = 1;
        for count in [1, 100, 1_000, 10_000].into_iter().filter(|&count| count <= most) {
            self.step(&format!("{count} containers"))?;
            if count > made {
                // Debian's makes a process for each; a thousand of them are enough.
                let readers =
                    self.subjects.iter().filter(|daemon| count <= 1_000 || daemon.name == OURS);
                let files =
                    readers.filter_map(|daemon| daemon.path("proc/loadavg")).collect::<Vec<_>>();
                sleepers.push(many::Sleepers::new(count - made, &files)?);
                made = count;
            }
            let latency = many::latency(&place, &self.subjects, count, self.effort)?;
            self.results.containers.push(latency);
            if count == 1_000 {
                let seconds = if self.args.quick { 10 } else { 60 };
                self.step(&format!("{seconds} s of nothing"))?;
                self.results.idle = Some(many::idle(&self.subjects, count, seconds)?);
            }
        }
        self.step("taking the containers away")
    }
}

/// What this machine is.
fn machine(pinned_to: usize, cpus: usize) -> Result<Machine> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("read cpuinfo")?;
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the release")?;
    let pure = lxcfs_tests::cgroup::is_pure_v2()?;
    Ok(Machine {
        processor: model
            .map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.to_owned()),
        cpus,
        kernel: kernel.trim().to_owned(),
        cgroups: if pure { "cgroup v2" } else { "cgroup v1 and v2" }.to_owned(),
        pinned_to,
        accounting: String::new(),
    })
}

/// `(stolen, all)` ticks of this machine since its start.
fn stolen() -> Result<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let first = stat.lines().next().context("an empty /proc/stat")?;
    let ticks: Vec<u64> = first.split_whitespace().skip(1).map_while(|n| n.parse().ok()).collect();
    Ok((ticks.get(7).copied().unwrap_or(0), ticks.iter().take(8).sum()))
}
