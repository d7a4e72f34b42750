//! `cargo xtask vm`: the proving ground, guests with pure cgroup v2 and other kernels.
//!
//! `apt` and `fetch` bring kernels, QEMU and packages under `target/vm`; `image` makes the root
//! filesystem; `boot` runs it; `suites` runs test binaries and reads their results. Emulated
//! without KVM, a guest is for correctness, not for speed.

mod apt;
mod boot;
mod cpio;
mod fetch;
mod ground;
mod guest;
mod image;
mod kernel;
mod modules;
mod qemu;
mod shell;
mod stream;
mod suites;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

pub(crate) use apt::{Apt, unpack as unpack_deb};
pub(crate) use ground::{Options, run};
pub(crate) use guest::{Guest, Report, Step};
pub(crate) use kernel::{Choice, Series};
pub(crate) use suites::{KernelReport, Suite, SuiteReport, run_suites};
pub(crate) use table::table;

/// The command line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// 6.1, 6.12, 6.18, 7.3 or all.
    #[arg(long, default_value = "6.12")]
    kernel: Choice,
    /// A file or folder of this machine to have in the guest, at the same path, with libraries.
    #[arg(long, value_name = "PATH")]
    file: Vec<PathBuf>,
    /// A Debian package to have in the guest.
    #[arg(long, value_name = "NAME")]
    package: Vec<String>,
    /// A test binary to run in the guest; the command after `--` is then its arguments.
    #[arg(long, value_name = "PATH")]
    suite: Vec<PathBuf>,
    /// An environment variable of the guest's commands.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory: u32,
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// For each command, as on real hardware: the guest has ten times as long.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Guests at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    jobs: u8,
    /// Ask for newer kernels, QEMU and busybox than the cached ones.
    #[arg(long)]
    refresh: bool,
    /// What to run in the guest, `uname -a` if nothing; a path of this machine is taken along.
    #[arg(last = true)]
    command: Vec<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let Args { kernel, file, package, suite, env, memory, cpus, timeout, jobs, refresh, command } =
        args;
    let options = Options { kernels: kernel.0, jobs, refresh };
    let timeout = Duration::from_secs(timeout);
    let mut guest = Guest {
        files: file,
        packages: package,
        environment: env,
        memory_mib: memory,
        cpus,
        ..Guest::default()
    };
    if !suite.is_empty() {
        return suites_main(&options, &suite, &command, timeout, &guest);
    }
    let mut command = command;
    if command.is_empty() {
        command = ["/bin/busybox", "uname", "-a"].map(ToOwned::to_owned).to_vec();
    }
    if let Some(program) = host_program(&command[0]) {
        command[0] = program.to_string_lossy().into_owned();
        guest.files.push(program);
    }
    guest.steps = vec![Step::new("command", command, timeout)];
    let results = run(&options, |_| guest.clone())?;
    let status = results.iter().map(|(_, result)| tell(result)).find(|status| *status != 0);
    if results.len() > 1 {
        eprint!("{}", table(&rows(&results)));
    }
    Ok(ExitCode::from(status.unwrap_or(0)))
}

/// The program as an absolute path, if it names a file of this machine.
fn host_program(name: &str) -> Option<PathBuf> {
    let path = std::path::absolute(name).ok()?;
    (name.contains('/') && path.is_file()).then_some(path)
}

fn suites_main(
    options: &Options,
    binaries: &[PathBuf],
    arguments: &[String],
    timeout: Duration,
    guest: &Guest,
) -> Result<ExitCode> {
    let suites: Vec<Suite> = binaries
        .iter()
        .map(|binary| Suite {
            name: binary.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            binary: binary.clone(),
            arguments: arguments.to_vec(),
            directory: PathBuf::from("/"),
            timeout,
            kernels: options.kernels.clone(),
        })
        .collect();
    Ok(conclude(&run_suites(options, &suites, guest)?))
}

/// Prints kernel x suite, and says whether all is well.
pub(crate) fn conclude(reports: &[KernelReport]) -> ExitCode {
    print!("{}", table(&suites::rows(reports)));
    verdict(reports)
}

/// Tells why guests died, and says whether all is well.
pub(crate) fn verdict(reports: &[KernelReport]) -> ExitCode {
    for report in reports {
        tell(&report.guest);
    }
    let passed = !reports.is_empty() && reports.iter().all(KernelReport::passed);
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells why a guest failed, and gives its status.
fn tell(result: &Result<Report>) -> u8 {
    match result {
        Err(error) => {
            eprintln!("vm: {error:#}");
            1
        }
        Ok(report) => {
            if let Some(death) = &report.death {
                eprintln!("vm: the guest {death}");
            }
            for step in report.steps.iter().filter(|step| step.end == guest::End::TimedOut) {
                let guest::StepReport { name, took, .. } = step;
                eprintln!(
                    "vm: {name}: killed, it timed out after {took:.1?} ({} times its time-out)",
                    guest::TIMEOUT_FACTOR
                );
            }
            report.status()
        }
    }
}

fn rows(results: &[(Series, Result<Report>)]) -> Vec<Vec<String>> {
    let mut rows = vec![["kernel", "result", "boot", "total", "boots again"].map(str::to_owned)];
    rows.extend(results.iter().map(|(series, result)| {
        let [mut end, mut boot, mut total, mut reboots] = ["-"; 4].map(ToOwned::to_owned);
        match result {
            Err(_) => end = "not run".to_owned(),
            Ok(report) => {
                end = report.steps.first().map_or(end, |step| step.end.to_string());
                boot = report.boot.map_or(boot, |boot| format!("{boot:.1?}"));
                total = format!("{:.1?}", report.total);
                reboots = report.reboots.to_string();
            }
        }
        [series.to_string(), end, boot, total, reboots]
    }));
    rows.into_iter().map(Vec::from).collect()
}
