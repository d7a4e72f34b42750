//! Which cgroup hierarchy groups CPU time, decided from what is mounted.

use std::path::PathBuf;

use crate::model::mounts::CgroupMount;

/// A v1 controller that can group CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    Cpuacct,
    Cpu,
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
    fn a_part_of_a_hierarchy_is_not_its_root() {
        let text = b"32 25 0:28 /docker/1 /sys/fs/cgroup rw - cgroup2 none rw\n";
        assert_eq!(choose(text), None);
    }
}
