//! The groups from cgroup v2 files (Documentation/admin-guide/cgroup-v2.rst).

use rustix::fs::OFlags;

use super::hierarchy::Cgroup;
use crate::error::{Errno, Result};
use crate::model::cpus::Bandwidth;
use crate::model::file::Resource;
use crate::source::trigger::PressureFile;
use crate::source::{Cpu, DeviceIo, Hugetlb, Memory, NumaStat, Swap, parse};

/// `cpu.stat`: there in every cgroup, whether or not the cpu controller is enabled. No per-CPU numbers.
pub(super) fn cpu(cgroup: &Cgroup<'_>) -> Result<Option<Cpu>> {
    let total = cgroup.parse("cpu.stat", parse::cpu_stat)?;
    Ok(total.map(|total| Cpu { total, per_cpu: None }))
}

/// `cpu.max` of the cgroup and its ancestors.
pub(super) fn bandwidth(cgroup: &Cgroup<'_>) -> Result<Option<Bandwidth>> {
    let mut tightest: Option<Bandwidth> = None;
    for level in cgroup.ancestry() {
        if let Some(own) = level.parse("cpu.max", parse::cpu_max)?.flatten() {
            tightest = Some(tightest.map_or(own, |tightest| tightest.min(own)));
        }
    }
    Ok(tightest)
}

/// `throttled_usec` of `cpu.stat`. Not there, and so not supplied, where the cpu controller is not enabled.
pub(super) fn throttled_ns(cgroup: &Cgroup<'_>) -> Result<Option<u64>> {
    let throttled_us =
        cgroup.parse("cpu.stat", |text| Some(parse::keyed(text, b"throttled_usec")))?;
    Ok(throttled_us.flatten().map(|us| us.saturating_mul(1_000)))
}

/// `memory.max`, `memory.current` and `memory.stat`. The events among the lines of that have the names of `/proc/vmstat`; the
/// kills are in `memory.events`.
///
/// Where the memory controller is not enabled for the cgroup itself, its memory is charged to the nearest ancestor
/// that has it, and that ancestor's limit is the one that counts: its numbers are the container's.
pub(super) fn memory(
    cgroup: &Cgroup<'_>,
    mut events: Option<&mut Vec<u8>>,
) -> Result<Option<Memory>> {
    for level in cgroup.ancestry() {
        let Some(usage_bytes) = level.parse("memory.current", parse::single)? else {
            continue;
        };
        let mut memory =
            Memory { usage_bytes, limit_bytes: level.smallest("memory.max")?, ..Memory::default() };
        level.read("memory.stat", |text| {
            memory_stat(text, &mut memory);
            if let Some(events) = &mut events {
                events.extend_from_slice(text);
            }
        })?;
        if let Some(events) = events {
            let kills = |text: &[u8]| parse::keyed(text, b"oom_kill");
            if let Some(kills) = level.read("memory.events", kills)?.flatten() {
                events.extend_from_slice(format!("oom_kill {kills}\n").as_bytes());
            }
        }
        return Ok(Some(memory));
    }
    Ok(None)
}

fn memory_stat(text: &[u8], memory: &mut Memory) {
    for (key, bytes) in parse::flat_keyed(text) {
        match key {
            b"anon" => memory.anon_bytes = bytes,
            b"file" => memory.cache_bytes = bytes,
            b"shmem" => memory.shmem_bytes = bytes,
            b"file_mapped" => memory.mapped_bytes = bytes,
            b"file_dirty" => memory.dirty_bytes = bytes,
            b"file_writeback" => memory.writeback_bytes = bytes,
            b"swapcached" => memory.swapcached_bytes = bytes,
            b"inactive_anon" => memory.inactive_anon_bytes = bytes,
            b"active_anon" => memory.active_anon_bytes = bytes,
            b"inactive_file" => memory.inactive_file_bytes = bytes,
            b"active_file" => memory.active_file_bytes = bytes,
            b"unevictable" => memory.unevictable_bytes = bytes,
            b"slab" => memory.slab_bytes = Some(bytes),
            b"slab_reclaimable" => memory.slab_reclaimable_bytes = Some(bytes),
            b"slab_unreclaimable" => memory.slab_unreclaimable_bytes = Some(bytes),
            b"kernel_stack" => memory.kernel_stack_bytes = Some(bytes),
            b"pagetables" => memory.pagetables_bytes = Some(bytes),
            b"sec_pagetables" => memory.sec_pagetables_bytes = Some(bytes),
            b"percpu" => memory.percpu_bytes = Some(bytes),
            b"vmalloc" => memory.vmalloc_bytes = Some(bytes),
            b"anon_thp" => memory.anon_thp_bytes = Some(bytes),
            b"file_thp" => memory.file_thp_bytes = Some(bytes),
            b"shmem_thp" => memory.shmem_thp_bytes = Some(bytes),
            b"zswap" => memory.zswap_bytes = Some(bytes),
            b"zswapped" => memory.zswapped_bytes = Some(bytes),
            _ => {}
        }
    }
}

