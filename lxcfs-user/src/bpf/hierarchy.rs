//! Which cgroup hierarchy groups CPU time, decided from what is mounted.

use std::path::PathBuf;

use crate::model::mounts::CgroupMount;

/// A controller that has to do with CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    Cpuacct,
    Cpu,
    Cpuset,
}

/// The hierarchy whose groups are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// `None`: the default hierarchy (v2).
    pub controller: Option<Controller>,
    /// Where its root is mounted.
    pub root: PathBuf,
}

/// The hierarchy to use, from the content of `/proc/self/mountinfo`.
///
/// A v1 `cpuacct` mount comes first, then v1 `cpu`, then v2: where a v1 controller is mounted, the
/// runtimes put their containers there, and the v2 tree of a hybrid system is systemd's own.
#[must_use]
pub fn choose(mountinfo: &[u8]) -> Option<Hierarchy> {
    let whole = CgroupMount::all(mountinfo).filter(|mount| mount.root == "/");
    let mounts: Vec<_> = whole.collect();
    let find = |controller: Option<Controller>, is_it: fn(&CgroupMount) -> bool| {
        let found = mounts.iter().find(|mount| is_it(mount));
        found.map(|mount| Hierarchy { controller, root: mount.mount_point.clone() })
    };
    find(Some(Controller::Cpuacct), |mount| mount.has("cpuacct"))
        .or_else(|| find(Some(Controller::Cpu), |mount| mount.has("cpu")))
        .or_else(|| find(None, CgroupMount::is_v2))
}

/// Whether a v1 hierarchy of `controller` is mounted. It is in the default one otherwise, if anywhere.
#[must_use]
pub fn is_v1(mountinfo: &[u8], controller: &str) -> bool {
    CgroupMount::all(mountinfo).any(|mount| mount.has(controller))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "24 1 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "\
        20 1 0:20 / /proc rw - proc proc rw\n\
        30 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        31 25 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
        32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n";

    fn at(controller: Option<Controller>, root: &str) -> Option<Hierarchy> {
        Some(Hierarchy { controller, root: root.into() })
    }

    #[test]
    fn v2_alone_is_used() {
        assert_eq!(choose(V2.as_bytes()), at(None, "/sys/fs/cgroup"));
    }

    #[test]
    fn cpuacct_goes_before_v2() {
        let root = "/sys/fs/cgroup/cpu,cpuacct";
        assert_eq!(choose(HYBRID.as_bytes()), at(Some(Controller::Cpuacct), root));
    }

    #[test]
    fn cpu_stands_in_for_cpuacct() {
        let text = b"32 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup none rw,cpu\n";
        assert_eq!(choose(text), at(Some(Controller::Cpu), "/sys/fs/cgroup/cpu"));
    }

    #[test]
    fn a_controller_is_v1_where_it_is_mounted_so() {
        for (controller, hybrid) in [("cpu", true), ("memory", true), ("cpuset", false)] {
            assert_eq!(is_v1(HYBRID.as_bytes(), controller), hybrid, "{controller}");
            assert!(!is_v1(V2.as_bytes(), controller), "{controller}");
        }
    }

    #[test]
    fn a_part_of_a_hierarchy_is_not_its_root() {
        let text = b"32 25 0:28 /docker/1 /sys/fs/cgroup rw - cgroup2 none rw\n";
        assert_eq!(choose(text), None);
    }
}
