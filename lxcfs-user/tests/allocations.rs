//! How often a page allocates that has been made before, into a buffer that is used again: what is read a thousand times
//! a second should ask for no memory. The numbers are what holds today, and each only ever gets smaller.

#[allow(unreachable_pub, reason = "what is public is for the root tests")]
#[path = "../../tests/src/counting.rs"]
mod counting;
#[path = "../testdata/fixture.rs"]
mod fixture;

use lxcfs::error::Result;
use lxcfs::files::{self, View};
use lxcfs::model::container::Container;
use lxcfs::model::cpus::{Bandwidth, CpuSet};
use lxcfs::model::file::{File, Resource};
use lxcfs::source::trigger::PressureFile;
use lxcfs::source::{Cpu, DeviceIo, Hugetlb, Load, Machine, Memory, NumaStat, Source, Swap, Text};

use self::counting::{Counting, during, uncounted};
use self::fixture::Fixture;

/// Allocations for one page, by the path of its file.
const ALLOCATIONS: [(&str, u64); File::ALL.len()] = [
    ("proc/cpuinfo", 9),
    ("proc/diskstats", 0),
    ("proc/loadavg", 0),
    ("proc/meminfo", 1),
    ("proc/slabinfo", 0),
    ("proc/stat", 8),
    ("proc/swaps", 5),
    ("proc/uptime", 4),
    ("proc/pressure/cpu", 0),
    ("proc/pressure/io", 0),
    ("proc/pressure/memory", 0),
    ("sys/devices/system/cpu/online", 5),
    ("proc/vmstat", 1),
];

const PAGES: u64 = 100;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_page_made_again_allocates_as_often_as_is_written_here() {
    let fixture = Fixture::new();
    let source = Uncounted(fixture.view().source);
    let machine = Uncounted(fixture.view().machine);
    let view = View { source: &source, machine: &machine, ..fixture.view() };
    let now = File::ALL.map(|file| (file.path(), for_one(file, &view)));
    assert_eq!(now, ALLOCATIONS, "fewer is better, and is to be written down");
}

/// What counts must count, or every page looks good.
#[test]
fn what_allocates_is_counted() {
    let mut text = Vec::new();
    assert_eq!(during(|| text.push(1_u8)), 1);
    assert_eq!(during(|| text.reserve(100)), 1, "it grows");
    assert_eq!(during(|| text.clear()), 0);
    assert_eq!(during(|| drop(uncounted(|| vec![1_u8]))), 0);
}

/// Allocations for one page of `file` in the steady state.
fn for_one(file: File, view: &View<'_>) -> u64 {
    let mut page = Vec::new();
    let mut make = || {
        page.clear();
        files::page(file, view, &mut page).expect("numbers do not break");
    };
    // The first makes the buffer as large as it has to be, and what is remembered of the container.
    make();
    during(|| (0..PAGES).for_each(|_| make())).div_ceil(PAGES)
}

/// A source or a machine of which only copies are asked, which are not the page's doing.
#[derive(Debug)]
struct Uncounted<T>(T);

impl Source for Uncounted<&dyn Source> {
    fn cpu(&self, container: &Container) -> Result<Option<Cpu>> {
        uncounted(|| self.0.cpu(container))
    }

    fn cpuset(&self, container: &Container) -> Result<Option<CpuSet>> {
        uncounted(|| self.0.cpuset(container))
    }

    fn mems(&self, container: &Container) -> Result<Option<CpuSet>> {
        uncounted(|| self.0.mems(container))
    }

    fn bandwidth(&self, container: &Container) -> Result<Option<Bandwidth>> {
        uncounted(|| self.0.bandwidth(container))
    }

    fn throttled_ns(&self, container: &Container) -> Result<Option<u64>> {
        uncounted(|| self.0.throttled_ns(container))
    }

    fn memory(&self, container: &Container) -> Result<Option<Memory>> {
        uncounted(|| self.0.memory(container))
    }

    fn memory_events(&self, container: &Container, events: &mut Vec<u8>) -> Result<Option<Memory>> {
        uncounted(|| self.0.memory_events(container, events))
    }

    fn numa(&self, container: &Container) -> Result<Option<Vec<NumaStat>>> {
        uncounted(|| self.0.numa(container))
    }

    fn swap(&self, container: &Container) -> Result<Option<Swap>> {
        uncounted(|| self.0.swap(container))
    }

    fn hugetlb(&self, container: &Container, page_bytes: u64) -> Result<Option<Hugetlb>> {
        uncounted(|| self.0.hugetlb(container, page_bytes))
    }

    fn io(&self, container: &Container) -> Result<Option<Vec<DeviceIo>>> {
        uncounted(|| self.0.io(container))
    }

    fn load(&self, container: &Container) -> Result<Option<Load>> {
        uncounted(|| self.0.load(container))
    }

    fn pressure(
        &self,
        container: &Container,
        resource: Resource,
        text: &mut Vec<u8>,
    ) -> Result<Option<()>> {
        uncounted(|| self.0.pressure(container, resource, text))
    }
}

/// What is appended to a text is counted: it is a page's to have room for it.
impl Machine for Uncounted<&dyn Machine> {
    fn read(&self, file: File, text: &mut Vec<u8>) -> Result<()> {
        self.0.read(file, text)
    }

    fn read_cpuinfo(&self, is_32bit: bool, text: &mut Vec<u8>) -> Result<()> {
        self.0.read_cpuinfo(is_32bit, text)
    }

    fn read_recent(&self, file: File) -> Result<Text> {
        uncounted(|| self.0.read_recent(file))
    }

    fn read_sys(&self, path: &str, text: &mut Vec<u8>) -> Result<()> {
        self.0.read_sys(path, text)
    }

    fn boottime_ns(&self) -> u64 {
        self.0.boottime_ns()
    }

    fn page_bytes(&self) -> u64 {
        self.0.page_bytes()
    }

    fn ticks_per_second(&self) -> u64 {
        self.0.ticks_per_second()
    }

    fn pressure_file(&self, resource: Resource) -> Result<PressureFile> {
        self.0.pressure_file(resource)
    }
}
