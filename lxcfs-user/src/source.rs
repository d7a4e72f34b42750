//! Where numbers come from: one trait, a sample struct per group, and the sources behind it.
//!
//! A source supplies a group whole or not at all, so that no page mixes two clocks. `Ok(None)` means "not supplied
//! here"; an error means "supplied here, and it broke".

pub mod bpf;
pub mod cgroup;
pub mod fake;
mod handle;
pub mod host;
pub mod parse;
pub mod sheet;
pub mod subtree;
pub mod tasks;
pub mod trigger;

use std::fmt;
use std::sync::Arc;

use self::sheet::Sheet;
use self::trigger::PressureFile;
use crate::error::Result;
use crate::model::container::{Container, Tasks};
use crate::model::cpus::{Bandwidth, CpuSet};
use crate::model::file::{File, Resource};
use crate::model::load::LoadAverage;
use crate::model::monotonic::{CpuTimes, IdleHistory};

/// What is known of one container, by group. A source that does not say otherwise supplies nothing.
pub trait Source: Send + Sync + fmt::Debug {
    /// CPU time used since the container's cgroup was made.
    fn cpu(&self, _: &Container) -> Result<Option<Cpu>> {
        Ok(None)
    }

    /// Idle time of so many `cpus`, of a container that has been up for `up_ns`, where the source keeps what was shown before.
    fn idle(&self, _container: &Container, _up_ns: u64, _cpus: u32) -> Result<Option<IdleHistory>> {
        Ok(None)
    }

    /// The CPUs it may run on: the effective cpuset, not the requested one.
    fn cpuset(&self, _: &Container) -> Result<Option<CpuSet>> {
        Ok(None)
    }

    /// The memory nodes it may use: the effective ones.
    fn mems(&self, _: &Container) -> Result<Option<CpuSet>> {
        Ok(None)
    }

    /// The tightest CPU quota of the container and its ancestors. `Ok(None)` also when there is no quota.
    fn bandwidth(&self, _: &Container) -> Result<Option<Bandwidth>> {
        Ok(None)
    }

    /// Time the container was kept from a CPU by its own quota since its cgroup was made, nanoseconds.
    fn throttled_ns(&self, _: &Container) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Memory used, and the smallest limit of the container and its ancestors.
    fn memory(&self, _: &Container) -> Result<Option<Memory>> {
        Ok(None)
    }

    /// Memory used as by [`Self::memory`], and, from the same look at it, appended to `events`: events of memory management (page
    /// faults, reclaim, kills) since the cgroup was made, a line `name count` for each, by the names that `/proc/vmstat`
    /// has for them. Other names may be among them.
    fn memory_events(
        &self,
        _container: &Container,
        _events: &mut Vec<u8>,
    ) -> Result<Option<Memory>> {
        Ok(None)
    }

    /// Memory used, by node.
    fn numa(&self, _: &Container) -> Result<Option<Vec<NumaStat>>> {
        Ok(None)
    }

    /// Swap used, and the smallest limit of the container and its ancestors.
    fn swap(&self, _: &Container) -> Result<Option<Swap>> {
        Ok(None)
    }

    /// Huge pages of `page_bytes`, and the smallest limit on them. `Ok(None)`: they are not limited by cgroup here.
    fn hugetlb(&self, _container: &Container, _page_bytes: u64) -> Result<Option<Hugetlb>> {
        Ok(None)
    }

    /// Block I/O by device.
    fn io(&self, _: &Container) -> Result<Option<Vec<DeviceIo>>> {
        Ok(None)
    }

    /// Load averages and the tasks behind them.
    fn load(&self, _: &Container) -> Result<Option<Load>> {
        Ok(None)
    }

    /// The text of the container's pressure file for `resource`, appended to `text`. `Ok(None)` leaves `text` alone.
    fn pressure(
        &self,
        _container: &Container,
        _resource: Resource,
        _text: &mut Vec<u8>,
    ) -> Result<Option<()>> {
        Ok(None)
    }

    /// The same file, open for a trigger.
    fn pressure_file(&self, _: &Container, _: Resource) -> Result<Option<PressureFile>> {
        Ok(None)
    }
}

