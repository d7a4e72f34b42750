//! One function for each parser: any bytes may come, nothing may panic, and what must hold is asserted.

use std::fs::{self, File as StdFile};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lxcfs::bpf::btf::{Btf, Kind as TypeKind};
use lxcfs::error::{Errno, Error, Result};
use lxcfs::files::{Policy, Reader, View, page, shown, sysfs};
use lxcfs::keep::journal::{Content as Kept, Journal, Kind};
use lxcfs::keep::workers::Workers;
use lxcfs::model::container::{CgroupPaths, Container};
use lxcfs::model::cpus::{Bandwidth, CpuSet, CpuView};
use lxcfs::model::file::{File, Resource};
use lxcfs::model::monotonic::CpuTimes;
use lxcfs::model::mounts::CgroupMount;
use lxcfs::model::topology::{Place, Tree};
use lxcfs::model::trigger::Trigger;
use lxcfs::source::cgroup::CgroupFiles;
use lxcfs::source::cgroup::hierarchy::Hierarchies;
use lxcfs::source::fake::FakeSource;
use lxcfs::source::host::Host;
use lxcfs::source::trigger::PressureFile;
use lxcfs::source::{Cpu, DeviceIo, Hugetlb, Load, Machine, Memory, Source, Swap, parse};

/// Every function of `source::parse`.
pub fn kernel_text(data: &[u8]) {
    let _ = (parse::single(data), parse::limit(data), parse::cpu_max(data), parse::loadavg(data));
    let _ = (parse::flat_keyed(data).count(), parse::keyed(data, b"file"));
    let _ = (parse::pressure_some_avg10(data), parse::hundredths(data), parse::device(data));
    if let Some(times) = parse::cpu_stat(data) {
        let _ = times.used_ns();
    }
    let _ = (parse::cpuacct_usage_all(data), parse::cpuacct_usage_percpu(data));
    let devices = parse::io_stat(data).len().max(parse::blkio(data).count());
    assert!(devices <= data.len(), "more devices than bytes");
    let _ = (parse::timens_boottime_s(data), parse::numa_stat(data), parse::namespace(data));
    let _ = (parse::pid_stat(data), parse::status_numbers(data, b"NSpid"));
    let _ = parse::status_set(data, b"CapEff");
}

/// `/proc/PID/cgroup` and `/proc/self/mountinfo`.
pub fn cgroups(data: &[u8]) {
    let paths = CgroupPaths::parse(data);
    let _ = (paths.unified(), paths.v1("memory"), paths.map(|_, path| path.to_owned()));
    for mount in CgroupMount::all(data) {
        assert!(!mount.is_v2() || !mount.has("memory"), "{mount:?}");
    }
}

/// Lists of CPUs: what is printed is what was parsed.
pub fn lists(data: &[u8]) {
    let Some(set) = CpuSet::parse(data) else { return };
    assert_eq!(CpuSet::parse(set.to_string().as_bytes()), Some(set.clone()));
    assert_eq!(set.iter().count(), usize::try_from(set.count()).unwrap_or(0));
    assert_eq!(set.intersection(&set), set);
}

/// Triggers: what is written to the kernel is what was asked for.
pub fn trigger(data: &[u8]) {
    let Some(trigger) = Trigger::parse(data) else { return };
    assert_eq!(Trigger::parse(trigger.to_string().as_bytes()), Some(trigger));
    assert!(trigger.threshold_us <= trigger.window_us);
}

/// The kernel's types.
pub fn btf(data: &[u8]) {
    let Ok(btf) = Btf::parse(data) else { return };
    for kind in [TypeKind::Struct, TypeKind::Enum, TypeKind::Typedef, TypeKind::Func] {
        let _ = btf.find("task_struct", kind);
    }
    let _ = btf.member("task_struct", "cgroups.dfl_cgrp.kn");
    let _ = btf.enumerator("cgroup_subsys_id", "cpu_cgrp_id");
    let _ = btf.per_cpu("runqueues");
}

