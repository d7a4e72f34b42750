//! The kernel's text formats, from bytes to values: pure, and fed with garbage in the tests.
//!
//! A line of another form is left out and never ends the parse: one odd device must not hide the others.

use crate::model::cpus::Bandwidth;
use crate::model::monotonic::CpuTimes;
use crate::source::{DeviceIo, NumaStat};

/// An unsigned decimal number. More than 64 bits saturate; a sign or any other character is no number.
#[must_use]
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut value = 0_u64;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value.saturating_mul(10).saturating_add(u64::from(digit));
    }
    Some(value)
}

/// The fields of a line, split at runs of white space.
pub fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty())
}

/// The lines of a text, without their ends. As with `split`, there is an empty one behind the last end.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = memchr::memchr(b'\n', text) else { return rest.take() };
        rest = Some(&text[end + 1..]);
        Some(&text[..end])
    })
}

/// The one number of a file like `memory.current`.
#[must_use]
pub fn single(text: &[u8]) -> Option<u64> {
    number(text.trim_ascii())
}

/// A limit like `memory.max`: a number, or `max` for none. The outer `None` is a malformed file.
#[must_use]
pub fn limit(text: &[u8]) -> Option<Option<u64>> {
    match text.trim_ascii() {
        b"max" => Some(None),
        digits => number(digits).map(Some),
    }
}

/// The pairs of a flat keyed file like `memory.stat`: a `key value` on each line.
pub fn flat_keyed(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    lines(text).filter_map(|line| {
        // One space is what the kernel writes, in files of a hundred lines that are read for every page.
        if let Some(space) = memchr::memchr(b' ', line)
            && let Some(value) = number(&line[space + 1..])
            && space > 0
        {
            return Some((&line[..space], value));
        }
        let mut fields = fields(line);
        Some((fields.next()?, number(fields.next()?)?))
    })
}

/// The number behind `key` in a flat keyed file.
#[must_use]
pub fn keyed(text: &[u8], key: &[u8]) -> Option<u64> {
    flat_keyed(text).find(|(known, _)| *known == key).map(|(_, number)| number)
}

/// A decimal fraction like `12.34` as hundredths.
#[must_use]
pub fn hundredths(field: &[u8]) -> Option<u64> {
    let point = field.iter().position(|&byte| byte == b'.')?;
    let (whole, fraction) = (number(&field[..point])?, &field[point + 1..]);
    (fraction.len() == 2).then_some(())?;
    whole.checked_mul(100)?.checked_add(number(fraction)?)
}

/// The three averages of `/proc/loadavg`, hundredths.
#[must_use]
pub fn loadavg(text: &[u8]) -> Option<[u64; 3]> {
    let mut averages = fields(text).map_while(hundredths);
    Some([averages.next()?, averages.next()?, averages.next()?])
}

/// `avg10` of the `some` line of a pressure file, hundredths of a percent.
#[must_use]
pub fn pressure_some_avg10(text: &[u8]) -> Option<u64> {
    let some = lines(text).find(|line| line.starts_with(b"some "))?;
    hundredths(fields(some).find_map(|field| field.strip_prefix(b"avg10="))?)
}

/// `cpu.max`: `quota period`, or `max period`. The outer `None` is a malformed file.
#[must_use]
pub fn cpu_max(text: &[u8]) -> Option<Option<Bandwidth>> {
    let mut fields = fields(text);
    let quota_us = limit(fields.next()?)?;
    let period_us = number(fields.next()?).filter(|&period| period > 0)?;
    Some(quota_us.map(|quota_us| Bandwidth { quota_us, period_us }))
}

/// `cpu.stat`: the time used, in nanoseconds although the file has microseconds.
///
/// `nice_usec` (6.11) is part of `user_usec`; the files of `/proc` show the two apart.
#[must_use]
pub fn cpu_stat(text: &[u8]) -> Option<CpuTimes> {
    let (mut user, mut nice, mut system) = (None, 0, None);
    for (key, value_us) in flat_keyed(text) {
        match key {
            b"user_usec" => user = Some(value_us),
            b"nice_usec" => nice = value_us,
            b"system_usec" => system = Some(value_us),
            _ => {}
        }
    }
    let nice_us = nice.min(user?);
    Some(CpuTimes {
        user_ns: (user? - nice_us).saturating_mul(1_000),
        nice_ns: nice_us.saturating_mul(1_000),
        system_ns: system?.saturating_mul(1_000),
        ..CpuTimes::default()
    })
}

