//! `cgroup/`: what a reader sees of the cgroup v1 hierarchies, as from a read-only mount of them, for hooks of old LXC.
//!
//! A node is a directory by the kernel's own number, and maybe the hash of a file's name in it: no cgroup has to be remembered.
//! Names are looked up for everybody alike, as in [`super::sysfs`], but never kept: cgroups come and go. What is behind a name
//! is there for a reader whose own cgroup is that one, or above it; directories are, on the way to its own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use fuser::{FileAttr, INodeNo};
use rustix::fs::{FileType, Stat};

use super::tree::{Directory as Ours, Node};
use super::{LxcFs, Name, kind_of};
use crate::caller::Caller;
use crate::error::{Errno, Error, Result};
use crate::model::hash::folded;
use crate::model::subtree::Sight;
use crate::source::subtree::{Directory, Subtrees};

/// The bits of a node that are the directory's number.
const NUMBER_BITS: u32 = 36;
/// The bits above: the hash of a file's name, 0 for the directory itself.
const HASH_BITS: u32 = 22;
/// And the bits above these: the hierarchy.
const HIERARCHY_BITS: u32 = 5;

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// What the bits of a node say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number {
    hierarchy: usize,
    directory: u64,
    file: u64,
}

impl Number {
    fn of(bits: u64) -> Self {
        let hierarchy = bits >> (NUMBER_BITS + HASH_BITS) & mask(HIERARCHY_BITS);
        Self {
            hierarchy: usize::try_from(hierarchy).unwrap_or(usize::MAX),
            directory: bits & mask(NUMBER_BITS),
            file: bits >> NUMBER_BITS & mask(HASH_BITS),
        }
    }

    const fn node(self) -> Node {
        let bits = (self.hierarchy as u64) << (NUMBER_BITS + HASH_BITS)
            | self.file << NUMBER_BITS
            | self.directory;
        Node::Cgroup(bits)
    }

    /// What is called `name` in this directory, of which the kernel says its kind and number. A number that is too large
    /// stands for nothing: it takes a thousand million cgroups to come to that.
    fn child(self, name: &[u8], kind: FileType, number: u64) -> Option<Self> {
        match kind {
            FileType::Directory if number > mask(NUMBER_BITS) => None,
            FileType::Directory => Some(Self { directory: number, ..self }),
            _ => Some(Self { file: hash(name), ..self }),
        }
    }
}

/// Never 0. The names are the kernel's, and no two that it has share one.
fn hash(name: &[u8]) -> u64 {
    folded(name, HASH_BITS)
}

/// A node that was found, and who asks for it.
struct Found {
    number: Number,
    directory: Directory,
    file: Option<Vec<u8>>,
    caller: Caller,
    /// The path of the caller's own cgroup. `None`: it is the host's.
    own: Option<Vec<u8>>,
}

impl Found {
    fn sight(&self) -> Option<Sight<'_>> {
        let everything = Some(Sight::Everything);
        self.own.as_ref().map_or(everything, |own| Sight::of(&self.directory.path, own))
    }
}

impl LxcFs {
    fn subtrees(&self) -> Result<&Subtrees, Errno> {
        self.subtrees.as_deref().ok_or(Errno::NOENT)
    }

    /// The node of `bits`, where the thread `tid` is shown it.
    fn find_cgroup(&self, bits: u64, tid: u32) -> Result<Found, Errno> {
        let (number, subtrees) = (Number::of(bits), self.subtrees()?);
        let caller = self.road.whose_cgroups(tid).map_err(|error| error.errno)?;
        let own = match &caller {
            Caller::Host => None,
            Caller::Container(container) => {
                let own = subtrees.top(number.hierarchy)?.own(&container.cgroups);
                Some(own.ok_or(Errno::NOENT)?.to_owned())
            }
        };
        let directory = subtrees.directory(number.hierarchy, number.directory)?;
        let mut found = Found { number, directory, file: None, caller, own };
        let sight = found.sight().ok_or(Errno::NOENT)?;
        if number.file != 0 {
            if sight != Sight::Everything {
                return Err(Errno::NOENT);
            }
            found.file = Some(found.directory.find_file(|name| hash(name) == number.file)?);
        }
        Ok(found)
    }

    /// The top of each hierarchy.
    pub(super) fn cgroup_tops(&self) -> Vec<Name> {
        let tops = self.subtrees.iter().flat_map(|subtrees| subtrees.tops()).map(|top| {
            let number = Number { hierarchy: top.hierarchy, directory: top.number, file: 0 };
            Name {
                number: number.node().number(),
                kind: fuser::FileType::Directory,
                name: top.controllers.clone().into_bytes(),
            }
        });
        tops.collect()
    }

