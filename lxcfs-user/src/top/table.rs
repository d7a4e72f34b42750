//! The table: rates to cells, cells to lines. Pure, for the screen and for paper alike.

use std::cmp::Reverse;

use super::rates::{Rate, Rates};

/// Columns, of which the last takes the width that is left.
pub(super) const HEADINGS: [&str; 14] = [
    "PID",
    "LOAD 1",
    "5",
    "15",
    "RUN",
    "BLK",
    "THR",
    "CPU%",
    "STEAL%",
    "THROT%",
    "MEM",
    "LIMIT",
    "CPU/MEM/IO PSI",
    "CONTAINER",
];

/// How wide each column is but for the last.
pub(super) const WIDTHS: [u16; 13] = [8, 7, 7, 7, 5, 5, 6, 7, 7, 7, 7, 7, 17];

/// What is not known.
const UNKNOWN: &str = "-";

/// What the rows are ordered by: the most first, or by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Cpu,
    Memory,
    Load,
    Name,
}

/// One container's cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) cells: [String; 14],
}

/// The rows in `order`.
pub(super) fn rows(rates: &Rates, order: Order) -> Vec<Row> {
    let mut containers: Vec<_> = rates.containers.iter().collect();
    // A stable sort: what is equal keeps the order of its start.
    match order {
        Order::Cpu => containers.sort_by_key(|rate| Reverse(rate.cpu_ns_per_s)),
        Order::Memory => containers.sort_by_key(|rate| Reverse(rate.now.memory_bytes)),
        Order::Load => containers.sort_by_key(|rate| Reverse(rate.now.load_hundredths)),
        Order::Name => containers.sort_by(|a, b| a.now.cgroup.cmp(&b.now.cgroup)),
    }
    containers.into_iter().map(row).collect()
}

/// The line above the table.
pub(super) fn summary(rates: &Rates) -> String {
    let [one, five, fifteen] = rates.host_load_hundredths.map(decimal);
    let sum = |counter: fn(&Rate) -> Option<u64>| {
        rates.containers.iter().filter_map(counter).fold(0, u64::saturating_add)
    };
    let cpu = percent(sum(|rate| rate.cpu_ns_per_s));
    let memory = size(sum(|rate| rate.now.memory_bytes));
    format!(
        "lxcfs top - {} containers: {cpu} % CPU, {memory} memory - load of the host: {one}, {five}, {fifteen}",
        rates.containers.len(),
    )
}

/// The cells on a line of at most `width` columns.
pub(super) fn line(cells: &[String; 14], width: u16) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(WIDTHS) {
        line.push_str(&format!("{cell:>0$} ", usize::from(width)));
    }
    let left = usize::from(width).saturating_sub(line.chars().count());
    line + &end_of(&cells[13], left)
}

/// The end of a path tells containers apart, not its beginning.
pub(super) fn end_of(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let end: String = text.chars().skip(length - width.saturating_sub(2)).collect();
    format!("..{end}")
}

fn row(rate: &Rate) -> Row {
    let now = &rate.now;
    let load = |index: usize| known(now.load_hundredths.map(|load| decimal(load[index])));
    let count = |count: Option<u32>| known(count.map(|count| count.to_string()));
    let share = |ns_per_s: Option<u64>| known(ns_per_s.map(percent));
    let pressures =
        [now.cpu_pressure_hundredths, now.memory_pressure_hundredths, now.io_pressure_hundredths];
    let pressures =
        pressures.map(|pressure| known(pressure.map(|pressure| (pressure / 100).to_string())));
    let cells = [
        now.init.to_string(),
        load(0),
        load(1),
        load(2),
        count(now.running),
        count(now.blocked),
        count(now.threads),
        share(rate.cpu_ns_per_s),
        share(rate.steal_ns_per_s),
        share(rate.throttled_ns_per_s),
        known(now.memory_bytes.map(size)),
        known(now.memory_limit_bytes.map(size)),
        pressures.join("/"),
        name(&now.cgroup),
    ];
    Row { cells }
}

