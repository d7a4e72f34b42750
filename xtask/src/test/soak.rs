//! `cargo xtask soak`: the tests whose figures grow with time, at length.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::guests;
use crate::vm;

/// The command line.
#[derive(Debug, clap::Args)]
pub(crate) struct SoakArgs {
    /// Only this part
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Reads of each file
    #[arg(long, default_value_t = 100_000)]
    reads: u64,
    /// Containers made and destroyed
    #[arg(long, default_value_t = 10_000)]
    containers: u64,
    /// Seconds of moves, forks, freezing and running out of memory
    #[arg(long, default_value_t = 600)]
    moves: u64,
    /// Cgroups made and removed
    #[arg(long, default_value_t = 1_000_000)]
    cgroups: u64,
    /// Idle containers, for a minute
    #[arg(long, default_value_t = 1_000)]
    idle: u64,
    /// Samples of the load, one in 5 s, at leaves of each depth
    #[arg(long, default_value_t = 60)]
    ticks: u64,
    /// Daemons killed, ended and upgraded
    #[arg(long, default_value_t = 100)]
    restarts: u64,
    /// Daemons killed, one a second, while averages and counters are read
    #[arg(long, default_value_t = 100)]
    kills: u64,
    /// Comparisons of the file below FUSE with the daemon's, in a hundred containers
    #[arg(long, default_value_t = 10_000)]
    below: u64,
    /// Seconds that the file is read without a daemon
    #[arg(long, default_value_t = 300)]
    dead: u64,
    /// Seconds of steady load in guests
    #[arg(long, default_value_t = 300)]
    steady: u64,
    /// Seconds of fuzzing each parser
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

/// A part of the whole, in the order they run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Reads of any shape
    Reads,
    /// Containers that come and go
    Containers,
    /// Moves, forks, vforks, freezing, stopping, running out of memory: every task is what the kernel says
    Moves,
    /// Cgroups made and removed leave no slot
    Cgroups,
    /// Idle containers wake nobody
    Idle,
    /// The load averages against their closed form
    Ticks,
    /// Daemons that are killed, end and are upgraded under readers
    Restarts,
    /// Averages and counters through kills
    Kills,
    /// The file below FUSE: what it says, and without a daemon
    Below,
    /// In guests: all cgroups together are the kernel's own load
    Steady,
    /// Every suite that guests run, with every kernel
    Guests,
    /// Any bytes for every parser
    Fuzz,
    /// The rooms without I/O under an interpreter of a nightly toolchain
    Miri,
}

pub(crate) fn soak(args: &SoakArgs) -> Result<ExitCode> {
    crate::need_root("making containers and mounts")?;
    super::install_tools()?;
    crate::cargo(&["build", "--package", "lxcfs-user", "--package", "lxcfs-tests"])?;
    let parts = <Part as clap::ValueEnum>::value_variants();
    for part in parts.iter().filter(|part| args.only.is_none_or(|only| only == **part)) {
        let began = Instant::now();
        println!("> {part:?}");
        match part {
            Part::Steady => steady(args.steady)?,
            Part::Guests => all_in_guests()?,
            Part::Fuzz => super::fuzz::run(args.seconds)?,
            Part::Miri => super::miri::run()?,
            _ => here(*part, args)?,
        }
        println!("> {part:?}: {:.0} s", began.elapsed().as_secs_f64());
    }
    super::nothing_left()?;
    Ok(ExitCode::SUCCESS)
}

/// A test of a suite on this machine, as long as asked.
fn here(part: Part, args: &SoakArgs) -> Result<()> {
    let (suite, test, settings): (_, _, &[(&str, u64)]) = match part {
        Part::Reads => ("fs", "reads_of_any_shape", &[("LXCFS_TEST_READS", args.reads)]),
        Part::Containers => {
            ("daemon", "memory_is_flat", &[("LXCFS_TEST_CONTAINERS", args.containers)])
        }
        Part::Moves => ("bpf", "after_a_storm", &[("LXCFS_TEST_STORM_SECONDS", args.moves)]),
        Part::Cgroups => ("bpf", "groups_made", &[("LXCFS_TEST_CGROUPS", args.cgroups)]),
        Part::Idle => (
            "bpf",
            "idle_containers",
            &[("LXCFS_TEST_IDLE_CONTAINERS", args.idle), ("LXCFS_TEST_IDLE_SECONDS", 60)],
        ),
        // The whole suite.
        Part::Restarts => ("restart", "", &[("LXCFS_TEST_RESTARTS", args.restarts)]),
        Part::Kills => ("bpf", "go_on_through_kills", &[("LXCFS_TEST_KILLS", args.kills)]),
        Part::Below => (
            "below",
            "",
            &[
                ("LXCFS_TEST_BELOW_CONTAINERS", 100),
                ("LXCFS_TEST_BELOW_READINGS", args.below),
                ("LXCFS_TEST_BELOW_SECONDS", args.dead),
                ("LXCFS_TEST_BELOW_CGROUPS", 5_000),
            ],
        ),
        // The others are no tests of a suite here.
        Part::Ticks | Part::Steady | Part::Guests | Part::Fuzz | Part::Miri => {
            ("bpf", "averages_follow", &[("LXCFS_TEST_TICKS", args.ticks)])
        }
    };
    println!("> {suite}, {test}: {settings:?}");
    let status = Command::new("cargo")
        .args(["test", "--quiet", "--package", "lxcfs-tests", "--test", suite, test])
        .args(["--", "--nocapture"])
        .current_dir(crate::root())
        .env("RUST_BACKTRACE", "0")
        .envs(settings.iter().map(|(name, value)| (*name, value.to_string())))
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "{test} failed");
    Ok(())
}

/// Where all tasks are visible and nothing else runs.
fn steady(seconds: u64) -> Result<()> {
    in_guests(&[("LXCFS_TEST_STEADY_SECONDS", &seconds.to_string())], |suite| suite == "whole")
}

/// What `cargo xtask test` spreads over the kernels.
fn all_in_guests() -> Result<()> {
    in_guests(&guests::ENVIRONMENT, |suite| !super::HOST_SUITES.contains(&suite))
}

/// The suites that are wanted, with every kernel.
fn in_guests(environment: &[(&str, &str)], is_wanted: impl Fn(&str) -> bool) -> Result<()> {
    let mut suites = super::test_binaries()?;
    suites.retain(|(name, _)| is_wanted(name));
    let suites: Vec<_> = suites.into_iter().map(guests::suite).collect();
    let reports = vm::run_suites(&vm::Options::default(), &suites, &guests::guest(environment))?;
    ensure!(vm::conclude(&reports) == ExitCode::SUCCESS, "a suite failed in a guest");
    Ok(())
}
