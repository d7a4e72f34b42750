//! The files we make.

/// A file we make. The host has each under the same name: it is the template, and the fallback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum File {
    /// `/proc/cpuinfo`
    Cpuinfo,
    /// `/proc/diskstats`
    Diskstats,
    /// `/proc/loadavg`
    Loadavg,
    /// `/proc/meminfo`
    Meminfo,
    /// `/proc/slabinfo`
    Slabinfo,
    /// `/proc/stat`
    Stat,
    /// `/proc/swaps`
    Swaps,
    /// `/proc/uptime`
    Uptime,
    /// `/proc/vmstat`
    Vmstat,
    /// `/proc/pressure/*`
    Pressure(Resource),
    /// `/sys/devices/system/cpu/online`
    CpuOnline,
}

impl File {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Cpuinfo,
        Self::Diskstats,
        Self::Loadavg,
        Self::Meminfo,
        Self::Slabinfo,
        Self::Stat,
        Self::Swaps,
        Self::Uptime,
        Self::Pressure(Resource::Cpu),
        Self::Pressure(Resource::Io),
        Self::Pressure(Resource::Memory),
        Self::CpuOnline,
        // At the end: numbers of nodes go by the order.
        Self::Vmstat,
    ];

    /// Whether its page depends on what earlier pages said, or makes later ones depend on it.
    #[must_use]
    pub const fn remembers(self) -> bool {
        matches!(self, Self::Loadavg | Self::Stat | Self::Uptime)
    }

    /// The path below `/`, on the host and in our mount alike.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Cpuinfo => "proc/cpuinfo",
            Self::Diskstats => "proc/diskstats",
            Self::Loadavg => "proc/loadavg",
            Self::Meminfo => "proc/meminfo",
            Self::Slabinfo => "proc/slabinfo",
            Self::Stat => "proc/stat",
            Self::Swaps => "proc/swaps",
            Self::Uptime => "proc/uptime",
            Self::Vmstat => "proc/vmstat",
            Self::Pressure(Resource::Cpu) => "proc/pressure/cpu",
            Self::Pressure(Resource::Io) => "proc/pressure/io",
            Self::Pressure(Resource::Memory) => "proc/pressure/memory",
            Self::CpuOnline => "sys/devices/system/cpu/online",
        }
    }
}

impl std::str::FromStr for File {
    type Err = String;

    /// The file of a path as a person types it: `/proc/stat`, `proc/stat`, or `stat`.
    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let path = path.trim_start_matches('/');
        let named =
            |file: &&Self| file.path() == path || file.path().strip_prefix("proc/") == Some(path);
        Self::ALL.iter().find(named).copied().ok_or_else(|| {
            let known = Self::ALL.map(|file| format!("/{}", file.path()));
            format!("no such file; the files are {}", known.join(", "))
        })
    }
}

/// What tasks can stall on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Resource {
    /// Waiting for a CPU.
    Cpu,
    /// Waiting for block I/O.
    Io,
    /// Waiting for memory.
    Memory,
}

impl Resource {
    /// The name of the file in a cgroup v2 directory.
    #[must_use]
    pub const fn cgroup_file(self) -> &'static str {
        match self {
            Self::Cpu => "cpu.pressure",
            Self::Io => "io.pressure",
            Self::Memory => "memory.pressure",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_by_each_of_its_names() {
        for name in ["/proc/pressure/io", "proc/pressure/io", "pressure/io"] {
            assert_eq!(name.parse(), Ok(File::Pressure(Resource::Io)));
        }
        assert_eq!("/sys/devices/system/cpu/online".parse(), Ok(File::CpuOnline));
        assert!("/proc/version".parse::<File>().is_err());
    }
}
