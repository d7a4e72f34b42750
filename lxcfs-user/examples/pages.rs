//! Makes the page of a file many times over from numbers in memory: `pages FILE COUNT`. To be run under a counter of
//! instructions or a profiler: what is between two counts is the page and nothing else.

use std::sync::Arc;

use lxcfs::error::{Errno, Error, Result};
use lxcfs::files::{self, Policy, Reader, View};
use lxcfs::model::container::{CgroupPaths, Container, Tasks};
use lxcfs::model::cpus::CpuSet;
use lxcfs::model::file::File;
use lxcfs::model::load::LoadAverage;
use lxcfs::model::monotonic::CpuTimes;
use lxcfs::source::fake::{FakeMachine, FakeSource};
use lxcfs::source::{Cpu, DeviceIo, Load, Memory, Swap};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = |what| Error::because("read", "the command line", Errno::INVAL, what);
    let file: File = arguments.next().and_then(|file| file.parse().ok()).ok_or(usage("no FILE"))?;
    let count = arguments.next().and_then(|count| count.parse::<u32>().ok());
    let count = count.ok_or(usage("no COUNT"))?;
    let (source, machine, container) = (source(), machine(), container());
    let view = View {
        container: &container,
        source: &source,
        machine: &machine,
        policy: &Policy::default(),
        reader: Reader::default(),
    };
    let mut page = Vec::new();
    for _ in 0..count {
        page.clear();
        files::page(file, &view, &mut page)?;
        std::hint::black_box(&page);
    }
    Ok(())
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
        swap: Some(Swap { limit_bytes: Some(64 << 20), used_bytes: 1 << 20 }),
        io: Some(vec![device]),
        load: Some(Load { average, tasks, ..Load::default() }),
        pressure: Some("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n".to_owned()),
        ..FakeSource::default()
    }
}

fn machine() -> FakeMachine {
    let files = [
        (File::CpuOnline, "0-3\n"),
        (File::Cpuinfo, include_str!("../testdata/host/cpuinfo_x86_64")),
        (File::Diskstats, include_str!("../testdata/host/diskstats")),
        (File::Meminfo, include_str!("../testdata/host/meminfo")),
        (File::Swaps, "Filename\nsda2 partition 4194300 0 -2\n"),
        (File::Stat, include_str!("../testdata/host/stat")),
        (File::Slabinfo, "slabinfo - version: 2.1\n# name <active_objs>\nkmalloc 0 0\n"),
    ];
    let files = files.into_iter().map(|(file, text)| (file, text.to_owned())).collect();
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
