//! The huge pages of `/proc/meminfo`: the machine's pool, as far as the container's limit reaches (kernel: mm/hugetlb.c).

use super::View;
use super::meminfo::host_kib;
use crate::error::Result;
use crate::source::Hugetlb;

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

/// `None`: the container has no limit of its own on them and the whole pool is open to it.
pub(super) fn gather(view: &View<'_>, host: &[u8]) -> Result<Option<Hugepages>> {
    let Some(size_kib) = host_kib(host, b"Hugepagesize").filter(|&size| size > 0) else {
        return Ok(None);
    };
    let limits = view.source.hugetlb(view.container, size_kib.saturating_mul(1_024))?;
    Ok(limits.map(|limits| within(&limits, host, size_kib)))
}

fn within(limits: &Hugetlb, host: &[u8], size_kib: u64) -> Hugepages {
    let count = |name: &[u8]| host_kib(host, name).unwrap_or(0);
    let pages = |bytes: u64| bytes / 1_024 / size_kib;
    let (host_total, host_free) = (count(b"HugePages_Total"), count(b"HugePages_Free"));
    let total = limits.limit_bytes.map_or(host_total, pages).min(host_total);
    let used = pages(limits.used_bytes);
    let free = total.saturating_sub(used).min(host_free);
    let reserved = pages(limits.reserved_bytes).saturating_sub(used).min(free);
    let all_kib = host_kib(host, b"Hugetlb").unwrap_or(0);
    let others_kib = all_kib.saturating_sub(host_total.saturating_mul(size_kib));
    Hugepages { total, free, reserved, size_kib, others_kib }
}

impl Hugepages {
    /// The number of the line `name`, and whether it is a number of KiB.
    pub(super) fn line(&self, name: &[u8]) -> Option<(u64, bool)> {
        match name {
            b"HugePages_Total" => Some((self.total, false)),
            b"HugePages_Free" => Some((self.free, false)),
            b"HugePages_Rsvd" => Some((self.reserved, false)),
            // Beyond the pool the machine lends pages to all: none is the container's own.
            b"HugePages_Surp" => Some((0, false)),
            b"Hugetlb" => {
                let own = self.total.saturating_mul(self.size_kib);
                Some((own.saturating_add(self.others_kib), true))
            }
            _ => None,
        }
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
        let pages = within(&limits, HOST, 2_048);
        let names =
            ["HugePages_Total", "HugePages_Free", "HugePages_Rsvd", "HugePages_Surp", "Hugetlb"];
        names.map(|name| pages.line(name.as_bytes()).unwrap().0)
    }

    #[test]
    fn no_more_than_the_limit_and_the_pool() {
        assert_eq!(lines(Some(8 << 20), 2 << 20, 4 << 20), [4, 3, 1, 0, 1_056_768]);
        assert_eq!(lines(None, 2 << 20, 0), [10, 6, 0, 0, 1_069_056]);
        assert_eq!(lines(Some(0), u64::MAX, u64::MAX), [0, 0, 0, 0, 1_048_576]);
    }
}
