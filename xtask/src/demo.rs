//! The demonstration container, and what it sees beside what the host sees.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};

const LIMIT_KIB: u64 = 256 << 10;

/// Prints the files named on its input, each behind its number of bytes, beside a busy loop.
const SCRIPT: &str = "\
    (while :; do :; done) &
    while read file; do text=$(cat $file; echo x); text=${text%x}; echo ${#text}; printf %s \"$text\"; done";

/// A container that runs, and its cgroup. The container goes first.
pub(crate) struct Demo {
    container: Running,
    cgroup: Cgroup,
}

impl Demo {
    /// Starts it over the files mounted at `mount_point`.
    pub(crate) fn start(mount_point: &Path) -> Result<Self> {
        let cgroup = Cgroup::new("demo")?;
        cgroup.limit_memory(LIMIT_KIB << 10)?;
        cgroup.limit_cpu(100_000, 100_000)?;
        let container = Container::new(&cgroup).files(mount_point);
        let mut demo = Self { container: container.spawn(&["/bin/sh", "-c", SCRIPT])?, cgroup };
        // The first read of any file is where sampling its load begins.
        demo.read("/proc/uptime")?;
        Ok(demo)
    }

    /// The container's init, as we see it.
    pub(crate) fn init(&self) -> u32 {
        self.container.init()
    }

    /// A file as the container reads it.
    fn read(&mut self, file: &str) -> Result<String> {
        use std::io::Read as _;

        let stdin = self.container.child.stdin.as_mut().context("stdin is piped")?;
        writeln!(stdin, "{file}").with_context(|| format!("ask the container for {file}"))?;
        let length = self.container.line()?.trim().parse()?;
        let mut text = vec![0; length];
        self.container.child.stdout.as_mut().context("stdout is piped")?.read_exact(&mut text)?;
        Ok(String::from_utf8(text)?)
    }
}

/// What one side sees.
#[derive(Debug, Default)]
struct View {
    cpus: usize,
    busy_percent: u64,
    mem_total_kib: u64,
    mem_available_kib: u64,
    swap_total_kib: u64,
    uptime_s: u64,
    load: String,
    threads: u64,
    pressure: String,
}

impl View {
    fn read(mut file: impl FnMut(&str) -> Result<String>) -> Result<Self> {
        let before = busy(&file("/proc/stat")?);
        std::thread::sleep(std::time::Duration::from_secs(1));
        let after = busy(&file("/proc/stat")?);
        let elapsed = after.1.saturating_sub(before.1).max(1);
        let meminfo = file("/proc/meminfo")?;
        let loadavg = file("/proc/loadavg")?;
        let mut load = loadavg.split_whitespace();
        let averages: Vec<_> = load.by_ref().take(3).collect();
        let threads = load.next().and_then(|tasks| tasks.split_once('/')?.1.parse().ok());
        Ok(Self {
            cpus: file("/proc/cpuinfo")?.matches("processor\t:").count(),
            busy_percent: 100 * after.0.saturating_sub(before.0) / elapsed,
            mem_total_kib: kib(&meminfo, "MemTotal"),
            mem_available_kib: kib(&meminfo, "MemAvailable"),
            swap_total_kib: kib(&meminfo, "SwapTotal"),
            uptime_s: file("/proc/uptime")?.split('.').next().unwrap_or_default().parse()?,
            load: averages.join(" "),
            threads: threads.context("loadavg has no number of threads")?,
            pressure: file("/proc/pressure/cpu")?.lines().next().unwrap_or_default().to_owned(),
        })
    }
}

/// `(busy, all)` ticks of all CPUs.
fn busy(stat: &str) -> (u64, u64) {
    let row = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = row.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    let all = ticks.iter().take(8).sum();
    let idle = ticks.iter().skip(3).take(2).sum::<u64>();
    (all - idle, all)
}

fn kib(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A line of the table: what it is about, and what a side says to it.
type Row<'a> = (&'a str, &'a dyn Fn(&View) -> String);

/// Both sides.
#[derive(Debug)]
pub(crate) struct Views {
    host: View,
    container: View,
    /// How much of a CPU the kernel says the container used while it was looked at, percent.
    used_percent: u64,
}

impl Views {
    pub(crate) fn read(demo: &mut Demo) -> Result<Self> {
        let host = View::read(|file| {
            std::fs::read_to_string(file).with_context(|| format!("read {file}"))
        })?;
        let (began, used_ns) = (std::time::Instant::now(), demo.cgroup.used_ns()?);
        let container = View::read(|file| demo.read(file).with_context(|| format!("read {file}")))?;
        let used_ns = u128::from(demo.cgroup.used_ns()? - used_ns);
        let used_percent = u64::try_from(100 * used_ns / began.elapsed().as_nanos().max(1))?;
        Ok(Self { host, container, used_percent })
    }

    /// `host | container`, a line for each thing a program believes.
    pub(crate) fn table(&self) -> String {
        let mib = |kib: u64| format!("{} MiB", kib >> 10);
        let pressure = |view: &View| {
            let average = view.pressure.split_whitespace().nth(1).unwrap_or("-");
            average.replace("avg10=", "some, 10 s: ")
        };
        let rows: [Row<'_>; 9] = [
            ("CPUs", &|view| view.cpus.to_string()),
            ("CPU busy", &|view| format!("{} %", view.busy_percent)),
            ("memory", &|view| mib(view.mem_total_kib)),
            ("memory available", &|view| mib(view.mem_available_kib)),
            ("swap", &|view| mib(view.swap_total_kib)),
            ("uptime", &|view| format!("{} s", view.uptime_s)),
            ("load 1, 5, 15 min", &|view| view.load.clone()),
            ("threads", &|view| view.threads.to_string()),
            ("CPU pressure", &pressure),
        ];
        let mut table = format!("{:<20} {:>20} {:>20}\n{:-<62}\n", "", "host", "container", "");
        for (name, cell) in rows {
            table +=
                &format!("{name:<20} {:>20} {:>20}\n", cell(&self.host), cell(&self.container));
        }
        table
    }

    /// What a container must not see, a line each; none when all is well.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let Self { host, container, used_percent } = self;
        let load = container.load.split(' ').next().and_then(|one| one.parse::<f64>().ok());
        let checks = [
            ("CPUs are not 1", container.cpus == 1),
            (
                "busy time is not the container's",
                container.busy_percent.abs_diff(*used_percent) <= 20,
            ),
            ("a busy loop uses no CPU", container.busy_percent > 0),
            ("memory is not the limit", container.mem_total_kib == LIMIT_KIB),
            ("more memory is available than there is", container.mem_available_kib <= LIMIT_KIB),
            (
                "there is more swap than the host has",
                container.swap_total_kib <= host.swap_total_kib,
            ),
            ("uptime is not the container's", container.uptime_s < 120 && container.uptime_s >= 10),
            ("load is not that of one busy loop", load.is_some_and(|one| one > 0.05 && one < 1.2)),
            ("threads are not the container's", (2..=6).contains(&container.threads)),
            ("pressure cannot be read", container.pressure.starts_with("some avg10=")),
        ];
        checks.iter().filter(|(_, right)| !right).map(|(line, _)| (*line).to_owned()).collect()
    }
}
