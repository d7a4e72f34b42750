//! A [`Source`] and a [`Machine`] from struct literals, for tests of everything that reads from one.

use super::trigger::PressureFile;
use super::{Cpu, DeviceIo, Hugetlb, Load, Machine, Memory, NumaStat, Source, Swap, Text};
use crate::error::{Errno, Error, Result};
use crate::model::container::Container;
use crate::model::cpus::{Bandwidth, CpuSet};
use crate::model::file::{File, Resource};

/// Supplies what its fields hold, to any container. A field left `None` is a group that is not supplied.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "each field is the group of its name")]
pub struct FakeSource {
    pub cpu: Option<Cpu>,
    pub cpuset: Option<CpuSet>,
    pub mems: Option<CpuSet>,
    pub bandwidth: Option<Bandwidth>,
    pub throttled_ns: Option<u64>,
    pub memory: Option<Memory>,
    pub memory_events: Option<Vec<(String, u64)>>,
    pub numa: Option<Vec<NumaStat>>,
    pub swap: Option<Swap>,
    pub hugetlb: Option<Hugetlb>,
    pub io: Option<Vec<DeviceIo>>,
    pub load: Option<Load>,
    pub pressure: Option<String>,
    /// Every group fails with this errno instead.
    pub broken: Option<Errno>,
}

impl FakeSource {
    fn supply<T: Clone>(&self, group: &'static str, value: &Option<T>) -> Result<Option<T>> {
        match self.broken {
            Some(errno) => Err(Error::io("read", group, errno)),
            None => Ok(value.clone()),
        }
    }
}

impl Source for FakeSource {
    fn cpu(&self, _: &Container) -> Result<Option<Cpu>> {
        self.supply("cpu", &self.cpu)
    }

    fn cpuset(&self, _: &Container) -> Result<Option<CpuSet>> {
        self.supply("cpuset", &self.cpuset)
    }

    fn mems(&self, _: &Container) -> Result<Option<CpuSet>> {
        self.supply("mems", &self.mems)
    }

    fn bandwidth(&self, _: &Container) -> Result<Option<Bandwidth>> {
        self.supply("bandwidth", &self.bandwidth)
    }

    fn throttled_ns(&self, _: &Container) -> Result<Option<u64>> {
        self.supply("throttled_ns", &self.throttled_ns)
    }

    fn memory(&self, _: &Container) -> Result<Option<Memory>> {
        self.supply("memory", &self.memory)
    }

    fn memory_events(&self, _: &Container, events: &mut Vec<u8>) -> Result<Option<Memory>> {
        let memory = self.supply("memory", &self.memory)?;
        for (name, count) in self.memory_events.iter().flatten().filter(|_| memory.is_some()) {
            events.extend_from_slice(format!("{name} {count}\n").as_bytes());
        }
        Ok(memory)
    }

    fn numa(&self, _: &Container) -> Result<Option<Vec<NumaStat>>> {
        self.supply("numa", &self.numa)
    }

    fn swap(&self, _: &Container) -> Result<Option<Swap>> {
        self.supply("swap", &self.swap)
    }

    fn hugetlb(&self, _: &Container, _: u64) -> Result<Option<Hugetlb>> {
        self.supply("hugetlb", &self.hugetlb)
    }

    fn io(&self, _: &Container) -> Result<Option<Vec<DeviceIo>>> {
        self.supply("io", &self.io)
    }

    fn load(&self, _: &Container) -> Result<Option<Load>> {
        self.supply("load", &self.load)
    }

    fn pressure(&self, _: &Container, _: Resource, text: &mut Vec<u8>) -> Result<Option<()>> {
        let pressure = self.supply("pressure", &self.pressure)?;
        Ok(pressure.map(|pressure| text.extend_from_slice(pressure.as_bytes())))
    }
}

/// A machine with the files given, booted `boottime_ns` ago.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "each field is what the trait's method of its name returns")]
pub struct FakeMachine {
    pub files: Vec<(File, Text)>,
    /// Texts of a moment ago, where they were others.
    pub older: Vec<(File, Text)>,
    /// Cpuinfo as a 32-bit program finds it, where that is another.
    pub cpuinfo_32bit: Option<String>,
    /// What is read by path.
    pub sys: Vec<(String, String)>,
    pub boottime_ns: u64,
}

impl Machine for FakeMachine {
    fn read(&self, file: File, text: &mut Vec<u8>) -> Result<()> {
        match self.files.iter().find(|(known, _)| *known == file) {
            Some((_, content)) => {
                text.extend_from_slice(content);
                Ok(())
            }
            None => Err(Error::io("read", file.path(), Errno::NOENT)),
        }
    }

    fn read_recent(&self, file: File) -> Result<Text> {
        let known = self.older.iter().chain(&self.files).find(|(known, _)| *known == file);
        known
            .map(|(_, text)| Text::clone(text))
            .ok_or_else(|| Error::io("read", file.path(), Errno::NOENT))
    }

    fn read_cpuinfo(&self, is_32bit: bool, text: &mut Vec<u8>) -> Result<()> {
        match self.cpuinfo_32bit.as_ref().filter(|_| is_32bit) {
            Some(cpuinfo) => {
                text.extend_from_slice(cpuinfo.as_bytes());
                Ok(())
            }
            None => self.read(File::Cpuinfo, text),
        }
    }

    fn read_sys(&self, path: &str, text: &mut Vec<u8>) -> Result<()> {
        match self.sys.iter().find(|(known, _)| known == path) {
            Some((_, content)) => {
                text.extend_from_slice(content.as_bytes());
                Ok(())
            }
            None => Err(Error::io("read", path, Errno::NOENT)),
        }
    }

    fn boottime_ns(&self) -> u64 {
        self.boottime_ns
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