/// `cpuacct.usage_all`: `cpu user system` in nanoseconds, one line for each possible CPU. Index = CPU number.
#[must_use]
pub fn cpuacct_usage_all(text: &[u8]) -> Option<Vec<CpuTimes>> {
    let mut cpus: Vec<CpuTimes> = Vec::new();
    for line in lines(text).skip(1) {
        let mut fields = fields(line);
        let Some(index) = fields.next() else { continue };
        // Lines come in ascending order without gaps; a file that says otherwise is not this file.
        if number(index) != Some(cpus.len() as u64) {
            return None;
        }
        cpus.push(CpuTimes {
            user_ns: number(fields.next()?)?,
            system_ns: number(fields.next()?)?,
            ..CpuTimes::default()
        });
    }
    (!cpus.is_empty()).then_some(cpus)
}

/// `cpuacct.usage_percpu`: nanoseconds used on each possible CPU, on one line. Index = CPU number.
#[must_use]
pub fn cpuacct_usage_percpu(text: &[u8]) -> Option<Vec<u64>> {
    let cpus: Option<Vec<u64>> = fields(text).map(number).collect();
    cpus.filter(|cpus| !cpus.is_empty())
}

/// `major:minor`.
#[must_use]
pub fn device(field: &[u8]) -> Option<(u32, u32)> {
    let colon = field.iter().position(|&byte| byte == b':')?;
    let (major, minor) = (number(&field[..colon])?, number(&field[colon + 1..])?);
    Some((major.try_into().ok()?, minor.try_into().ok()?))
}

/// `io.stat` (v2): `major:minor rbytes=N wbytes=N rios=N wios=N dbytes=N dios=N ...`.
///
/// Some kernels print a device on a line of its own and its numbers behind the next one, or `(unknown)` for a device
/// that is gone: fields before any device are left out.
#[must_use]
pub fn io_stat(text: &[u8]) -> Vec<DeviceIo> {
    let mut devices: Vec<DeviceIo> = Vec::new();
    for line in lines(text) {
        let mut current = None;
        for field in fields(line) {
            if let Some(device) = device(field) {
                current = Some(DeviceIo { device, ..DeviceIo::default() });
            } else if let Some(io) = &mut current {
                let Some(equals) = field.iter().position(|&byte| byte == b'=') else {
                    continue;
                };
                let Some(value) = number(&field[equals + 1..]) else {
                    continue;
                };
                match &field[..equals] {
                    b"rbytes" => io.read_bytes = value,
                    b"wbytes" => io.write_bytes = value,
                    b"rios" => io.reads = value,
                    b"wios" => io.writes = value,
                    b"dbytes" => io.discard_bytes = value,
                    b"dios" => io.discards = value,
                    _ => {}
                }
            }
        }
        devices.extend(current);
    }
    devices
}

/// A `blkio.*.io_service_bytes` or `io_serviced` (v1): `major:minor Kind N`. Returns `(device, kind, number)`.
pub fn blkio(text: &[u8]) -> impl Iterator<Item = ((u32, u32), &[u8], u64)> {
    lines(text).filter_map(|line| {
        let mut fields = fields(line);
        Some((device(fields.next()?)?, fields.next()?, number(fields.next()?)?))
    })
}

/// The seconds of the line `boottime` of `/proc/PID/timens_offsets`, which may be negative.
#[must_use]
pub fn timens_boottime_s(text: &[u8]) -> Option<i64> {
    let line = lines(text).find_map(|line| line.strip_prefix(b"boottime"))?;
    let seconds = fields(line).next()?;
    match seconds.strip_prefix(b"-") {
        Some(digits) => number(digits).and_then(|n| i64::try_from(n).ok()).map(i64::wrapping_neg),
        None => number(seconds).and_then(|n| i64::try_from(n).ok()),
    }
}

/// How the hugetlb controller writes the size of a page in the names of its files.
#[must_use]
pub fn page_size_name(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 30 => format!("{}GB", bytes >> 30),
        bytes if bytes >= 1 << 20 => format!("{}MB", bytes >> 20),
        bytes => format!("{}KB", bytes >> 10),
    }
}

/// `memory.numa_stat`: a `key N0=1 N1=2` on each line, which v1 begins with `key=3`.
#[must_use]
pub fn numa_stat(text: &[u8]) -> Vec<NumaStat> {
    let node = |field: &[u8]| {
        let equals = field.iter().position(|&byte| byte == b'=')?;
        let node = number(field[..equals].strip_prefix(b"N")?)?.try_into().ok()?;
        Some((node, number(&field[equals + 1..])?))
    };
    let line = |line| {
        let mut fields = fields(line);
        let key = fields.next()?.split(|&byte| byte == b'=').next()?;
        let key = String::from_utf8(key.to_owned()).ok()?;
        Some(NumaStat { key, bytes: fields.filter_map(node).collect() })
    };
    lines(text).filter_map(line).collect()
}

