//! The tree: which names there are and which node each is. Lookup and listing both read it.
//!
//! Node numbers are part of what must not change while a mount lives: constants for what we make, and numbers made from
//! the path for what `/sys` has. Nothing has to be remembered for a node, so there is nothing to lose or to leak.

use fuser::{FileType, INodeNo};

use super::sysfs;
use crate::model::file::{File, Resource};
use crate::model::topology::Tree;

/// A node number with this bit is a node of the host's `/sys`; [`sysfs`] makes the other bits.
const SYSFS: u64 = 1 << 62;

/// And one with this bit is a node of a cgroup hierarchy; [`super::cgroups`] makes the others.
const CGROUP: u64 = 1 << 63;

/// The numbers of the files we make start here, in the order of [`File::ALL`]. The next version has to know them: what is new
/// is added at the end.
const FIRST_FILE: u64 = 16;

/// One node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    /// A directory of ours.
    Directory(Directory),
    /// A file we make.
    File(File),
    /// Something in one of the trees of the host's `/sys`.
    Sysfs(u64),
    /// A directory or file of a cgroup v1 hierarchy.
    Cgroup(u64),
}

/// The directories of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Directory {
    Root,
    Proc,
    Pressure,
    Sys,
    Devices,
    System,
    Cgroup,
}

impl Node {
    /// The node of `number`, if there can be one.
    pub(super) fn from_number(number: INodeNo) -> Option<Self> {
        let number = number.0;
        if number & CGROUP != 0 {
            return Some(Self::Cgroup(number & !CGROUP));
        }
        if number & SYSFS != 0 {
            return Some(Self::Sysfs(number & !SYSFS));
        }
        let directory = Directory::ALL.into_iter().find(|directory| directory.number() == number);
        let file = || {
            let index = usize::try_from(number.checked_sub(FIRST_FILE)?).ok()?;
            File::ALL.get(index).copied()
        };
        directory.map(Self::Directory).or_else(|| file().map(Self::File))
    }

    /// The node's number.
    pub(super) fn number(self) -> INodeNo {
        INodeNo(match self {
            Self::Directory(directory) => directory.number(),
            Self::File(file) => {
                let index = File::ALL.iter().position(|&known| known == file).unwrap_or_default();
                FIRST_FILE + index as u64
            }
            Self::Sysfs(number) => number | SYSFS,
            Self::Cgroup(number) => number | CGROUP,
        })
    }
}

/// What the node of this number is, in words.
#[must_use]
pub fn name_of(number: u64) -> String {
    match Node::from_number(INodeNo(number)) {
        Some(Node::File(file)) => file.path().to_owned(),
        Some(Node::Directory(_)) => "a directory".to_owned(),
        Some(Node::Sysfs(_)) => "a file of /sys".to_owned(),
        Some(Node::Cgroup(_)) => "a file of cgroup/".to_owned(),
        None => format!("node {number}"),
    }
}

impl Directory {
    const ALL: [Self; 7] = [
        Self::Root,
        Self::Proc,
        Self::Pressure,
        Self::Sys,
        Self::Devices,
        Self::System,
        Self::Cgroup,
    ];

    const fn number(self) -> u64 {
        match self {
            Self::Root => 1,
            Self::Proc => 2,
            Self::Pressure => 3,
            Self::Sys => 4,
            Self::Devices => 5,
            Self::System => 6,
            Self::Cgroup => 7,
        }
    }

    /// Permissions, as the kernel's directories of these names have them.
    pub(super) const fn mode(self) -> u16 {
        match self {
            Self::Root | Self::Sys | Self::Devices | Self::System | Self::Cgroup => 0o755,
            Self::Proc | Self::Pressure => 0o555,
        }
    }

    /// The directory it is in. The root is in itself.
    pub(super) const fn parent(self) -> Self {
        match self {
            Self::Root | Self::Proc | Self::Sys | Self::Cgroup => Self::Root,
            Self::Pressure => Self::Proc,
            Self::Devices => Self::Sys,
            Self::System => Self::Devices,
        }
    }

    /// Whether it stands for a directory of procfs, which answers differently from sysfs when something is to be made.
    pub(super) const fn is_procfs(self) -> bool {
        matches!(self, Self::Proc | Self::Pressure)
    }

    /// What is in it, as far as that is the same on every machine.
    pub(super) fn entries(self) -> Vec<(&'static str, Node)> {
        let directory = |name, directory| (name, Node::Directory(directory));
        match self {
            Self::Root => [("cgroup", Self::Cgroup), ("proc", Self::Proc), ("sys", Self::Sys)]
                .map(|(name, below)| directory(name, below))
                .to_vec(),
            Self::Proc => {
                let files = File::ALL.into_iter().filter_map(|file| {
                    let name = file.path().strip_prefix("proc/")?;
                    (!name.contains('/')).then_some((name, Node::File(file)))
                });
                files.chain([directory("pressure", Self::Pressure)]).collect()
            }
            Self::Pressure => [Resource::Cpu, Resource::Io, Resource::Memory]
                .map(|resource| {
                    let file = File::Pressure(resource);
                    (file.path().trim_start_matches("proc/pressure/"), Node::File(file))
                })
                .to_vec(),
            Self::Sys => vec![directory("devices", Self::Devices)],
            Self::Devices => vec![directory("system", Self::System)],
            // The host's hierarchies.
            Self::Cgroup => Vec::new(),
            Self::System => {
                Tree::ALL.map(|tree| (tree.name(), Node::Sysfs(sysfs::top(tree)))).to_vec()
            }
        }
    }
}

/// The kind of a node of ours, for a listing.
pub(super) const fn kind(node: Node) -> FileType {
    match node {
        Node::Directory(_) | Node::Sysfs(_) | Node::Cgroup(_) => FileType::Directory,
        Node::File(_) => FileType::RegularFile,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_node_is_found_by_its_number_and_no_two_share_one() {
        let directories = Directory::ALL.map(Node::Directory);
        let files = File::ALL.map(Node::File);
        let nodes: Vec<_> = directories
            .into_iter()
            .chain(files)
            .chain([Node::Sysfs(3562), Node::Cgroup(3562)])
            .collect();
        for &node in &nodes {
            assert_eq!(Node::from_number(node.number()), Some(node));
        }
        let numbers: HashSet<_> = nodes.iter().map(|node| node.number().0).collect();
        assert_eq!(numbers.len(), nodes.len());
        assert_eq!(Node::from_number(INodeNo(15)), None);
        assert_eq!(Node::from_number(INodeNo(0)), None);
    }

    #[test]
    fn every_file_has_its_place() {
        let mut found = Vec::new();
        let mut directories = vec![(Directory::Root, String::new())];
        while let Some((directory, path)) = directories.pop() {
            for (name, node) in directory.entries() {
                let path = format!("{path}{name}");
                match node {
                    Node::Directory(below) => directories.push((below, format!("{path}/"))),
                    Node::File(file) => {
                        assert_eq!(file.path(), path);
                        found.push(file);
                    }
                    Node::Cgroup(_) => unreachable!("{path}"),
                    Node::Sysfs(_) => assert!(path.starts_with("sys/devices/system/"), "{path}"),
                }
            }
        }
        // cpu/online lies in the host's directory, where it takes the place of the host's.
        assert_eq!(found.len(), File::ALL.len() - 1);
    }
}