/// A journal that another daemon left, with words of it changed: 2 bytes where, 8 bytes what.
pub fn journal(data: &[u8]) {
    const BLOCK_WORDS: u64 = 512;
    let Ok(journal) = Journal::create() else { return };
    journal.describe(&lxcfs::keep::journal::Described {
        point: "/mnt".into(),
        device: 7,
        mounted_ns: 8,
        init_request: vec![1; 104],
        init_reply: vec![2; 80],
    });
    journal.claim().expect("it is ours");
    for (kind, key) in [(Kind::Handle, 1), (Kind::Container, 2), (Kind::Trigger, 3)] {
        assert!(journal.put(kind, [key, key], Kept::Bytes(&[3; 5_000])).is_some());
    }
    let memory = journal.memory().try_clone_to_owned().expect("a descriptor");
    let memory = StdFile::from(memory);
    for change in data.as_chunks::<10>().0 {
        let at = u64::from(u16::from_le_bytes([change[0], change[1]]));
        // The header, what the threads do, the first records, the first contents.
        let word = match at % (6 * BLOCK_WORDS) {
            at if at < 4 * BLOCK_WORDS => at,
            at => at - 4 * BLOCK_WORDS + 514 * BLOCK_WORDS,
        };
        memory.write_all_at(&change[2..], word * 8).expect("write to memory");
    }
    let Ok(next) = Journal::open(memory.into()) else { return };
    let _ = (next.described(), Workers::unanswered(&next));
    if next.claim().is_err() {
        return;
    }
    let _ = Workers::settle(&next);
    for kind in [Kind::Handle, Kind::Container, Kind::Trigger] {
        for kept in next.list(kind).into_iter().take(16) {
            next.replace(kept.record, Kept::Length(kept.length));
            next.remove(kept.record);
        }
        if let Some(record) = next.put(kind, [9, 9], Kept::Bytes(b"new")) {
            let listed = next.list(kind);
            let ours = listed.iter().find(|kept| kept.record == record).expect("it was put there");
            assert_eq!(ours.bytes.as_deref(), Some(&b"new"[..]));
        }
    }
}

/// Any text in every file of the host's.
#[derive(Debug)]
struct AnyHost<'a> {
    texts: Vec<&'a [u8]>,
}

impl AnyHost<'_> {
    fn text(&self, nth: usize, text: &mut Vec<u8>) -> Result<()> {
        match self.texts.get(nth) {
            Some(own) => {
                text.extend_from_slice(own);
                Ok(())
            }
            None => Err(Error::io("read", "a file", Errno::NOENT)),
        }
    }
}

impl Machine for AnyHost<'_> {
    fn read(&self, file: File, text: &mut Vec<u8>) -> Result<()> {
        self.text(File::ALL.iter().position(|known| *known == file).unwrap_or(0), text)
    }

    fn read_cpuinfo(&self, _: bool, text: &mut Vec<u8>) -> Result<()> {
        self.read(File::Cpuinfo, text)
    }

    fn read_sys(&self, path: &str, text: &mut Vec<u8>) -> Result<()> {
        self.text(path.len() % 4, text)
    }

    fn boottime_ns(&self) -> u64 {
        1_000_000_000_000
    }

    fn page_bytes(&self) -> u64 {
        4_096
    }

    fn ticks_per_second(&self) -> u64 {
        100
    }

    fn pressure_file(&self, resource: Resource) -> Result<PressureFile> {
        Err(Error::io("open", File::Pressure(resource).path(), Errno::ACCESS))
    }
}

/// Numbers from bytes, zeros when they run out.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    /// Of any size, small ones too.
    fn next(&mut self) -> u64 {
        let Some((&size, rest)) = self.0.split_first() else { return 0 };
        let (number, rest) = rest.split_at(rest.len().min(usize::from(size % 9)));
        self.0 = rest;
        let mut bytes = [0; 8];
        bytes[..number.len()].copy_from_slice(number);
        u64::from_le_bytes(bytes)
    }

    fn maybe(&mut self) -> Option<u64> {
        let number = self.next();
        (number != 1).then_some(number)
    }
}

