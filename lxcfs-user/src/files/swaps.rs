//! `/proc/swaps`: the container's swap as one device (kernel: mm/swapfile.c).

use std::io::Write;

use super::View;
use super::meminfo::swap_kib;
use crate::error::Result;

/// The one line below the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Swaps {
    /// All swap the container may use, KiB. 0: no line.
    total_kib: u64,
    /// Swap in use, KiB.
    used_kib: u64,
}

pub(super) fn gather(view: &View<'_>) -> Result<Swaps> {
    let meminfo = view.host(crate::model::file::File::Meminfo)?;
    let (total_kib, used_kib) = swap_kib(view, &meminfo)?;
    Ok(Swaps { total_kib, used_kib })
}

/// Devices are the host's and a limit is not a device, so the line is named `none`, as LXCFS names it.
pub(super) fn render(swaps: &Swaps, page: &mut Vec<u8>) {
    page.extend_from_slice(b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
    if swaps.total_kib > 0 {
        // The kernel puts two tabs behind a number of up to seven digits and one behind a longer one.
        let tabs = |kib: u64| if kib < 10_000_000 { "\t\t" } else { "\t" };
        let (total, used) = (swaps.total_kib, swaps.used_kib);
        let (after_total, after_used) = (tabs(total), tabs(used));
        let _ = writeln!(page, "{:<40}virtual\t\t{total}{after_total}{used}{after_used}0", "none");
    }
}

#[cfg(test)]
mod tests {
    use crate::files::testing::Case;
    use crate::model::file::File;
    use crate::source::Swap;
    use crate::source::fake::FakeSource;

    fn case(limit_bytes: Option<u64>, used_bytes: u64) -> Case {
        let swap = Some(Swap { limit_bytes, used_bytes });
        let host = "MemTotal: 1000 kB\nSwapTotal: 4096 kB\nSwapFree: 4000 kB\n";
        Case::new(FakeSource { swap, ..FakeSource::default() }, &[(File::Meminfo, host)])
    }

    #[test]
    fn a_limit_below_the_hosts_swap() {
        case(Some(1 << 20), 300 << 10).golden(File::Swaps, "swaps/limited");
    }

    #[test]
    fn no_swap_no_line() {
        case(Some(0), 0).golden(File::Swaps, "swaps/none");
        let mut disabled = case(None, 0);
        disabled.policy.swap = false;
        disabled.golden(File::Swaps, "swaps/none");
    }

    #[test]
    fn no_more_is_used_than_there_is() {
        let page = case(Some(1 << 10), u64::MAX).page(File::Swaps).unwrap();
        assert!(page.ends_with("virtual\t\t1\t\t1\t\t0\n"), "{page}");
    }
}
