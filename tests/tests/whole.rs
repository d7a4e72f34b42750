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

/// The kernel adds what it collected at a tick so many jiffies later (`calc_global_load`).
const FOLDED_JIFFIES: u64 = 10;

/// The kernel's averages.
fn kernels() -> Result<[f64; 3]> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let words: Vec<f64> = text.split(' ').take(3).map(str::parse).collect::<Result<_, _>>()?;
    words.try_into().ok().context("three numbers")
}

/// Ours over the whole tree.
#[expect(clippy::float_arithmetic, reason = "as printed")]
fn ours(accounting: &Accounting, root: Slot) -> Result<[f64; 3]> {
    let load = accounting.load_under(root).context("the root cgroup is there")?;
    Ok(load.avenrun().map(|average| average as f64 / 2_048.0))
}

/// Waits until the kernel has just added the next sample, and says which it is.
fn next_sample(accounting: &Accounting) -> u64 {
    let clock = accounting.clock();
    let tick = clock.next_tick(clock.jiffies_at(clock::monotonic_ns()));
    let settled = clock.beginning_of(tick + 2 * FOLDED_JIFFIES);
    thread::sleep(Duration::from_nanos(settled.saturating_sub(clock::monotonic_ns())));
    tick / clock.tick_jiffies
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

    let start = next_sample(&accounting);
    // What the machine did before we looked decays in the kernel's averages alone.
    let (mut first, before) = (kernels()?, ours(&accounting, root)?);
    for (kernel, ours) in first.iter_mut().zip(before) {
        *kernel -= ours;
    }
    let (began, mut compared, mut worst) = (Instant::now(), 0, 0.0_f64);
    while began.elapsed() < Duration::from_secs(seconds) {
        let ticks = i32::try_from(next_sample(&accounting) - start)?;
        let now = (kernels()?, ours(&accounting, root)?);
        let decays = [1884.0, 2014.0, 2037.0].map(|kept: f64| (kept / 2048.0).powi(ticks));
        for nth in 0..3 {
            let expected = now.1[nth] + first[nth] * decays[nth];
            let apart = (now.0[nth] - expected).abs();
            worst = worst.max(apart);
            ensure!(apart <= 0.05, "{ticks} ticks: kernel {:?}, ours {expected} at {nth}", now.0);
            compared += 1;
        }
    }
    ensure!(compared >= 3 * (seconds / 6).max(1), "{compared} compared in {seconds} s");
    writeln!(std::io::stdout(), "{compared} averages over {seconds} s, at most {worst:.3} apart")?;
    Ok(())
}
