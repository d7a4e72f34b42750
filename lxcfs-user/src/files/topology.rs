//! `/sys/devices/system/cpu` and `/sys/devices/system/node`: the host's files, cut to the CPUs and nodes shown (kernel:
//! drivers/base/cpu.c, topology.c, cacheinfo.c, node.c).
//!
//! Whatever names a CPU names one that is shown, under the number it is shown by. Everything else describes the machine.

use std::io::Write;

use super::{View, node_meminfo};
use crate::error::{Errno, Error, Result};
use crate::model::cpus::{CpuSet, CpuView};
use crate::model::topology::{Content, Place, Shown, Tree};
use crate::source::{Machine, parse};

/// Where the trees are on the host.
const SYSTEM: &str = "sys/devices/system";

/// Appends the text of the file at `place`. `false`: there is none for this reader, or not any more.
pub(super) fn page(view: &View<'_>, place: &Place, page: &mut Vec<u8>) -> Result<bool> {
    let shown = view.shown(place.tree)?;
    let Some(path) = place.host_path(&shown) else { return Ok(false) };
    let content = place.content();
    let host = match content {
        Content::Shown | Content::Nothing => Vec::new(),
        _ => match read(view.machine, &format!("{SYSTEM}/{}", String::from_utf8_lossy(&path))) {
            // A CPU that was unplugged since.
            Err(Error { errno: Errno::NOENT | Errno::NODEV, .. }) => return Ok(false),
            host => host?,
        },
    };
    match content {
        Content::Shown => {
            let _ = writeln!(page, "{}", shown.units(place.tree).unwrap_or_default());
        }
        Content::Nothing => page.push(b'\n'),
        Content::List(tree) => {
            let set = cut(&parse_list(&host), tree, &shown);
            let _ = writeln!(page, "{}", with_shown_cpus(view, place, set, &shown)?);
        }
        Content::Mask => render_mask(&host, &shown, page),
        Content::Words => render_words(&host, &shown, page),
        Content::Distance => {
            let online = parse_list(&read(view.machine, &format!("{SYSTEM}/node/online"))?);
            render_distance(&host, &online, &shown, page);
        }
        Content::Meminfo => {
            let (node, nodes) = (place.unit.unwrap_or(0), shown.nodes.unwrap_or_default());
            node_meminfo::page(view, node, &nodes, &host, page)?;
        }
        Content::Host => page.extend_from_slice(&host),
    }
    Ok(true)
}

/// The nodes the container is shown: those it may have memory of, and those of its CPUs.
fn nodes(view: &View<'_>) -> Result<CpuSet> {
    let online = parse_list(&read(view.machine, &format!("{SYSTEM}/node/online"))?);
    if view.policy.cpu_view == CpuView::Host {
        return Ok(online);
    }
    let Some(mems) = view.source.mems(view.container)? else { return Ok(online) };
    let mut nodes = mems.intersection(&online);
    let shown = Shown { cpus: Some(view.cpus()?), nodes: None };
    for node in online.iter() {
        let cpus = read(view.machine, &format!("{SYSTEM}/node/node{node}/cpulist"))?;
        if !cut(&parse_list(&cpus), Tree::Cpu, &shown).is_empty() {
            nodes.insert(node);
        }
    }
    Ok(nodes)
}

fn read(machine: &dyn Machine, path: &str) -> Result<Vec<u8>> {
    let mut text = Vec::with_capacity(256);
    machine.read_sys(path, &mut text)?;
    Ok(text)
}

/// A list of the kernel's. What is none (`(null)`, where no CPU is nohz_full) is empty.
fn parse_list(text: &[u8]) -> CpuSet {
    CpuSet::parse(text).unwrap_or_default()
}

/// What of the host's `units` is shown, by the numbers shown.
fn cut(units: &CpuSet, tree: Tree, shown: &Shown) -> CpuSet {
    units.iter().filter_map(|unit| shown.shown(tree, unit)).collect()
}

