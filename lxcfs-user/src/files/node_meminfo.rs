//! `/sys/devices/system/node/nodeN/meminfo`: what of the container's memory is in that node (kernel: drivers/base/node.c).
//!
//! A limit is on memory of any node. Each node shown has its share of it, by the node's size, so that the nodes together
//! are what `/proc/meminfo` says.

use super::{View, required};
use crate::error::{Error, Result};
use crate::model::cpus::CpuSet;
use crate::model::file::File;
use crate::source::parse;

use super::meminfo::{kib, push_line};

/// The lines of the file, and what they are the sum of in `memory.numa_stat`.
const LINES: [(&str, &[&str]); 21] = [
    ("Active", &["active_anon", "active_file"]),
    ("Inactive", &["inactive_anon", "inactive_file"]),
    ("Active(anon)", &["active_anon"]),
    ("Inactive(anon)", &["inactive_anon"]),
    ("Active(file)", &["active_file"]),
    ("Inactive(file)", &["inactive_file"]),
    ("Unevictable", &["unevictable"]),
    ("SwapCached", &["swapcached"]),
    ("Dirty", &["file_dirty"]),
    ("Writeback", &["file_writeback"]),
    ("FilePages", &["file"]),
    ("Mapped", &["file_mapped"]),
    ("AnonPages", &["anon"]),
    ("Shmem", &["shmem"]),
    ("KernelStack", &["kernel_stack"]),
    ("PageTables", &["pagetables"]),
    ("SecPageTables", &["sec_pagetables"]),
    ("KReclaimable", &["slab_reclaimable"]),
    ("SReclaimable", &["slab_reclaimable"]),
    ("Slab", &["slab_reclaimable", "slab_unreclaimable"]),
    ("SUnreclaim", &["slab_unreclaimable"]),
];

/// What is used of a node, where nothing says it as one number: none of these is part of another.
const USED: [&str; 6] =
    ["anon", "file", "kernel_stack", "pagetables", "slab_reclaimable", "slab_unreclaimable"];

/// Appends the file of `node`, one of those `shown`, of which `host` is the host's.
pub(super) fn page(
    view: &View<'_>,
    node: u32,
    shown: &CpuSet,
    host: &[u8],
    page: &mut Vec<u8>,
) -> Result<()> {
    let memory = required(view.source.memory(view.container)?, "memory")?;
    let stat = view.source.numa(view.container)?.unwrap_or_default();
    let sizes = sizes(view, node, shown, host)?;
    let known = |key: &str| stat.iter().find(|entry| entry.key == key).map(|e| e.on(node));
    let whole = view.host(File::Meminfo)?;
    let machine = whole.number(b"MemTotal").unwrap_or(u64::MAX);
    let limit_kib = memory.limit_bytes.map_or(machine, kib).clamp(1, machine);
    let total_kib = sizes.share(limit_kib);
    let used_bytes = if sizes.is_only {
        memory.usage_bytes
    } else {
        USED.iter().filter_map(|key| known(key)).fold(0, u64::saturating_add)
    };
    let used_kib = kib(used_bytes).min(total_kib);
    for line in parse::lines(host) {
        let Some((name, prefix)) = split(line) else { continue };
        let sum = |keys: &[&str]| keys.iter().map(|key| known(key)).sum::<Option<u64>>().map(kib);
        let number = match name {
            "MemTotal" => Some(total_kib),
            "MemFree" => Some(total_kib - used_kib),
            "MemUsed" => Some(used_kib),
            _ => LINES.iter().find(|(known, _)| *known == name).and_then(|(_, keys)| sum(keys)),
        };
        if let Some(kib) = number {
            page.extend_from_slice(prefix.as_bytes());
            push_line(page, name.as_bytes(), kib, b" kB\n");
        }
    }
    Ok(())
}

/// The sizes of the nodes shown.
struct Sizes {
    own_kib: u64,
    all_kib: u64,
    is_only: bool,
}

impl Sizes {
    /// The node's share of `kib`.
    fn share(&self, kib: u64) -> u64 {
        let share = u128::from(kib) * u128::from(self.own_kib) / u128::from(self.all_kib.max(1));
        u64::try_from(share).unwrap_or(kib)
    }
}

