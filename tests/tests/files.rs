//! What a limited container reads in every file, and what the host reads through the same mount.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use lxcfs::model::file::File;
use lxcfs_tests::cgroup::{Cgroup, parse_used_ns};
use lxcfs_tests::container::Container;
use lxcfs_tests::mount::Daemon;
use procfs::prelude::*;

const LIMIT_BYTES: u64 = 256 << 20;

/// A cgroup with 256 MiB, one CPU's time and the second CPU.
fn limited() -> Result<Cgroup> {
    let cgroup = Cgroup::new("limited")?;
    cgroup.limit_memory(LIMIT_BYTES)?;
    cgroup.limit_cpu(100_000, 100_000)?;
    cgroup.limit_cpus("1")?;
    Ok(cgroup)
}

fn read(daemon: &Daemon, cgroup: &Cgroup, file: File) -> Result<String> {
    let path = daemon.path(file.path());
    Container::new(cgroup).sh(&format!("cat {}", path.display()))
}

/// Every file as a container reads it, parsed by code that is not ours.
#[test]
fn every_file_of_a_container_parses() -> Result<()> {
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let cgroup = limited()?;
    for file in File::ALL {
        let text = read(&daemon, &cgroup, file).with_context(|| format!("{file:?}"))?;
        let bytes = text.as_bytes();
        match file {
            File::Cpuinfo => ensure!(procfs::CpuInfo::from_read(bytes)?.num_cores() == 1, "{text}"),
            File::Diskstats => {
                procfs::DiskStats::from_read(bytes)?;
            }
            File::Loadavg => {
                procfs::LoadAverage::from_read(bytes)?;
            }
            File::Meminfo => {
                let meminfo = procfs::Meminfo::from_read(bytes)?;
                ensure!(meminfo.mem_total == LIMIT_BYTES, "{text}");
                ensure!(meminfo.mem_available.is_some_and(|free| free <= LIMIT_BYTES), "{text}");
            }
            File::Slabinfo => ensure!(text.starts_with("slabinfo - version"), "{text}"),
            File::Stat => {
                let stat = procfs::KernelStats::from_read(bytes, procfs::current_system_info())?;
                ensure!(stat.cpu_time.len() == 1 && stat.procs_running >= Some(1), "{text}");
            }
            File::Swaps => ensure!(text.starts_with("Filename"), "{text}"),
            File::Uptime => {
                let uptime = procfs::Uptime::from_read(bytes)?;
                ensure!(uptime.uptime < 60.0 && uptime.idle <= uptime.uptime, "{text}");
            }
            File::Pressure(_) => {
                let some = text.lines().next().context("no line")?;
                ensure!(some.starts_with("some avg10="), "{text}");
            }
            File::Vmstat => {
                let vmstat = procfs::VmStat::from_read(bytes)?.0;
                ensure!(vmstat["nr_free_pages"] <= 65_536 && vmstat["pgfault"] > 0, "{text}");
                ensure!(!vmstat.contains_key("nr_zone_active_file"), "the host's: {text}");
            }
            File::CpuOnline => ensure!(text == "1\n", "{text}"),
        }
    }
    Ok(())
}

/// The host's own processes see the host's bytes.
#[test]
fn the_host_reads_the_host() -> Result<()> {
    let daemon = Daemon::start()?;
    for file in File::ALL {
        let path = format!("/{}", file.path());
        if file == File::Slabinfo {
            each_line_is_the_hosts(&path, &daemon.path(file.path()))?;
            continue;
        }
        // Counters move while we read: between two equal reads of the host's file, ours must be the same too.
        let mut compared = 0;
        // Our own reads use CPU time, so this one hardly ever stands still.
        let restless = file == File::Stat;
        for _ in 0..if restless { 20 } else { 2_000 } {
            let before = fs::read(&path)?;
            let ours = fs::read(daemon.path(file.path()))?;
            let after = fs::read(&path)?;
            ensure!(shape(&ours) == shape(&before), "{path} has other lines");
            if before == after {
                // The daemon runs while we read through it, which the host's count of running tasks sees.
                let equal = ours == before || file == File::Loadavg && ours[..14] == before[..14];
                ensure!(equal, "{path} differs");
                compared += 1;
            }
            if compared == 3 {
                break;
            }
        }
        ensure!(compared > 0 || restless, "{path} never stood still");
    }
    Ok(())
}

/// Slabs are taken and given back at any moment, by each reading and by whatever else runs, so that two equal readings of the
/// host's do not say what the text is between them. But no such moment comes in each of many readings of one line: each has
/// to be, byte for byte, what the host's file says just before or just after, if not all in the same reading. A line that
/// is not the host's is unlike both in every reading.
fn each_line_is_the_hosts(host: &str, ours: &Path) -> Result<()> {
    let mut unlike: Option<Vec<String>> = None;
    for _ in 0..2_000 {
        let (before, between) = (fs::read_to_string(host)?, fs::read_to_string(ours)?);
        let after = fs::read_to_string(host)?;
        ensure!(shape(between.as_bytes()) == shape(before.as_bytes()), "{host} has other lines");
        let lines = before.lines().zip(between.lines()).zip(after.lines());
        let differs = lines.filter(|((before, ours), after)| ours != before && ours != after);
        let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let differs: Vec<_> = differs.map(|((_, ours), _)| name(ours)).collect();
        let still = |name: &String| differs.contains(name);
        let left = unlike.map_or(differs.clone(), |all| all.into_iter().filter(still).collect());
        if left.is_empty() {
            return Ok(());
        }
        unlike = Some(left);
    }
    bail!("{host} differs in {unlike:?} from readings before and after, each time")
}