fn known(text: Option<String>) -> String {
    text.unwrap_or_else(|| UNKNOWN.to_owned())
}

fn decimal(hundredths: u64) -> String {
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// Nanoseconds in a second as a percentage of one CPU.
fn percent(ns_per_s: u64) -> String {
    let tenths = ns_per_s.saturating_add(500_000) / 1_000_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// Bytes with at most four digits and the unit that takes.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["", "K", "M", "G", "T"];
    let (mut value, mut unit) = (bytes, 0);
    while value > 9_999 && unit + 1 < UNITS.len() {
        value /= 1_024;
        unit += 1;
    }
    format!("{value}{}", UNITS[unit])
}

/// The cgroup with the long ids of container engines as short as engines print them.
fn name(cgroup: &str) -> String {
    const ID: usize = 64;
    const SHORT: usize = 12;
    let is_id = |part: &str| part.len() == ID && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let shorten = |part: &str| -> String {
        let word = part.find(|c: char| !c.is_ascii_alphanumeric()).map_or(part, |end| &part[..end]);
        if is_id(word) { format!("{}{}", &part[..SHORT], &part[ID..]) } else { part.to_owned() }
    };
    let parts = cgroup.split_inclusive(['/', '-']);
    parts.map(shorten).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survey::Measure;

    fn rates() -> Rates {
        let id = "0123456789abcdef".repeat(4);
        let busy = Rate {
            now: Measure {
                cgroup: format!("/docker/{id}"),
                init: 4_711,
                load_hundredths: Some([203, 5, 0]),
                running: Some(2),
                blocked: Some(0),
                threads: Some(12),
                memory_bytes: Some(300 << 20),
                memory_limit_bytes: Some(512 << 20),
                cpu_pressure_hundredths: Some(1_250),
                ..Measure::default()
            },
            cpu_ns_per_s: Some(1_996_000_000),
            steal_ns_per_s: Some(0),
            throttled_ns_per_s: None,
        };
        let unknown = Rate {
            now: Measure { cgroup: "/a".to_owned(), init: 1, ..Measure::default() },
            ..Rate::default()
        };
        Rates {
            host_load_hundredths: [301, 200, 100],
            containers: vec![unknown, busy],
            ..Rates::default()
        }
    }

    #[test]
    fn the_table() {
        let rows = rows(&rates(), Order::Cpu);
        let lines: Vec<_> = rows.iter().map(|row| line(&row.cells, 140)).collect();
        assert_eq!(
            lines,
            [
                "    4711    2.03    0.05    0.00     2     0     12   199.6     0.0       -    300M    512M            12/-/- /docker/0123456789ab",
                "       1       -       -       -     -     -      -       -       -       -       -       -             -/-/- /a",
            ]
        );
        assert_eq!(
            summary(&rates()),
            "lxcfs top - 2 containers: 199.6 % CPU, 300M memory - load of the host: 3.01, 2.00, 1.00"
        );
    }

    #[test]
    fn each_order() {
        let first = |order| rows(&rates(), order)[0].cells[0].clone();
        assert_eq!(first(Order::Name), "1");
        assert_eq!([Order::Cpu, Order::Memory, Order::Load].map(first), ["4711", "4711", "4711"]);
    }

    #[test]
    fn what_engines_call_their_cgroups_is_shortened() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(
            name(&format!("/kubepods.slice/cri-containerd-{id}.scope")),
            "/kubepods.slice/cri-containerd-0123456789ab.scope"
        );
        assert_eq!(name("/lxc.payload.c1"), "/lxc.payload.c1");
        assert_eq!(end_of("/a/very/long/path", 8), "..g/path");
        assert_eq!(end_of("/a/very/long/path", 1), "..");
    }

    #[test]
    fn sizes_have_four_digits() {
        assert_eq!(
            [0, 9_999, 10_000, 10_239 << 10, u64::MAX].map(size),
            ["0", "9999", "9K", "9M", "16777215T"]
        );
    }
}
