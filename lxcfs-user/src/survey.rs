//! All containers at one moment, for `lxcfs top`. Made at an operator's request, never for a reader's.
//!
//! Counters are as their sources have them, since the container began: what happened between two surveys is for the one who
//! asked for both.

use serde::{Deserialize, Serialize};

use crate::caller::Callers;
use crate::error::Result;
use crate::model::container::Container;
use crate::model::file::{File, Resource};
use crate::source::{Machine, Source, parse};

/// A machine's containers, measured one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// When it was begun, nanoseconds of `CLOCK_BOOTTIME`.
    pub taken_ns: u64,
    /// The host's own load averages, hundredths.
    pub host_load_hundredths: [u64; 3],
    /// Containers in the order of their start.
    pub containers: Vec<Measure>,
}

/// One container. `None` is what no source supplies, or what could not be read just then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// The path of its cgroup: the unified one, or the first v1 hierarchy's where it has one of its own.
    pub cgroup: String,
    /// Its init, a pid on the host.
    pub init: u32,
    /// When its init started, nanoseconds of `CLOCK_BOOTTIME`.
    pub started_ns: u64,
    /// Load averages over 1, 5 and 15 minutes, hundredths.
    pub load_hundredths: Option<[u64; 3]>,
    /// Threads that run or wait for a CPU.
    pub running: Option<u32>,
    /// Threads in uninterruptible sleep.
    pub blocked: Option<u32>,
    /// All threads.
    pub threads: Option<u32>,
    /// CPU time used.
    pub used_ns: Option<u64>,
    /// Time its threads waited for a CPU, where that is counted.
    pub steal_ns: Option<u64>,
    /// Time it was kept from a CPU by its quota.
    pub throttled_ns: Option<u64>,
    /// Memory charged to it.
    pub memory_bytes: Option<u64>,
    /// The smallest limit on that, if there is one.
    pub memory_limit_bytes: Option<u64>,
    /// Share of the last 10 s in which some thread waited for a CPU, hundredths of a percent.
    pub cpu_pressure_hundredths: Option<u64>,
    /// The same for memory.
    pub memory_pressure_hundredths: Option<u64>,
    /// The same for block I/O.
    pub io_pressure_hundredths: Option<u64>,
}

/// Measures every container of the machine.
///
/// # Errors
/// The host's processes cannot be listed. A container that ends meanwhile is left out.
pub fn take(callers: &Callers, source: &dyn Source, machine: &dyn Machine) -> Result<Survey> {
    let taken_ns = machine.boottime_ns();
    let mut containers: Vec<_> =
        callers.discover()?.iter().map(|container| measure(container, source)).collect();
    containers.sort_by_key(|measure| (measure.started_ns, measure.init));
    let mut text = Vec::new();
    machine.read(File::Loadavg, &mut text)?;
    let host_load_hundredths = parse::loadavg(&text).unwrap_or_default();
    Ok(Survey { taken_ns, host_load_hundredths, containers })
}

fn measure(container: &Container, source: &dyn Source) -> Measure {
    let load = supplied(source.load(container));
    let cpu = supplied(source.cpu(container));
    let memory = supplied(source.memory(container));
    let steal = |cpu: &crate::source::Cpu| cpu.total.steal_ns;
    let pressure = |resource| {
        let mut text = Vec::new();
        supplied(source.pressure(container, resource, &mut text))?;
        parse::pressure_some_avg10(&text)
    };
    Measure {
        cgroup: name(container),
        init: container.init,
        started_ns: container.started_ns,
        load_hundredths: load.map(|load| {
            load.average.hundredths().map(|(whole, hundredths)| whole * 100 + hundredths)
        }),
        running: load.map(|load| load.tasks.running),
        blocked: load.map(|load| load.tasks.blocked),
        threads: load.map(|load| load.tasks.threads),
        used_ns: cpu.as_ref().map(|cpu| cpu.total.used_ns()),
        // Without the run queues nobody knows it, and 0 would be an answer.
        steal_ns: cpu.as_ref().map(steal).filter(|&steal_ns| steal_ns > 0),
        throttled_ns: supplied(source.throttled_ns(container)),
        memory_bytes: memory.as_ref().map(|memory| memory.usage_bytes),
        memory_limit_bytes: memory.and_then(|memory| memory.limit_bytes),
        cpu_pressure_hundredths: pressure(Resource::Cpu),
        memory_pressure_hundredths: pressure(Resource::Memory),
        io_pressure_hundredths: pressure(Resource::Io),
    }
}

/// A group that broke is shown as one that is not supplied: the next survey will tell.
fn supplied<T>(group: Result<Option<T>>) -> Option<T> {
    group.inspect_err(|error| tracing::debug!("survey: {error}")).ok().flatten()
}

/// The container's cgroup, from the first hierarchy in which it has one of its own.
fn name(container: &Container) -> String {
    let unified = container.cgroups.unified().into_iter();
    let all = unified.chain(container.cgroups.iter().map(|(_, path)| path));
    let mut own = all.filter(|path| *path != "/");
    own.next().unwrap_or("/").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Errno;
    use crate::model::container::CgroupPaths;
    use crate::source::fake::FakeSource;

    fn container(cgroups: &[u8]) -> Container {
        Container {
            init: 7,
            started_ns: 9,
            pid_depth: 1,
            cgroups: CgroupPaths::parse(cgroups),
            ..Container::default()
        }
    }

    #[test]
    fn a_container_is_called_by_a_cgroup_of_its_own() {
        assert_eq!(name(&container(b"4:memory:/a\n0::/b\n")), "/b");
        assert_eq!(name(&container(b"4:memory:/a\n0::/\n")), "/a");
        assert_eq!(name(&container(b"0::/\n")), "/");
    }

    #[test]
    fn what_breaks_is_not_known() {
        let broken = FakeSource { broken: Some(Errno::IO), ..FakeSource::default() };
        let measured = measure(&container(b"0::/b\n"), &broken);
        let expected =
            Measure { cgroup: "/b".to_owned(), init: 7, started_ns: 9, ..Measure::default() };
        assert_eq!(measured, expected);
    }
}
