//! How many CPUs a container is shown, by the rule of the daemon (`model/cpus.rs`), from the kernel's own structures.

use lxcfs_abi::{MAX_DEPTH, view};

use crate::kernel::{self, word_at};
use crate::maps;
use crate::whose::Reader;

/// No quota (`RUNTIME_INF`).
const UNLIMITED: u64 = u64::MAX;

/// The most CPUs a kernel can have (`NR_CPUS`).
const MOST: u32 = 8_192;

/// How many a reader's container is shown, whose cgroup is `counted` in the hierarchy that counts. `None`: it cannot be told.
#[inline(always)]
pub(crate) fn shown(reader: Reader, counted: u64) -> Option<u64> {
    let ctrl = maps::ctrl()?;
    // SAFETY: a map value, whose word is read whole.
    let view = unsafe { (&raw const (*ctrl).cpu_view).read_volatile() };
    let cgroup = in_hierarchy(reader, counted, kernel::W_CPUSET.load());
    let cpus = effective(cgroup, u32::from(view == view::HOST));
    if cpus == 0 {
        return None;
    }
    if view != view::QUOTA {
        return Some(cpus);
    }
    let cgroup = in_hierarchy(reader, counted, kernel::W_QUOTA.load());
    Some(least(cpus, worth(cgroup)))
}

#[inline(always)]
fn in_hierarchy(reader: Reader, counted: u64, way: u32) -> u64 {
    if way == kernel::W_COUNTED.load() { counted } else { reader.boundary(way) }
}

/// CPUs in the effective cpuset of the nearest cgroup that has one, from `cgroup` upwards; of the root if `of_root` is not 0. 0:
/// there is none.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn effective(cgroup: u64, of_root: u32) -> u64 {
    let (mut at, mut found) = (cgroup, 0);
    for _ in 0..MAX_DEPTH {
        if at == 0 {
            break;
        }
        let state = word_at(at, u64::from(kernel::O_CPUSET_STATE.load()));
        if state != 0 {
            found = state;
            if of_root == 0 {
                break;
            }
        }
        at = kernel::cgroup_parent(at);
    }
    if found == 0 { 0 } else { in_mask(found) }
}

/// CPUs in the mask of a cpuset.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn in_mask(cpuset: u64) -> u64 {
    let place = u64::from(kernel::O_EFFECTIVE_CPUS.load());
    let mask =
        if kernel::MASK_IS_POINTER.load() == 0 { cpuset + place } else { word_at(cpuset, place) };
    let mut count = 0;
    for nth in 0..MOST / 64 {
        if 64 * nth >= maps::cpu_count() {
            break;
        }
        count += u64::from(word_at(mask, u64::from(8 * nth)).count_ones());
    }
    count
}

/// CPUs that the tightest quota of a cgroup and its ancestors is worth, as `Bandwidth::cpus` has it.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn worth(cgroup: u64) -> u64 {
    let (mut at, mut cpus) = (cgroup, UNLIMITED);
    for _ in 0..MAX_DEPTH {
        if at == 0 {
            break;
        }
        let state = word_at(at, u64::from(kernel::O_CPU_STATE.load()));
        if state != 0 {
            cpus = least(cpus, of_group(state - u64::from(kernel::O_GROUP_STATE.load())));
        }
        at = kernel::cgroup_parent(at);
    }
    cpus
}

/// CPUs that a group's own quota is worth, rounded up, at least one.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn of_group(group: u64) -> u64 {
    let quota_ns = word_at(group, u64::from(kernel::O_QUOTA.load()));
    let period_ns = word_at(group, u64::from(kernel::O_PERIOD.load()));
    if quota_ns == UNLIMITED || period_ns == 0 {
        return UNLIMITED;
    }
    let cpus = quota_ns / period_ns + u64::from(quota_ns % period_ns != 0);
    if cpus == 0 { 1 } else { cpus }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn least(one: u64, other: u64) -> u64 {
    if one < other { one } else { other }
}
