//! `/proc/cpuinfo`: the host's description of each CPU shown (kernel: arch/*/kernel/cpu/proc.c and the like).
//!
//! The text is the architecture's own, and on some the caller's: a 32-bit program on arm64 finds that of a 32-bit machine.
//! A stanza is kept when its CPU is shown; on x86 the two lines that count CPUs are counted again, so that the file reads as
//! on a machine whose other CPUs are offline.

use std::collections::{BTreeMap, BTreeSet};

use super::View;
use super::digits::push;
use crate::error::{Error, Result};
use crate::model::cpus::Cpus;
use crate::model::file::File;
use crate::source::sheet::Sheet;
use crate::source::{Text, parse};

#[derive(Debug)]
pub(super) struct Cpuinfo {
    host: Text,
    cpus: Cpus,
}

pub(super) fn gather(view: &View<'_>) -> Result<Cpuinfo> {
    let cpus = view.cpus()?;
    let read = || {
        let mut text = Vec::with_capacity(16 << 10);
        view.machine.read_cpuinfo(view.reader.is_32bit, &mut text)?;
        Ok::<_, Error>(Text::new(Sheet::new(text)))
    };
    let mut host = if view.reader.is_32bit { read()? } else { view.host(File::Cpuinfo)? };
    let mut described = described(&host, &cpus);
    // One that has come online just now is in no text older than that.
    if described < cpus.count() {
        host = read()?;
        described = self::described(&host, &cpus);
    }
    if described == 0 {
        let cause = format!("no processor of {}", cpus.set());
        return Err(Error::parse("/proc/cpuinfo", cause));
    }
    Ok(Cpuinfo { host, cpus })
}

/// How many of the CPUs shown have a stanza.
fn described(host: &[u8], cpus: &Cpus) -> u32 {
    let is_shown = |stanza: &Stanza<'_>| stanza.cpu.is_some_and(|cpu| cpus.shown(cpu).is_some());
    u32::try_from(stanzas(host).filter(is_shown).count()).unwrap_or(u32::MAX)
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
        let end = memchr::memmem::find(text, b"\n\n").map_or(text.len(), |at| at + 1);
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

/// What is shown of a package.
#[derive(Debug, Default)]
struct Package<'a> {
    cpus: u64,
    cores: BTreeSet<&'a [u8]>,
}

/// The packages of the CPUs shown, by `physical id`.
fn packages<'a>(shown: &[Stanza<'a>]) -> BTreeMap<Option<&'a [u8]>, Package<'a>> {
    let mut packages: BTreeMap<_, Package<'a>> = BTreeMap::new();
    for stanza in shown.iter().filter(|stanza| stanza.cpu.is_some()) {
        let package = packages.entry(field(stanza.text, b"physical id")).or_default();
        package.cpus += 1;
        package.cores.extend(field(stanza.text, b"core id"));
    }
    packages
}

