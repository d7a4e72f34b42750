//! Places in `/sys/devices/system/cpu` and `/sys/devices/system/node`: which are shown, and what they are about.
//!
//! A place is named by the numbers a reader sees. Which of the host's CPUs is behind `cpu0` is the reader's matter
//! ([`Shown`]), so that one node of the filesystem can serve every container.

use std::sync::Arc;

use super::cpus::{CpuSet, Cpus};

/// One of the two trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tree {
    /// `/sys/devices/system/cpu`
    Cpu,
    /// `/sys/devices/system/node`
    Node,
}

impl Tree {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Cpu, Self::Node];

    /// The name of its directory, and of its units without their number.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Node => "node",
        }
    }

    /// The number of the unit that `name` names: 3 of `cpu3`. As sysfs writes it, so without leading zeros.
    #[must_use]
    pub fn unit(self, name: &[u8]) -> Option<u32> {
        let digits = name.strip_prefix(self.name().as_bytes())?;
        let is_written_so = digits.first()? != &b'0' || digits.len() == 1;
        let all_digits = digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit);
        (is_written_so && all_digits)
            .then(|| digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
    }

    /// What is served at the top of the tree, besides its units.
    const fn top(self) -> &'static [&'static str] {
        match self {
            Self::Cpu => &[
                "enabled",
                "housekeeping",
                "isolated",
                "kernel_max",
                "modalias",
                "nohz_full",
                "offline",
                "online",
                "possible",
                "present",
                "smt",
                "uevent",
                "vulnerabilities",
            ],
            Self::Node => &[
                "has_cpu",
                "has_generic_initiator",
                "has_memory",
                "has_normal_memory",
                "online",
                "possible",
                "uevent",
            ],
        }
    }

    /// What is served in the directory of a unit. The rest tells what the host does, or is there to be written to.
    const fn inside(self) -> &'static [&'static str] {
        match self {
            Self::Cpu => &[
                "address",
                "cache",
                "configure",
                "cpu_capacity",
                "cpufreq",
                "dispatching",
                "online",
                "physical_id",
                "polarization",
                "regs",
                "subsystem",
                "topology",
                "uevent",
            ],
            Self::Node => &["cpulist", "cpumap", "distance", "meminfo", "subsystem", "uevent"],
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::Cpu => Self::Node,
            Self::Node => Self::Cpu,
        }
    }
}

/// What a file is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The machine: the host's text.
    Host,
    /// All units shown, as a list.
    Shown,
    /// No unit: what is shown is never offline.
    Nothing,
    /// A list of units of this tree, of which those shown remain.
    List(Tree),
    /// CPUs as a mask.
    Mask,
    /// CPUs as words.
    Words,
    /// A number for each node that is online.
    Distance,
    /// The memory of a node.
    Meminfo,
}

/// A file, directory or link in one of the trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// In which tree.
    pub tree: Tree,
    /// In which unit's directory, by the number shown.
    pub unit: Option<u32>,
    /// The path from there, without a slash at its start. Empty: that directory itself.
    pub rest: Arc<[u8]>,
}

impl Place {
    /// The top of `tree`.
    #[must_use]
    pub fn top(tree: Tree) -> Self {
        Self { tree, unit: None, rest: Arc::from([]) }
    }

