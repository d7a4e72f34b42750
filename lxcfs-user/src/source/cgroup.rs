//! [`Source`] over cgroup files: v1, v2 and hybrid, decided for each controller by what is mounted.

pub mod hierarchy;
mod kept;
mod v1;
mod v2;

use std::sync::Arc;

use rustix::process::{Resource as Limit, getrlimit};

use self::hierarchy::{Cgroup, Hierarchies};
use self::kept::{Kept, Shelf};
use super::host::Host;
use super::trigger::PressureFile;
use super::{Cpu, DeviceIo, Hugetlb, Load, Memory, NumaStat, Source, Swap, tasks};
use crate::error::Result;
use crate::model::container::Container;
use crate::model::cpus::{Bandwidth, CpuSet};
use crate::model::file::Resource;
use crate::model::load::LoadAverage;

/// The fallback behind every other source, and on kernels without BPF the only one.
#[derive(Debug)]
pub struct CgroupFiles {
    hierarchies: Hierarchies,
    host: Arc<Host>,
    kept: Kept,
}

/// A controller's place: its own v1 hierarchy, or the unified one.
enum Place<'a> {
    V1(Cgroup<'a>),
    V2(Cgroup<'a>),
}

impl CgroupFiles {
    /// Reads through `hierarchies`; tasks are looked up in `host`'s `/proc`.
    #[must_use]
    pub fn new(hierarchies: Hierarchies, host: Arc<Host>) -> Self {
        // The other half is the callers', who keep one or two for a container.
        let descriptors = getrlimit(Limit::Nofile).current.unwrap_or(u64::from(u32::MAX)) / 4;
        let kept = Kept::new(usize::try_from(descriptors).unwrap_or(usize::MAX).min(65_536));
        Self { hierarchies, host, kept }
    }

    /// The hierarchies it reads.
    #[must_use]
    pub const fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// Counts the container's tasks and advances its load averages: to be called once in every period.
    ///
    /// # Errors
    /// The cgroup is gone, or cannot be read.
    pub fn sample_load(&self, container: &Container) -> Result<Option<Load>> {
        let used_ns = self.cpu(container)?.map(|cpu| cpu.total.used_ns());
        tasks::sample(container, used_ns, &self.hierarchies, &self.host)
    }

    /// The pid of the container's newest thread in its own numbering, at most a second old.
    #[must_use]
    pub fn last_pid(&self, container: &Container) -> u32 {
        tasks::last_pid(container, &self.hierarchies, &self.host)
    }

    /// The load averages of something that has used `used_ns` of CPU time in a life of `life_ns`.
    #[must_use]
    pub fn mean_load(&self, used_ns: u64, life_ns: u64) -> LoadAverage {
        tasks::mean_load(used_ns, life_ns, &self.host)
    }

    /// The inode number of the cgroup the container's CPU time is counted in. `Ok(None)`: it has none of its own.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn cpu_cgroup_id(&self, container: &Container) -> Result<Option<u64>> {
        match self.place(container, "cpuacct") {
            Some(Place::V1(cgroup) | Place::V2(cgroup)) => cgroup.id().map(Some),
            None => Ok(None),
        }
    }

    /// Where `controller` is for this container. `None` where the container has no cgroup of its own: the root
    /// cgroup's numbers are the host's, and belong to no container.
    fn place<'a>(&'a self, container: &'a Container, controller: &str) -> Option<Place<'a>> {
        let place = match self.hierarchies.v1(controller) {
            Some(hierarchy) => Place::V1(hierarchy.cgroup(container.cgroups.v1(controller)?)),
            None => Place::V2(self.unified(container)?),
        };
        let shelf = Shelf { all: &self.kept, own: &container.at_hand };
        match place {
            Place::V1(cgroup) if !cgroup.is_root() => Some(Place::V1(cgroup.on(shelf))),
            Place::V2(cgroup) => Some(Place::V2(cgroup)),
            Place::V1(_) => None,
        }
    }

    fn unified<'a>(&'a self, container: &'a Container) -> Option<Cgroup<'a>> {
        let cgroup = self.hierarchies.v2()?.cgroup(container.cgroups.unified()?);
        let shelf = Shelf { all: &self.kept, own: &container.at_hand };
        (!cgroup.is_root()).then_some(cgroup.on(shelf))
    }
}

/// Which files supply a group here.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Supply {
    /// The group, as the method of [`Source`] is called.
    pub group: &'static str,
    /// The source, for people.
    pub from: String,
}

impl CgroupFiles {
    /// Which files supply which group on this machine.
    #[must_use]
    pub fn supplies(&self) -> Vec<Supply> {
        const GROUPS: [(&str, &str, &str); 6] = [
            ("cpu", "cpuacct", "cpuacct.usage_percpu"),
            ("cpuset", "cpuset", "cpuset.effective_cpus"),
            ("bandwidth", "cpu", "cpu.cfs_quota_us"),
            ("memory", "memory", "memory.stat"),
            ("swap", "memory", "memory.stat"),
            ("io", "blkio", "blkio.throttle.*"),
        ];
        const UNIFIED: [&str; 6] = [
            "cpu.stat (total only, spread evenly over the CPUs)",
            "cpuset.cpus.effective",
            "cpu.max",
            "memory.stat",
            "memory.swap.current",
            "io.stat",
        ];
        let nowhere = || "nothing: no hierarchy has it".to_owned();
        let v2 = |file: &str| {
            self.hierarchies.v2().map_or_else(nowhere, |hierarchy| {
                format!("cgroup v2 {}: {file}", hierarchy.mount_point().display())
            })
        };
        let groups = GROUPS.iter().zip(UNIFIED).map(|(&(group, controller, file), unified)| {
            let from = match self.hierarchies.v1(controller) {
                Some(v1) => format!("cgroup v1 {}: {file}", v1.mount_point().display()),
                None => v2(unified),
            };
            Supply { group, from }
        });
        let load = "tasks counted every 5 s, from a container's first request on".to_owned();
        groups
            .chain([
                Supply { group: "load", from: load },
                Supply { group: "pressure", from: v2("*.pressure") },
            ])
            .collect()
    }
}