fn sizes(view: &View<'_>, node: u32, shown: &CpuSet, host: &[u8]) -> Result<Sizes> {
    let mems = view.source.mems(view.container)?;
    let nodes = mems.map_or_else(|| shown.clone(), |mems| mems.intersection(shown));
    let own_kib = if nodes.contains(node) { total_kib(host) } else { 0 };
    let mut all_kib = own_kib;
    for other in nodes.iter().filter(|&other| other != node) {
        let path = format!("sys/devices/system/node/node{other}/meminfo");
        let mut text = Vec::new();
        view.machine.read_sys(&path, &mut text)?;
        all_kib = all_kib.saturating_add(total_kib(&text));
    }
    if all_kib == 0 {
        return Err(Error::parse("/sys/devices/system/node", "no node has memory"));
    }
    Ok(Sizes { own_kib, all_kib, is_only: all_kib == own_kib })
}

fn total_kib(host: &[u8]) -> u64 {
    parse::lines(host)
        .find_map(|line| {
            let (name, prefix) = split(line)?;
            let value = line.get(prefix.len() + name.len() + 1..)?;
            (name == "MemTotal").then(|| parse::number(parse::fields(value).next()?))?
        })
        .unwrap_or(0)
}

/// `(MemTotal, "Node 0 ")` of `Node 0 MemTotal: 1 kB`.
fn split(line: &[u8]) -> Option<(&str, &str)> {
    let line = std::str::from_utf8(line).ok()?;
    let (head, _) = line.split_once(':')?;
    let start = head.rfind(' ')? + 1;
    Some((&head[start..], &head[..start]))
}

#[cfg(test)]
mod tests {
    use crate::files::testing::Case;
    use crate::model::cpus::CpuSet;
    use crate::model::file::File;
    use crate::model::topology::{Place, Tree};
    use crate::source::fake::FakeSource;
    use crate::source::{Memory, NumaStat};

    fn case(mems: &str) -> Case {
        let stat = |key: &str, bytes: &[(u32, u64)]| NumaStat {
            key: key.to_owned(),
            bytes: bytes.to_vec(),
        };
        let source = FakeSource {
            memory: Some(Memory {
                limit_bytes: Some(400 << 20),
                usage_bytes: 30 << 20,
                ..Memory::default()
            }),
            mems: CpuSet::parse(mems.as_bytes()),
            numa: Some(vec![
                stat("anon", &[(0, 4 << 20), (1, 8 << 20)]),
                stat("file", &[(0, 2 << 20), (1, 1 << 20)]),
            ]),
            ..FakeSource::default()
        };
        let mut case = Case::new(
            source,
            &[(File::CpuOnline, "0-1\n"), (File::Meminfo, "MemTotal: 4096000 kB\n")],
        );
        let system =
            |path: &str, text: &str| (format!("sys/devices/system/node/{path}"), text.to_owned());
        let meminfo = |node: u32, kib: u64| {
            let text = format!(
                "Node {node} MemTotal:       {kib:>8} kB\nNode {node} MemFree:               1 kB\n\
                 Node {node} AnonPages:             1 kB\nNode {node} Mlocked:               1 kB\n\
                 Node {node} HugePages_Total:     0\n"
            );
            system(&format!("node{node}/meminfo"), &text)
        };
        case.machine.sys = vec![
            system("online", "0-1\n"),
            system("node0/cpulist", "0\n"),
            system("node1/cpulist", "1\n"),
            meminfo(0, 3_072_000),
            meminfo(1, 1_024_000),
        ];
        case
    }

    fn text(case: &Case, node: &str) -> String {
        let place = Place::top(Tree::Node).child(node.as_bytes()).unwrap();
        case.sysfs(&place.child(b"meminfo").unwrap()).unwrap()
    }

    #[test]
    fn nodes_share_the_limit_by_their_sizes() {
        assert_eq!(
            text(&case("0-1"), "node0"),
            "Node 0 MemTotal:         307200 kB\nNode 0 MemFree:          301056 kB\n\
             Node 0 AnonPages:          4096 kB\n"
        );
        assert!(text(&case("0-1"), "node1").starts_with("Node 1 MemTotal:         102400 kB\n"));
    }

    #[test]
    fn the_only_node_has_all_that_is_used() {
        let page = text(&case("1"), "node1");
        assert!(
            page.starts_with(
                "Node 1 MemTotal:         409600 kB\nNode 1 MemFree:          378880 kB\n"
            ),
            "{page}"
        );
        // It may run on a CPU of the other, which has no memory for it.
        assert!(text(&case("1"), "node0").starts_with("Node 0 MemTotal:              0 kB\n"));
    }
}
