//! `/proc/cpuinfo`: the host's description of each CPU shown (kernel: arch/*/kernel/cpu/proc.c and the like).
//!
//! The text is the architecture's own. A stanza is kept when its CPU is shown; on x86 the two lines that count CPUs are
//! counted again, so that the file reads as on a machine whose other CPUs are offline.

use std::collections::BTreeSet;
use std::io::Write;

use super::View;
use crate::error::{Error, Result};
use crate::model::cpus::Cpus;
use crate::model::file::File;
use crate::source::parse;

#[derive(Debug)]
pub(super) struct Cpuinfo {
    host: Vec<u8>,
    cpus: Cpus,
}

pub(super) fn gather(view: &View<'_>) -> Result<Cpuinfo> {
    let host = view.host(File::Cpuinfo)?;
    let cpus = view.cpus()?;
    if !stanzas(&host).any(|stanza| stanza.cpu.is_some_and(|cpu| cpus.shown(cpu).is_some())) {
        let cause = format!("no processor of {}", cpus.set());
        return Err(Error::parse("/proc/cpuinfo", cause));
    }
    Ok(Cpuinfo { host, cpus })
}

/// A run of lines up to a blank one.
#[derive(Debug, Clone, Copy)]
struct Stanza<'a> {
    /// Which CPU it describes; `None` for text about the machine.
    cpu: Option<u32>,
    text: &'a [u8],
}

/// Splits the file into stanzas. On s390x all CPUs have one line each in the first stanza and are told apart there.
fn stanzas(host: &[u8]) -> impl Iterator<Item = Stanza<'_>> + Clone {
    let mut rest = host;
    std::iter::from_fn(move || {
        let start = rest.iter().position(|&byte| byte != b'\n')?;
        let text = &rest[start..];
        let end = text.windows(2).position(|pair| pair == b"\n\n").map_or(text.len(), |at| at + 1);
        let (stanza, left) = text.split_at(end);
        rest = left;
        let cpu = field(stanza, b"processor").or_else(|| field(stanza, b"cpu number"));
        Some(Stanza {
            cpu: cpu.and_then(|cpu| u32::try_from(parse::number(cpu)?).ok()),
            text: stanza,
        })
    })
}

/// The value of the line `name : value`.
fn field<'a>(stanza: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    parse::lines(stanza).find_map(|line| {
        let (key, value) = split_line(line)?;
        (key == name).then_some(value)
    })
}

/// `(name, value)` of a line, both trimmed.
fn split_line(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    Some((line[..colon].trim_ascii(), line[colon + 1..].trim_ascii()))
}

pub(super) fn render(cpuinfo: &Cpuinfo, page: &mut Vec<u8>) {
    let cpus = &cpuinfo.cpus;
    let shown = stanzas(&cpuinfo.host).filter(|stanza| is_shown(stanza, cpus));
    for stanza in shown.clone() {
        let package = field(stanza.text, b"physical id");
        let in_package = shown
            .clone()
            .filter(|other| other.cpu.is_some() && field(other.text, b"physical id") == package);
        let cores = || in_package.clone().filter_map(|other| field(other.text, b"core id"));
        for line in parse::lines(stanza.text).filter(|line| !line.is_empty()) {
            match split_line(line) {
                Some((b"processor" | b"cpu number", _)) if stanza.cpu.is_some() => {
                    let number = stanza.cpu.and_then(|cpu| cpus.shown(cpu)).unwrap_or(0);
                    write_line(page, line, u64::from(number));
                }
                Some((b"siblings", _)) if stanza.cpu.is_some() => {
                    write_line(page, line, in_package.clone().count() as u64);
                }
                Some((b"cpu cores", _)) if stanza.cpu.is_some() => {
                    write_line(page, line, cores().collect::<BTreeSet<_>>().len() as u64);
                }
                Some((b"# processors", _)) => write_line(page, line, u64::from(cpus.count())),
                _ => write_s390x_line(page, line, cpus),
            }
        }
        page.push(b'\n');
    }
}

