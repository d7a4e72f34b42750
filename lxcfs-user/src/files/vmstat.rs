//! `/proc/vmstat`: the host's lines in the host's order, as far as a cgroup counts what they count (kernel: mm/vmstat.c).
//!
//! Most of the file's two hundred lines are about zones, compaction and the machine's own balance. They are left out:
//! programs look lines up by name, and a number of the host's would say of the container what its neighbours do.

use super::digits::push_line;
use super::meminfo::swap_kib;
use super::{View, required};
use crate::error::Result;
use crate::model::file::File;
use crate::source::{Memory, Text, parse};

#[derive(Debug)]
pub(super) struct Vmstat {
    host: Text,
    page_bytes: u64,
    memory: Memory,
    /// What the container may use beyond what it uses, bytes.
    free_bytes: u64,
    /// Events since the cgroup was made: a line for each, by the name the file has for it.
    events: Vec<u8>,
    /// Bytes read from and written to devices, where that is counted.
    io_bytes: Option<(u64, u64)>,
    has_swap: bool,
}

pub(super) fn gather(view: &View<'_>) -> Result<Vmstat> {
    let mut events = Vec::new();
    let memory = required(view.source.memory_events(view.container, &mut events)?, "memory")?;
    let meminfo = view.host(File::Meminfo)?;
    let host_bytes = meminfo.number(b"MemTotal").map_or(u64::MAX, |kib| kib.saturating_mul(1_024));
    let limit_bytes = memory.limit_bytes.map_or(host_bytes, |limit| limit.min(host_bytes));
    let io = view.source.io(view.container)?.map(|devices| {
        let sum = |(read, written): (u64, u64), (r, w)| {
            (read.saturating_add(r), written.saturating_add(w))
        };
        devices.iter().map(|io| (io.read_bytes, io.write_bytes)).fold((0, 0), sum)
    });
    Ok(Vmstat {
        host: view.host(File::Vmstat)?,
        page_bytes: view.machine.page_bytes(),
        free_bytes: limit_bytes.saturating_sub(memory.usage_bytes),
        events,
        io_bytes: io,
        has_swap: swap_kib(view, &meminfo)?.0 > 0,
        memory,
    })
}

pub(super) fn render(vmstat: &Vmstat, page: &mut Vec<u8>) {
    let host = &vmstat.host;
    let mut numbers = vec![None; host.line_count()];
    let mut set = |name: &[u8], number| {
        if let Some(nth) = host.position(name) {
            numbers[nth] = number;
        }
    };
    if !vmstat.has_swap {
        set(b"pswpin", Some(0));
        set(b"pswpout", Some(0));
    }
    for (name, count) in parse::flat_keyed(&vmstat.events) {
        set(name, Some(count));
    }
    for (name, number) in levels(vmstat) {
        set(name.as_bytes(), number);
    }
    for (nth, number) in numbers.into_iter().enumerate() {
        if let Some(number) = number {
            push_line(page, host.name(nth), number);
        }
    }
}

/// What is no event: the lines that say how much there is now, and those of devices.
fn levels(vmstat: &Vmstat) -> [(&'static str, Option<u64>); 20] {
    let memory = &vmstat.memory;
    let pages = |bytes: u64| Some(bytes / vmstat.page_bytes.max(1));
    let known = |bytes: Option<u64>| pages(bytes?);
    [
        ("nr_free_pages", pages(vmstat.free_bytes)),
        ("nr_inactive_anon", pages(memory.inactive_anon_bytes)),
        ("nr_active_anon", pages(memory.active_anon_bytes)),
        ("nr_inactive_file", pages(memory.inactive_file_bytes)),
        ("nr_active_file", pages(memory.active_file_bytes)),
        ("nr_unevictable", pages(memory.unevictable_bytes)),
        ("nr_anon_pages", pages(memory.anon_bytes)),
        ("nr_mapped", pages(memory.mapped_bytes)),
        ("nr_file_pages", pages(memory.cache_bytes)),
        ("nr_dirty", pages(memory.dirty_bytes)),
        ("nr_writeback", pages(memory.writeback_bytes)),
        ("nr_shmem", pages(memory.shmem_bytes)),
        ("nr_swapcached", pages(memory.swapcached_bytes)),
        ("nr_slab_reclaimable", known(memory.slab_reclaimable_bytes)),
        ("nr_slab_unreclaimable", known(memory.slab_unreclaimable_bytes)),
        // The one of them in KiB.
        ("nr_kernel_stack", memory.kernel_stack_bytes.map(|bytes| bytes / 1_024)),
        ("nr_page_table_pages", known(memory.pagetables_bytes)),
        ("nr_sec_page_table_pages", known(memory.sec_pagetables_bytes)),
        // In KiB, too.
        ("pgpgin", vmstat.io_bytes.map(|(read, _)| read / 1_024)),
        ("pgpgout", vmstat.io_bytes.map(|(_, written)| written / 1_024)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::testing::Case;
    use crate::source::fake::FakeSource;
    use crate::source::{DeviceIo, Swap};

    const HOST: &str = include_str!("../../testdata/host/vmstat");

    fn case() -> Case {
        let memory = Memory {
            limit_bytes: Some(256 << 20),
            usage_bytes: 100 << 20,
            anon_bytes: 28 << 20,
            kernel_stack_bytes: Some(64 << 10),
            ..Memory::default()
        };
        let events = [("pgfault", 70_000), ("pgmajfault", 12), ("oom_kill", 1), ("file_thp", 9)];
        let io = DeviceIo { read_bytes: 10 << 20, write_bytes: 2 << 20, ..DeviceIo::default() };
        let source = FakeSource {
            memory: Some(memory),
            memory_events: Some(events.map(|(name, count)| (name.to_owned(), count)).to_vec()),
            io: Some(vec![io, DeviceIo { read_bytes: 1 << 20, ..DeviceIo::default() }]),
            ..FakeSource::default()
        };
        let meminfo = "MemTotal: 1000000 kB\nSwapTotal: 1000 kB\n";
        Case::new(source, &[(File::Vmstat, HOST), (File::Meminfo, meminfo)])
    }

    #[test]
    fn ask_212_what_a_cgroup_counts_and_nothing_else() {
        case().golden(File::Vmstat, "vmstat/v2");
    }

    #[test]
    fn swapping_is_unknown_where_there_is_swap_and_nothing_counts_it() {
        let mut case = case();
        assert!(case.page(File::Vmstat).unwrap().contains("\npswpin 0\n"));
        case.source.swap = Some(Swap { limit_bytes: None, used_bytes: 0 });
        assert!(!case.page(File::Vmstat).unwrap().contains("pswpin"));
    }
}
