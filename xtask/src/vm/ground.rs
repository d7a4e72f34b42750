//! Guests on one or more kernels: what all of them share is made ready once.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::boot::{self, Machine};
use super::guest::{Guest, Report};
use super::kernel::{Kernel, Series};
use super::qemu::Qemu;
use super::stream::Display;
use super::{fetch, image, shell};

/// The root filesystem may fill half of the memory, and the archive it comes from lies beside it.
const MEMORY_PER_IMAGE: u64 = 3;

/// Logs of a guest that died, or of a run that was interrupted, are kept this long.
const KEEP_LOGS: Duration = Duration::from_secs(24 * 60 * 60);

/// Where guests run and how.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) kernels: Vec<Series>,
    /// Guests at the same time, at most two.
    pub(crate) jobs: u8,
    /// Whether to ask for newer kernels, QEMU and busybox than the cached ones.
    pub(crate) refresh: bool,
}

impl Default for Options {
    /// All kernels, two at a time, from the cache.
    fn default() -> Self {
        Self { kernels: super::kernel::KNOWN.to_vec(), jobs: 2, refresh: false }
    }
}

/// Runs on every kernel of the options its guest; an error in a row is a kernel that could not be
/// fetched or a guest that could not be started.
pub(crate) fn run(
    options: &Options,
    guest: impl Fn(Series) -> Guest,
) -> Result<Vec<(Series, Result<Report>)>> {
    let ground = Ground::prepare(options.refresh)?;
    let many = options.kernels.len() > 1;
    let kernels = options.kernels.iter().copied().enumerate();
    let mut queue: Vec<_> = kernels.map(|(index, series)| (index, series, guest(series))).collect();
    // Who has the most to do begins, so that no guest is left to run alone at the end.
    queue.sort_by_key(|(.., guest)| Reverse(guest.steps.len()));
    let queue = Mutex::new(VecDeque::from(queue));
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, 2) {
            scope.spawn(|| {
                let next = || queue.lock().expect("no holder panics").pop_front();
                while let Some((index, series, guest)) = next() {
                    let display =
                        if many { Display::lines(series.to_string()) } else { Display::Raw };
                    let result = ground.run(series, &guest, options.refresh, display);
                    done.lock().expect("no holder panics").push((index, series, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no holder panics");
    done.sort_by_key(|(index, ..)| *index);
    Ok(done.into_iter().map(|(_, series, result)| (series, result)).collect())
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
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let workspace = workspace.expect("xtask is a member of the workspace");
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        let target = workspace.join(target);
        let home = target.join("vm");
        let _lock = fetch::lock(&home)?;
        remove_old_runs(&home);
        let qemu = Qemu::prepare(&home, refresh)?;
        let busybox = image::busybox(&home, refresh)?;
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--package", "lxcfs-tests", "--bin", "guest-init"]);
        cargo.arg("--target-dir").arg(&target).current_dir(workspace);
        shell::output(&mut cargo).context("build the guest's init")?;
        Ok(Self { home, qemu, busybox, init: target.join("debug/guest-init") })
    }

    fn run(
        &self,
        series: Series,
        guest: &Guest,
        refresh: bool,
        mut display: Display,
    ) -> Result<Report> {
        let folder = self.home.join(format!("runs/{}-{series}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let initramfs = folder.join("initramfs.cpio");
        let (kernel, cached) = self.cached(series, guest, refresh)?;
        image::initramfs(&initramfs, &cached, &self.init, guest)?;
        let bytes = fs::metadata(&initramfs).context("look at the initramfs")?.len();
        ensure_memory(bytes, guest)?;
        eprintln!("vm: booting {} with an image of {} kB", kernel.release, bytes / 1000);
        let machine =
            Machine { qemu: &self.qemu, kernel: &kernel, initramfs: &initramfs, folder: &folder };
        let report = boot::boot(machine, guest, &mut display)?;
        let _ = fs::remove_file(&initramfs);
        let boot =
            report.boot.map_or_else(|| "never".to_owned(), |boot| format!("after {boot:.1?}"));
        eprintln!("vm: {}: init {boot}, off after {:.1?}", kernel.release, report.total);
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

fn ensure_memory(image_bytes: u64, guest: &Guest) -> Result<()> {
    let needed_mib = MEMORY_PER_IMAGE * image_bytes / (1 << 20);
    ensure!(
        needed_mib <= u64::from(guest.memory_mib),
        "the image needs {needed_mib} MiB of memory and the guest has {}; hint: give it more \
         (--memory) or put less into it",
        guest.memory_mib
    );
    Ok(())
}

fn remove_old_runs(home: &Path) {
    for run in fs::read_dir(home.join("runs")).into_iter().flatten().flatten() {
        let age = run.metadata().ok().and_then(|about| about.modified().ok()?.elapsed().ok());
        if age.is_some_and(|age| age > KEEP_LOGS) {
            let _ = fs::remove_dir_all(run.path());
        }
    }
}