    /// The place at a path as a person types it: `/sys/devices/system/cpu/cpu3/topology/core_id`.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        let path = path.trim_start_matches('/').strip_prefix("sys/devices/system/")?;
        let (tree, rest) = path.split_once('/')?;
        let tree = Tree::ALL.into_iter().find(|known| known.name() == tree)?;
        rest.split('/').try_fold(Self::top(tree), |place, name| place.child(name.as_bytes()))
    }

    /// The place called `name` in this directory, if names like that are served here.
    #[must_use]
    pub fn child(&self, name: &[u8]) -> Option<Self> {
        let is_one_of = |served: &[&str]| served.iter().any(|known| known.as_bytes() == name);
        let served = match (self.unit, self.tree.unit(name)) {
            _ if name.contains(&b'/') || name == b"." || name == b".." => false,
            (None, Some(unit)) if self.rest.is_empty() => {
                return Some(Self { unit: Some(unit), ..Self::top(self.tree) });
            }
            (None, _) if self.rest.is_empty() => is_one_of(self.tree.top()),
            (Some(_), _) if self.rest.is_empty() => {
                is_one_of(self.tree.inside()) || self.tree.other().unit(name).is_some()
            }
            // How often which frequency was used tells what the host does.
            _ => !(&*self.rest == b"cpufreq" && name == b"stats"),
        };
        let rest = if self.rest.is_empty() {
            Arc::from(name)
        } else {
            Arc::from([&*self.rest, b"/", name].concat())
        };
        served.then_some(Self { rest, ..self.clone() })
    }

    /// The unit of the other tree that this place is a link to: node 0 of `cpu3/node0`.
    #[must_use]
    pub fn link(&self) -> Option<u32> {
        self.unit.and_then(|_| self.tree.other().unit(&self.rest))
    }

    /// Where that link points to.
    #[must_use]
    pub fn link_target(&self) -> Option<String> {
        let (tree, unit) = (self.tree.other().name(), self.link()?);
        Some(format!("../../{tree}/{tree}{unit}"))
    }

    /// The path of what is behind it for a reader who is shown `shown`, below `/sys/devices/system`. `None`: nothing.
    #[must_use]
    pub fn host_path(&self, shown: &Shown) -> Option<Vec<u8>> {
        let mut path = self.tree.name().to_owned();
        if let Some(unit) = self.unit {
            path += &format!("/{}{}", self.tree.name(), shown.host(self.tree, unit)?);
        }
        let mut path = path.into_bytes();
        if let Some(link) = self.link() {
            let other = self.tree.other();
            let host = shown.host(other, link)?;
            path.extend_from_slice(format!("/{}{host}", other.name()).as_bytes());
        } else if !self.rest.is_empty() {
            path.push(b'/');
            path.extend_from_slice(&self.rest);
        }
        Some(path)
    }

    /// The path below `/` as a reader sees it.
    #[must_use]
    pub fn path(&self) -> String {
        let path = self.host_path(&Shown::default()).unwrap_or_default();
        format!("sys/devices/system/{}", String::from_utf8_lossy(&path))
    }

    /// What the file says.
    #[must_use]
    pub fn content(&self) -> Content {
        let name = self.rest.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        match (self.tree, self.unit, name) {
            (Tree::Cpu, None, b"online" | b"possible" | b"present" | b"enabled")
            | (Tree::Node, None, b"online" | b"possible") => Content::Shown,
            (Tree::Cpu, None, b"offline") => Content::Nothing,
            (Tree::Cpu, None, b"housekeeping" | b"isolated" | b"nohz_full") => {
                Content::List(Tree::Cpu)
            }
            (Tree::Node, None, name) if name.starts_with(b"has_") => Content::List(Tree::Node),
            (Tree::Node, Some(_), b"cpulist") => Content::List(Tree::Cpu),
            (Tree::Node, Some(_), b"cpumap") => Content::Mask,
            (Tree::Node, Some(_), b"distance") => Content::Distance,
            (Tree::Node, Some(_), b"meminfo") => Content::Meminfo,
            (Tree::Cpu, Some(_), b"affected_cpus" | b"related_cpus" | b"freqdomain_cpus") => {
                Content::Words
            }
            (Tree::Cpu, Some(_), name) if name.ends_with(b"_list") => Content::List(Tree::Cpu),
            (Tree::Cpu, Some(_), name) if is_mask(name) => Content::Mask,
            _ => Content::Host,
        }
    }
}

fn is_mask(name: &[u8]) -> bool {
    name.ends_with(b"_cpus") || name.ends_with(b"_siblings") || name == b"shared_cpu_map"
}

/// What a reader is shown of each tree. `None`: all of it, under the host's numbers.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// CPUs.
    pub cpus: Option<Cpus>,
    /// Nodes, which keep their numbers: mbind(2) and numa_maps use them.
    pub nodes: Option<CpuSet>,
}

impl Shown {
    /// The host's unit behind the `unit` shown.
    #[must_use]
    pub fn host(&self, tree: Tree, unit: u32) -> Option<u32> {
        match (tree, &self.cpus, &self.nodes) {
            (Tree::Cpu, Some(cpus), _) => cpus.host(unit),
            (Tree::Node, _, Some(nodes)) => nodes.contains(unit).then_some(unit),
            _ => Some(unit),
        }
    }