pub(super) fn render(cpuinfo: &Cpuinfo, page: &mut Vec<u8>) {
    let cpus = &cpuinfo.cpus;
    let shown: Vec<_> = stanzas(&cpuinfo.host).filter(|stanza| is_shown(stanza, cpus)).collect();
    let packages = packages(&shown);
    for stanza in &shown {
        let package = packages.get(&field(stanza.text, b"physical id"));
        for line in parse::lines(stanza.text).filter(|line| !line.is_empty()) {
            match (split_line(line), stanza.cpu, package) {
                (Some((b"processor" | b"cpu number", _)), Some(cpu), _) => {
                    write_line(page, line, cpus.shown(cpu).unwrap_or(0).into());
                }
                (Some((b"siblings", _)), Some(_), Some(package)) => {
                    write_line(page, line, package.cpus);
                }
                (Some((b"cpu cores", _)), Some(_), Some(package)) => {
                    write_line(page, line, package.cores.len() as u64);
                }
                (Some((b"# processors", _)), ..) => {
                    write_line(page, line, u64::from(cpus.count()));
                }
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
    page.extend_from_slice(b": ");
    push(page, number);
    page.push(b'\n');
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
                page.extend_from_slice(b"processor ");
                push(page, shown.into());
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
    use crate::model::file::File;
    use crate::source::fake::FakeSource;

    const X86_64: &str = include_str!("../../testdata/host/cpuinfo_x86_64");
    const ARM64: &str = include_str!("../../testdata/host/cpuinfo_arm64");
    const ARM_ON_ARM64: &str = include_str!("../../testdata/host/cpuinfo_arm_on_arm64");
    const ARCHITECTURES: [(&str, &str); 7] = [
        ("arm64", ARM64),
        ("arm_on_arm64", ARM_ON_ARM64),
        ("arm", include_str!("../../testdata/host/cpuinfo_arm")),
        ("ppc64le", include_str!("../../testdata/host/cpuinfo_ppc64le")),
        ("s390x", include_str!("../../testdata/host/cpuinfo_s390x")),
        ("riscv64", include_str!("../../testdata/host/cpuinfo_riscv64")),
        ("loongarch64", include_str!("../../testdata/host/cpuinfo_loongarch64")),
    ];
    fn case(host: &str, cpuset: &str) -> Case {
        let source =
            FakeSource { cpuset: CpuSet::parse(cpuset.as_bytes()), ..FakeSource::default() };
        Case::new(source, &[(File::CpuOnline, "0-3\n"), (File::Cpuinfo, host)])
    }

    #[test]
    fn a_cpu_that_has_just_come_online_is_described() {
        let mut case = case(X86_64, "0-3");
        let page = case.page(File::Cpuinfo).unwrap();
        let second = X86_64.find("\n\n").unwrap() + 2;
        case.machine.older = vec![(File::Cpuinfo, Text::new(X86_64[..second].into()))];
        assert_eq!(case.page(File::Cpuinfo).unwrap(), page);
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

    /// The second and the last CPU of each architecture's machine of four.
    #[test]
    fn ask_105_two_of_four_on_every_architecture() {
        for (name, host) in ARCHITECTURES {
            let (two, all) = (case(host, "1,3"), case(host, "0-3"));
            two.golden(File::Cpuinfo, &format!("cpuinfo/{name}_two_of_four"));
            // What stands behind the last CPU of 32-bit Arm ends without a blank line.
            let page = all.page(File::Cpuinfo).unwrap();
            assert_eq!(page.trim_end(), host.trim_end(), "{name}: all CPUs are the host's file");
        }
    }

    #[test]
    fn virtual_cpus_count_from_zero_on_every_architecture() {
        for (name, host) in ARCHITECTURES {
            let mut case = case(host, "2-3");
            case.source.bandwidth = Some(Bandwidth { quota_us: 2, period_us: 1 });
            case.policy.cpu_view = CpuView::Quota;
            let page = case.page(File::Cpuinfo).unwrap();
            let numbers: Vec<_> = parse::lines(page.as_bytes())
                .filter_map(split_line)
                .filter(|(key, _)| [&b"processor"[..], b"cpu number"].contains(key))
                .filter_map(|(_, value)| parse::number(value))
                .collect();
            assert_eq!(numbers, [0, 1], "{name}: {page}");
        }
    }

    #[test]
    fn ask_553_a_32bit_program_reads_the_text_for_such() {
        let mut case = case(ARM64, "1");
        case.machine.cpuinfo_32bit = Some(ARM_ON_ARM64.to_owned());
        assert!(!case.page(File::Cpuinfo).unwrap().contains("model name"));
        case.reader.is_32bit = true;
        assert!(case.page(File::Cpuinfo).unwrap().contains("model name\t: ARMv8 Processor"));
    }

    #[test]
    fn a_thousand_cpus_are_all_there() {
        let stanza = X86_64.split("\n\n").next().unwrap();
        let host: String = (0..1_024)
            .map(|cpu| {
                let text = stanza.replace("processor\t: 0", &format!("processor\t: {cpu}"));
                text.replace("core id\t\t: 0", &format!("core id\t\t: {}", cpu / 2)) + "\n\n"
            })
            .collect();
        let source = FakeSource { cpuset: CpuSet::parse(b"1-1023"), ..FakeSource::default() };
        let files = [(File::CpuOnline, "0-1023\n"), (File::Cpuinfo, &*host)];
        let page = Case::new(source, &files).page(File::Cpuinfo).unwrap();
        assert_eq!(page.matches("processor\t:").count(), 1_023);
        assert!(page.contains("processor\t: 1023\n"));
        assert_eq!(page.matches("siblings\t: 1023\n").count(), 1_023);
        assert_eq!(page.matches("cpu cores\t: 512\n").count(), 1_023);
    }

    #[test]
    fn a_host_file_without_our_cpus_is_an_error_and_no_empty_page() {
        assert!(case("garbage\n", "0").page(File::Cpuinfo).is_err());
    }
}
