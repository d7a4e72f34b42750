//! The groups from cgroup v1 files (Documentation/admin-guide/cgroup-v1/).

use super::hierarchy::Cgroup;
use crate::error::Result;
use crate::model::cpus::Bandwidth;
use crate::model::monotonic::CpuTimes;
use crate::source::{Cpu, DeviceIo, Hugetlb, Memory, NumaStat, Swap, parse};

/// Above this a limit means "none": the kernel prints the largest page counter, rounded to its page size.
const UNLIMITED_BYTES: u64 = 1 << 62;

/// `cpuacct.usage_percpu`, the precise time used on each CPU, split into user and system time as `cpuacct.usage_all` has
/// them. Those are counted by ticks, and come to more than the precise time where the host is not given its CPUs.
pub(super) fn cpu(cgroup: &Cgroup<'_>) -> Result<Option<Cpu>> {
    let Some(used_ns) = cgroup.parse("cpuacct.usage_percpu", parse::cpuacct_usage_percpu)? else {
        return Ok(None);
    };
    let ticks = cgroup.parse("cpuacct.usage_all", parse::cpuacct_usage_all)?.unwrap_or_default();
    let ticks = ticks.into_iter().chain(std::iter::repeat(CpuTimes::default()));
    let per_cpu: Vec<_> =
        used_ns.into_iter().zip(ticks).map(|(ns, ticks)| split(ns, ticks)).collect();
    let sum = |total: CpuTimes, cpu: &CpuTimes| total.zip(*cpu, u64::saturating_add);
    let total = per_cpu.iter().fold(CpuTimes::default(), sum);
    Ok(Some(Cpu { total, per_cpu: Some(per_cpu) }))
}

/// `used_ns` in the proportion of `ticks`; all of it user time where no tick has hit yet.
fn split(used_ns: u64, ticks: CpuTimes) -> CpuTimes {
    let all = u128::from(ticks.used_ns());
    let system = (u128::from(used_ns) * u128::from(ticks.system_ns)).checked_div(all).unwrap_or(0);
    let system_ns = u64::try_from(system).unwrap_or(used_ns);
    CpuTimes { user_ns: used_ns - system_ns, system_ns, ..CpuTimes::default() }
}

/// `cpu.cfs_quota_us` (-1: none) over `cpu.cfs_period_us` of the cgroup and its ancestors.
pub(super) fn bandwidth(cgroup: &Cgroup<'_>) -> Result<Option<Bandwidth>> {
    let mut tightest: Option<Bandwidth> = None;
    for level in cgroup.ancestry() {
        let quota = level.parse("cpu.cfs_quota_us", |text| Some(parse::single(text)))?.flatten();
        let Some(quota_us) = quota else { continue };
        let Some(period_us) = level.parse("cpu.cfs_period_us", parse::single)? else {
            continue;
        };
        if period_us > 0 {
            let own = Bandwidth { quota_us, period_us };
            tightest = Some(tightest.map_or(own, |tightest| tightest.min(own)));
        }
    }
    Ok(tightest)
}

/// `throttled_time` of `cpu.stat`.
pub(super) fn throttled_ns(cgroup: &Cgroup<'_>) -> Result<Option<u64>> {
    cgroup.parse("cpu.stat", |text| parse::keyed(text, b"throttled_time"))
}

/// `memory.usage_in_bytes` and `memory.stat`, whose `hierarchical_memory_limit` is the minimum over all ancestors and
/// whose `total_` lines are those of the subtree.
///
/// Events are the page faults of the same file, and the kills of `memory.oom_control`, which are those of this cgroup alone.
/// `total_pgpgin` and `total_pgpgout` are none: what v1 calls so is memory charged, not read from a device.
pub(super) fn memory(
    cgroup: &Cgroup<'_>,
    mut events: Option<&mut Vec<u8>>,
) -> Result<Option<Memory>> {
    let Some(usage_bytes) = cgroup.parse("memory.usage_in_bytes", parse::single)? else {
        return Ok(None);
    };
    let slab_bytes = cgroup.parse("memory.kmem.usage_in_bytes", parse::single)?;
    let mut memory = Memory { usage_bytes, slab_bytes, ..Memory::default() };
    let found = cgroup.read("memory.stat", |text| {
        memory_stat(text, &mut memory);
        if let Some(events) = &mut events {
            copy_events(text, events);
        }
    })?;
    if let (Some(()), Some(events)) = (found, events) {
        cgroup.read("memory.oom_control", |text| copy_events(text, events))?;
    }
    Ok(found.map(|()| memory))
}

