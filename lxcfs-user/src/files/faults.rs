//! Tests of every page at once: faults of LXCFS that are not of one file, and a host whose files are spoilt.

use std::fmt;
use std::sync::Mutex;

use proptest::prelude::*;

use super::testing::Case;
use super::*;
use crate::source::fake::{FakeMachine, FakeSource};
use crate::source::{Cpu, DeviceIo, Load, Memory, Swap};

/// A machine whose files pass through a function on their way; one that cannot be read passes as an empty one.
struct Passing<'a, F>(&'a FakeMachine, F);

impl<F> fmt::Debug for Passing<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Passing").field(self.0).finish_non_exhaustive()
    }
}

impl<F: Fn(File, Vec<u8>) -> Vec<u8> + Send + Sync> Machine for Passing<'_, F> {
    fn read(&self, file: File, text: &mut Vec<u8>) -> Result<()> {
        let mut whole = Vec::new();
        let read = self.0.read(file, &mut whole);
        text.extend((self.1)(file, whole));
        read
    }

    fn read_cpuinfo(&self, is_32bit: bool, text: &mut Vec<u8>) -> Result<()> {
        let mut whole = Vec::new();
        let read = self.0.read_cpuinfo(is_32bit, &mut whole);
        text.extend((self.1)(File::Cpuinfo, whole));
        read
    }

    fn read_sys(&self, path: &str, text: &mut Vec<u8>) -> Result<()> {
        self.0.read_sys(path, text)
    }

    fn boottime_ns(&self) -> u64 {
        self.0.boottime_ns()
    }

    fn ticks_per_second(&self) -> u64 {
        self.0.ticks_per_second()
    }

    fn page_bytes(&self) -> u64 {
        self.0.page_bytes()
    }

    fn pressure_file(&self, resource: Resource) -> Result<PressureFile> {
        self.0.pressure_file(resource)
    }
}

/// A container that may use all of `count` CPUs, and has used none of them.
fn case(count: usize) -> Case {
    let source = FakeSource {
        cpu: Some(Cpu::default()),
        memory: Some(Memory::default()),
        swap: Some(Swap::default()),
        io: Some(vec![DeviceIo { device: (8, 0), reads: 1, ..DeviceIo::default() }]),
        load: Some(Load::default()),
        pressure: Some("some avg10=0.00\n".to_owned()),
        ..FakeSource::default()
    };
    let stanza = |cpu| format!("processor\t: {cpu}\nmodel name\t: {}\n\n", "x".repeat(200));
    let cpuinfo: String = (0..count).map(stanza).collect();
    let rows: String = (0..count).map(|cpu| format!("cpu{cpu} 1 2 3 4 5 6 7 8 9 10\n")).collect();
    let stat = format!("cpu  1 2 3 4 5 6 7 8 9 10\n{rows}intr 1{}\nctxt 1\n", " 0".repeat(9_000));
    let files = [
        (File::CpuOnline, &*format!("0-{}\n", count - 1)),
        (File::Cpuinfo, &*cpuinfo),
        (File::Stat, &*stat),
        (File::Meminfo, "MemTotal: 8 kB\nMemFree: 8 kB\nMemAvailable: 8 kB\nSwapTotal: 8 kB\n"),
        (File::Diskstats, "   8       0 sda 1 2 3 4 5 6 7 8 9 10 11\n"),
        (File::Swaps, "Filename Type Size Used Priority\n/dev/sda2 partition 8 0 -2\n"),
        (File::Vmstat, "nr_free_pages 1\npgfault 2\n"),
        (File::Slabinfo, "slabinfo - version: 2.1\n# name\n"),
    ];
    Case::new(source, &files)
}