/// `has_cpu` names nodes by their CPUs: those of which none is shown have none.
fn with_shown_cpus(view: &View<'_>, place: &Place, nodes: CpuSet, shown: &Shown) -> Result<CpuSet> {
    if &*place.rest != b"has_cpu" {
        return Ok(nodes);
    }
    let mut with_cpus = CpuSet::default();
    for node in nodes.iter() {
        let cpus = read(view.machine, &format!("{SYSTEM}/node/node{node}/cpulist"))?;
        if !cut(&parse_list(&cpus), Tree::Cpu, shown).is_empty() {
            with_cpus.insert(node);
        }
    }
    Ok(with_cpus)
}

/// A mask like `00000000,0000ffff` with the bits of the CPUs shown, as wide as the host's.
fn render_mask(host: &[u8], shown: &Shown, page: &mut Vec<u8>) {
    let digits = || host.iter().rev().filter_map(|&digit| char::from(digit).to_digit(16));
    let bits = |digit: u32| (0..4).filter(move |bit| digit >> bit & 1 == 1);
    let set: CpuSet = (0..)
        .zip(digits())
        .flat_map(|(index, digit)| bits(digit).map(move |bit| index * 4 + bit))
        .filter_map(|cpu| shown.shown(Tree::Cpu, cpu))
        .collect();
    let mut left = u32::try_from(digits().count()).unwrap_or(0);
    for &byte in host.trim_ascii_end() {
        if byte.is_ascii_hexdigit() {
            left -= 1;
            let digit =
                (0..4).filter(|bit| set.contains(left * 4 + bit)).fold(0, |d, b| d | 1 << b);
            page.push(b"0123456789abcdef"[digit & 15]);
        } else {
            page.push(byte);
        }
    }
    page.push(b'\n');
}

/// CPU numbers with a space between them.
fn render_words(host: &[u8], shown: &Shown, page: &mut Vec<u8>) {
    let numbers = parse::fields(host).filter_map(|word| u32::try_from(parse::number(word)?).ok());
    let set: CpuSet = numbers.filter_map(|cpu| shown.shown(Tree::Cpu, cpu)).collect();
    let words: Vec<_> = set.iter().map(|cpu| cpu.to_string()).collect();
    let _ = writeln!(page, "{}", words.join(" "));
}

/// A distance for each node that is online, of which those to the nodes shown remain.
fn render_distance(host: &[u8], online: &CpuSet, shown: &Shown, page: &mut Vec<u8>) {
    let distances = online.iter().zip(parse::fields(host));
    let shown = distances.filter(|&(node, _)| shown.shown(Tree::Node, node).is_some());
    let words: Vec<_> = shown.map(|(_, distance)| distance).collect();
    page.extend_from_slice(&words.join(&b' '));
    page.push(b'\n');
}

