//! `/proc/swaps`: the container's swap (kernel: mm/swapfile.c).
//!
//! A container whose limit leaves it all of the host's swap has the host's devices under their names. Another has one
//! device of the size of its limit: a limit is on swap of any device.

use std::io::Write;

use super::View;
use super::meminfo::swap_kib;
use crate::error::Result;
use crate::model::file::File;
use crate::source::{Text, parse};

#[derive(Debug)]
pub(super) struct Swaps {
    /// All swap the container may use, KiB. 0: no line.
    total_kib: u64,
    /// Swap in use, KiB.
    used_kib: u64,
    host: Text,
}

/// A line of the host's: everything up to its size, and its numbers.
struct Device<'a> {
    head: &'a [u8],
    size_kib: u64,
    used_kib: u64,
    priority: &'a [u8],
}

pub(super) fn gather(view: &View<'_>) -> Result<Swaps> {
    let meminfo = view.host(File::Meminfo)?;
    let (total_kib, used_kib) = swap_kib(view, &meminfo)?;
    // Without swap there is nothing to ask the host for.
    let host = if total_kib > 0 { view.host(File::Swaps)? } else { Text::default() };
    Ok(Swaps { total_kib, used_kib, host })
}

/// One device of a limit is named `none`, as LXCFS names it.
pub(super) fn render(swaps: &Swaps, page: &mut Vec<u8>) {
    page.extend_from_slice(b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
    let devices: Vec<_> = parse::lines(&swaps.host).skip(1).filter_map(device).collect();
    let sum =
        |number: fn(&Device<'_>) -> u64| devices.iter().map(number).fold(0, u64::saturating_add);
    let (size_kib, host_used_kib) = (sum(|device| device.size_kib), sum(|device| device.used_kib));
    if swaps.total_kib == 0 {
        return;
    }
    if size_kib != swaps.total_kib {
        let head = format!("{:<40}virtual\t\t", "none");
        write_line(page, head.as_bytes(), swaps.total_kib, swaps.used_kib, b"0");
        return;
    }
    let mut left_kib = swaps.used_kib;
    for (index, device) in devices.iter().enumerate() {
        // No cgroup knows on which device its pages are: on each, the part of it that the host has there.
        let part = u128::from(swaps.used_kib) * u128::from(device.used_kib);
        let part =
            u64::try_from(part.div_ceil(u128::from(host_used_kib.max(1)))).unwrap_or(left_kib);
        let is_last = index + 1 == devices.len();
        let used_kib = if is_last { left_kib } else { part.min(left_kib) }.min(device.size_kib);
        left_kib -= used_kib;
        write_line(page, device.head, device.size_kib, used_kib, device.priority);
    }
}

fn write_line(page: &mut Vec<u8>, head: &[u8], size_kib: u64, used_kib: u64, priority: &[u8]) {
    // The kernel puts two tabs behind a number of up to seven digits and one behind a longer one.
    let tabs = |kib: u64| if kib < 10_000_000 { "\t\t" } else { "\t" };
    page.extend_from_slice(head);
    let _ = write!(page, "{size_kib}{}{used_kib}{}", tabs(size_kib), tabs(used_kib));
    page.extend_from_slice(priority);
    page.push(b'\n');
}

/// Reads `/dev/sda2  partition  4096  1024  -2`. The kernel writes a space in a name as `\040`.
fn device(line: &[u8]) -> Option<Device<'_>> {
    let mut fields = parse::fields(line).skip(2);
    let size = fields.next()?;
    let (size_kib, used_kib) = (parse::number(size)?, parse::number(fields.next()?)?);
    let priority = fields.next()?;
    let at = line.windows(size.len()).rposition(|window| std::ptr::eq(window, size))?;
    Some(Device { head: &line[..at], size_kib, used_kib, priority })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::testing::Case;
    use crate::source::Swap;
    use crate::source::fake::FakeSource;

    const HOST: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
        /dev/zram0                              partition\t3072\t\t60\t\t100\n\
        /swap\\040file                           file\t\t1024\t\t20\t\t-2\n";

    fn case(limit_bytes: Option<u64>, used_bytes: u64) -> Case {
        let swap = Some(Swap { limit_bytes, used_bytes });
        let host = "MemTotal: 1000 kB\nSwapTotal: 4096 kB\nSwapFree: 4000 kB\n";
        let files = [(File::Meminfo, host), (File::Swaps, HOST)];
        Case::new(FakeSource { swap, ..FakeSource::default() }, &files)
    }

    #[test]
    fn w14_a_limit_below_the_hosts_swap() {
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
    fn all_of_the_hosts_swap_is_its_devices() {
        case(None, 40 << 10).golden(File::Swaps, "swaps/unlimited");
        let nothing_swapped = case(None, 0).page(File::Swaps).unwrap();
        assert_eq!(nothing_swapped, HOST.replace("\t60\t", "\t0\t").replace("\t20\t", "\t0\t"));
    }

    #[test]
    fn ask_115_no_more_is_used_than_there_is() {
        let page = case(Some(1 << 10), u64::MAX).page(File::Swaps).unwrap();
        assert!(page.ends_with("virtual\t\t1\t\t1\t\t0\n"), "{page}");
    }
}