/// Appends the events of `text` by the names that `/proc/vmstat` has for them.
fn copy_events(text: &[u8], events: &mut Vec<u8>) {
    for line in parse::lines(text) {
        let event = line.strip_prefix(b"total_").unwrap_or(line);
        let is_total = event.len() < line.len();
        let is_fault = event.starts_with(b"pgfault ") || event.starts_with(b"pgmajfault ");
        if is_total && is_fault || line.starts_with(b"oom_kill ") {
            events.extend_from_slice(event);
            events.push(b'\n');
        }
    }
}

fn memory_stat(text: &[u8], memory: &mut Memory) {
    for (key, bytes) in parse::flat_keyed(text) {
        match key {
            b"hierarchical_memory_limit" => memory.limit_bytes = limited(bytes),
            b"total_cache" => memory.cache_bytes = bytes,
            b"total_rss" => memory.anon_bytes = bytes,
            b"total_rss_huge" => memory.anon_thp_bytes = Some(bytes),
            b"total_shmem" => memory.shmem_bytes = bytes,
            b"total_mapped_file" => memory.mapped_bytes = bytes,
            b"total_dirty" => memory.dirty_bytes = bytes,
            b"total_writeback" => memory.writeback_bytes = bytes,
            b"total_swapcached" => memory.swapcached_bytes = bytes,
            b"total_inactive_anon" => memory.inactive_anon_bytes = bytes,
            b"total_active_anon" => memory.active_anon_bytes = bytes,
            b"total_inactive_file" => memory.inactive_file_bytes = bytes,
            b"total_active_file" => memory.active_file_bytes = bytes,
            b"total_unevictable" => memory.unevictable_bytes = bytes,
            _ => {}
        }
    }
}

/// `memory.numa_stat`: pages on the lists of each node. The `hierarchical_` lines are those of the subtree.
pub(super) fn numa(cgroup: &Cgroup<'_>) -> Result<Option<Vec<NumaStat>>> {
    let page_bytes = rustix::param::page_size() as u64;
    let parse = |text: &[u8]| {
        let own = parse::numa_stat(text).into_iter().filter_map(|stat| {
            let key = stat.key.strip_prefix("hierarchical_")?.to_owned();
            let bytes = stat.bytes.iter().map(|&(node, n)| (node, n.saturating_mul(page_bytes)));
            Some(NumaStat { key, bytes: bytes.collect() })
        });
        Some(own.collect())
    };
    cgroup.parse("memory.numa_stat", parse)
}

/// Memory and swap are limited together (`memsw`): what the limit leaves beyond memory is the swap. Not supplied where
/// the kernel does not account swap (`swapaccount=0`).
///
/// With `memory.swappiness` 0 nothing more is swapped out: the swap in use is all there is.
pub(super) fn swap(cgroup: &Cgroup<'_>) -> Result<Option<Swap>> {
    let Some(both) = cgroup.parse("memory.memsw.usage_in_bytes", parse::single)? else {
        return Ok(None);
    };
    let swap = cgroup.parse("memory.stat", |text| Some(swap_of_stat(text)))?;
    let (limit_bytes, swapped) = swap.unwrap_or_default();
    let used_bytes = match swapped {
        Some(swapped) => swapped,
        None => {
            let usage = cgroup.parse("memory.usage_in_bytes", parse::single)?.unwrap_or(both);
            both.saturating_sub(usage)
        }
    };
    let swappiness = cgroup.parse("memory.swappiness", parse::single)?;
    let limit_bytes = if swappiness == Some(0) { Some(used_bytes) } else { limit_bytes };
    Ok(Some(Swap { limit_bytes, used_bytes }))
}

/// `(limit, used)` of swap, from `memory.stat`.
fn swap_of_stat(text: &[u8]) -> (Option<u64>, Option<u64>) {
    let (mut memory, mut both, mut used) = (None, None, None);
    for (key, bytes) in parse::flat_keyed(text) {
        match key {
            b"hierarchical_memory_limit" => memory = limited(bytes),
            b"hierarchical_memsw_limit" => both = limited(bytes),
            b"total_swap" => used = Some(bytes),
            _ => {}
        }
    }
    // Without a limit on memory the whole of both may end up in swap.
    (both.map(|both| both.saturating_sub(memory.unwrap_or(0))), used)
}

fn limited(bytes: u64) -> Option<u64> {
    (bytes < UNLIMITED_BYTES).then_some(bytes)
}

/// `hugetlb.2MB.usage_in_bytes` and its like; a limit is the smallest up the tree.
pub(super) fn hugetlb(cgroup: &Cgroup<'_>, page_bytes: u64) -> Result<Option<Hugetlb>> {
    let name = |file: &str| format!("hugetlb.{}.{file}", parse::page_size_name(page_bytes));
    let Some(used_bytes) = cgroup.parse(&name("usage_in_bytes"), parse::single)? else {
        return Ok(None);
    };
    let reserved_bytes = cgroup.parse(&name("rsvd.usage_in_bytes"), parse::single)?.unwrap_or(0);
    let limit = cgroup.smallest(&name("limit_in_bytes"))?;
    Ok(Some(Hugetlb { limit_bytes: limit.and_then(limited), used_bytes, reserved_bytes }))
}