/// The text with each number replaced, and the spaces that pad it left out.
fn shape(text: &[u8]) -> String {
    let words = text.split(|byte| matches!(byte, b' ' | b'\t'));
    let words = words.filter(|word| !word.is_empty()).map(|word| {
        let word = String::from_utf8_lossy(word);
        word.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect::<String>()
    });
    let mut shape: String = words.collect::<Vec<_>>().join(" ");
    while shape.contains("##") {
        shape = shape.replace("##", "#");
    }
    shape
}

/// The same CPUs in every file, whatever the view.
#[test]
fn w26_all_files_agree_on_the_cpus() -> Result<()> {
    let cgroup = Cgroup::new("cpus")?;
    cgroup.limit_cpu(50_000, 100_000)?;
    cgroup.limit_cpus("0-1")?;
    for (view, want) in [("cpuset", "0-1"), ("quota", "0"), ("host", "0-1")] {
        let daemon = Daemon::with(&["--cpu-view", view])?;
        let online = read(&daemon, &cgroup, File::CpuOnline)?;
        ensure!(online.trim() == want, "{view}: {online}");
        let count = if want == "0" { 1 } else { 2 };
        let cpuinfo = read(&daemon, &cgroup, File::Cpuinfo)?;
        ensure!(cpuinfo.matches("processor\t:").count() == count, "{view}: {cpuinfo}");
        ensure!(
            cpuinfo.contains(&format!("siblings\t: {count}\n")) || !cpuinfo.contains("siblings")
        );
        let stat = read(&daemon, &cgroup, File::Stat)?;
        let rows = stat.lines().filter(|line| line.starts_with("cpu")).count();
        ensure!(rows == count + 1, "{view}: {stat}");
    }
    Ok(())
}

/// Limits are the smallest up the tree; use is the whole container's, also for a reader in a leaf of it.
#[test]
fn ask_44_162_limits_come_from_above_and_use_from_the_whole_container() -> Result<()> {
    let daemon = Daemon::start()?;
    let outer = Cgroup::new("outer")?;
    outer.limit_memory(128 << 20)?;
    let container = outer.child("container")?;
    container.limit_memory(LIMIT_BYTES)?;
    let leaf = container.leaf("leaf")?;
    let meminfo = daemon.path("proc/meminfo");
    // The init allocates in the container's cgroup and then reads from a leaf it has moved itself to.
    let script = format!(
        "x=$(yes | head -c 30000000); for f in {}; do echo $$ > $f; done; cat {}; :",
        leaf.procs_files().iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(" "),
        meminfo.display()
    );
    let text = Container::new(&container).sh(&script)?;
    let meminfo = procfs::Meminfo::from_read(text.as_bytes())?;
    ensure!(meminfo.mem_total == 128 << 20, "{text}");
    ensure!(
        meminfo.mem_total - meminfo.mem_free > 25_000_000,
        "the use before the move is missing: {text}"
    );
    Ok(())
}

/// Daemons with each source of load and CPU time, side by side.
fn each_source() -> Result<[(&'static str, Daemon); 2]> {
    let with = |source| Ok::<_, anyhow::Error>((source, Daemon::with(&["--accounting", source])?));
    Ok([with("auto")?, with("files")?])
}

/// Busy loops are seen as busy CPUs, and times never fall.
#[test]
fn w15_ask_593_628_538_busy_time_is_the_containers() -> Result<()> {
    let daemons = each_source()?;
    let cgroup = Cgroup::new("busy")?;
    cgroup.limit_cpus("0")?;
    let files =
        daemons.each_ref().map(|(_, daemon)| daemon.path("proc/stat").display().to_string());
    // The kernel's number is read in the container too: a slow machine takes its time to end one.
    let script = format!(
        "(while :; do :; done) & for i in 1 2 3 4 5 6 7 8; do cat {}; sleep 0.2; done; echo; cat {}",
        files.join(" "),
        cgroup.usage_file()?.display()
    );
    let text = Container::new(&cgroup).sh(&script)?;
    let (text, usage) = text.rsplit_once("\n\n").context("no usage at the end")?;
    let rows: Vec<Vec<u64>> = text
        .lines()
        .filter_map(|line| line.strip_prefix("cpu0 "))
        .map(|row| row.split_whitespace().map(|n| n.parse().unwrap()).collect())
        .collect();
    ensure!(rows.len() == 16, "{text}");
    let kernel_ticks = parse_used_ns(usage)? / 10_000_000;
    let used = |row: &[u64]| row[0] + row[1] + row[2];
    for (index, (source, _)) in daemons.iter().enumerate() {
        let own: Vec<_> = rows.iter().skip(index).step_by(2).collect();
        for pair in own.windows(2) {
            ensure!(pair[0].iter().zip(pair[1]).all(|(a, b)| a <= b), "{source}: {text}");
        }
        // The kernel's number is of a moment after the last read.
        let shown = used(own[7]);
        ensure!(
            shown <= kernel_ticks + 2 && shown * 2 >= kernel_ticks && shown > used(own[0]),
            "{source}: {shown} ticks shown, {kernel_ticks} used: {text}"
        );
    }
    Ok(())
}

/// The host's devices, and on those nobody in the container used, nothing.
#[test]
fn ask_148_432_disks_are_those_the_container_used() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("disks")?;
    let text = read(&daemon, &cgroup, File::Diskstats)?;
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let host = fs::read_to_string("/proc/diskstats")?;
    for (ours, host) in text.lines().map(words).zip(host.lines().map(words)) {
        ensure!(ours[..3] == host[..3] && ours.len() == host.len(), "{ours:?} {host:?}");
    }
    ensure!(text.lines().count() == host.lines().count(), "{text}");
    let unused = text.lines().map(words).find(|line| line[2] == "loop0").context("no loop0")?;
    ensure!(unused[3..].iter().all(|number| number == "0"), "a device nobody used: {unused:?}");
    Ok(())
}