/// `memory.numa_stat` (5.10), of the nearest level that has it.
pub(super) fn numa(cgroup: &Cgroup<'_>) -> Result<Option<Vec<NumaStat>>> {
    for level in cgroup.ancestry() {
        let stat = level.parse("memory.numa_stat", |text| Some(parse::numa_stat(text)))?;
        if stat.is_some() {
            return Ok(stat);
        }
    }
    Ok(None)
}

/// `memory.swap.max` and `memory.swap.current`. Not supplied where the kernel does not account swap.
pub(super) fn swap(cgroup: &Cgroup<'_>) -> Result<Option<Swap>> {
    for level in cgroup.ancestry() {
        let Some(used_bytes) = level.parse("memory.swap.current", parse::single)? else {
            continue;
        };
        let limit_bytes = level.smallest("memory.swap.max")?;
        return Ok(Some(Swap { limit_bytes, used_bytes }));
    }
    Ok(None)
}

/// `hugetlb.2MB.current` and its like, of the nearest level that has them.
pub(super) fn hugetlb(cgroup: &Cgroup<'_>, page_bytes: u64) -> Result<Option<Hugetlb>> {
    let name = |file: &str| format!("hugetlb.{}.{file}", parse::page_size_name(page_bytes));
    for level in cgroup.ancestry() {
        let Some(used_bytes) = level.parse(&name("current"), parse::single)? else { continue };
        let reserved_bytes = level.parse(&name("rsvd.current"), parse::single)?.unwrap_or(0);
        let limit_bytes = level.smallest(&name("max"))?;
        return Ok(Some(Hugetlb { limit_bytes, used_bytes, reserved_bytes }));
    }
    Ok(None)
}

/// `io.stat`.
pub(super) fn io(cgroup: &Cgroup<'_>) -> Result<Option<Vec<DeviceIo>>> {
    cgroup.parse("io.stat", |text| Some(parse::io_stat(text)))
}

/// `cpu.pressure`, `io.pressure` or `memory.pressure`. Not supplied where PSI is off for this cgroup.
pub(super) fn pressure(
    cgroup: &Cgroup<'_>,
    resource: Resource,
    text: &mut Vec<u8>,
) -> Result<Option<()>> {
    let append = |piece: &[u8]| {
        text.extend_from_slice(piece);
        !piece.is_empty()
    };
    match cgroup.read(resource.cgroup_file(), append) {
        Ok(read) => Ok((read == Some(true)).then_some(())),
        Err(error) if error.errno == Errno::OPNOTSUPP => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same file, open for a trigger.
pub(super) fn pressure_file(
    cgroup: &Cgroup<'_>,
    resource: Resource,
) -> Result<Option<PressureFile>> {
    let file = resource.cgroup_file();
    let opened = cgroup.open(file, OFlags::RDWR)?;
    Ok(opened.map(|descriptor| PressureFile::new(descriptor, cgroup.display(file))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w12_each_key_is_matched_whole() {
        // "file" must not swallow "file_mapped", nor "anon" "anon_thp": LXCFS showed both as 0 for years.
        let mut memory = Memory::default();
        let text = b"anon 1\nfile 2\nfile_mapped 3\nfile_dirty 4\nfile_writeback 5\nanon_thp 6\nshmem_thp 7\n";
        memory_stat(text, &mut memory);
        assert_eq!((memory.anon_bytes, memory.cache_bytes, memory.mapped_bytes), (1, 2, 3));
        assert_eq!((memory.dirty_bytes, memory.writeback_bytes), (4, 5));
        assert_eq!((memory.anon_thp_bytes, memory.shmem_thp_bytes), (Some(6), Some(7)));
        assert_eq!(memory.slab_reclaimable_bytes, None);
    }
}
