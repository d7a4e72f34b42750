//! `cargo xtask vm`: the proving ground, guests with pure cgroup v2 and other kernels.
//!
//! `apt` and `fetch` bring kernels, QEMU and packages under `target/vm`; `image` makes the root
//! filesystem; `boot` runs it; `suites` runs test binaries and reads their results. Emulated
//! without KVM, a guest is for correctness, not for speed.

mod apt;
mod boot;
mod cpio;
mod fetch;
mod guest;
mod image;
mod kernel;
mod modules;
mod qemu;
mod shell;
mod stream;
mod suites;
mod table;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

pub(crate) use guest::{Guest, Report, Step};
pub(crate) use kernel::Series;
pub(crate) use suites::{Suite, run_suites};

use boot::Machine;
use kernel::{Choice, Kernel};
use qemu::Qemu;
use stream::Display;

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
    /// What to run in the guest; a path of this machine is taken along.
    #[arg(last = true, default_values = ["/bin/busybox", "uname", "-a"])]
    command: Vec<String>,
}

/// Where guests run and how.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) kernels: Vec<Series>,
    /// Guests at the same time, at most two.
    pub(crate) jobs: u8,
    pub(crate) refresh: bool,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(crate) fn main(args: Args) -> Result<ExitCode> {
    let Args {
        kernel,
        file,
        package,
        suite,
        env,
        memory,
        cpus,
        timeout,
        jobs,
        refresh,
        command,
    } = args;
    let options = Options {
        kernels: kernel.0,
        jobs,
        refresh,
    };
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
        return suites_main(&options, &suite, &command, timeout, guest);
    }
    let mut command = command;
    if let Some(program) = host_program(&command[0]) {
        command[0] = program.to_string_lossy().into_owned();
        guest.files.push(program);
    }
    guest.steps = vec![Step::new("command", command, timeout)];
    let results = run(&options, &guest)?;
    let status = results
        .iter()
        .map(|(_, result)| tell(result))
        .find(|status| *status != 0);
    if results.len() > 1 {
        eprint!("{}", table::table(&rows(&results)));
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
    command: &[String],
    timeout: Duration,
    guest: Guest,
) -> Result<ExitCode> {
    // Without `--` the command is the default one, which is no argument of a test binary.
    let arguments = if std::env::args().any(|it| it == "--") {
        command
    } else {
        &[]
    };
    let suites: Vec<Suite> = binaries
        .iter()
        .map(|binary| Suite {
            name: binary
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            binary: binary.clone(),
            arguments: arguments.to_vec(),
            directory: PathBuf::from("/"),
            timeout,
        })
        .collect();
    let reports = run_suites(options, &suites, guest)?;
    for report in &reports {
        tell(&report.guest);
    }
    print!("{}", table::table(&suites::rows(&reports)));
    let passed = reports.iter().all(suites::KernelReport::passed);
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
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
            report.status()
        }
    }
}

fn rows(results: &[(Series, Result<Report>)]) -> Vec<Vec<String>> {
    let mut rows = vec![["kernel", "result", "boot", "total", "boots again"].map(str::to_owned)];
    rows.extend(results.iter().map(|(series, result)| {
        match result {
            Err(_) => [
                series.to_string(),
                "not run".into(),
                "-".into(),
                "-".into(),
                "-".into(),
            ],
            Ok(report) => [
                series.to_string(),
                report
                    .steps
                    .first()
                    .map_or_else(|| "-".to_owned(), |step| step.end.to_string()),
                format!("{:.1?}", report.boot),
                format!("{:.1?}", report.total),
                report.reboots.to_string(),
            ],
        }
    }));
    rows.into_iter().map(Vec::from).collect()
}

/// Runs the guest on every kernel of the options; an error in a row is a kernel that could not be
/// fetched or a guest that could not be started.
pub(crate) fn run(options: &Options, guest: &Guest) -> Result<Vec<(Series, Result<Report>)>> {
    let ground = Ground::prepare(options.refresh)?;
    let many = options.kernels.len() > 1;
    let queue: Mutex<VecDeque<(usize, Series)>> =
        Mutex::new(options.kernels.iter().copied().enumerate().collect());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, 2) {
            scope.spawn(|| {
                let next = || queue.lock().expect("no holder panics").pop_front();
                while let Some((index, series)) = next() {
                    let display = if many {
                        Display::lines(series.to_string())
                    } else {
                        Display::Raw
                    };
                    let result = ground.run(series, guest, options.refresh, display);
                    done.lock()
                        .expect("no holder panics")
                        .push((index, series, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no holder panics");
    done.sort_by_key(|(index, ..)| *index);
    Ok(done
        .into_iter()
        .map(|(_, series, result)| (series, result))
        .collect())
}

/// What all guests share.
#[derive(Debug)]
struct Ground {
    home: PathBuf,
    qemu: Qemu,
    busybox: PathBuf,
    init: PathBuf,
}

impl Ground {
    fn prepare(refresh: bool) -> Result<Self> {
        let target = target();
        let home = target.join("vm");
        let _lock = fetch::lock(&home)?;
        let qemu = Qemu::prepare(&home, refresh)?;
        let busybox = image::busybox(&home, refresh)?;
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args([
            "build",
            "--quiet",
            "--package",
            "lxcfs-tests",
            "--bin",
            "guest-init",
        ]);
        shell::output(cargo.arg("--target-dir").arg(&target)).context("build the guest's init")?;
        Ok(Self {
            home,
            qemu,
            busybox,
            init: target.join("debug/guest-init"),
        })
    }

    fn run(
        &self,
        series: Series,
        guest: &Guest,
        refresh: bool,
        mut display: Display,
    ) -> Result<Report> {
        let folder = self
            .home
            .join(format!("runs/{}-{series}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let initramfs = folder.join("initramfs.cpio");
        let (kernel, cached) = self.cached(series, guest, refresh)?;
        image::initramfs(&initramfs, &cached, &self.init, guest)?;
        eprintln!("vm: booting {}", kernel.release);
        let machine = Machine {
            qemu: &self.qemu,
            kernel: &kernel,
            initramfs: &initramfs,
            folder: &folder,
        };
        let report = boot::boot(machine, guest, &mut display)?;
        let Report { boot, total, .. } = report;
        eprintln!(
            "vm: {}: init after {boot:.1?}, off after {total:.1?}",
            kernel.release
        );
        let _ = fs::remove_file(&initramfs);
        if report.death.is_none() {
            let _ = fs::remove_dir_all(&folder);
        } else {
            eprintln!("vm: the logs are in {}", folder.display());
        }
        Ok(report)
    }

    /// The kernel and the archives that other runs use too.
    fn cached(
        &self,
        series: Series,
        guest: &Guest,
        refresh: bool,
    ) -> Result<(Kernel, Vec<PathBuf>)> {
        let _lock = fetch::lock(&self.home)?;
        let kernel = Kernel::prepare(&self.home, series, refresh)?;
        let mut archives = vec![image::base(&self.home, &kernel, &self.busybox)?];
        archives.extend(image::packages(&self.home, &guest.packages)?);
        Ok((kernel, archives))
    }
}

/// Cargo's target folder.
fn target() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let workspace = workspace.expect("xtask is a member of the workspace");
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), |target| workspace.join(target))
}
