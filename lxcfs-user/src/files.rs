//! The pages: one procfs file, one module, each with `gather` (asks the sources) and a pure `render`.

mod cpu_online;
mod cpuinfo;
mod digits;
mod diskstats;
#[cfg(test)]
mod faults;
mod hugepages;
mod loadavg;
mod meminfo;
mod node_meminfo;
mod pressure;
mod slabinfo;
mod stat;
mod swaps;
#[cfg(test)]
mod testing;
mod topology;
mod uptime;
mod vmstat;

use crate::error::{Errno, Error, Result};
use crate::model::container::Container;
use crate::model::cpus::{CpuSet, CpuView, Cpus};
use crate::model::file::{File, Resource};
use crate::model::topology::{Place, Shown, Tree};
use crate::source::trigger::PressureFile;
use crate::source::{Machine, Source, Text};

/// What the operator decided about the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Which CPUs a container is shown.
    pub cpu_view: CpuView,
    /// Whether swap is shown (`--disable-swap`).
    pub swap: bool,
    /// Whether zswap is shown (`--disable-zswap`).
    pub zswap: bool,
    /// Whether a reader is refused where the container's values cannot be had (`--strict`).
    pub strict: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { cpu_view: CpuView::default(), swap: true, zswap: true, strict: false }
    }
}

/// Everything a page is made from.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Whose page.
    pub container: &'a Container,
    /// What is known of it.
    pub source: &'a dyn Source,
    /// What is known of the machine.
    pub machine: &'a dyn Machine,
    /// What the operator decided.
    pub policy: &'a Policy,
    /// What of the reader itself matters.
    pub reader: Reader,
}

/// A reader, where its page is not that of every reader in its container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reader {
    /// Whether it has the personality of a 32-bit program.
    pub is_32bit: bool,
    /// By how much the time since boot that it reads is ahead of ours (time namespaces), seconds.
    pub boottime_ahead_s: i64,
}

/// Appends the page of `file` to `page`.
///
/// # Errors
/// A source broke, or does not supply what the page needs (`ENODATA`). `page` is then as it was.
pub fn page(file: File, view: &View<'_>, page: &mut Vec<u8>) -> Result<()> {
    match file {
        File::Cpuinfo => cpuinfo::render(&cpuinfo::gather(view)?, page),
        File::Diskstats => diskstats::render(&diskstats::gather(view)?, page),
        File::Loadavg => loadavg::render(&loadavg::gather(view)?, page),
        File::Meminfo => meminfo::render(&meminfo::gather(view)?, page),
        File::Slabinfo => slabinfo::render(&slabinfo::gather(view)?, page),
        File::Stat => stat::render(&stat::gather(view)?, page),
        File::Swaps => swaps::render(&swaps::gather(view)?, page),
        File::Uptime => uptime::render(uptime::gather(view)?, page),
        File::Vmstat => vmstat::render(&vmstat::gather(view)?, page),
        File::Pressure(resource) => pressure::gather(view, resource, page)?,
        File::CpuOnline => cpu_online::render(&cpu_online::gather(view)?, page),
    }
    Ok(())
}

/// What of a container's page of `file` is the host's, by decision and not for want of anything: it describes the machine.
#[must_use]
pub const fn host_lines(file: File) -> &'static [&'static str] {
    match file {
        File::Cpuinfo => &["every line but processor, siblings and cpu cores"],
        File::Meminfo => &meminfo::HOST,
        File::Slabinfo => &["version and column names"],
        File::Stat => &["intr", "softirq", "btime", "ctxt without eBPF"],
        File::Diskstats => &["device numbers and names"],
        File::Loadavg
        | File::Swaps
        | File::Uptime
        | File::Vmstat
        | File::Pressure(_)
        | File::CpuOnline => &[],
    }
}

/// Appends the text of the file at `place` in one of the trees of `/sys`. `false`: there is none for this reader, or not
/// any more.
///
/// # Errors
/// As for [`page`].
pub fn sysfs(place: &Place, view: &View<'_>, page: &mut Vec<u8>) -> Result<bool> {
    topology::page(view, place, page)
}

/// What the container is shown of `tree`.
///
/// # Errors
/// As for [`page`].
pub fn shown(tree: Tree, view: &View<'_>) -> Result<Shown> {
    view.shown(tree)
}

/// The pressure file that is the page of `resource`, open for a trigger.
///
/// # Errors
/// As for [`page`].
pub fn pressure_file(view: &View<'_>, resource: Resource) -> Result<PressureFile> {
    pressure::open(view, resource)
}

impl View<'_> {
    /// The host's `file`, as a template: at most a hundredth of a second old.
    fn host(&self, file: File) -> Result<Text> {
        self.machine.read_recent(file)
    }

    /// The CPUs the container is shown: the one answer behind cpuinfo, stat, uptime and cpu/online.
    fn cpus(&self) -> Result<Cpus> {
        // Not an older one: a CPU that has just gone offline is offline.
        let mut online = Vec::with_capacity(128);
        self.machine.read(File::CpuOnline, &mut online)?;
        let online = CpuSet::parse(&online)
            .ok_or_else(|| Error::parse(File::CpuOnline.path(), "not a list of CPUs"))?;
        let effective = self.source.cpuset(self.container)?;
        let bandwidth = match self.policy.cpu_view {
            CpuView::Quota => self.source.bandwidth(self.container)?,
            CpuView::Cpuset | CpuView::Host => None,
        };
        Ok(Cpus::decide(self.policy.cpu_view, &online, effective.as_ref(), bandwidth))
    }

    /// How long the container has been up, nanoseconds.
    fn up_ns(&self) -> u64 {
        self.machine.boottime_ns().saturating_sub(self.container.started_ns)
    }
}

/// Turns "not supplied" into the error it is for a page that cannot do without.
fn required<T>(group: Option<T>, what: &'static str) -> Result<T> {
    group.ok_or_else(|| {
        let cause = "the container has no cgroup of its own that counts this";
        Error::because("find", what, Errno::NODATA, cause)
    })
}