    /// The top of the hierarchy called `name`.
    pub(super) fn cgroup_top(&self, name: &OsStr) -> Result<FileAttr, Errno> {
        let subtrees = self.subtrees()?;
        let top = subtrees.tops().iter().find(|top| name == top.controllers.as_str());
        let top = top.ok_or(Errno::NOENT)?;
        let number = Number { hierarchy: top.hierarchy, directory: top.number, file: 0 };
        let stat = subtrees.directory(top.hierarchy, top.number)?.stat(None)?;
        Ok(self.cgroup_attributes_of(number, &stat))
    }

    /// What is called `name` in the directory `parent`, for some reader.
    pub(super) fn cgroup_lookup(&self, parent: u64, name: &OsStr) -> Result<FileAttr, Errno> {
        let name = name.as_bytes();
        let parent = Number::of(parent);
        if parent.file != 0 || name.contains(&b'/') || name == b"." || name == b".." {
            return Err(Errno::NOENT);
        }
        let directory = self.subtrees()?.directory(parent.hierarchy, parent.directory);
        let stat = directory.and_then(|directory| directory.stat(Some(name)));
        let stat = stat.map_err(|errno| match errno {
            // Of any other errno the kernel would make that the name is gone, and unmount what is mounted there.
            Errno::MFILE | Errno::NFILE => Errno::NOMEM,
            errno => errno,
        })?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let child = parent.child(name, kind, stat.st_ino).ok_or(Errno::NOENT)?;
        Ok(self.cgroup_attributes_of(child, &stat))
    }

    /// The kernel's attributes of the node, where the thread `tid` is shown it.
    pub(super) fn cgroup_attributes(&self, bits: u64, tid: u32) -> Result<FileAttr, Errno> {
        let found = self.find_cgroup(bits, tid)?;
        let stat = found.directory.stat(found.file.as_deref())?;
        Ok(self.cgroup_attributes_of(found.number, &stat))
    }

    fn cgroup_attributes_of(&self, number: Number, stat: &Stat) -> FileAttr {
        let kind = kind_of(FileType::from_raw_mode(stat.st_mode));
        let perm = u16::try_from(stat.st_mode & 0o777).unwrap_or(0);
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        FileAttr { uid, gid, ..self.attributes_of(number.node(), kind, perm) }
    }

    /// The names in the directory from `offset` on, each with where the listing goes on behind it.
    pub(super) fn cgroup_names(
        &self,
        bits: u64,
        tid: u32,
        offset: u64,
    ) -> Result<Vec<(u64, Name)>, Errno> {
        let found = self.find_cgroup(bits, tid)?;
        // By the kernel's own offsets, so that none is missed where others come and go.
        let entries = match found.sight() {
            Some(Sight::Everything) => found.directory.list(offset)?,
            Some(Sight::Only(next)) => found.directory.pick(&[b".", b"..", next], offset),
            Some(Sight::Nothing) | None => found.directory.pick(&[b".", b".."], offset),
        };
        let names = entries.into_iter().filter_map(|entry| {
            let is_above_top = entry.name == b".." && found.directory.path.is_empty();
            let node = match found.number.child(&entry.name, entry.kind, entry.number) {
                _ if is_above_top => Node::Directory(Ours::Cgroup),
                child => child?.node(),
            };
            let kind = kind_of(entry.kind);
            Some((entry.next, Name { number: node.number(), kind, name: entry.name }))
        });
        Ok(names.collect())
    }

    /// The text of a file. Pids are the reader's.
    pub(super) fn cgroup_page(&self, bits: u64, tid: u32) -> Result<Bytes> {
        let failed = |errno| Error::io("read", "cgroup/", errno);
        // As the kernel says of a file that is open and whose cgroup was removed.
        let gone = |errno| failed(if errno == Errno::NOENT { Errno::NODEV } else { errno });
        let found = self.find_cgroup(bits, tid).map_err(gone)?;
        let name = found.file.as_deref().ok_or_else(|| failed(Errno::ISDIR))?;
        let in_container = matches!(found.caller, Caller::Container(_));
        if in_container && name.starts_with(b"debug.") {
            // The pids of other tasks are among the words of these.
            return Err(failed(Errno::ACCESS));
        }
        let text = found.directory.read(name).map_err(gone)?;
        if !in_container || !matches!(name, b"tasks" | b"cgroup.procs") {
            return Ok(text.into());
        }
        let pids = text.split(|&byte| byte == b'\n');
        let pids = pids.filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok()).collect();
        let seen = self.road.callers().pids_as_seen(tid, pids)?;
        Ok(seen.iter().map(|pid| format!("{pid}\n")).collect::<String>().into())
    }
}