/// The number in the link of a namespace file, `pid:[4026531836]`: its inode number.
#[must_use]
pub fn namespace(link: &[u8]) -> Option<u64> {
    let start = link.iter().position(|&byte| byte == b'[')? + 1;
    number(link.get(start..)?.strip_suffix(b"]")?)
}

/// What we need of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidStat {
    /// One letter: `R`, `S`, `D`, ...
    pub state: u8,
    /// The parent's pid.
    pub parent: u32,
    /// When it started, in ticks since boot (field 22).
    pub start_ticks: u64,
}

/// `/proc/PID/stat`. The second field is a name in parentheses that may hold spaces and parentheses itself, so the
/// fields are counted from the last closing one.
#[must_use]
pub fn pid_stat(text: &[u8]) -> Option<PidStat> {
    let close = text.iter().rposition(|&byte| byte == b')')?;
    let mut rest = fields(&text[close + 1..]);
    let state = *rest.next()?.first()?;
    let parent = number(rest.next()?)?.try_into().ok()?;
    // State is field 3, the parent field 4; between the parent and field 22 lie 17.
    let start_ticks = number(rest.nth(17)?)?;
    Some(PidStat { state, parent, start_ticks })
}

/// The numbers behind `key` in a `/proc/PID/status`: `NSpid:  4711  1`.
#[must_use]
pub fn status_numbers(text: &[u8], key: &[u8]) -> Option<Vec<u32>> {
    let line = lines(text).find_map(|line| line.strip_prefix(key)?.strip_prefix(b":"))?;
    fields(line).map(|field| number(field)?.try_into().ok()).collect()
}

