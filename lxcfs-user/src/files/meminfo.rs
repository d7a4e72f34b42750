//! `/proc/meminfo`: the host's lines in the host's order, with the container's numbers (kernel: fs/proc/meminfo.c).

use super::digits::{pad, push_right};
use super::hugepages::{self, Hugepages};
use super::{View, required};
use crate::error::{Error, Result};
use crate::model::file::File;
use crate::source::sheet::Sheet;
use crate::source::{Memory, Text};

/// The host's file and what replaces its numbers.
#[derive(Debug)]
pub(super) struct Meminfo {
    host: Text,
    /// All memory the container may use, KiB.
    total_kib: u64,
    /// What of it could be had without swapping, KiB.
    available_kib: u64,
    memory: Memory,
    swap_total_kib: u64,
    swap_used_kib: u64,
    zswap: bool,
    commit_limit_kib: u64,
    hugepages: Option<Hugepages>,
}

/// The host's lines that a container is shown: they describe the machine and not who uses it.
pub(super) const HOST: [&str; 12] = [
    "VmallocTotal",
    "VmallocChunk",
    "HardwareCorrupted",
    "HugePages_Total",
    "HugePages_Free",
    "HugePages_Rsvd",
    "HugePages_Surp",
    "Hugepagesize",
    "Hugetlb",
    "DirectMap4k",
    "DirectMap2M",
    "DirectMap1G",
];

/// What becomes of a line of the host's.
#[derive(Clone, Copy)]
enum Line {
    /// This number in its place.
    Kib(u64),
    /// This number of pages.
    Count(u64),
    /// The line is left out: the container's number cannot be known, and the host's would mislead.
    Absent,
    /// The host's line: it describes the machine and not who uses it.
    Host,
}

pub(super) fn gather(view: &View<'_>) -> Result<Meminfo> {
    let memory = required(view.source.memory(view.container)?, "memory")?;
    let host = view.host(File::Meminfo)?;
    let host_total_kib = host
        .number(b"MemTotal")
        .filter(|&total| total > 0)
        .ok_or_else(|| Error::parse("/proc/meminfo", "no MemTotal"))?;
    // A limit of less than a KiB would be shown as no memory at all, which ps and others divide by.
    let total_kib = memory.limit_bytes.map_or(host_total_kib, kib).clamp(1, host_total_kib);
    let reclaimable_bytes = memory
        .active_file_bytes
        .saturating_add(memory.inactive_file_bytes)
        .saturating_add(memory.slab_reclaimable_bytes.unwrap_or(0));
    let available_kib = free_kib(total_kib, &memory)
        .saturating_add(kib(reclaimable_bytes))
        .min(total_kib)
        .min(host.number(b"MemAvailable").unwrap_or(u64::MAX));
    let (swap_total_kib, swap_used_kib) = swap_kib(view, &host)?;
    let zswap = view.policy.zswap;
    let hugepages = hugepages::gather(view, &host)?;
    let commit_limit_kib =
        commit_limit_kib(&host, host_total_kib, total_kib).saturating_add(swap_total_kib);
    Ok(Meminfo {
        host,
        total_kib,
        available_kib,
        memory,
        swap_total_kib,
        swap_used_kib,
        zswap,
        commit_limit_kib,
        hugepages,
    })
}