impl View<'_> {
    /// What the container is shown of the trees: of the nodes only where `tree` is theirs.
    pub(super) fn shown(&self, tree: Tree) -> Result<Shown> {
        let nodes = match tree {
            Tree::Cpu => None,
            Tree::Node => Some(nodes(self)?),
        };
        let cpus = self.cpus()?;
        if cpus.count() == 0 {
            return Err(Error::parse(format!("/{SYSTEM}/cpu/online"), "no CPU is online"));
        }
        Ok(Shown { cpus: Some(cpus), nodes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::testing::Case;
    use crate::model::cpus::Bandwidth;
    use crate::model::file::File;
    use crate::source::fake::FakeSource;

    /// Two nodes of two cores of two threads each: cores are {0,4}, {1,5}, {2,6}, {3,7}.
    fn case(cpuset: &str, mems: &str) -> Case {
        let source = FakeSource {
            cpuset: CpuSet::parse(cpuset.as_bytes()),
            mems: CpuSet::parse(mems.as_bytes()),
            ..FakeSource::default()
        };
        let mut case = Case::new(source, &[(File::CpuOnline, "0-7\n")]);
        let sys = [
            ("cpu/kernel_max", "8191\n"),
            ("cpu/isolated", "5-7\n"),
            ("cpu/nohz_full", "  (null)\n"),
            ("cpu/cpu5/topology/core_id", "1\n"),
            ("cpu/cpu5/topology/core_cpus", "00000000,00000022\n"),
            ("cpu/cpu5/topology/core_cpus_list", "1,5\n"),
            ("cpu/cpu5/cpufreq/related_cpus", "1 5\n"),
            ("node/online", "0-1\n"),
            ("node/has_cpu", "0-1\n"),
            ("node/has_memory", "0-1\n"),
            ("node/node0/cpulist", "0-1,4-5\n"),
            ("node/node1/cpulist", "2-3,6-7\n"),
            ("node/node1/cpumap", "00000000,000000cc\n"),
            ("node/node1/distance", "21 10\n"),
        ];
        case.machine.sys =
            sys.map(|(path, text)| (format!("{SYSTEM}/{path}"), text.to_owned())).to_vec();
        case
    }

    fn text(case: &Case, path: &str) -> String {
        let mut names = path.split('/');
        let top = names.next();
        let tree = Tree::ALL.into_iter().find(|tree| Some(tree.name()) == top).unwrap();
        let place = names.try_fold(Place::top(tree), |place, name| place.child(name.as_bytes()));
        case.sysfs(&place.unwrap()).unwrap()
    }

    #[test]
    fn a_cpuset_keeps_its_numbers_in_every_file() {
        let case = case("1,5-6", "1");
        for (path, want) in [
            ("cpu/possible", "1,5-6\n"),
            ("cpu/present", "1,5-6\n"),
            ("cpu/online", "1,5-6\n"),
            ("cpu/offline", "\n"),
            ("cpu/isolated", "5-6\n"),
            ("cpu/nohz_full", "\n"),
            ("cpu/kernel_max", "8191\n"),
            ("cpu/cpu5/topology/core_id", "1\n"),
            ("cpu/cpu5/topology/core_cpus", "00000000,00000022\n"),
            ("cpu/cpu5/topology/core_cpus_list", "1,5\n"),
            ("cpu/cpu5/cpufreq/related_cpus", "1 5\n"),
            ("node/online", "0-1\n"),
            ("node/has_cpu", "0-1\n"),
            ("node/has_memory", "0-1\n"),
            ("node/node1/cpulist", "6\n"),
            ("node/node1/cpumap", "00000000,00000040\n"),
            ("node/node1/distance", "21 10\n"),
        ] {
            assert_eq!(text(&case, path), want, "{path}");
        }
    }

    #[test]
    fn virtual_cpus_count_from_zero_in_every_file() {
        let mut case = case("3,5-7", "1");
        case.policy.cpu_view = CpuView::Quota;
        case.source.bandwidth = Some(Bandwidth { quota_us: 3, period_us: 1 });
        // Behind 0, 1 and 2 are 3, 5 and 6.
        for (path, want) in [
            ("cpu/possible", "0-2\n"),
            ("cpu/isolated", "1-2\n"),
            ("cpu/cpu1/topology/core_cpus", "00000000,00000002\n"),
            ("cpu/cpu1/topology/core_cpus_list", "1\n"),
            ("node/node1/cpulist", "0,2\n"),
            ("node/node1/cpumap", "00000000,00000005\n"),
        ] {
            assert_eq!(text(&case, path), want, "{path}");
        }
    }

    #[test]
    fn a_container_in_one_node_sees_no_other() {
        let case = case("2-3", "1");
        assert_eq!(text(&case, "node/online"), "1\n");
        assert_eq!(text(&case, "node/has_cpu"), "1\n");
        assert_eq!(text(&case, "node/node1/distance"), "10\n");
    }

    #[test]
    fn a_mask_of_a_thousand_cpus() {
        let cpus = "0,1023";
        let source = FakeSource { cpuset: CpuSet::parse(cpus.as_bytes()), ..FakeSource::default() };
        let mut case = Case::new(source, &[(File::CpuOnline, "0-1023\n")]);
        let full = vec!["ffffffff"; 32].join(",");
        let path = format!("{SYSTEM}/cpu/cpu1023/topology/package_cpus");
        case.machine.sys = vec![(path, full + "\n")];
        let mask = text(&case, "cpu/cpu1023/topology/package_cpus");
        assert_eq!(mask, format!("80000000,{}00000001\n", "00000000,".repeat(30)));
    }
}
