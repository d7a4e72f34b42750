//! The files we make.

use std::fmt;

use super::topology::Place;

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

    /// Whether its page has counters that may not fall from one page to the next.
    #[must_use]
    pub const fn has_counters(self) -> bool {
        matches!(self, Self::Stat | Self::Uptime)
    }

    /// What a page of it mostly fits in, bytes. Memory for the short ones takes a tenth of the time that it takes for a long one.
    #[must_use]
    pub const fn usual_bytes(self) -> usize {
        match self {
            Self::Loadavg | Self::Uptime | Self::CpuOnline => 128,
            Self::Pressure(_) | Self::Slabinfo | Self::Swaps => 512,
            Self::Diskstats | Self::Meminfo | Self::Stat | Self::Vmstat => 4_096,
            Self::Cpuinfo => 16_384,
        }
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

/// A file by its path, of procfs or in one of the trees of sysfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    /// One of those that are made from numbers.
    File(File),
    /// One of the trees'.
    Place(Place),
}

impl std::str::FromStr for Path {
    type Err = String;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let unknown = match path.parse() {
            Ok(file) => return Ok(Self::File(file)),
            Err(error) => error,
        };
        let trees = || format!("{unknown}, and those in the trees of /sys/devices/system");
        Place::of_path(path).map(Self::Place).ok_or_else(trees)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => f.write_str(file.path()),
            Self::Place(place) => f.write_str(&place.path()),
        }
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

    #[test]
    fn a_path_is_a_file_or_a_place_in_a_tree() {
        assert_eq!("stat".parse(), Ok(Path::File(File::Stat)));
        for path in
            ["sys/devices/system/cpu/cpu3/topology/core_id", "sys/devices/system/cpu/present"]
        {
            let found: Path = format!("/{path}").parse().unwrap();
            assert!(matches!(found, Path::Place(_)), "{found:?}");
            assert_eq!(found.to_string(), path);
        }
        for path in
            ["/sys/devices/system", "/sys/devices/system/cpu", "/sys/devices/system/cpu/probe"]
        {
            assert!(path.parse::<Path>().unwrap_err().contains("/proc/stat"), "{path}");
        }
        assert!("/sys/devices/system/cpu/cpu0/../../../kernel/x".parse::<Path>().is_err());
    }
}