/// The load of a container with two busy loops, after samples at the kernel's period.
#[test]
fn w24_ask_13_203_251_578_load_is_the_containers_own() -> Result<()> {
    let daemons = each_source()?;
    let cgroup = Cgroup::new("load")?;
    let files =
        daemons.each_ref().map(|(_, daemon)| daemon.path("proc/loadavg").display().to_string());
    let files = files.join(" ");
    let script = format!(
        "(while :; do :; done) & (while :; do :; done) & (sleep 100) & cat {files}
        cat /proc/uptime; sleep 12; cat /proc/uptime; cat {files}"
    );
    let started = Instant::now();
    let text = Container::new(&cgroup).sh(&script)?;
    let whole = started.elapsed().as_secs_f64();
    let (uptimes, lines): (Vec<_>, Vec<_>) =
        text.lines().partition(|line| line.split_whitespace().count() == 2);
    let uptimes: Vec<f64> =
        uptimes.iter().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    ensure!(lines.len() == 4 && uptimes.len() == 2, "{text}");
    let between = uptimes[1] - uptimes[0];
    // What so many seconds' samples at the kernel's period make of so many tasks.
    let load = |tasks: f64, samples: f64| tasks * (1.0 - (-samples * 5.0 / 60.0).exp());
    let samples_at_most = |seconds: f64| (seconds / 5.0).floor() + 1.0;
    let lines: Vec<_> =
        lines.iter().map(|line| procfs::LoadAverage::from_read(line.as_bytes())).collect();
    for (index, (source, _)) in daemons.iter().enumerate() {
        let first = lines[index].as_ref().map_err(|error| anyhow::anyhow!("{error}: {text}"))?;
        let second =
            lines[index + 2].as_ref().map_err(|error| anyhow::anyhow!("{error}: {text}"))?;
        // The first sample may catch the loops with a shell, a fork of it and `cat`; a later one, the loops and one more.
        let start = load(2.0, 1.0);
        let most = load(3.0, samples_at_most(whole - between)) + start;
        ensure!(f64::from(first.one) <= most, "{source}: more than {most}: {text}");
        let most = load(3.0, samples_at_most(whole)) + start;
        let least = load(2.0, (between / 5.0).floor()) - 0.01;
        ensure!(
            (least..=most).contains(&f64::from(second.one)),
            "{source}: not {least} to {most}: {text}"
        );
        ensure!(
            second.max >= 4 && second.max <= 7,
            "{source}: threads are the container's: {text}"
        );
        ensure!(second.latest_pid <= 20, "{source}: pids are in its own numbering: {text}");
    }
    Ok(())
}

/// A reader with the personality of a 32-bit program gets the host's text for such; no thread of the daemon keeps it.
#[test]
fn a_32bit_program_reads_cpuinfo_as_on_the_host() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("setarch")?;
    let cpuinfo = daemon.path("proc/cpuinfo").display().to_string();
    let text = Container::new(&cgroup).sh(&format!(
        "setarch linux32 grep -v MHz {cpuinfo}; echo; echo ----; setarch linux32 grep -v MHz /proc/cpuinfo"
    ))?;
    let (ours, host) = text.split_once("\n----\n").context("two texts")?;
    ensure!(ours.trim() == host.trim(), "{text}");
    let mut looked_at = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.server()))? {
        // One that has ended meanwhile keeps nothing.
        let Ok(personality) = fs::read_to_string(thread?.path().join("personality")) else {
            continue;
        };
        ensure!(personality == "00000000\n", "{personality}");
        looked_at += 1;
    }
    ensure!(looked_at > 0, "no thread was looked at");
    Ok(())
}