fn any_source(numbers: &mut Numbers<'_>) -> FakeSource {
    let mut times = || CpuTimes {
        user_ns: numbers.next(),
        nice_ns: numbers.next(),
        system_ns: numbers.next(),
        ..CpuTimes::default()
    };
    let cpu = Cpu { total: times(), per_cpu: Some(vec![times(), times(), times()]) };
    let memory = Memory {
        limit_bytes: numbers.maybe(),
        usage_bytes: numbers.next(),
        cache_bytes: numbers.next(),
        active_file_bytes: numbers.next(),
        inactive_file_bytes: numbers.next(),
        anon_bytes: numbers.next(),
        shmem_bytes: numbers.next(),
        slab_reclaimable_bytes: numbers.maybe(),
        slab_bytes: numbers.maybe(),
        zswap_bytes: numbers.maybe(),
        ..Memory::default()
    };
    let mut device = |minor| DeviceIo {
        device: (8, minor),
        reads: numbers.next(),
        read_bytes: numbers.next(),
        discard_bytes: numbers.next(),
        ..DeviceIo::default()
    };
    let io = vec![device(0), device(1)];
    FakeSource {
        cpu: Some(cpu),
        memory: Some(memory),
        io: Some(io),
        cpuset: CpuSet::parse(&numbers.next().to_string().as_bytes()[..1]),
        mems: numbers.maybe().map(|_| CpuSet::first(1)),
        bandwidth: numbers.maybe().map(|quota_us| {
            let period_us = numbers.next().max(1);
            Bandwidth { quota_us, period_us }
        }),
        swap: Some(Swap { limit_bytes: numbers.maybe(), used_bytes: numbers.next() }),
        hugetlb: Some(Hugetlb {
            limit_bytes: numbers.maybe(),
            used_bytes: numbers.next(),
            reserved_bytes: numbers.next(),
        }),
        memory_events: Some(vec![("pgfault".to_owned(), numbers.next())]),
        load: Some(Load { forks: numbers.maybe(), switches: numbers.maybe(), ..Load::default() }),
        pressure: Some("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n".to_owned()),
        ..FakeSource::default()
    }
}

fn container(cgroups: CgroupPaths) -> Container {
    Container {
        init: 4_711,
        started_ns: 900_000_000_000,
        pid_depth: 1,
        cgroups,
        history: Arc::default(),
        at_hand: Arc::default(),
    }
}

/// Numbers, and behind a zero byte a text for each file of the host's: every page, twice, under every view.
pub fn pages(data: &[u8]) {
    each_view(data, |view| {
        for file in File::ALL {
            for _ in 0..2 {
                let mut text = b"before".to_vec();
                let made = page(file, view, &mut text);
                assert!(text.starts_with(b"before"));
                assert!(made.is_ok() || text == b"before", "{file:?}: half a page");
            }
        }
    });
}

/// The same, and the trees of `/sys`: the last text is a path in one of them.
pub fn topology(data: &[u8]) {
    let path = data.rsplit(|&byte| byte == 0).next().unwrap_or_default();
    each_view(data, |view| {
        for tree in Tree::ALL {
            let Ok(shown) = shown(tree, view) else { continue };
            let mut place = Some(Place::top(tree));
            for name in path.split(|&byte| byte == b'/') {
                place = place.and_then(|place| place.child(name));
            }
            let Some(place) = place else { continue };
            let _ = (place.host_path(&shown), place.link_target(), place.path());
            let mut text = b"before".to_vec();
            let made = sysfs(&place, view, &mut text);
            assert!(matches!(made, Ok(true)) || text == b"before", "{place:?}: half a file");
        }
    });
}