/// What is known of the machine itself. It has no fallback: it belongs to no container.
pub trait Machine: Send + Sync + fmt::Debug {
    /// Appends the host's `file`, whole, to `text`.
    fn read(&self, file: File, text: &mut Vec<u8>) -> Result<()>;
    /// Appends the host's cpuinfo, as a 32-bit program finds it or as any other does.
    fn read_cpuinfo(&self, is_32bit: bool, text: &mut Vec<u8>) -> Result<()>;
    /// The host's `file`, but it may be as old as nobody can see: a hundredth of a second, the unit of the times in it. Those
    /// who ask at a time have the same text, and nobody copies it.
    fn read_recent(&self, file: File) -> Result<Text> {
        let mut text = Vec::new();
        self.read(file, &mut text)?;
        Ok(Arc::new(Sheet::new(text)))
    }
    /// Appends the file at `path` below `/`, in `/sys/devices/system`, whole, to `text`.
    fn read_sys(&self, path: &str, text: &mut Vec<u8>) -> Result<()>;
    /// Nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`).
    fn boottime_ns(&self) -> u64;
    /// The size of a page, bytes.
    fn page_bytes(&self) -> u64;
    /// `USER_HZ`: the unit of the times in `/proc/stat`.
    fn ticks_per_second(&self) -> u64;
    /// The host's pressure file for `resource`, open for a trigger.
    fn pressure_file(&self, resource: Resource) -> Result<PressureFile>;
}

/// A text of the host's, shared by those who ask for it at a time.
pub type Text = Arc<Sheet>;

/// CPU time of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    /// The sum over all CPUs. Idle is not known to a cgroup and 0 here.
    pub total: CpuTimes,
    /// By host CPU number, where the kernel keeps it (cgroup v1 `cpuacct.usage_percpu`).
    pub per_cpu: Option<Vec<CpuTimes>>,
}

/// Memory of a container, bytes. `None` where this kernel or hierarchy has no such counter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Smallest limit of the container and its ancestors. `None`: unlimited.
    pub limit_bytes: Option<u64>,
    /// All memory charged.
    pub usage_bytes: u64,
    /// Page cache, shmem included.
    pub cache_bytes: u64,
    /// Anonymous memory on the inactive list, shmem included.
    pub inactive_anon_bytes: u64,
    /// Anonymous memory on the active list, shmem included.
    pub active_anon_bytes: u64,
    /// Page cache on the inactive list.
    pub inactive_file_bytes: u64,
    /// Page cache on the active list.
    pub active_file_bytes: u64,
    /// On no list that reclaim looks at.
    pub unevictable_bytes: u64,
    /// Anonymous memory, shmem not included.
    pub anon_bytes: u64,
    /// Shared memory and tmpfs.
    pub shmem_bytes: u64,
    /// Page cache and shmem mapped into address spaces.
    pub mapped_bytes: u64,
    /// Page cache waiting to be written.
    pub dirty_bytes: u64,
    /// Page cache being written.
    pub writeback_bytes: u64,
    /// Swapped-out memory that is also in memory.
    pub swapcached_bytes: u64,
    /// Slab memory. v1 counts stacks and page tables together with it (`memory.kmem.usage_in_bytes`).
    pub slab_bytes: Option<u64>,
    /// Slab memory the kernel can give back (v2).
    pub slab_reclaimable_bytes: Option<u64>,
    /// Slab memory it cannot (v2).
    pub slab_unreclaimable_bytes: Option<u64>,
    /// Kernel stacks (v2).
    pub kernel_stack_bytes: Option<u64>,
    /// Page tables (v2).
    pub pagetables_bytes: Option<u64>,
    /// Page tables of virtual machines (v2).
    pub sec_pagetables_bytes: Option<u64>,
    /// Per-CPU allocations (v2).
    pub percpu_bytes: Option<u64>,
    /// vmalloc (v2).
    pub vmalloc_bytes: Option<u64>,
    /// Anonymous memory in huge pages.
    pub anon_thp_bytes: Option<u64>,
    /// Page cache in huge pages (v2).
    pub file_thp_bytes: Option<u64>,
    /// shmem in huge pages (v2).
    pub shmem_thp_bytes: Option<u64>,
    /// Memory the compressed swap cache takes (v2).
    pub zswap_bytes: Option<u64>,
    /// Memory compressed into it (v2).
    pub zswapped_bytes: Option<u64>,
}

/// One counter of a container's memory by node, under the name cgroup v2 has for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NumaStat {
    /// `anon`, `file`, ...
    pub key: String,
    /// `(node, bytes)`.
    pub bytes: Vec<(u32, u64)>,
}