/// LXCFS reads the host's file three or four times for one page.
#[test]
fn w09_no_file_of_the_host_is_read_twice_for_a_page() {
    let case = case(2);
    for file in File::ALL {
        let read = Mutex::new(Vec::new());
        let note = |file, whole| {
            read.lock().unwrap().push(file);
            whole
        };
        let machine = Passing(&case.machine, note);
        let view = View { machine: &machine, ..case.view() };
        page(file, &view, &mut Vec::new()).unwrap();
        let read = read.lock().unwrap();
        for known in File::ALL {
            let times = read.iter().filter(|&&one| one == known).count();
            assert!(times <= 1, "{file:?}: {known:?} was read {times} times");
        }
    }
}

/// No buffer has a size that a machine of many CPUs outgrows.
#[test]
fn ask_442_443_444_284_608_a_thousand_cpus_fit_on_a_page() {
    let case = case(1_024);
    let stat = case.page(File::Stat).unwrap();
    assert_eq!(stat.lines().filter(|line| line.starts_with("cpu")).count(), 1_025);
    assert!(stat.contains("\nctxt "), "what is behind the CPUs is there");
    let cpuinfo = case.page(File::Cpuinfo).unwrap();
    assert_eq!(cpuinfo.matches("processor\t: ").count(), 1_024);
    assert!(cpuinfo.len() > 200 << 10);
    assert_eq!(case.page(File::CpuOnline).unwrap(), "0-1023\n");
}

/// What is wrong with a file.
#[derive(Debug, Clone)]
enum Spoil {
    /// It ends early: it shrank while it was read.
    Ends(usize),
    /// A line is missing.
    Lacks(usize),
    /// A word is another.
    Says(usize, &'static [u8]),
    /// A line goes on for a mebibyte.
    GoesOn(usize),
}

const ODD_WORDS: [&[u8]; 8] = [
    b"-1",
    b"18446744073709551616",
    b"99999999999999999999",
    b"(unknown)",
    b"\xff\xfe",
    b"",
    b"0",
    b"cpu4294967296",
];

fn spoils() -> impl Strategy<Value = Spoil> {
    let at = 0_usize..400;
    prop_oneof![
        at.clone().prop_map(Spoil::Ends),
        at.clone().prop_map(Spoil::Lacks),
        (at.clone(), proptest::sample::select(&ODD_WORDS[..]))
            .prop_map(|(at, word)| Spoil::Says(at, word)),
        at.prop_map(Spoil::GoesOn),
    ]
}

impl Spoil {
    fn spoil(&self, text: &[u8]) -> Vec<u8> {
        let is_space = |byte: &u8| byte.is_ascii_whitespace();
        let mut pieces: Vec<Vec<u8>> = match self {
            Self::Says(..) => text.split_inclusive(is_space).map(<[u8]>::to_vec).collect(),
            _ => text.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect(),
        };
        let count = pieces.len().max(1);
        match *self {
            Self::Ends(at) => return text[..at % (text.len() + 1)].to_vec(),
            Self::Lacks(at) if at < pieces.len() => drop(pieces.remove(at)),
            Self::Lacks(_) => {}
            Self::Says(at, word) => {
                if let Some(piece) = pieces.get_mut(at % count) {
                    let end = piece.last().copied().filter(|byte| is_space(byte));
                    *piece = word.iter().copied().chain(end).collect();
                }
            }
            Self::GoesOn(at) => {
                if let Some(piece) = pieces.get_mut(at % count) {
                    piece.splice(0..0, std::iter::repeat_n(b'7', 1 << 20));
                }
            }
        }
        pieces.concat()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the host's files hold, a page is made or an error told: never a panic, never half a page.
    #[test]
    fn any_file_of_the_host_may_be_spoilt(spoil in spoils()) {
        let case = case(2);
        for file in File::ALL {
            let machine = Passing(&case.machine, |_, whole: Vec<u8>| spoil.spoil(&whole));
            let view = View { machine: &machine, ..case.view() };
            let mut text = b"before".to_vec();
            let made = page(file, &view, &mut text);
            prop_assert!(text.starts_with(b"before"));
            prop_assert!(made.is_ok() || text == b"before", "{file:?}: half a page");
        }
    }
}