impl Source for CgroupFiles {
    fn cpu(&self, container: &Container) -> Result<Option<Cpu>> {
        match self.place(container, "cpuacct") {
            Some(Place::V1(cgroup)) => v1::cpu(&cgroup),
            Some(Place::V2(cgroup)) => v2::cpu(&cgroup),
            None => Ok(None),
        }
    }

    fn cpuset(&self, container: &Container) -> Result<Option<CpuSet>> {
        match self.place(container, "cpuset") {
            Some(Place::V1(cgroup)) => hierarchy::nearest_list(&cgroup, "cpuset.effective_cpus"),
            Some(Place::V2(cgroup)) => hierarchy::nearest_list(&cgroup, "cpuset.cpus.effective"),
            None => Ok(None),
        }
    }

    fn mems(&self, container: &Container) -> Result<Option<CpuSet>> {
        match self.place(container, "cpuset") {
            Some(Place::V1(cgroup)) => hierarchy::nearest_list(&cgroup, "cpuset.effective_mems"),
            Some(Place::V2(cgroup)) => hierarchy::nearest_list(&cgroup, "cpuset.mems.effective"),
            None => Ok(None),
        }
    }

    fn bandwidth(&self, container: &Container) -> Result<Option<Bandwidth>> {
        match self.place(container, "cpu") {
            Some(Place::V1(cgroup)) => v1::bandwidth(&cgroup),
            Some(Place::V2(cgroup)) => v2::bandwidth(&cgroup),
            None => Ok(None),
        }
    }

    fn throttled_ns(&self, container: &Container) -> Result<Option<u64>> {
        match self.place(container, "cpu") {
            Some(Place::V1(cgroup)) => v1::throttled_ns(&cgroup),
            Some(Place::V2(cgroup)) => v2::throttled_ns(&cgroup),
            None => Ok(None),
        }
    }

    fn memory(&self, container: &Container) -> Result<Option<Memory>> {
        match self.place(container, "memory") {
            Some(Place::V1(cgroup)) => v1::memory(&cgroup, None),
            Some(Place::V2(cgroup)) => v2::memory(&cgroup, None),
            None => Ok(None),
        }
    }

    fn memory_events(&self, container: &Container, events: &mut Vec<u8>) -> Result<Option<Memory>> {
        match self.place(container, "memory") {
            Some(Place::V1(cgroup)) => v1::memory(&cgroup, Some(events)),
            Some(Place::V2(cgroup)) => v2::memory(&cgroup, Some(events)),
            None => Ok(None),
        }
    }

    fn numa(&self, container: &Container) -> Result<Option<Vec<NumaStat>>> {
        match self.place(container, "memory") {
            Some(Place::V1(cgroup)) => v1::numa(&cgroup),
            Some(Place::V2(cgroup)) => v2::numa(&cgroup),
            None => Ok(None),
        }
    }

    fn swap(&self, container: &Container) -> Result<Option<Swap>> {
        match self.place(container, "memory") {
            Some(Place::V1(cgroup)) => v1::swap(&cgroup),
            Some(Place::V2(cgroup)) => v2::swap(&cgroup),
            None => Ok(None),
        }
    }

    fn hugetlb(&self, container: &Container, page_bytes: u64) -> Result<Option<Hugetlb>> {
        match self.place(container, "hugetlb") {
            Some(Place::V1(cgroup)) => v1::hugetlb(&cgroup, page_bytes),
            Some(Place::V2(cgroup)) => v2::hugetlb(&cgroup, page_bytes),
            None => Ok(None),
        }
    }

    fn io(&self, container: &Container) -> Result<Option<Vec<DeviceIo>>> {
        match self.place(container, "blkio") {
            Some(Place::V1(cgroup)) => v1::io(&cgroup),
            Some(Place::V2(cgroup)) => v2::io(&cgroup),
            None => Ok(None),
        }
    }

    fn load(&self, container: &Container) -> Result<Option<Load>> {
        // The first read of a container takes a sample itself.
        tasks::last(container).map_or_else(|| self.sample_load(container), |load| Ok(Some(load)))
    }

    fn pressure(
        &self,
        container: &Container,
        resource: Resource,
        text: &mut Vec<u8>,
    ) -> Result<Option<()>> {
        match self.unified(container) {
            Some(cgroup) => v2::pressure(&cgroup, resource, text),
            None => Ok(None),
        }
    }

    fn pressure_file(
        &self,
        container: &Container,
        resource: Resource,
    ) -> Result<Option<PressureFile>> {
        match self.unified(container) {
            Some(cgroup) => v2::pressure_file(&cgroup, resource),
            None => Ok(None),
        }
    }
}
