//! What tools show in a limited container, as FILES.md has it in a table: the container's in every cell that a file decides.
//!
//! The machine is made busy and the container is not, so that every number is nearer to the one or to the other.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::mount::Daemon;
use lxcfs_tests::{debian, wait_for};

const DOCUMENT: &str = include_str!("../../FILES.md");

/// How a number tells whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// CPUs: the container has one.
    Cpus,
    /// Memory in all, KiB.
    Memory,
    /// Memory free, KiB.
    Free,
    /// Since the start, seconds.
    Uptime,
    /// Load of the last minute.
    Load,
    /// CPU time not used, percent.
    Idle,
    /// KiB read from all disks.
    Disks,
    /// CPU time of all kinds since the start, seconds.
    Time,
    /// When the machine was booted, seconds since 1970.
    Boot,
}

impl Kind {
    /// As the table has it.
    const fn name(self) -> &'static str {
        match self {
            Self::Cpus => "CPUs",
            Self::Memory => "memory",
            Self::Free => "free memory",
            Self::Uptime => "uptime",
            Self::Load => "load",
            Self::Idle => "CPU not used",
            Self::Disks => "read from disks",
            Self::Time => "CPU time",
            Self::Boot => "boot time",
        }
    }

    /// Where the kernel has it, on the host and through our files in the container.
    const fn script(self) -> &'static str {
        match self {
            Self::Cpus => "grep -c '^cpu[0-9]' /proc/stat",
            Self::Memory => "awk '/^MemTotal/ {print $2}' /proc/meminfo",
            Self::Free => "awk '/^MemFree/ {print $2}' /proc/meminfo",
            Self::Uptime => "awk '{print $1}' /proc/uptime",
            Self::Load => "awk '{print $1}' /proc/loadavg",
            // What it was since the start says nothing of now.
            Self::Idle => "exit 1",
            Self::Disks => "awk '{sum += $6} END {print sum / 2}' /proc/diskstats",
            Self::Time => {
                "awk '/^cpu / {for (i = 2; i <= 9; i++) sum += $i; print sum / 100}' /proc/stat"
            }
            Self::Boot => "awk '/^btime/ {print $2}' /proc/stat",
        }
    }
}

/// Prints the processors the JVM counts, its largest heap times four, and the memory of the machine, bytes.
const JAVA: &str = "import java.lang.management.*; public class Main { public static void main(String[] a) { \
     Runtime r = Runtime.getRuntime(); \
     var os = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean(); \
     System.out.println(r.availableProcessors() + \" \" + r.maxMemory() * 4 + \" \" + os.getTotalMemorySize()); } }";