impl Node {
    /// The number of the node if it is of `cgroup/`.
    pub(super) fn is_cgroup(number: INodeNo) -> bool {
        let node = Self::from_number(number);
        matches!(node, Some(Self::Cgroup(_) | Self::Directory(Ours::Cgroup)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_node_says_which_file_of_which_cgroup_it_is() {
        let top = Number { hierarchy: 31, directory: 1, file: 0 };
        let most = mask(NUMBER_BITS);
        let cgroup = top.child(b"c1", FileType::Directory, most).unwrap();
        assert_eq!(cgroup, Number { directory: most, ..top });
        let file = cgroup.child(b"tasks", FileType::RegularFile, 7).unwrap();
        assert_eq!((file.directory, file.file), (most, hash(b"tasks")));
        for number in [top, cgroup, file] {
            let node = Node::from_number(number.node().number());
            let Some(Node::Cgroup(bits)) = node else { panic!("{node:?}") };
            assert_eq!(Number::of(bits), number);
        }
        assert_eq!(top.child(b"c2", FileType::Directory, most + 1), None, "not another's number");
    }

    /// The files of all v1 controllers up to Linux 6.18, of which `*` and `?` stand for several.
    const FILES: &str = "tasks cgroup.procs cgroup.clone_children cgroup.sane_behavior cgroup.event_control \
        notify_on_release release_agent \
        blkio.reset_stats blkio.weight blkio.weight_device blkio.leaf_weight blkio.leaf_weight_device blkio.prio.class \
        blkio.throttle.?_bps_device blkio.throttle.?_iops_device blkio.throttle.io_serviced* \
        blkio.throttle.io_service_bytes* blkio.bfq.weight blkio.bfq.weight_device blkio.bfq.io_serviced* \
        blkio.bfq.io_service_bytes* blkio.bfq.io_merged* blkio.bfq.io_queued* blkio.bfq.io_service_time* \
        blkio.bfq.io_wait_time* blkio.bfq.time* blkio.bfq.sectors* blkio.bfq.avg_queue_size \
        blkio.bfq.dequeue blkio.bfq.empty_time blkio.bfq.group_wait_time blkio.bfq.idle_time \
        blkio.io_serviced* blkio.io_service_bytes* blkio.io_merged* blkio.io_queued* blkio.io_service_time* \
        blkio.io_wait_time* blkio.time* blkio.sectors* \
        cpu.shares cpu.cfs_quota_us cpu.cfs_period_us cpu.cfs_burst_us cpu.stat cpu.stat.local cpu.idle cpu.rt_runtime_us \
        cpu.rt_period_us cpu.uclamp.min cpu.uclamp.max \
        cpuacct.usage cpuacct.usage_user cpuacct.usage_sys cpuacct.usage_percpu cpuacct.usage_percpu_user \
        cpuacct.usage_percpu_sys cpuacct.usage_all cpuacct.stat \
        cpuset.cpus cpuset.mems cpuset.effective_cpus cpuset.effective_mems cpuset.cpu_exclusive cpuset.mem_exclusive \
        cpuset.mem_hardwall cpuset.sched_load_balance cpuset.sched_relax_domain_level cpuset.memory_migrate \
        cpuset.memory_pressure cpuset.memory_pressure_enabled cpuset.memory_spread_page cpuset.memory_spread_slab \
        devices.allow devices.deny devices.list freezer.state freezer.self_freezing freezer.parent_freezing \
        hugetlb.#.limit_in_bytes hugetlb.#.usage_in_bytes hugetlb.#.max_usage_in_bytes hugetlb.#.failcnt \
        hugetlb.#.rsvd.limit_in_bytes hugetlb.#.rsvd.usage_in_bytes hugetlb.#.rsvd.max_usage_in_bytes \
        hugetlb.#.rsvd.failcnt hugetlb.#.numa_stat \
        memory.stat memory.numa_stat memory.swappiness memory.use_hierarchy memory.force_empty memory.oom_control \
        memory.pressure_level memory.move_charge_at_immigrate memory.soft_limit_in_bytes memory.kmem.slabinfo \
        memory.@limit_in_bytes memory.@usage_in_bytes memory.@max_usage_in_bytes memory.@failcnt \
        misc.max misc.current misc.peak misc.events misc.capacity net_cls.classid net_prio.prioidx net_prio.ifpriomap \
        pids.max pids.current pids.peak pids.events pids.events.local rdma.max rdma.current";

    #[test]
    fn no_two_files_of_the_kernels_share_a_number() {
        let variants = |pattern: &str| -> Vec<String> {
            let (mark, fillings): (_, &[&str]) = match pattern {
                name if name.contains('*') => ("*", &["", "_recursive"]),
                name if name.contains('?') => ("?", &["read", "write"]),
                name if name.contains('@') => ("@", &["", "memsw.", "kmem.", "kmem.tcp."]),
                name if name.contains('#') => {
                    ("#", &["64KB", "1MB", "2MB", "16MB", "32MB", "512MB", "1GB", "2GB", "16GB"])
                }
                _ => ("*", &[""]),
            };
            fillings.iter().map(|filling| pattern.replace(mark, filling)).collect()
        };
        let mut known = HashMap::new();
        for name in FILES.split_whitespace().flat_map(variants) {
            if let Some(other) = known.insert(hash(name.as_bytes()), name.clone()) {
                assert_eq!(other, name, "share a number");
            }
        }
        assert!(known.len() > 200, "only {}", known.len());
        assert!(!known.contains_key(&0));
    }
}