/// `blkio.throttle.*_recursive`, filled by any I/O scheduler, or BFQ's own files where those are empty.
pub(super) fn io(cgroup: &Cgroup<'_>) -> Result<Option<Vec<DeviceIo>>> {
    const FILES: [[&str; 2]; 2] = [
        ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"],
        ["blkio.bfq.io_service_bytes_recursive", "blkio.bfq.io_serviced_recursive"],
    ];
    let mut there = false;
    for files in FILES {
        let mut devices = Vec::new();
        for (file, field) in files.into_iter().zip([Field::Bytes, Field::Requests]) {
            let found = cgroup.parse(file, |text| {
                parse::blkio(text).for_each(|entry| add_blkio(&mut devices, field, entry));
                Some(())
            })?;
            there |= found.is_some();
            // A policy has both files or none, and the same devices in both.
            if devices.is_empty() {
                break;
            }
        }
        if !devices.is_empty() {
            return Ok(Some(devices));
        }
    }
    Ok(there.then(Vec::new))
}

#[derive(Clone, Copy)]
enum Field {
    Bytes,
    Requests,
}

fn add_blkio(devices: &mut Vec<DeviceIo>, field: Field, entry: ((u32, u32), &[u8], u64)) {
    let (device, kind, value) = entry;
    let index = devices.iter().position(|io| io.device == device).unwrap_or_else(|| {
        devices.push(DeviceIo { device, ..DeviceIo::default() });
        devices.len() - 1
    });
    let io = &mut devices[index];
    match (field, kind) {
        (Field::Bytes, b"Read") => io.read_bytes = value,
        (Field::Bytes, b"Write") => io.write_bytes = value,
        (Field::Bytes, b"Discard") => io.discard_bytes = value,
        (Field::Requests, b"Read") => io.reads = value,
        (Field::Requests, b"Write") => io.writes = value,
        (Field::Requests, b"Discard") => io.discards = value,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_lines_count_and_the_largest_counter_is_no_limit() {
        let mut memory = Memory::default();
        let text = b"cache 1\nrss 1\nhierarchical_memory_limit 9223372036854771712\n\
                     total_cache 20\ntotal_rss 30\ntotal_rss_huge 40\ntotal_dirty 50\n";
        memory_stat(text, &mut memory);
        assert_eq!(memory.limit_bytes, None);
        assert_eq!((memory.cache_bytes, memory.anon_bytes, memory.dirty_bytes), (20, 30, 50));
        assert_eq!(memory.anon_thp_bytes, Some(40));
    }

    #[test]
    fn events_are_those_of_the_subtree_and_the_kills() {
        let mut events = Vec::new();
        copy_events(
            b"pgfault 1\ntotal_pgfault 2\ntotal_pgpgin 3\ntotal_pgmajfault 4\n",
            &mut events,
        );
        copy_events(b"oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", &mut events);
        assert_eq!(events, b"pgfault 2\npgmajfault 4\noom_kill 5\n");
    }

    #[test]
    fn precise_time_is_split_as_the_ticks_are() {
        let ticks = |user_ns, system_ns| CpuTimes { user_ns, system_ns, ..CpuTimes::default() };
        assert_eq!(split(1_000, ticks(3_000, 1_000)), ticks(750, 250));
        assert_eq!(split(1_000, ticks(0, 0)), ticks(1_000, 0));
        assert_eq!(split(u64::MAX, ticks(0, u64::MAX)), ticks(0, u64::MAX));
    }

    #[test]
    fn swap_is_what_both_leave_beyond_memory() {
        let text = b"hierarchical_memory_limit 100\nhierarchical_memsw_limit 150\ntotal_swap 7\n";
        assert_eq!(swap_of_stat(text), (Some(50), Some(7)));
        let text = b"hierarchical_memory_limit 100\nhierarchical_memsw_limit 9223372036854771712\n";
        assert_eq!(swap_of_stat(text), (None, None));
    }

    #[test]
    fn bytes_and_requests_meet_by_device() {
        let mut devices = Vec::new();
        for entry in parse::blkio(b"8:0 Read 4096\n8:0 Write 8192\n8:16 Read 1\nTotal 3\n") {
            add_blkio(&mut devices, Field::Bytes, entry);
        }
        for entry in parse::blkio(b"8:0 Read 1\n8:0 Write 2\n8:0 Total 3\n") {
            add_blkio(&mut devices, Field::Requests, entry);
        }
        assert_eq!(devices.len(), 2);
        assert_eq!((devices[0].reads, devices[0].writes, devices[0].write_bytes), (1, 2, 8192));
    }
}
