//! Debian's lxcfs beside ours on the same container, field by field: what is not equal is in one table, with the reason
//! that FILES.md gives for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::machine::{Disk, Swap};
use lxcfs_tests::mount::{Daemon, new_directory};
use lxcfs_tests::{debian, wait_for};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DOCUMENT: &str = include_str!("../../FILES.md");

/// The pages both have.
const FILES: [&str; 9] = [
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/slabinfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "sys/devices/system/cpu/online",
];

/// What may differ: a file, its fields, and words of the line in FILES.md, below the file's heading, that says so.
/// `*` stands for any text.
const DIFFERENT: [(&str, &[&str], &str); 36] = [
    ("proc/cpuinfo", &["processor"], "keeps the kernel's number in the cpuset view"),
    ("proc/cpuinfo", &["siblings"], "| `siblings` | CPUs shown of the same `physical id`"),
    ("proc/cpuinfo", &["cpu cores"], "| `cpu cores` | `core id`s shown"),
    // It is another from one reading to the next.
    ("proc/cpuinfo", &["cpu MHz"], "| every other line, and text about the machine"),
    ("proc/diskstats", &["*"], "on v1 from 5.0 kernels on: all is the host's"),
    ("proc/loadavg", &["1 minute", "5 minutes", "15 minutes"], "always on; any depth; wall time"),
    ("proc/loadavg", &["running"], "LXCFS: 0 between two bursts"),
    ("proc/loadavg", &["all"], "at its own last sample"),
    ("proc/loadavg", &["last pid"], "LXCFS: a host pid"),
    ("proc/meminfo", &["Mlocked"], "| Mlocked | absent | absent | LXCFS: host |"),
    ("proc/meminfo", &["SwapTotal"], "LXCFS on v1: the `memsw` limit, memory with it"),
    ("proc/meminfo", &["SwapFree"], "LXCFS on v1: of its SwapTotal"),
    ("proc/meminfo", &["Zswap", "Zswapped"], "| Zswap, Zswapped | absent |"),
    ("proc/meminfo", &["SwapCached"], "| SwapCached | total_swapcached | swapcached | LXCFS: 0 |"),
    ("proc/meminfo", &["AnonPages"], "LXCFS: computed, may wrap"),
    ("proc/meminfo", &["KReclaimable", "SReclaimable"], "| KReclaimable, SReclaimable | absent |"),
    ("proc/meminfo", &["Slab"], "v1 counts all kernel memory together"),
    ("proc/meminfo", &["SUnreclaim"], "| SUnreclaim | absent |"),
    (
        "proc/meminfo",
        &["KernelStack", "PageTables", "SecPageTables", "Percpu"],
        "| KernelStack, PageTables, SecPageTables, Percpu | absent |",
    ),
    ("proc/meminfo", &["VmallocUsed"], "not counted, and parsers insist on the line"),
    (
        "proc/meminfo",
        &["AnonHugePages"],
        "| AnonHugePages | total_rss_huge | anon_thp | LXCFS: 0 |",
    ),
    (
        "proc/meminfo",
        &["ShmemHugePages", "FileHugePages"],
        "| ShmemHugePages, FileHugePages | absent |",
    ),
    (
        "proc/meminfo",
        &["ShmemPmdMapped", "FilePmdMapped"],
        "| ShmemPmdMapped, FilePmdMapped | absent |",
    ),
    ("proc/meminfo", &["CommitLimit"], "the host's share for memory"),
    ("proc/meminfo", &["Committed_AS"], "what was asked for and used"),
    (
        "proc/meminfo",
        &["Bounce", "WritebackTmp", "CmaTotal", "CmaFree", "Balloon", "Unaccepted"],
        "absent: the machine's doings",
    ),
    (
        "proc/meminfo",
        &["HugePages_*", "Hugetlb"],
        "the machine's, at most `hugetlb.SIZE.limit_in_bytes`",
    ),
    ("proc/slabinfo", &["a cache"], "LXCFS: the host's caches"),
    ("proc/stat", &["cpu* user", "cpu* system"], "LXCFS 6: ticks, which may exceed the time used"),
    ("proc/stat", &["cpu* idle"], "LXCFS: depends on who reads when"),
    ("proc/stat", &["processes"], "as many tasks as were ever made, until pids wrap"),
    ("proc/stat", &["procs_running"], "at the last sample, at least 1"),
    ("proc/stat", &["procs_blocked"], "threads in state D at the last sample"),
    ("proc/swaps", &["header"], "LXCFS: other tabs"),
    ("proc/swaps", &["swap none"], "LXCFS: of its SwapTotal"),
    ("proc/uptime", &["second"], "LXCFS 7: equals the first"),
];

