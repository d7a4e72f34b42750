//! `/proc/diskstats`: the host's devices, and what the container has done to each (kernel: block/genhd.c).
//!
//! A device it has not used has zeros. Without its line programs would find fewer devices than `/sys/block` has, or, like
//! psutil, none at all and say that there is no such thing as disk I/O here.
//!
//! A cgroup counts requests and bytes. It does not count merges, flushes, queue lengths or times: those columns are 0.

use super::digits::{push, push_right};
use super::{View, required};
use crate::error::Result;
use crate::model::file::File;
use crate::source::{DeviceIo, Text, parse};

/// `/proc/diskstats` counts in sectors of this size, whatever the device's is.
const SECTOR_BYTES: u64 = 512;

/// Columns behind the name: 11 at first, 15 with discards (4.18), 17 with flushes (5.5). We print as many as the host.
const MOST_COLUMNS: usize = 17;

#[derive(Debug)]
pub(super) struct Diskstats {
    host: Text,
    devices: Vec<DeviceIo>,
}

pub(super) fn gather(view: &View<'_>) -> Result<Diskstats> {
    let devices = required(view.source.io(view.container)?, "io")?;
    Ok(Diskstats { host: view.host(File::Diskstats)?, devices })
}

pub(super) fn render(diskstats: &Diskstats, page: &mut Vec<u8>) {
    for line in parse::lines(&diskstats.host) {
        let Some((device, name, columns)) = parse_host_line(line) else {
            continue;
        };
        let io = diskstats.devices.iter().find(|io| io.device == device);
        let io = io.copied().unwrap_or_default();
        for (number, width) in [(device.0, 4), (device.1, 7)] {
            push_right(page, number.into(), width);
            page.push(b' ');
        }
        page.extend_from_slice(name);
        for &column in io.columns().iter().take(columns) {
            page.push(b' ');
            push(page, column);
        }
        page.push(b'\n');
    }
}

/// `(device, name, columns)` of a host line.
fn parse_host_line(line: &[u8]) -> Option<((u32, u32), &[u8], usize)> {
    let mut fields = parse::fields(line);
    let major = parse::number(fields.next()?)?.try_into().ok()?;
    let minor = parse::number(fields.next()?)?.try_into().ok()?;
    let name = fields.next()?;
    Some(((major, minor), name, fields.count()))
}

impl DeviceIo {
    /// The columns in the file's order.
    const fn columns(&self) -> [u64; MOST_COLUMNS] {
        let read_sectors = self.read_bytes / SECTOR_BYTES;
        let write_sectors = self.write_bytes / SECTOR_BYTES;
        let discard_sectors = self.discard_bytes / SECTOR_BYTES;
        [
            // Requests, merged, sectors, milliseconds: of reads, then of writes.
            self.reads,
            0,
            read_sectors,
            0,
            self.writes,
            0,
            write_sectors,
            0,
            // In flight, milliseconds busy, milliseconds weighted.
            0,
            0,
            0,
            self.discards,
            0,
            discard_sectors,
            0,
            // Flushes, milliseconds.
            0,
            0,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::testing::Case;
    use crate::source::fake::FakeSource;

    const HOST: &str = include_str!("../../testdata/host/diskstats");

    fn case(host: &str, devices: Vec<DeviceIo>) -> Case {
        let source = FakeSource { io: Some(devices), ..FakeSource::default() };
        Case::new(source, &[(File::Diskstats, host)])
    }

    fn vda() -> DeviceIo {
        DeviceIo {
            device: (254, 0),
            reads: 3,
            writes: 2,
            discards: 1,
            read_bytes: 4096,
            write_bytes: 8192,
            discard_bytes: 512,
        }
    }

    #[test]
    fn the_hosts_devices_with_the_containers_numbers() {
        let untouched = DeviceIo { device: (7, 0), ..DeviceIo::default() };
        let gone = DeviceIo { device: (8, 99), reads: 1, ..DeviceIo::default() };
        case(HOST, vec![untouched, vda(), gone])
            .golden(File::Diskstats, "diskstats/used_and_unused");
    }

    #[test]
    fn an_old_kernel_has_fewer_columns() {
        let host = " 254 0 vda 1 2 3 4 5 6 7 8 9 10 11\n garbage\n";
        let page = case(host, vec![vda()]).page(File::Diskstats).unwrap();
        assert_eq!(page, " 254       0 vda 3 0 8 0 2 0 16 0 0 0 0\n");
    }
}