impl NumaStat {
    /// Bytes on `node`.
    #[must_use]
    pub fn on(&self, node: u32) -> u64 {
        self.bytes.iter().find(|(known, _)| *known == node).map_or(0, |&(_, bytes)| bytes)
    }
}

/// Swap of a container, bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swap {
    /// Smallest limit of the container and its ancestors. `None`: unlimited.
    pub limit_bytes: Option<u64>,
    /// Swap in use.
    pub used_bytes: u64,
}

/// Huge pages of one size, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hugetlb {
    /// Smallest limit of the container and its ancestors. `None`: unlimited.
    pub limit_bytes: Option<u64>,
    /// In use.
    pub used_bytes: u64,
    /// Reserved, those in use included. 0 where the kernel does not count them (before 5.7).
    pub reserved_bytes: u64,
}

/// Block I/O of a container on one device, since its cgroup was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major and minor number.
    pub device: (u32, u32),
    /// Requests completed: reads, writes, discards.
    pub reads: u64,
    /// See `reads`.
    pub writes: u64,
    /// See `reads`.
    pub discards: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Bytes discarded.
    pub discard_bytes: u64,
}

/// Load of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Over 1, 5 and 15 minutes.
    pub average: LoadAverage,
    /// The tasks now, or at the last sample.
    pub tasks: Tasks,
    /// Tasks ever made, where they are counted.
    pub forks: Option<u64>,
    /// Context switches, where they are counted.
    pub switches: Option<u64>,
}

/// Asks its sources in turn: the first that supplies a group supplies it whole.
#[derive(Debug)]
pub struct Layered(pub Vec<Arc<dyn Source>>);

impl Layered {
    fn first<T>(&self, mut ask: impl FnMut(&dyn Source) -> Result<Option<T>>) -> Result<Option<T>> {
        for source in &self.0 {
            if let Some(group) = ask(&**source)? {
                return Ok(Some(group));
            }
        }
        Ok(None)
    }
}

impl Source for Layered {
    fn cpu(&self, container: &Container) -> Result<Option<Cpu>> {
        self.first(|source| source.cpu(container))
    }

    fn idle(&self, container: &Container, up_ns: u64, cpus: u32) -> Result<Option<IdleHistory>> {
        self.first(|source| source.idle(container, up_ns, cpus))
    }

    fn cpuset(&self, container: &Container) -> Result<Option<CpuSet>> {
        self.first(|source| source.cpuset(container))
    }

    fn mems(&self, container: &Container) -> Result<Option<CpuSet>> {
        self.first(|source| source.mems(container))
    }

    fn bandwidth(&self, container: &Container) -> Result<Option<Bandwidth>> {
        self.first(|source| source.bandwidth(container))
    }

    fn throttled_ns(&self, container: &Container) -> Result<Option<u64>> {
        self.first(|source| source.throttled_ns(container))
    }

    fn memory(&self, container: &Container) -> Result<Option<Memory>> {
        self.first(|source| source.memory(container))
    }

    fn memory_events(&self, container: &Container, events: &mut Vec<u8>) -> Result<Option<Memory>> {
        self.first(|source| source.memory_events(container, events))
    }

    fn numa(&self, container: &Container) -> Result<Option<Vec<NumaStat>>> {
        self.first(|source| source.numa(container))
    }

    fn swap(&self, container: &Container) -> Result<Option<Swap>> {
        self.first(|source| source.swap(container))
    }

    fn hugetlb(&self, container: &Container, page_bytes: u64) -> Result<Option<Hugetlb>> {
        self.first(|source| source.hugetlb(container, page_bytes))
    }

    fn io(&self, container: &Container) -> Result<Option<Vec<DeviceIo>>> {
        self.first(|source| source.io(container))
    }

    fn load(&self, container: &Container) -> Result<Option<Load>> {
        self.first(|source| source.load(container))
    }

    fn pressure(
        &self,
        container: &Container,
        resource: Resource,
        text: &mut Vec<u8>,
    ) -> Result<Option<()>> {
        self.first(|source| source.pressure(container, resource, text))
    }

    fn pressure_file(
        &self,
        container: &Container,
        resource: Resource,
    ) -> Result<Option<PressureFile>> {
        self.first(|source| source.pressure_file(container, resource))
    }
}