    /// The number shown for the host's `unit`.
    #[must_use]
    pub fn shown(&self, tree: Tree, unit: u32) -> Option<u32> {
        match (tree, &self.cpus, &self.nodes) {
            (Tree::Cpu, Some(cpus), _) => cpus.shown(unit),
            (Tree::Node, _, Some(nodes)) => nodes.contains(unit).then_some(unit),
            _ => Some(unit),
        }
    }

    /// All units shown, where not all of the host's are.
    #[must_use]
    pub fn units(&self, tree: Tree) -> Option<CpuSet> {
        match tree {
            Tree::Cpu => self.cpus.as_ref().map(Cpus::set),
            Tree::Node => self.nodes.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cpus::{Bandwidth, CpuView};

    fn place(path: &str) -> Option<Place> {
        let mut parts = path.split('/');
        let tree = Tree::ALL.into_iter().find(|tree| Some(tree.name()) == path.split('/').next());
        parts.next();
        parts.try_fold(Place::top(tree?), |place, name| place.child(name.as_bytes()))
    }

    fn host_path(path: &str, shown: &Shown) -> Option<String> {
        place(path)?.host_path(shown).map(|path| String::from_utf8(path).unwrap())
    }

    #[test]
    fn a_place_of_a_virtual_cpu_is_the_real_ones() {
        let set = |list: &str| CpuSet::parse(list.as_bytes()).unwrap();
        let quota = Some(Bandwidth { quota_us: 2, period_us: 1 });
        let cpus = Cpus::decide(CpuView::Quota, &set("0-7"), Some(&set("3,5-6")), quota);
        let shown = Shown { cpus: Some(cpus), nodes: Some(set("1")) };
        let path = |path: &str| host_path(path, &shown);
        assert_eq!(path("cpu/cpu1/topology/core_id").as_deref(), Some("cpu/cpu5/topology/core_id"));
        assert_eq!(path("cpu/cpu2/topology/core_id"), None);
        assert_eq!(path("node/node1/cpu0").as_deref(), Some("node/node1/cpu3"));
        assert_eq!(path("node/node0/distance"), None);
        assert_eq!(path("cpu/cpu0/node1").as_deref(), Some("cpu/cpu3/node1"));
        assert_eq!(path("cpu/kernel_max").as_deref(), Some("cpu/kernel_max"));
        let link = place("node/node1/cpu0").unwrap();
        assert_eq!(link.link_target().as_deref(), Some("../../cpu/cpu0"));
        assert_eq!(link.path(), "sys/devices/system/node/node1/cpu0");
    }

    #[test]
    fn what_the_host_does_is_not_served() {
        for path in [
            "cpu/cpu0/cpuidle",
            "cpu/cpu0/thermal_throttle",
            "cpu/cpu0/crash_notes",
            "cpu/cpu0/hotplug",
            "cpu/cpu0/power",
            "cpu/cpu0/cpufreq/stats",
            "cpu/probe",
            "cpu/cpu01",
            "cpu/cpu-1",
            "cpu/cpu123456",
            "cpu/..",
            "cpu/cpu0/topology/..",
            "node/node0/numastat",
            "node/node0/compact",
            "node/node0/memory1",
        ] {
            assert_eq!(place(path), None, "{path}");
        }
    }

    #[test]
    fn what_names_cpus_is_told_by_its_name() {
        let content = |path: &str| place(path).unwrap().content();
        assert_eq!(content("cpu/possible"), Content::Shown);
        assert_eq!(content("cpu/offline"), Content::Nothing);
        assert_eq!(content("cpu/cpu0/online"), Content::Host);
        assert_eq!(content("cpu/cpu0/topology/die_cpus"), Content::Mask);
        assert_eq!(content("cpu/cpu0/topology/thread_siblings_list"), Content::List(Tree::Cpu));
        assert_eq!(content("cpu/cpu0/topology/core_id"), Content::Host);
        assert_eq!(content("cpu/cpu0/cache/index0/shared_cpu_map"), Content::Mask);
        assert_eq!(content("cpu/cpu0/cpufreq/affected_cpus"), Content::Words);
        assert_eq!(content("node/has_memory"), Content::List(Tree::Node));
        assert_eq!(content("node/node0/cpumap"), Content::Mask);
    }
}