/// The part of `CommitLimit` that goes by memory (`vm.overcommit_ratio`), for `total_kib` of memory.
fn commit_limit_kib(host: &Sheet, host_total_kib: u64, total_kib: u64) -> u64 {
    let number = |name: &[u8]| host.number(name).unwrap_or(0);
    let of_memory = number(b"CommitLimit").saturating_sub(number(b"SwapTotal"));
    let part = u128::from(of_memory) * u128::from(total_kib) / u128::from(host_total_kib.max(1));
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// `(total, used)` swap of the container, KiB: what its limit and the host's swap both allow. Where the kernel does not
/// account swap there is none to show.
pub(super) fn swap_kib(view: &View<'_>, host_meminfo: &Sheet) -> Result<(u64, u64)> {
    let host_total = host_meminfo.number(b"SwapTotal").unwrap_or(0);
    // Where the host has none, there is nothing to ask for.
    let is_shown = view.policy.swap && host_total > 0;
    let swap = if is_shown { view.source.swap(view.container)? } else { None };
    let Some(swap) = swap else { return Ok((0, 0)) };
    let total = swap.limit_bytes.map_or(host_total, kib).min(host_total);
    Ok((total, kib(swap.used_bytes).min(total)))
}

pub(super) fn render(meminfo: &Meminfo, page: &mut Vec<u8>) {
    let host = &meminfo.host;
    // What is not set is left out: the container's number cannot be known, and the host's would mislead.
    let mut lines = vec![Line::Absent; host.line_count()];
    let mut set = |name: &str, line| {
        if let Some(nth) = host.position(name.as_bytes()) {
            lines[nth] = line;
        }
    };
    HOST.into_iter().for_each(|name| set(name, Line::Host));
    limits(meminfo).into_iter().for_each(|(name, kib)| set(name, Line::Kib(kib)));
    usage(&meminfo.memory).into_iter().for_each(|(name, bytes)| {
        set(name, Line::Kib(kib(bytes)));
    });
    for (name, bytes) in counted(meminfo) {
        set(name, bytes.map_or(Line::Absent, |bytes| Line::Kib(kib(bytes))));
    }
    for (name, number, is_kib) in meminfo.hugepages.iter().flat_map(Hugepages::lines) {
        set(name, if is_kib { Line::Kib(number) } else { Line::Count(number) });
    }
    for (nth, line) in lines.into_iter().enumerate() {
        match line {
            Line::Absent => {}
            Line::Host => {
                page.extend_from_slice(host.line(nth));
                page.push(b'\n');
            }
            Line::Count(count) => push_line(page, host.name(nth), count, b"\n"),
            Line::Kib(kib) => push_line(page, host.name(nth), kib, b" kB\n"),
        }
    }
}

/// The kernel pads the name to 16 columns and the number to 8.
pub(super) fn push_line(page: &mut Vec<u8>, name: &[u8], number: u64, end: &[u8]) {
    page.extend_from_slice(name);
    page.push(b':');
    pad(page, 16_usize.saturating_sub(name.len() + 1));
    push_right(page, number, 8);
    page.extend_from_slice(end);
}

/// What the container may use and has left, KiB.
const fn limits(meminfo: &Meminfo) -> [(&'static str, u64); 8] {
    let Meminfo { total_kib, available_kib, swap_total_kib, swap_used_kib, .. } = *meminfo;
    let memory = &meminfo.memory;
    [
        ("MemTotal", total_kib),
        ("MemFree", free_kib(total_kib, memory)),
        ("MemAvailable", available_kib),
        ("SwapTotal", swap_total_kib),
        ("SwapFree", swap_total_kib - swap_used_kib),
        ("CommitLimit", meminfo.commit_limit_kib),
        // What was asked for and has been used: no cgroup counts what was asked for alone.
        (
            "Committed_AS",
            kib(memory.anon_bytes.saturating_add(memory.shmem_bytes)).saturating_add(swap_used_kib),
        ),
        // The kernel itself has shown 0 for years.
        ("NFS_Unstable", 0),
    ]
}

/// What every memory cgroup counts, bytes.
fn usage(memory: &Memory) -> [(&'static str, u64); 16] {
    [
        // A memory cgroup counts buffers as page cache.
        ("Buffers", 0),
        ("Cached", memory.cache_bytes),
        ("SwapCached", memory.swapcached_bytes),
        ("Active", memory.active_anon_bytes.saturating_add(memory.active_file_bytes)),
        ("Inactive", memory.inactive_anon_bytes.saturating_add(memory.inactive_file_bytes)),
        ("Active(anon)", memory.active_anon_bytes),
        ("Inactive(anon)", memory.inactive_anon_bytes),
        ("Active(file)", memory.active_file_bytes),
        ("Inactive(file)", memory.inactive_file_bytes),
        ("Unevictable", memory.unevictable_bytes),
        ("Dirty", memory.dirty_bytes),
        ("Writeback", memory.writeback_bytes),
        ("AnonPages", memory.anon_bytes),
        ("Mapped", memory.mapped_bytes),
        ("Shmem", memory.shmem_bytes),
        // As the kernel has it (4.4 to 5.2) where it does not count. Parsers insist on the line.
        ("VmallocUsed", memory.vmalloc_bytes.unwrap_or(0)),
    ]
}

/// What some do, bytes.
fn counted(meminfo: &Meminfo) -> [(&'static str, Option<u64>); 13] {
    let memory = &meminfo.memory;
    // Without zswap there is nothing in it.
    let zswap = |bytes| if meminfo.zswap { bytes } else { Some(0) };
    [
        ("Zswap", zswap(memory.zswap_bytes)),
        ("Zswapped", zswap(memory.zswapped_bytes)),
        ("KReclaimable", memory.slab_reclaimable_bytes),
        ("SReclaimable", memory.slab_reclaimable_bytes),
        ("Slab", memory.slab_bytes),
        ("SUnreclaim", memory.slab_unreclaimable_bytes),
        ("KernelStack", memory.kernel_stack_bytes),
        ("PageTables", memory.pagetables_bytes),
        ("SecPageTables", memory.sec_pagetables_bytes),
        ("Percpu", memory.percpu_bytes),
        ("AnonHugePages", memory.anon_thp_bytes),
        ("ShmemHugePages", memory.shmem_thp_bytes),
        ("FileHugePages", memory.file_thp_bytes),
    ]
}

const fn free_kib(total_kib: u64, memory: &Memory) -> u64 {
    total_kib.saturating_sub(kib(memory.usage_bytes))
}

pub(super) const fn kib(bytes: u64) -> u64 {
    bytes / 1_024
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::files::testing::Case;
    use crate::source::fake::FakeSource;
    use crate::source::{Hugetlb, Swap};

    const HOST: &str = include_str!("../../testdata/host/meminfo");

    fn memory() -> Memory {
        Memory {
            limit_bytes: Some(256 << 20),
            usage_bytes: 100 << 20,
            cache_bytes: 40 << 20,
            inactive_anon_bytes: 20 << 20,
            active_anon_bytes: 10 << 20,
            inactive_file_bytes: 25 << 20,
            active_file_bytes: 15 << 20,
            anon_bytes: 28 << 20,
            shmem_bytes: 2 << 20,
            mapped_bytes: 8 << 20,
            dirty_bytes: 4 << 10,
            ..Memory::default()
        }
    }

    fn case(memory: Memory, swap: Option<Swap>) -> Case {
        let source = FakeSource { memory: Some(memory), swap, ..FakeSource::default() };
        Case::new(source, &[(File::Meminfo, HOST)])
    }

    #[test]
    fn v1_leaves_out_what_it_does_not_count() {
        let v1 = Memory { slab_bytes: Some(6 << 20), anon_thp_bytes: Some(0), ..memory() };
        case(v1, None).golden(File::Meminfo, "meminfo/v1");
    }

    #[test]
    fn w13_ask_175_227_222_210_217_265_120_334_670_248_v2_counts_nearly_everything() {
        let v2 = Memory {
            slab_bytes: Some(6 << 20),
            slab_reclaimable_bytes: Some(4 << 20),
            slab_unreclaimable_bytes: Some(2 << 20),
            kernel_stack_bytes: Some(64 << 10),
            pagetables_bytes: Some(128 << 10),
            sec_pagetables_bytes: Some(0),
            percpu_bytes: Some(32 << 10),
            vmalloc_bytes: Some(16 << 10),
            anon_thp_bytes: Some(2 << 20),
            file_thp_bytes: Some(0),
            shmem_thp_bytes: Some(0),
            zswap_bytes: Some(1 << 20),
            zswapped_bytes: Some(3 << 20),
            ..memory()
        };
        let swap = Some(Swap { limit_bytes: Some(64 << 20), used_bytes: 1 << 20 });
        case(v2, swap).golden(File::Meminfo, "meminfo/v2");
    }

    #[test]
    fn huge_pages_are_limited_by_count() {
        let mut case = case(memory(), None);
        let limits = Hugetlb { limit_bytes: Some(4 << 20), ..Hugetlb::default() };
        case.source.hugetlb = Some(limits);
        let host = HOST.replace("HugePages_Total:       0", "HugePages_Total:      16");
        let host = host.replace("HugePages_Free:        0", "HugePages_Free:       16");
        case.machine.files = vec![(File::Meminfo, Text::new(host.as_str().into()))];
        let page = case.page(File::Meminfo).unwrap();
        assert!(page.contains("HugePages_Total:       2\nHugePages_Free:        2\n"), "{page}");
        assert!(
            page.contains("Hugepagesize:       2048 kB\nHugetlb:            4096 kB\n"),
            "{page}"
        );
    }

    #[test]
    fn an_unlimited_container_has_the_hosts_memory() {
        let page =
            case(Memory { limit_bytes: None, ..memory() }, None).page(File::Meminfo).unwrap();
        let total = |text: &str| Sheet::new(text.into()).number(b"MemTotal");
        assert_eq!(total(&page), total(HOST));
    }

    proptest! {
        #[test]
        fn w11_ask_84_389_numbers_never_wrap_and_parts_never_exceed_the_whole(
            limit in any::<Option<u64>>(), usage in any::<u64>(), file in any::<u64>(),
            slab in any::<Option<u64>>(), swap_limit in any::<Option<u64>>(), swapped in any::<u64>(),
        ) {
            let memory = Memory {
                limit_bytes: limit, usage_bytes: usage, active_file_bytes: file, inactive_file_bytes: file,
                active_anon_bytes: usage, slab_reclaimable_bytes: slab, ..Memory::default()
            };
            let swap = Some(Swap { limit_bytes: swap_limit, used_bytes: swapped });
            let page = case(memory, swap).page(File::Meminfo).unwrap();
            let page = Sheet::new(page.into());
            let line = |name: &str| page.number(name.as_bytes()).unwrap();
            prop_assert!(line("MemTotal") > 0);
            prop_assert!(line("MemFree") <= line("MemTotal"));
            prop_assert!(line("MemAvailable") <= line("MemTotal"));
            prop_assert!(line("SwapFree") <= line("SwapTotal"));
        }

        #[test]
        fn any_host_file_is_a_page_or_an_error(host in "\\PC{0,200}") {
            let source = FakeSource { memory: Some(memory()), ..FakeSource::default() };
            let _: Result<String> = Case::new(source, &[(File::Meminfo, &host)]).page(File::Meminfo);
        }
    }
}