fn is_shown(stanza: &Stanza<'_>, cpus: &Cpus) -> bool {
    stanza.cpu.is_none_or(|cpu| cpus.shown(cpu).is_some())
}

/// `line` with `number` for its value.
fn write_line(page: &mut Vec<u8>, line: &[u8], number: u64) {
    let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
    page.extend_from_slice(&line[..colon]);
    let _ = writeln!(page, ": {number}");
}

/// Any other line as it is, but `processor N: version = ..., ...` of s390x only for the CPUs shown.
fn write_s390x_line(page: &mut Vec<u8>, line: &[u8], cpus: &Cpus) {
    let numbered = line.strip_prefix(b"processor ").and_then(|rest| {
        let colon = rest.iter().position(|&byte| byte == b':')?;
        let cpu = u32::try_from(parse::number(&rest[..colon])?).ok()?;
        Some((cpu, &rest[colon..]))
    });
    match numbered {
        None => {
            page.extend_from_slice(line);
            page.push(b'\n');
        }
        Some((cpu, rest)) => {
            if let Some(shown) = cpus.shown(cpu) {
                let _ = write!(page, "processor {shown}");
                page.extend_from_slice(rest);
                page.push(b'\n');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::testing::Case;
    use crate::model::cpus::{Bandwidth, CpuSet, CpuView};
    use crate::source::fake::FakeSource;

    const X86_64: &str = include_str!("../../testdata/host/cpuinfo_x86_64");
    const S390X: &str = "vendor_id       : IBM/S390\n# processors    : 3\nbogomips per cpu: 3241.00\n\
        processor 0: version = FF,  identification = 1, machine = 3906\n\
        processor 1: version = FF,  identification = 2, machine = 3906\n\
        processor 2: version = FF,  identification = 3, machine = 3906\n\n\
        cpu number      : 0\nphysical id     : 1\n\ncpu number      : 1\nphysical id     : 1\n\n\
        cpu number      : 2\nphysical id     : 1\n\n";

    fn case(host: &str, cpuset: &str) -> Case {
        let source =
            FakeSource { cpuset: CpuSet::parse(cpuset.as_bytes()), ..FakeSource::default() };
        Case::new(source, &[(File::CpuOnline, "0-3\n"), (File::Cpuinfo, host)])
    }

    #[test]
    fn ask_88_301_305_307_401_one_of_two_cpus_is_a_package_with_one_core() {
        case(X86_64, "1").golden(File::Cpuinfo, "cpuinfo/x86_64_second");
    }

    #[test]
    fn all_cpus_is_the_hosts_file() {
        assert_eq!(case(X86_64, "0-3").page(File::Cpuinfo).unwrap(), X86_64);
    }

    #[test]
    fn the_quota_view_counts_from_zero() {
        let mut case = case(X86_64, "1");
        case.source.bandwidth = Some(Bandwidth { quota_us: 1, period_us: 2 });
        case.policy.cpu_view = CpuView::Quota;
        let page = case.page(File::Cpuinfo).unwrap();
        assert!(page.starts_with("processor\t: 0\n"), "{page}");
        assert_eq!(page.matches("processor\t:").count(), 1);
    }

    #[test]
    fn ask_105_s390x_has_a_line_and_a_stanza_for_each_cpu() {
        case(S390X, "0,2").golden(File::Cpuinfo, "cpuinfo/s390x_two_of_three");
    }

    #[test]
    fn text_about_the_machine_stays() {
        let arm = "processor\t: 0\nBogoMIPS\t: 1\n\nprocessor\t: 1\nBogoMIPS\t: 1\n\nHardware\t: BCM2835\n";
        let page = case(arm, "1").page(File::Cpuinfo).unwrap();
        assert_eq!(page, "processor\t: 1\nBogoMIPS\t: 1\n\nHardware\t: BCM2835\n\n");
    }

    #[test]
    fn a_host_file_without_our_cpus_is_an_error_and_no_empty_page() {
        assert!(case("garbage\n", "0").page(File::Cpuinfo).is_err());
    }
}