/// Has node_exporter ($1) at a port ($2) say all it knows.
const EXPORTER: &str = "$1 --web.listen-address=127.0.0.1:$2 > /dev/null 2>&1 & exporter=$!
python3 -c '
import http.client, sys, time
for _ in range(600):
    try:
        c = http.client.HTTPConnection(\"127.0.0.1\", int(sys.argv[1]))
        c.request(\"GET\", \"/metrics\")
        print(c.getresponse().read().decode())
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
' $2 > $3/metrics; { kill $exporter; wait $exporter; } 2> /dev/null";

/// Has the container see its own cgroup where runtimes mount it. The JVM reads those files, and 17 dies at the host's mounts.
const CGROUP: &str = "test -e /sys/fs/cgroup/cgroup.controllers; v1=$?; umount -l /sys/fs/cgroup
if test $v1 = 0; then mount -t cgroup2 none /sys/fs/cgroup; else mount -t tmpfs none /sys/fs/cgroup; for c in cpu cpuacct cpuset memory; do
mkdir /sys/fs/cgroup/$c; mount -t cgroup -o $c none /sys/fs/cgroup/$c; done; fi";

/// Has htop show itself on a terminal that can be looked at.
const HTOP: &str = "tmux=\"tmux -L lxcfs-test-shows -f /dev/null\"; export LC_ALL=C TERM=screen HOME=/nonexistent
$tmux new-session -d -x 100 -y 30 'htop -C -d 5'
for i in $(seq 300); do $tmux capture-pane -p > $3/htop; grep -q 'Uptime: [0-9]' $3/htop && break; sleep 0.1; done
$tmux kill-server";

/// A tool, what it shows, and how to get the number out of it: a shell script, with the test's directory in `$3`.
const PROBES: &[(&str, Kind, &str)] = &[
    ("free", Kind::Memory, "free -k | awk '/^Mem/ {print $2}'"),
    ("free", Kind::Free, "free -k | awk '/^Mem/ {print $4}'"),
    ("top", Kind::Memory, "top -b -n 1 -E k | awk '/^KiB Mem/ {print $4}'"),
    (
        "top",
        Kind::Uptime,
        "top -b -n 1 | sed -n '1s/.* up \\(.*\\),  *[0-9]* user.*/\\1/p' | python3 $3/seconds",
    ),
    ("top", Kind::Load, "top -b -n 1 | sed -n '1s/.*load average: \\([0-9.]*\\),.*/\\1/p'"),
    (
        "top",
        Kind::Idle,
        "top -b -n 2 -d 1 | sed -n 's/^%Cpu.*ni, *\\([0-9.]*\\) id.*/\\1/p' | tail -n 1",
    ),
    ("htop", Kind::Cpus, "grep -c '^ *\\(CPU\\|[0-9]*\\)\\[.*%\\]' $3/htop"),
    (
        "htop",
        Kind::Memory,
        "sed -n 's/.*Mem\\[.*\\/\\([0-9.]*[KMGT]\\)\\].*/\\1/p' $3/htop | numfmt --from=iec | awk '{print $1 / 1024}'",
    ),
    ("htop", Kind::Uptime, "sed -n 's/.*Uptime: \\(.*\\)/\\1/p' $3/htop | python3 $3/seconds"),
    ("htop", Kind::Load, "sed -n 's/.*Load average: \\([0-9.]*\\) .*/\\1/p' $3/htop"),
    ("vmstat", Kind::Memory, "vmstat -s | awk '/total memory/ {print $1}'"),
    ("vmstat", Kind::Free, "vmstat | awk 'END {print $4}'"),
    ("vmstat", Kind::Idle, "vmstat 1 2 | awk 'END {print $15}'"),
    (
        "uptime",
        Kind::Uptime,
        "uptime | sed -n 's/.* up \\(.*\\),  *[0-9]* user.*/\\1/p' | python3 $3/seconds",
    ),
    ("uptime", Kind::Load, "uptime | sed -n 's/.*load average: \\([0-9.]*\\),.*/\\1/p'"),
    ("w", Kind::Load, "w | sed -n '1s/.*load average: \\([0-9.]*\\),.*/\\1/p'"),
    ("mpstat", Kind::Cpus, "mpstat | sed -n '1s/.*(\\([0-9]*\\) CPU)/\\1/p'"),
    ("mpstat", Kind::Idle, "mpstat 1 1 | awk 'END {print $NF}'"),
    ("sar -u", Kind::Idle, "sar -u 1 1 | awk 'END {print $NF}'"),
    ("sar -u", Kind::Cpus, "sar -u 1 1 | sed -n '1s/.*(\\([0-9]*\\) CPU)/\\1/p'"),
    ("sar -r", Kind::Free, "sar -r 1 1 | awk 'END {print $2}'"),
    ("sar -q", Kind::Load, "sar -q 1 1 | awk 'END {print $4}'"),
    ("iostat", Kind::Idle, "iostat -c 1 2 | awk 'NF == 6 {idle = $6} END {print idle}'"),
    (
        "iostat",
        Kind::Disks,
        "iostat -dk | awk 'NF == 8 && $6 ~ /^[0-9]+$/ {sum += $6} END {print sum}'",
    ),
    ("vmstat -D", Kind::Disks, "vmstat -D | awk '/read sectors/ {print $1 / 2}'"),
    ("lscpu", Kind::Cpus, "lscpu -p=CPU | grep -vc '#'"),
    ("getconf _NPROCESSORS_ONLN", Kind::Cpus, "getconf _NPROCESSORS_ONLN"),
    ("getconf _NPROCESSORS_CONF", Kind::Cpus, "getconf _NPROCESSORS_CONF"),
    (
        "getconf _PHYS_PAGES",
        Kind::Memory,
        "echo $(($(getconf _PHYS_PAGES) * $(getconf PAGESIZE) / 1024))",
    ),
    ("nproc", Kind::Cpus, "nproc"),
    ("nproc --all", Kind::Cpus, "nproc --all"),
    ("busybox nproc", Kind::Cpus, "busybox nproc"),
    ("busybox free", Kind::Memory, "busybox free | awk '/^Mem/ {print $2}'"),
    (
        "busybox uptime",
        Kind::Uptime,
        "busybox uptime | sed -n 's/.* up \\(.*\\),  *load.*/\\1/p' | python3 $3/seconds",
    ),
    (
        "busybox uptime",
        Kind::Load,
        "busybox uptime | sed -n 's/.*load average: \\([0-9.]*\\),.*/\\1/p'",
    ),
    ("busybox top", Kind::Memory, "busybox top -b -n 1 | awk '/^Mem/ {print $2 + $4}'"),
    ("JVM 17 availableProcessors", Kind::Cpus, "awk '{print $1}' $3/java"),
    ("JVM 17 maxMemory", Kind::Memory, "awk '{print $2 / 1024}' $3/java"),
    ("JVM 17 getTotalMemorySize", Kind::Memory, "awk '{print $3 / 1024}' $3/java"),
    ("node os.cpus", Kind::Cpus, "awk '{print $1}' $3/node"),
    ("node os.availableParallelism", Kind::Cpus, "awk '{print $2}' $3/node"),
    ("node os.totalmem", Kind::Memory, "awk '{print $3 / 1024}' $3/node"),
    ("node os.freemem", Kind::Free, "awk '{print $4 / 1024}' $3/node"),
    ("node os.uptime", Kind::Uptime, "awk '{print $5}' $3/node"),
    ("node os.loadavg", Kind::Load, "awk '{print $6}' $3/node"),
    ("python os.cpu_count", Kind::Cpus, "python3 -c 'import os; print(os.cpu_count())'"),
    (
        "python os.sched_getaffinity",
        Kind::Cpus,
        "python3 -c 'import os; print(len(os.sched_getaffinity(0)))'",
    ),
    ("python os.getloadavg", Kind::Load, "python3 -c 'import os; print(os.getloadavg()[0])'"),
    (
        "node_exporter",
        Kind::Cpus,
        "grep -c '^node_cpu_seconds_total.*mode=\"idle\".* [0-9.]*[1-9]' $3/metrics",
    ),
    (
        "node_exporter",
        Kind::Time,
        "awk '/^node_cpu_seconds_total/ {sum += $2} END {print sum}' $3/metrics",
    ),
    (
        "node_exporter",
        Kind::Memory,
        "awk '/^node_memory_MemTotal_bytes/ {print $2 / 1024}' $3/metrics",
    ),
    (
        "node_exporter",
        Kind::Free,
        "awk '/^node_memory_MemFree_bytes/ {print $2 / 1024}' $3/metrics",
    ),
    ("node_exporter", Kind::Load, "awk '/^node_load1 / {print $2}' $3/metrics"),
    (
        "node_exporter",
        Kind::Disks,
        "awk '/^node_disk_read_bytes_total/ {sum += $2} END {print sum / 1024}' $3/metrics",
    ),
    ("node_exporter", Kind::Boot, "awk '/^node_boot_time_seconds/ {print $2}' $3/metrics"),
];

/// Makes seconds of `1 min`, `2:03`, `1 day, 2:03`, `00:00:05`.
const SECONDS: &str = r#"
import re, sys
text = sys.stdin.read()
days = re.search(r"(\d+) days?", text)
minutes = re.search(r"(\d+) min", text)
clock = re.search(r"(\d+):(\d+)(?::(\d+))?", text)
total = (int(days[1]) * 86400 if days else 0) + (int(minutes[1]) * 60 if minutes else 0)
if clock:
    hours, rest, seconds = clock.groups()
    total += int(hours) * 3600 + int(rest) * 60 + int(seconds or 0)
print(total)
"#;

/// Whose number it is, `container` or `host`, and the numbers, by tool and what it shows.
type Shown = HashMap<(&'static str, &'static str), (&'static str, String)>;

fn number(text: &str) -> Result<f64> {
    text.trim().parse().with_context(|| format!("no number: {text}"))
}

fn on_the_host(script: &str) -> Result<f64> {
    let output = std::process::Command::new("/bin/sh").args(["-c", script]).output()?;
    number(&String::from_utf8_lossy(&output.stdout))
}

/// Whose number it is: the nearer one, by how many times it is as large.
#[expect(clippy::float_arithmetic, reason = "numbers as tools print them")]
fn whose(shown: f64, container: f64, host: f64) -> &'static str {
    let far = |from: f64| ((shown + 0.01) / (from + 0.01)).ln().abs();
    if far(container) < far(host) { "container" } else { "host" }
}

/// All that the tools show in a container over `daemon`'s files.
fn show(daemon: &Daemon, cgroup: &Cgroup) -> Result<Shown> {
    let directory = daemon.directory().display().to_string();
    fs::write(daemon.directory().join("seconds"), SECONDS)?;
    fs::write(daemon.directory().join("Main.java"), JAVA)?;
    fs::write(daemon.directory().join("exporter"), EXPORTER)?;
    fs::write(daemon.directory().join("screen"), HTOP)?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let exporter =
        debian::unpacked("prometheus-node-exporter")?.join("usr/bin/prometheus-node-exporter");
    let mut container = Container::new(cgroup).files(&daemon.mount_point()).shell()?;
    let set =
        format!("set -- {} {port} {directory}; export LC_ALL=C S_COLORS=never", exporter.display());
    container.say(&set)?;
    container.say(". $3/exporter; . $3/screen")?;
    container.say(CGROUP)?;
    container.say("java $3/Main.java > $3/java 2>&1")?;
    container.say(
        "node -e 'const os = require(\"os\"); console.log(os.cpus().length, os.availableParallelism?.() ?? 0, \
         os.totalmem(), os.freemem(), os.uptime(), os.loadavg()[0])' > $3/node 2>&1",
    )?;
    let mut shown = Shown::new();
    for (tool, kind, script) in PROBES {
        let text = container.say(&format!("{{ {script}; }} 2>&1"))?;
        let number = number(&text).with_context(|| format!("{tool}: {}: {script}", kind.name()))?;
        let (own, host) = truth(&mut container, *kind)?;
        let whose = whose(number, own, host);
        let line = format!("{tool}: {}: {number}, container {own}, host {host}", kind.name());
        shown.insert((tool, kind.name()), (whose, line));
    }
    Ok(shown)
}

fn truth(container: &mut Running, kind: Kind) -> Result<(f64, f64)> {
    if kind == Kind::Idle {
        // An idle container on a busy machine.
        return Ok((100.0, 0.0));
    }
    let own = number(&container.say(kind.script())?)?;
    Ok((own, on_the_host(kind.script())?))
}

/// A row of the table: tools, what they show, whose it is with a CPU of its own and with the time of one, and what decides.
fn rows() -> Result<Vec<[Vec<String>; 5]>> {
    let start = DOCUMENT.find("\n## What tools show\n").context("there is no such section")?;
    let table = DOCUMENT[start..].lines().filter(|line| line.starts_with("| ")).skip(1);
    let cells = |line: &str| -> Option<[Vec<String>; 5]> {
        let cells = line.trim_matches('|').split('|').map(|cell| {
            cell.replace('`', "").split(',').map(|name| name.trim().to_owned()).collect()
        });
        cells.collect::<Vec<_>>().try_into().ok()
    };
    table.map(|line| cells(line).with_context(|| line.to_owned())).collect()
}

/// Names only those numbers that are nobody's file: of system calls, of `/sys/block`, or the host's by decision.
fn may_be_the_hosts(decides: &[String]) -> bool {
    let reasons = ["sysinfo(2)", "sched_getaffinity(2)", "/sys/block", "by decision"];
    reasons.iter().any(|reason| decides.iter().any(|words| words.contains(reason)))
}

#[test]
fn the_table_of_tools_is_what_they_show() -> Result<()> {
    let neighbour = Cgroup::new("neighbour")?;
    let _busy = Burden::start("spin", 16, &neighbour);
    let load = || on_the_host(Kind::Load.script());
    wait_for("the machine to be busy", || load().is_ok_and(|load| load > 1.0));
    let limited = |view: &str| -> Result<(Daemon, Cgroup)> {
        let cgroup = Cgroup::new("shows")?;
        cgroup.limit_memory(256 << 20)?;
        Ok((Daemon::with(&["--cpu-view", view])?, cgroup))
    };
    let (daemon, cgroup) = limited("cpuset")?;
    cgroup.limit_cpus("1")?;
    let own = show(&daemon, &cgroup)?;
    let (daemon, cgroup) = limited("quota")?;
    cgroup.limit_cpu(100_000, 100_000)?;
    let quota = show(&daemon, &cgroup)?;

    let mut told = 0;
    for [tools, names, own_cell, quota_cell, decides] in rows()? {
        ensure!(
            (own_cell != ["host"] && quota_cell != ["host"]) || may_be_the_hosts(&decides),
            "a file could say it: {tools:?}: {decides:?}"
        );
        for (tool, name) in tools.iter().flat_map(|tool| names.iter().map(move |name| (tool, name)))
        {
            for (shown, cell) in [(&own, &own_cell), (&quota, &quota_cell)] {
                let probe = shown.get(&(tool.as_str(), name.as_str()));
                let (whose, line) = probe.with_context(|| format!("no probe: {tool}: {name}"))?;
                ensure!(*cell == [*whose], "FILES.md says {cell:?}: {line}");
            }
            told += 1;
        }
    }
    ensure!(told == PROBES.len(), "FILES.md has {told} of {} numbers", PROBES.len());
    Ok(())
}