/// The set behind `key` in a `/proc/PID/status`: `CapEff:  000001ffffffffff`, one bit for each capability.
#[must_use]
pub fn status_set(text: &[u8], key: &[u8]) -> Option<u64> {
    let line = lines(text).find_map(|line| line.strip_prefix(key)?.strip_prefix(b":"))?;
    u64::from_str_radix(std::str::from_utf8(line.trim_ascii()).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_saturate_and_refuse_signs() {
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(number(b"99999999999999999999"), Some(u64::MAX));
        for text in [&b""[..], b"-1", b"+1", b" 1", b"0x1", b"1.5", b"\xff"] {
            assert_eq!(number(text), None);
        }
    }

    #[test]
    fn limits_and_bandwidth() {
        assert_eq!(limit(b"max\n"), Some(None));
        assert_eq!(limit(b"268435456\n"), Some(Some(268_435_456)));
        assert_eq!(limit(b"\n"), None);
        let half = Bandwidth { quota_us: 50_000, period_us: 100_000 };
        assert_eq!(cpu_max(b"50000 100000\n"), Some(Some(half)));
        assert_eq!(cpu_max(b"max 100000\n"), Some(None));
        assert_eq!(cpu_max(b"50000 0\n"), None);
        assert_eq!(cpu_max(b""), None);
    }

    #[test]
    fn nice_time_is_taken_out_of_user_time() {
        let times =
            cpu_stat(b"usage_usec 30\nuser_usec 20\nsystem_usec 10\nnice_usec 5\n").unwrap();
        assert_eq!((times.user_ns, times.nice_ns, times.system_ns), (15_000, 5_000, 10_000));
        assert_eq!(cpu_stat(b"usage_usec 30\n"), None);
    }

    #[test]
    fn usage_all_is_indexed_by_cpu() {
        let cpus = cpuacct_usage_all(b"cpu user system\n0 7 8\n1 9 10\n").unwrap();
        assert_eq!(
            cpus.iter().map(|cpu| (cpu.user_ns, cpu.system_ns)).collect::<Vec<_>>(),
            [(7, 8), (9, 10)]
        );
        assert_eq!(cpuacct_usage_percpu(b"7 8 \n"), Some(vec![7, 8]));
        assert_eq!(cpuacct_usage_percpu(b"7 x\n"), None);
        assert_eq!(cpuacct_usage_all(b"cpu user system\n"), None);
        assert_eq!(cpuacct_usage_all(b"cpu user system\n1 7 8\n"), None);
    }

    #[test]
    fn ask_lxd18609_an_unknown_device_hides_no_other() {
        let text = b"(unknown) rbytes=1\n8:0 8:16 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n254:0 \n";
        let devices = io_stat(text);
        assert_eq!(devices.iter().map(|io| io.device).collect::<Vec<_>>(), [(8, 16), (254, 0)]);
        assert_eq!((devices[0].read_bytes, devices[0].reads), (4096, 1));
    }

    #[test]
    fn a_name_with_spaces_and_parentheses() {
        let text =
            b"4711 (a) R b ((c) S 1 4711 4711 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2\n";
        assert_eq!(pid_stat(text), Some(PidStat { state: b'S', parent: 1, start_ticks: 98_765 }));
        assert_eq!(pid_stat(b"4711 (x"), None);
    }

    #[test]
    fn pids_in_nested_namespaces() {
        let text = b"Name:\tx\nNSpid:\t4711\t17\t1\nNSpgid:\t1\n";
        assert_eq!(status_numbers(text, b"NSpid"), Some(vec![4711, 17, 1]));
        assert_eq!(status_numbers(text, b"NStgid"), None);
    }

    #[test]
    fn offsets_of_a_time_namespace() {
        let text = |s: &str| format!("monotonic           5         0\nboottime   {s}         0\n");
        assert_eq!(timens_boottime_s(text("86400").as_bytes()), Some(86_400));
        assert_eq!(timens_boottime_s(text("-17").as_bytes()), Some(-17));
        assert_eq!(timens_boottime_s(b"monotonic 1 0\n"), None);
    }

    #[test]
    fn names_of_huge_page_sizes() {
        let names = [64 << 10, 2 << 20, 512 << 20, 1 << 30].map(page_size_name);
        assert_eq!(names, ["64KB", "2MB", "512MB", "1GB"]);
    }

    #[test]
    fn memory_by_node() {
        let stat = numa_stat(b"hierarchical_anon=3 N0=1 N1=2\nfile N0=4096 N1=x N2=7\n\n");
        assert_eq!((&*stat[0].key, stat[0].on(0), stat[0].on(1)), ("hierarchical_anon", 1, 2));
        assert_eq!((&*stat[1].key, stat[1].on(0), stat[1].on(1)), ("file", 4096, 0));
        assert_eq!((stat[1].on(2), stat.len()), (7, 2));
    }

    #[test]
    fn capabilities_are_a_set() {
        let text = b"CapPrm:\t0000000000000000\nCapEff:\t000001fffeffffff\nCapBnd:\tx\n";
        assert_eq!(status_set(text, b"CapEff"), Some(0x1ff_feff_ffff));
        assert_eq!(status_set(text, b"CapBnd"), None);
        assert_eq!(status_set(text, b"CapAmb"), None);
    }

    /// Words of the kernel's files, right and odd ones.
    const WORDS: [&[u8]; 27] = [
        b"8:0",
        b"8:-1",
        b"4294967296:0",
        b":",
        b"(unknown)",
        b"rbytes=1",
        b"rbytes=",
        b"wios=-1",
        b"=",
        b"Read",
        b"Total",
        b"0",
        b"-1",
        b"18446744073709551616",
        b"99999999999999999999",
        b"max",
        b"cpu",
        b"user_usec",
        b"system_usec",
        b"N0=1",
        b"N4294967296=1",
        b"NSpid:",
        b"\xff\xfe",
        b"(a b) R",
        b"some",
        b"avg10=99999999999999999999.99",
        b"99999999999999999999.99",
    ];

    fn parse_all(text: &[u8]) {
        let _ = (
            limit(text),
            single(text),
            cpu_max(text),
            cpu_stat(text),
            cpuacct_usage_all(text),
            cpuacct_usage_percpu(text),
        );
        let _ = (io_stat(text), blkio(text).count(), pid_stat(text), flat_keyed(text).count());
        let _ = (status_numbers(text, b"NSpid"), status_set(text, b"CapEff"));
        let _ = (device(text), numa_stat(text), keyed(text, b"8:0"));
        let _ = (hundredths(text), loadavg(text), pressure_some_avg10(text));
        let _ = timens_boottime_s(text);
    }

    proptest! {
        #[test]
        fn nothing_panics_on_garbage(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse_all(&text);
        }

        #[test]
        fn nothing_panics_on_odd_words(
            words in proptest::collection::vec((proptest::sample::select(&WORDS[..]), any::<bool>()), 0..60),
        ) {
            let mut text = Vec::new();
            for (word, ends_line) in words {
                text.extend_from_slice(word);
                text.push(if ends_line { b'\n' } else { b' ' });
            }
            parse_all(&text);
        }
    }

    #[test]
    fn a_line_of_a_mebibyte_is_read() {
        for text in [vec![b'7'; 1 << 20], b"8:0 rbytes=1 ".repeat(80_000), b"(".repeat(1 << 20)] {
            parse_all(&text);
        }
    }
}