fn each_view(data: &[u8], check: impl Fn(&View<'_>)) {
    let mut parts = data.split(|&byte| byte == 0);
    let source = any_source(&mut Numbers(parts.next().unwrap_or_default()));
    let machine = AnyHost { texts: parts.collect() };
    for cpu_view in [CpuView::Cpuset, CpuView::Quota, CpuView::Host] {
        let policy = Policy { cpu_view, ..Policy::default() };
        let container = container(CgroupPaths::default());
        let boottime_ahead_s = i64::try_from(data.len()).unwrap_or(0);
        let reader = Reader { is_32bit: false, boottime_ahead_s };
        check(&View {
            container: &container,
            source: &source,
            machine: &machine,
            policy: &policy,
            reader,
        });
    }
}

/// Files that are looked for in a cgroup of each hierarchy, v1 first.
const CGROUP_FILES: [&str; 24] = [
    "memory.usage_in_bytes",
    "memory.limit_in_bytes",
    "memory.memsw.usage_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.kmem.usage_in_bytes",
    "memory.oom_control",
    "memory.swappiness",
    "cpuacct.usage_all",
    "cpuacct.usage_percpu",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "cpuset.effective_cpus",
    "blkio.throttle.io_service_bytes_recursive",
    "blkio.throttle.io_serviced_recursive",
    "memory.stat",
    "memory.numa_stat",
    "memory.current",
    "memory.max",
    "memory.swap.current",
    "memory.events",
    "cpu.stat",
    "cpu.max",
    "cpuset.cpus.effective",
    "io.stat",
];

/// Two folders that stand for a hierarchy of v1 and one of v2, each with a cgroup `c`, and the source over each.
struct Folders {
    root: PathBuf,
    sources: [(CgroupFiles, &'static str); 2],
}

impl Folders {
    fn new() -> Self {
        static HOST: OnceLock<Arc<Host>> = OnceLock::new();
        let host = HOST.get_or_init(|| Arc::new(Host::open().expect("the host's files")));
        // In memory, where there is such a place.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let root = place.join(format!("lxcfs-fuzz-{}", std::process::id()));
        let source = |name: &str, end: &str| {
            let folder = root.join(name);
            fs::create_dir_all(folder.join("c")).expect("make a cgroup");
            let line = format!("31 23 0:28 / {} rw - {end}\n", folder.display());
            let hierarchies = Hierarchies::open(line.as_bytes()).expect("a hierarchy");
            CgroupFiles::new(hierarchies, Arc::clone(host))
        };
        let controllers = "memory,cpu,cpuacct,cpuset,blkio,hugetlb";
        let sources = [
            (
                source("v1", &format!("cgroup cgroup rw,{controllers}")),
                "1:memory,cpu,cpuacct,cpuset,blkio,hugetlb:/c",
            ),
            (source("v2", "cgroup2 cgroup2 rw"), "0::/c"),
        ];
        Self { root, sources }
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// A text for each file of a cgroup, with zero bytes between them: every group, of v1 and of v2.
pub fn source(data: &[u8]) {
    let folders = Folders::new();
    for hierarchy in ["v1", "v2"] {
        let texts = CGROUP_FILES.iter().zip(data.split(|&byte| byte == 0));
        for (file, text) in texts.filter(|(_, text)| !text.is_empty()) {
            let path = folders.root.join(hierarchy).join("c").join(file);
            fs::write(path, text).expect("write a file");
        }
    }
    for (source, paths) in &folders.sources {
        let container = container(CgroupPaths::parse(paths.as_bytes()));
        let _ = (source.cpu(&container), source.cpuset(&container), source.mems(&container));
        let _ = (source.bandwidth(&container), source.throttled_ns(&container));
        let _ = (source.memory(&container), source.memory_events(&container, &mut Vec::new()));
        let _ = (source.numa(&container), source.swap(&container), source.io(&container));
        let _ = source.hugetlb(&container, 2 << 20);
    }
}
