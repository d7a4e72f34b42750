//! The huge pages of `/proc/meminfo`: the machine's pool, as far as the container's limit reaches (kernel: mm/hugetlb.c).

use super::View;
use crate::error::Result;
use crate::source::Hugetlb;
use crate::source::sheet::Sheet;

/// Pages of the size the machine uses by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hugepages {
    total: u64,
    free: u64,
    reserved: u64,
    size_kib: u64,
    /// All pages of other sizes, which the file has in one number with these.
    others_kib: u64,
}

/// `None`: the container has no limit of its own on them and the whole pool is open to it, or there is nothing in the pool.
pub(super) fn gather(view: &View<'_>, host: &Sheet) -> Result<Option<Hugepages>> {
    let there = |name: &[u8]| host.number(name).filter(|&number| number > 0);
    let (Some(size_kib), Some(_)) = (there(b"Hugepagesize"), there(b"HugePages_Total")) else {
        return Ok(None);
    };
    let limits = view.source.hugetlb(view.container, size_kib.saturating_mul(1_024))?;
    Ok(limits.map(|limits| within(&limits, host, size_kib)))
}

fn within(limits: &Hugetlb, host: &Sheet, size_kib: u64) -> Hugepages {
    let count = |name: &[u8]| host.number(name).unwrap_or(0);
    let pages = |bytes: u64| bytes / 1_024 / size_kib;
    let (host_total, host_free) = (count(b"HugePages_Total"), count(b"HugePages_Free"));
    let total = limits.limit_bytes.map_or(host_total, pages).min(host_total);
    let used = pages(limits.used_bytes);
    let free = total.saturating_sub(used).min(host_free);
    let reserved = pages(limits.reserved_bytes).saturating_sub(used).min(free);
    let all_kib = count(b"Hugetlb");
    let others_kib = all_kib.saturating_sub(host_total.saturating_mul(size_kib));
    Hugepages { total, free, reserved, size_kib, others_kib }
}

impl Hugepages {
    /// Its lines: the name, the number, and whether that is one of KiB.
    pub(super) const fn lines(&self) -> [(&'static str, u64, bool); 5] {
        let own_kib = self.total.saturating_mul(self.size_kib);
        [
            ("HugePages_Total", self.total, false),
            ("HugePages_Free", self.free, false),
            ("HugePages_Rsvd", self.reserved, false),
            // Beyond the pool the machine lends pages to all: none is the container's own.
            ("HugePages_Surp", 0, false),
            ("Hugetlb", own_kib.saturating_add(self.others_kib), true),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &[u8] =
        b"HugePages_Total:      10\nHugePages_Free:        6\nHugePages_Rsvd:        1\n\
        HugePages_Surp:        0\nHugepagesize:       2048 kB\nHugetlb:         1069056 kB\n";

    fn lines(limit_bytes: Option<u64>, used_bytes: u64, reserved_bytes: u64) -> [u64; 5] {
        let limits = Hugetlb { limit_bytes, used_bytes, reserved_bytes };
        within(&limits, &Sheet::new(HOST.to_vec()), 2_048).lines().map(|(_, number, _)| number)
    }

    #[test]
    fn no_more_than_the_limit_and_the_pool() {
        assert_eq!(lines(Some(8 << 20), 2 << 20, 4 << 20), [4, 3, 1, 0, 1_056_768]);
        assert_eq!(lines(None, 2 << 20, 0), [10, 6, 0, 0, 1_069_056]);
        assert_eq!(lines(Some(0), u64::MAX, u64::MAX), [0, 0, 0, 0, 1_048_576]);
    }
}
