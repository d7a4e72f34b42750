//! A container on a machine, both from numbers in memory, for what counts the work behind a page: the example `pages`, the
//! benchmark `pages` and the test `allocations` must not differ in what they make pages of.

use std::sync::Arc;

use lxcfs::files::{Policy, Reader, View};
use lxcfs::model::container::{CgroupPaths, Container, Tasks};
use lxcfs::model::cpus::CpuSet;
use lxcfs::model::file::File;
use lxcfs::model::load::LoadAverage;
use lxcfs::model::monotonic::CpuTimes;
use lxcfs::source::fake::{FakeMachine, FakeSource};
use lxcfs::source::{Cpu, DeviceIo, Load, Memory, Swap, Text};

const VMSTAT: &str = include_str!("host/vmstat");

/// Everything a page is made from.
#[derive(Debug)]
pub(crate) struct Fixture {
    source: FakeSource,
    machine: FakeMachine,
    container: Container,
    policy: Policy,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self {
            source: source(),
            machine: machine(),
            container: container(),
            policy: Policy::default(),
        }
    }

    pub(crate) fn view(&self) -> View<'_> {
        View {
            container: &self.container,
            source: &self.source,
            machine: &self.machine,
            policy: &self.policy,
            reader: Reader::default(),
        }
    }
}

fn source() -> FakeSource {
    let times = |user_ns| CpuTimes { user_ns, system_ns: user_ns / 3, ..CpuTimes::default() };
    let per_cpu: Vec<_> = (1..=4).map(|cpu| times(cpu * 1_000_000_000)).collect();
    let memory = Memory {
        limit_bytes: Some(512 << 20),
        usage_bytes: 100 << 20,
        cache_bytes: 40 << 20,
        active_file_bytes: 30 << 20,
        anon_bytes: 50 << 20,
        ..Memory::default()
    };
    let tasks = Tasks { running: 2, blocked: 1, waiting_for_io: 1, threads: 40, last_pid: 345 };
    let average = LoadAverage::default().advance(3, 12);
    let device = DeviceIo { device: (8, 0), reads: 5, read_bytes: 1 << 20, ..DeviceIo::default() };
    FakeSource {
        cpu: Some(Cpu { total: times(10_000_000_000), per_cpu: Some(per_cpu) }),
        cpuset: CpuSet::parse(b"0-3"),
        memory: Some(memory),
        memory_events: Some(memory_events()),
        swap: Some(Swap { limit_bytes: Some(64 << 20), used_bytes: 1 << 20 }),
        io: Some(vec![device]),
        load: Some(Load { average, tasks, ..Load::default() }),
        pressure: Some("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n".to_owned()),
        ..FakeSource::default()
    }
}

/// As many as a cgroup's `memory.stat` has: it counts the host's events under the host's names.
fn memory_events() -> Vec<(String, u64)> {
    let names = VMSTAT.lines().filter_map(|line| line.split_once(' ')).map(|(name, _)| name);
    let is_counted = |name: &&str| {
        ["pgfault", "pgmajfault", "pgscan", "pgsteal", "workingset_", "thp_", "oom_kill"]
            .iter()
            .any(|event| name.starts_with(event))
    };
    names.filter(is_counted).map(str::to_owned).zip(1_000..).collect()
}

fn machine() -> FakeMachine {
    let files = [
        (File::CpuOnline, "0-3\n"),
        (File::Cpuinfo, include_str!("host/cpuinfo_x86_64")),
        (File::Diskstats, include_str!("host/diskstats")),
        (File::Meminfo, include_str!("host/meminfo")),
        (File::Swaps, "Filename\nsda2 partition 4194300 0 -2\n"),
        (File::Stat, include_str!("host/stat")),
        (File::Slabinfo, "slabinfo - version: 2.1\n# name <active_objs>\nkmalloc 0 0\n"),
        (File::Vmstat, VMSTAT),
    ];
    let files = files.into_iter().map(|(file, text)| (file, Text::new(text.into()))).collect();
    FakeMachine { files, boottime_ns: 1_000_000_000_000, ..FakeMachine::default() }
}

fn container() -> Container {
    Container {
        init: 4_711,
        started_ns: 900_000_000_000,
        pid_depth: 1,
        cgroups: CgroupPaths::default(),
        history: Arc::default(),
        at_hand: Arc::default(),
    }
}