/// Reads each file through theirs, ours, theirs, and prints the three. One process that does nothing else: what a `cat`
/// is charged would be between the readings.
const READ: &str = r#"
import json, sys
theirs, ours = sys.argv[1:3]
read = lambda root, file: open(root + '/' + file, encoding='latin-1').read()
print(json.dumps({f: [read(r, f) for r in (theirs, ours, theirs)] for f in sys.argv[3:]}))
"#;

/// Debian's lxcfs at a mount of its own. Dropping it ends it.
struct Peer {
    child: Child,
    directory: PathBuf,
}

impl Peer {
    fn start(options: &[&str]) -> Result<Self> {
        let (program, library) = debian::lxcfs()?;
        let directory = new_directory()?;
        let log = std::fs::File::create(directory.join("log"))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(["-f", "-l"])
            .args(options)
            .arg("-p")
            .arg(directory.join("run/pid"))
            .arg(directory.join("mnt"))
            .env("LD_LIBRARY_PATH", library)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start Debian's lxcfs")?;
        let peer = Self { child, directory };
        wait_for("Debian's lxcfs to serve", || {
            std::fs::read(peer.root().join("proc/uptime")).is_ok()
        });
        Ok(peer)
    }

    fn root(&self) -> PathBuf {
        self.directory.join("mnt")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
        let _ = umount2(&self.root(), MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A page as fields by name.
type Fields = BTreeMap<String, String>;

fn fields(file: &str, page: &str) -> Fields {
    let mut fields = Fields::new();
    let mut stanza = 0;
    for (number, line) in page.lines().enumerate() {
        let words: Vec<_> = line.split_whitespace().collect();
        let named: Vec<(String, String)> = match file {
            "proc/cpuinfo" => {
                stanza += usize::from(line.is_empty());
                let (name, value) = line.split_once(':').unwrap_or((line, ""));
                vec![(format!("{}#{stanza}", name.trim()), value.trim().to_owned())]
            }
            "proc/meminfo" => {
                vec![(words[0].trim_end_matches(':').to_owned(), words[1].to_owned())]
            }
            "proc/stat" if line.starts_with("cpu") => {
                let columns =
                    "user nice system idle iowait irq softirq steal guest guest_nice".split(' ');
                let values = columns.zip(&words[1..]);
                values
                    .map(|(name, value)| (format!("{} {name}", words[0]), (*value).into()))
                    .collect()
            }
            "proc/stat" => vec![(words[0].to_owned(), words[1..].join(" "))],
            "proc/loadavg" => {
                let names = ["1 minute", "5 minutes", "15 minutes", "running", "all", "last pid"];
                let values = line.split([' ', '/']);
                names
                    .iter()
                    .zip(values)
                    .map(|(name, value)| ((*name).into(), value.into()))
                    .collect()
            }
            "proc/uptime" => {
                let names = ["first", "second"].iter().zip(&words);
                names.map(|(name, value)| ((*name).into(), (*value).into())).collect()
            }
            "proc/diskstats" => {
                let values = words.iter().enumerate().skip(3);
                values.map(|(at, value)| (format!("{} {at}", words[2]), (*value).into())).collect()
            }
            "proc/swaps" if number == 0 => vec![("header".to_owned(), line.to_owned())],
            "proc/swaps" => vec![(format!("swap {}", words[0]), words[1..].join(" "))],
            "proc/slabinfo" if number >= 2 => vec![(format!("a cache#{number}"), line.to_owned())],
            _ => vec![(format!("line {number}"), line.to_owned())],
        };
        fields.extend(named);
    }
    fields
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.starts_with(head) && name.ends_with(tail),
    }
}

/// Whether the table has it. A number behind `#` tells stanzas and lines apart.
fn may_differ(file: &str, field: &str) -> bool {
    let name = field.split('#').next().unwrap_or(field);
    DIFFERENT.iter().any(|(known, fields, _)| {
        *known == file && fields.iter().any(|pattern| matches(pattern, name))
    })
}

/// Whether ours is one of theirs, or a number between the two.
fn is_same(theirs: [Option<&String>; 2], ours: Option<&String>) -> bool {
    let numbers = |text: Option<&String>| -> Option<Vec<f64>> {
        text?.split_whitespace().map(|word| word.parse().ok()).collect()
    };
    if theirs.contains(&ours) {
        return true;
    }
    let (Some(first), Some(last), Some(ours)) =
        (numbers(theirs[0]), numbers(theirs[1]), numbers(ours))
    else {
        return false;
    };
    let between = |((first, last), ours): ((&f64, &f64), &f64)| {
        (first.min(*last)..=first.max(*last)).contains(ours)
    };
    first.len() == ours.len() && first.iter().zip(&last).zip(&ours).all(between)
}

/// The fields that are not the same and in no table, each as both have it.
fn compare(container: &mut Running, roots: [&Path; 2]) -> Result<BTreeMap<String, String>> {
    let [theirs, ours] = roots.map(|root| root.display().to_string());
    let text = container
        .say(&format!("python3 -c \"{READ}\" {theirs} {ours} {} 2>&1", FILES.join(" ")))?;
    let pages: BTreeMap<String, [String; 3]> =
        serde_json::from_str(&text).with_context(|| text.clone())?;
    let mut different = BTreeMap::new();
    for (file, pages) in pages {
        let [first, ours, last] = pages.each_ref().map(|page| fields(&file, page));
        ensure!(!ours.is_empty(), "{file} is empty");
        for name in first.keys().chain(ours.keys()) {
            let theirs = [first.get(name), last.get(name)];
            if !is_same(theirs, ours.get(name)) && !may_differ(&file, name) {
                let shown = format!("theirs {theirs:?}, ours {:?}", ours.get(name));
                different.insert(format!("{file}: {name}"), shown);
            }
        }
    }
    Ok(different)
}

/// 64 MiB of memory, 48 MiB of swap of which some is used, the time of one CPU, some I/O: with `options`.
fn show_both(options: &[&str], cpus: &str) -> Result<()> {
    let peer = Peer::start(options)?;
    let daemon = Daemon::with(options)?;
    let disk = Disk::new(16)?;
    let cgroup = Cgroup::new("peer")?;
    cgroup.limit_memory(64 << 20)?;
    cgroup.limit_swap(48 << 20)?;
    cgroup.limit_cpu(100_000, 100_000)?;
    cgroup.limit_cpus(cpus)?;
    cgroup.limit_writes(&disk.number()?, 1 << 40)?;
    let mut container = Container::new(&cgroup).shell()?;
    container.hold(80)?;
    let device = disk.device().display();
    container.say(&format!("dd if=/dev/zero of={device} oflag=direct bs=64k count=32 2>&1"))?;
    container.say("timeout 1 sh -c 'while :; do :; done' 2>&1")?;
    let (theirs, ours) = (peer.root(), daemon.mount_point());
    // Memory is taken and given back at any moment: what is once the same is the same.
    let mut left = compare(&mut container, [&theirs, &ours])?;
    for _ in 0..10 {
        if left.is_empty() {
            break;
        }
        let again = compare(&mut container, [&theirs, &ours])?;
        left.retain(|field, _| again.contains_key(field));
    }
    ensure!(left.is_empty(), "{options:?}: not the same, and in no table: {left:#?}");
    Ok(())
}

#[test]
fn every_field_is_debians_or_in_the_table() -> Result<()> {
    let _swap = Swap::on_zram(128)?;
    show_both(&[], "1")?;
    show_both(&["--enable-cfs"], "0-1")
}

#[test]
fn the_document_says_why_each_differs() -> Result<()> {
    for (file, fields, words) in DIFFERENT {
        let heading = format!("\n## /{file}\n");
        let start = DOCUMENT.find(&heading).with_context(|| format!("no section of {file}"))?;
        let section = &DOCUMENT[start + heading.len()..];
        let section = &section[..section.find("\n## ").unwrap_or(section.len())];
        let said = section.lines().any(|line| line.contains(words));
        ensure!(said, "{file}, {fields:?}: FILES.md does not say `{words}`");
    }
    Ok(())
}
