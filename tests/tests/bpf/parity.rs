//! Both sources, eBPF maps and cgroup files, of the same container: every number that both supply.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lxcfs::model::container::{CgroupPaths, Container, History};
use lxcfs::model::monotonic::CpuTimes;
use lxcfs::source::bpf::BpfMaps;
use lxcfs::source::cgroup::CgroupFiles;
use lxcfs::source::cgroup::hierarchy::Hierarchies;
use lxcfs::source::host::Host;
use lxcfs::source::{Cpu, Load, Machine, Source};
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;

use super::{accounting, load, turn};

/// Numbers of one source and of the other, and how far they may be apart.
#[derive(Default)]
struct Compared {
    count: usize,
    apart: Vec<String>,
}

impl Compared {
    /// `ours` was looked at between the two of `theirs`.
    fn number(&mut self, what: &str, ours: u64, theirs: (u64, u64), allowed: u64) {
        self.count += 1;
        if ours + allowed < theirs.0 || ours > theirs.1 + allowed {
            self.apart.push(format!("{what}: maps {ours}, files {theirs:?}, allowed {allowed}"));
        }
    }

    /// `base` is what the maps saw before the files began.
    fn load(&mut self, by_maps: &Load, by_files: &Load, base: [u64; 3]) {
        let hundredths = |(whole, part): (u64, u64)| whole * 100 + part;
        let averages = by_maps.average.hundredths().into_iter().zip(by_files.average.hundredths());
        // Samples at other moments of the period may be one more or less, of three tasks.
        let one_sample = [24, 5, 2];
        for (((ours, theirs), base), sample) in averages.zip(base).zip(one_sample) {
            let theirs = (hundredths(theirs), hundredths(theirs) + base * 100 / 2_048);
            self.number("average", hundredths(ours), theirs, sample + 2);
        }
        let (ours_now, theirs_now) = (by_maps.tasks, by_files.tasks);
        for (what, ours, theirs) in [
            ("running", ours_now.running, theirs_now.running),
            ("blocked", ours_now.blocked, theirs_now.blocked),
            ("threads", ours_now.threads, theirs_now.threads),
        ] {
            self.number(what, ours.into(), (theirs.into(), theirs.into()), 0);
        }
    }

    /// The maps' is the kernel's own, of the whole pid namespace, which was read before and after; the files' is the newest that
    /// the container's threads have. `given` is one that was given out some time before.
    fn last_pid(&mut self, by_maps: u32, kernels: (u32, u32), by_files: u32, given: u32) {
        let (before, after) = kernels;
        // Where the kernel began with low numbers again since, threads from before have higher ones than any newer thread.
        let least = if after < given { before } else { before.max(by_files) };
        self.number("last pid", by_maps.into(), (least.into(), after.into()), 0);
    }

    fn times(&mut self, what: &str, ours: CpuTimes, theirs: (CpuTimes, CpuTimes), jiffies_ns: u64) {
        // v1 counts nice time as user.
        let user = |times: CpuTimes| times.user_ns + times.nice_ns;
        let mut one = |name: &str, of: fn(CpuTimes) -> u64, allowed_ns: u64| {
            let theirs = (of(theirs.0), of(theirs.1));
            let allowed_ns = allowed_ns + theirs.1 / 1_000;
            self.number(&format!("{what} {name}"), of(ours), theirs, allowed_ns);
        };
        one("used", |times| times.used_ns(), 2 * jiffies_ns);
        // Split by ticks, and v2 lets no part ever go back: it depends on when it was read before.
        let split_ns = 2 * jiffies_ns + theirs.1.used_ns() / 50;
        one("user", user, split_ns);
        one("system", |times| times.system_ns, split_ns);
    }
}

fn container(pid: u32, cgroups: &CgroupPaths, started_ns: u64) -> Container {
    let (cgroups, history) = (cgroups.clone(), Arc::<History>::default());
    Container { init: pid, started_ns, pid_depth: 0, cgroups, history, at_hand: Arc::default() }
}

#[test]
fn maps_and_files_say_the_same() -> Result<()> {
    const SAMPLES: u32 = 3;
    let _turn = turn();
    let host = Arc::new(Host::open()?);
    let hierarchies = Hierarchies::open(&fs::read("/proc/self/mountinfo")?)?;
    let files = Arc::new(CgroupFiles::new(hierarchies, Arc::clone(&host)));
    let programs = Arc::clone(accounting());
    let since_ns = host.boottime_ns();
    let maps = BpfMaps::new(programs, Arc::clone(&files), Arc::clone(&host), since_ns);
    let cgroup = Cgroup::new("parity")?;
    let mut burdens = [("nice", 2), ("vfork", 1), ("storm", 1)]
        .map(|(kind, number)| Burden::start(kind, number, &cgroup));
    burdens.iter_mut().for_each(Burden::ready);
    let pid = burdens[0].pid();
    let paths = CgroupPaths::parse(&fs::read(format!("/proc/{pid}/cgroup"))?);
    let ours = container(pid, &paths, host.boottime_ns());
    let theirs = container(pid, &paths, host.boottime_ns());
    let base = load(&cgroup).avenrun();

    // As the daemon does where it has no programs: a sample in each period.
    files.sample_load(&theirs)?.context("files know the load")?;
    for _ in 0..SAMPLES {
        thread::sleep(Duration::from_millis(5_004));
        files.sample_load(&theirs)?;
    }
    let mut compared = Compared::default();
    let newest = kernels_last_pid()?;
    let (by_maps, by_files) = (maps.load(&ours)?, files.load(&theirs)?);
    let newest = (newest, kernels_last_pid()?);
    let (by_maps, by_files) = (by_maps.context("by maps")?, by_files.context("by files")?);
    compared.load(&by_maps, &by_files, base);
    let given = burdens.iter().map(Burden::pid).max().context("no burdens")?;
    compared.last_pid(by_maps.tasks.last_pid, newest, by_files.tasks.last_pid, given);

    let read = || -> Result<Cpu> { files.cpu(&theirs)?.context("files know CPU time") };
    let (before, cpu, after) = (read()?, maps.cpu(&ours)?.context("by maps")?, read()?);
    let jiffy_ns = accounting().clock().jiffy_ns;
    let per_cpu = cpu.per_cpu.context("maps know each CPU")?;
    let cpus = u64::try_from(per_cpu.len())?;
    compared.times("all CPUs", cpu.total, (before.total, after.total), cpus * jiffy_ns);
    let theirs =
        before.per_cpu.unwrap_or_default().into_iter().zip(after.per_cpu.unwrap_or_default());
    for (nth, (ours, theirs)) in per_cpu.iter().zip(theirs).enumerate() {
        compared.times(&format!("CPU {nth}"), *ours, theirs, jiffy_ns);
    }
    ensure!(compared.apart.is_empty(), "{:#?}", compared.apart);
    let by_cpu = if cgroup.is_pure_v2() { 0 } else { per_cpu.len() };
    ensure!(compared.count == 7 + 3 * (1 + by_cpu), "{} numbers", compared.count);
    ensure!(cpu.total.used_ns() > 1_000_000_000, "it ran for a second");
    Ok(())
}

/// The pid given out last in our own pid namespace, which is the container's here.
fn kernels_last_pid() -> Result<u32> {
    let loadavg = fs::read_to_string("/proc/loadavg")?;
    Ok(loadavg.trim_end().rsplit(' ').next().context("an empty loadavg")?.parse()?)
}
