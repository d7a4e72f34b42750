//! The load of all cgroups together is the kernel's own `/proc/loadavg`.
//!
//! For guests, where nothing runs but this: elsewhere tasks that come and go between two samples make the two differ, and
//! a machine may hide tasks from eBPF. `LXCFS_TEST_STEADY_SECONDS` of steady load.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lxcfs::bpf::{Accounting, Options, Slot, clock};
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;

/// The kernel's averages.
fn kernels() -> Result<[f64; 3]> {
    lxcfs_tests::averages(&fs::read_to_string("/proc/loadavg")?)
}

/// Ours over the whole tree.
#[expect(clippy::float_arithmetic, reason = "as printed")]
fn ours(accounting: &Accounting, root: Slot) -> Result<[f64; 3]> {
    let load = accounting.load_under(root).context("the root cgroup is there")?;
    Ok(load.avenrun().map(|average| average as f64 / 2_048.0))
}

/// The kernel's averages and ours.
type Averages = ([f64; 3], [f64; 3]);

/// The averages once the kernel has added its next sample, and which that is.
fn next_sample(accounting: &Accounting, root: Slot) -> Result<(u64, Averages)> {
    let clock = accounting.clock();
    loop {
        let tick = clock.next_tick(clock.jiffies_at(clock::monotonic_ns()));
        // The kernel adds what it collected ten jiffies later (`calc_global_load`), or as much later as the CPU is that keeps
        // its time. Until the next tick it adds nothing more.
        let settled = clock.beginning_of(tick + clock.tick_jiffies / 4);
        thread::sleep(Duration::from_nanos(settled.saturating_sub(clock::monotonic_ns())));
        let averages = (kernels()?, ours(accounting, root)?);
        // Whoever was kept waiting between the two may have them of different samples.
        if clock::monotonic_ns() < clock.beginning_of(tick + clock.tick_jiffies) {
            return Ok((tick / clock.tick_jiffies, averages));
        }
    }
}

#[test]
fn all_cgroups_together_are_the_machine() -> Result<()> {
    let seconds = std::env::var("LXCFS_TEST_STEADY_SECONDS").ok().map_or(Ok(60), |s| s.parse())?;
    let root = Accounting::plan()?.root;
    let accounting = Accounting::load(&Options::default())?;
    let cgroups = ["a", "b", "c"].map(|name| Cgroup::new(name).expect("make a cgroup"));
    let mut burdens = Vec::new();
    // Not `nice`: the kernel counts a task that has just gone to sleep until its turn would have come again, which beside
    // those takes seconds.
    for (cgroup, (kind, number)) in cgroups.iter().zip([("spin", 2), ("vfork", 2), ("spin", 1)]) {
        burdens.push(Burden::start(kind, number, cgroup));
    }
    burdens.iter_mut().for_each(Burden::ready);
    let root = accounting.slot_of(fs::metadata(root)?.ino()).context("the root has tasks")?;

    // What the machine did before we looked decays in the kernel's averages alone.
    let mut base = Base::take(&accounting, root)?;
    let (began, mut samples, mut compared, mut strays, mut worst) =
        (Instant::now(), 0, 0, 0, 0.0_f64);
    while began.elapsed() < Duration::from_secs(seconds) {
        let (sample, now) = next_sample(&accounting, root)?;
        let apart = base.apart(sample, &now)?;
        samples += 1;
        if apart <= 0.05 {
            worst = worst.max(apart);
            compared += 3;
            continue;
        }
        // Each CPU tells the kernel how many it runs at a tick of its own, and an emulator's ticks come late: a task that
        // runs for a moment may be in one sample and not in the other. Rarely; and what follows agrees again.
        strays += 1;
        ensure!(
            strays <= 1 + samples / 10 && apart <= 0.1,
            "{strays} of {samples} samples apart, this one by {apart}: kernel {:?}, ours {:?}",
            now.0,
            now.1
        );
        base = Base::of(sample, &now);
    }
    ensure!(compared >= 3 * (seconds / 6).max(2) - 3 * strays, "{compared} in {seconds} s");
    writeln!(
        std::io::stdout(),
        "{compared} averages over {seconds} s, at most {worst:.3} apart; {strays} of {samples} samples astray"
    )?;
    Ok(())
}

/// A sample from which on the kernel's averages and ours are followed.
struct Base {
    sample: u64,
    /// By how much the kernel's were above ours.
    above: [f64; 3],
}

#[expect(clippy::float_arithmetic, reason = "as printed")]
impl Base {
    fn take(accounting: &Accounting, root: Slot) -> Result<Self> {
        let (sample, averages) = next_sample(accounting, root)?;
        Ok(Self::of(sample, &averages))
    }

    fn of(sample: u64, (kernel, ours): &Averages) -> Self {
        Self { sample, above: std::array::from_fn(|nth| kernel[nth] - ours[nth]) }
    }

    /// How far the averages of a later sample are apart at most.
    fn apart(&self, sample: u64, (kernel, ours): &Averages) -> Result<f64> {
        let ticks = i32::try_from(sample - self.sample)?;
        let decays = [1884.0, 2014.0, 2037.0].map(|kept: f64| (kept / 2048.0).powi(ticks));
        let apart = |nth: usize| {
            let expected = ours[nth] + self.above[nth] * decays[nth];
            (kernel[nth] - expected).abs()
        };
        Ok((0..3).map(apart).fold(0.0, f64::max))
    }
}
