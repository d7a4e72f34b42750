//! The eBPF accounting on this kernel: what it counts against closed forms and against the kernel's own numbers.
//!
//! Everything is asserted on cgroups of the test's own: elsewhere tasks come and go. All of it is one program, because
//! loading takes ten seconds in an emulated guest.

mod closed_form;
mod counts;
mod cpu_time;
mod idle;
mod kills;
mod parity;
mod start;
mod storm;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use lxcfs::bpf::support::Plan;
use lxcfs::bpf::{Accounting, CpuSample, LoadSample, Options, Slot, clock};
use lxcfs::model::lock::lock;
use lxcfs_tests::cgroup::Cgroup;

/// Loaded once for all tests; the programs go with the process.
fn accounting() -> &'static Arc<Accounting> {
    static LOADED: OnceLock<Arc<Accounting>> = OnceLock::new();
    LOADED.get_or_init(|| match Accounting::load(&Options::default()) {
        Ok(accounting) => Arc::new(accounting),
        Err(error) => panic!("{error}: {error:?}"),
    })
}

/// The programs are loaded, and no other test burdens the CPUs.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = lock(&TURN);
    // As the daemon does when groups go: others' go, too.
    accounting().maintain().expect("maintain");
    turn
}

/// A number from the environment: the same test is longer in `cargo xtask soak`.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// How the programs are loaded here.
fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| Accounting::plan().expect("a plan for this kernel"))
}

/// The directory of a cgroup in the hierarchy that is counted.
fn directory(cgroup: &Cgroup) -> PathBuf {
    plan().root.join(cgroup.path().trim_start_matches('/'))
}

fn id(cgroup: &Cgroup) -> u64 {
    fs::metadata(directory(cgroup)).expect("the cgroup is there").ino()
}

fn slot(cgroup: &Cgroup) -> Slot {
    accounting().slot_of(id(cgroup)).expect("the cgroup has had a task")
}

fn load(cgroup: &Cgroup) -> LoadSample {
    accounting().load_under(slot(cgroup)).expect("the cgroup is there")
}

fn cpus(cgroup: &Cgroup) -> Vec<CpuSample> {
    accounting().cpus_under(slot(cgroup)).expect("the cgroup is there")
}

fn total(cpus: &[CpuSample]) -> u64 {
    cpus.iter().map(|cpu| cpu.run_ns).sum()
}

/// Where threads cannot be walked in the kernel, the daemon is told to count again.
fn settle_moves() {
    if plan().walk.is_none() {
        accounting().maintain().expect("maintain");
    }
}

/// Ticks of the kernel's series so far, and what `look` finds, all of it after that many.
fn at_tick<T>(mut look: impl FnMut() -> T) -> (u64, T) {
    let clock = accounting().clock();
    let tick = || clock.next_tick(clock.jiffies_at(clock::monotonic_ns())) / clock.tick_jiffies;
    loop {
        let before = tick();
        let found = look();
        if tick() == before {
            return (before, found);
        }
    }
}

/// What is left of an average after some ticks with nothing to count, for 1, 5 and 15 minutes.
#[expect(clippy::float_arithmetic, reason = "the exact result to compare with")]
fn kept(ticks: u64) -> [f64; 3] {
    [1884.0, 2014.0, 2037.0].map(|e: f64| (e / 2048.0).powi(i32::try_from(ticks).expect("few")))
}

#[expect(clippy::float_arithmetic, reason = "to compare with exact results")]
fn as_floats(load: &LoadSample) -> [f64; 3] {
    load.average.map(|average| average as f64 / (1u64 << 32) as f64)
}
