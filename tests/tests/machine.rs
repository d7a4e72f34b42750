//! What only shows when the machine changes: swap in use, block devices at work, a CPU that is unplugged.
//!
//! These tests change what all the others see, so they run one after the other, in a program of their own.

use std::fs;
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result, ensure};
use lxcfs::model::lock::lock;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::kib;
use lxcfs_tests::machine::{Disk, Setting, Swap};
use lxcfs_tests::mount::Daemon;

const LIMIT_MIB: u64 = 64;

/// One test has the machine for itself.
fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    lock(&MACHINE)
}

/// The cgroup's swap in use, KiB, as the kernel counts it.
fn swapped_kib(cgroup: &Cgroup) -> Result<u64> {
    let text = cgroup.read("memory", "memory.stat", "memory.swap.current")?;
    let number = |line: &str| line.strip_prefix("total_swap ").unwrap_or(line).parse::<u64>().ok();
    Ok(text.lines().find_map(number).context("no number")? / 1_024)
}

/// `(size, used)` of the one line of `/proc/swaps`, KiB.
fn swaps_line(swaps: &str) -> Result<(u64, u64)> {
    let lines: Vec<Vec<_>> = swaps.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(lines.len() == 2 && lines[1].len() == 5, "{swaps}");
    Ok((lines[1][2].parse()?, lines[1][3].parse()?))
}

/// A container that holds half as much again as its memory, so that a third of it is in swap.
fn show_swap(swap_limit_mib: u64) -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("swap")?;
    cgroup.limit_memory(LIMIT_MIB << 20)?;
    cgroup.limit_swap(swap_limit_mib << 20)?;
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    let before = container.say("cat /proc/meminfo")?;
    ensure!(kib(&before, "SwapTotal")? == swap_limit_mib << 10, "{before}");
    container.hold(LIMIT_MIB * 3 / 2)?;
    let meminfo = container.say("cat /proc/meminfo")?;
    let swaps = container.say("cat /proc/swaps")?;
    let kernel = swapped_kib(&cgroup)?;
    let used = kib(&meminfo, "SwapTotal")? - kib(&meminfo, "SwapFree")?;
    ensure!(used > 24 << 10, "nothing was swapped out: {meminfo}");
    ensure!(used.abs_diff(kernel) < 4 << 10, "{kernel} KiB used, says the kernel: {meminfo}");
    ensure!(kib(&meminfo, "MemTotal")? == LIMIT_MIB << 10, "{meminfo}");
    ensure!(kib(&meminfo, "MemFree")? < 16 << 10, "the memory is full: {meminfo}");
    let (size, used) = swaps_line(&swaps)?;
    ensure!(size == swap_limit_mib << 10 && used.abs_diff(kernel) < 4 << 10, "{swaps}");
    // Waiting for memory is what swapping out is, and it is this container's own.
    let total = container.say("cat /proc/pressure/memory")?;
    ensure!(!total.contains("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"), "{total}");
    let neighbour = Cgroup::new("neighbour")?;
    let total =
        Container::new(&neighbour).files(&daemon.mount_point()).sh("cat /proc/pressure/memory")?;
    ensure!(total.starts_with("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"), "{total}");
    Ok(())
}

#[test]
fn swap_on_zram_is_the_containers_share() -> Result<()> {
    let _alone = alone();
    let _swap = Swap::on_zram(128)?;
    show_swap(80)
}

#[test]
fn ask_56_170_240_258_384_416_438_551_swap_in_a_file_is_the_containers_share() -> Result<()> {
    let _alone = alone();
    let _swap = Swap::in_a_file(96)?;
    show_swap(80)
}

#[test]
fn w02_swap_without_a_limit_is_the_hosts() -> Result<()> {
    let _alone = alone();
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("swap")?;
    cgroup.limit_memory(LIMIT_MIB << 20)?;
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    let host_kib = || kib(&fs::read_to_string("/proc/meminfo")?, "SwapTotal");
    let without = host_kib()?;
    let swap = Swap::on_zram(64)?;
    let with = host_kib()?;
    ensure!(with > without, "the swap is on");
    let shown = container.say("cat /proc/meminfo")?;
    ensure!(kib(&shown, "SwapTotal")? == with, "the host has {with} KiB: {shown}");
    let shown = container.say("cat /proc/swaps")?;
    ensure!(swaps_line(&shown)? == (with, 0), "{shown}");
    // The device under its name, as the host has it.
    ensure!(shown == fs::read_to_string("/proc/swaps")?, "{shown}");
    // A limit beyond what there is promises nothing.
    cgroup.limit_swap(1 << 40)?;
    ensure!(kib(&container.say("cat /proc/meminfo")?, "SwapTotal")? == with);
    drop(swap);
    let shown = container.say("cat /proc/meminfo")?;
    ensure!(kib(&shown, "SwapTotal")? == without && kib(&shown, "SwapFree")? == without, "{shown}");
    Ok(())
}

/// What zswap holds is counted by v2 alone; on v1 the lines are absent, because the host's would mislead. A kernel
/// without zswap has no such lines, and no container gets any.
#[test]
fn zswap_is_the_containers_own_or_absent() -> Result<()> {
    let _alone = alone();
    let _swap = Swap::on_zram(128)?;
    let cgroup = Cgroup::new("zswap")?;
    cgroup.limit_memory(LIMIT_MIB << 20)?;
    let has_zswap = kib(&fs::read_to_string("/proc/meminfo")?, "Zswapped").is_ok();
    let is_counted = has_zswap && cgroup.is_pure_v2();
    let set = is_counted.then(|| Setting::set("/sys/module/zswap/parameters/enabled", "Y"));
    let _enabled = set.transpose()?;
    let (daemon, without) = (Daemon::start()?, Daemon::with(&["--disable-zswap"])?);
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    container.hold(LIMIT_MIB * 3 / 2)?;
    let shown = container.say("cat /proc/meminfo")?;
    ensure!(kib(&shown, "SwapFree")? < kib(&shown, "SwapTotal")?, "nothing is in swap: {shown}");
    if is_counted {
        let stat = cgroup.read("memory", "", "memory.stat")?;
        for (line, counter) in [("Zswap", "zswap "), ("Zswapped", "zswapped ")] {
            let number = |line: &str| line.strip_prefix(counter)?.parse::<u64>().ok();
            let kernel = stat.lines().find_map(number).context("no counter")? / 1_024;
            let ours = kib(&shown, line)?;
            ensure!(ours > 1 << 10 && ours.abs_diff(kernel) < 4 << 10, "{kernel} KiB: {shown}");
        }
        ensure!(kib(&shown, "Zswap")? < kib(&shown, "Zswapped")?, "it is compressed: {shown}");
    } else {
        ensure!(!shown.contains("Zswap"), "{shown}");
    }
    let shown = container.say(&format!("cat {}", without.path("proc/meminfo").display()))?;
    let zeros = ["Zswap:                 0 kB\n", "Zswapped:              0 kB\n"];
    ensure!(zeros.iter().all(|zero| shown.contains(zero) == has_zswap), "{shown}");
    ensure!(shown.matches("Zswap").count() == if has_zswap { 2 } else { 0 }, "{shown}");
    Ok(())
}

/// `(reads, sectors read, writes, sectors written)` of the device.
fn disk_line(diskstats: &str, name: &str) -> Result<[u64; 4]> {
    let lines = diskstats.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.into_iter().find(|line| line.get(2) == Some(&name));
    let line = line.with_context(|| format!("no {name} in: {diskstats}"))?;
    ensure!(line.len() >= 14, "{diskstats}");
    let number = |at: usize| line[at].parse::<u64>().context("not a number");
    Ok([number(3)?, number(5)?, number(7)?, number(9)?])
}

/// Reads and writes past the page cache, with a limit on the device far above what they take. On v1 kernels from 6.10 on
/// nothing is counted without one.
#[test]
fn w05_ask_653_a_disk_at_work_is_shown_to_the_container_that_works() -> Result<()> {
    let _alone = alone();
    let disk = Disk::new(16)?;
    let daemon = Daemon::start()?;
    let (cgroup, idle) = (Cgroup::new("io")?, Cgroup::new("idle")?);
    for cgroup in [&cgroup, &idle] {
        cgroup.limit_writes(&disk.number()?, 1 << 40)?;
    }
    let (name, device) = (disk.name(), disk.device().display());
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    let unused = container.say("cat /proc/diskstats")?;
    ensure!(disk_line(&unused, &name)? == [0; 4], "{unused}");
    let said = container.say(&format!(
        "dd if=/dev/zero of={device} oflag=direct bs=64k count=64 2>&1 &&\n\
         dd if={device} of=/dev/null iflag=direct bs=32k count=32 2>&1 && echo done"
    ))?;
    ensure!(said.ends_with("done\n"), "{said}");
    let shown = container.say("cat /proc/diskstats")?;
    let [reads, read_sectors, writes, written_sectors] = disk_line(&shown, &name)?;
    ensure!(written_sectors == (64 << 16) / 512 && read_sectors == (32 << 15) / 512, "{shown}");
    ensure!((1..=64).contains(&writes) && (1..=32).contains(&reads), "{shown}");
    let host = fs::read_to_string("/proc/diskstats")?;
    let host = disk_line(&host, &name)?;
    ensure!(host[1] >= read_sectors && host[3] >= written_sectors, "{shown}");
    let columns = |text: &str| {
        let line = text.lines().find(|line| line.contains(&format!(" {name} ")));
        line.map_or(0, |line| line.split_whitespace().count())
    };
    ensure!(columns(&shown) == columns(&fs::read_to_string("/proc/diskstats")?), "{shown}");
    let neighbours =
        Container::new(&idle).files(&daemon.mount_point()).sh("cat /proc/diskstats")?;
    ensure!(disk_line(&neighbours, &name)? == [0; 4], "it did nothing: {neighbours}");
    Ok(())
}

#[test]
fn a_slowed_down_disk_is_shown_while_it_is_waited_for() -> Result<()> {
    let _alone = alone();
    let disk = Disk::new(16)?;
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("slow")?;
    cgroup.limit_writes(&disk.number()?, 1 << 20)?;
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    let write =
        format!("dd if=/dev/zero of={} oflag=direct bs=64k count=32", disk.device().display());
    let started = std::time::Instant::now();
    container.say(&format!(
        "({write}; echo $? > {0}) 2>&1 &",
        daemon.directory().join("status").display()
    ))?;
    // Every page until the last has no more than was asked for, and never less than the page before.
    let mut before = 0;
    lxcfs_tests::wait_for("two MiB to be written", || {
        let shown = container.say("cat /proc/diskstats").expect("it can be read while dd waits");
        let written = disk_line(&shown, &disk.name()).map_or(0, |line| line[3]);
        assert!(written >= before && written <= (2 << 20) / 512, "{before} before: {shown}");
        before = written;
        written == (2 << 20) / 512
    });
    ensure!(started.elapsed().as_secs_f64() > 0.8, "the kernel did not slow it down");
    let status = daemon.directory().join("status");
    lxcfs_tests::wait_for("dd to end", || fs::read_to_string(&status).is_ok_and(|s| s == "0\n"));
    Ok(())
}

/// Memory above `memory.high` is taken back, below `memory.max` it may be had: what may be had is what is shown.
#[test]
fn a_limit_that_may_be_exceeded_is_no_total() -> Result<()> {
    let _alone = alone();
    let disk = Disk::new(48)?;
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("high")?;
    cgroup.limit_memory(LIMIT_MIB << 20)?;
    cgroup.limit_memory_softly(16 << 20)?;
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    // A device that nobody has open any more has no page cache.
    container.say(&format!("exec 4< {}; cat <&4 > /dev/null", disk.device().display()))?;
    let shown = container.say("cat /proc/meminfo")?;
    let (total, free) = (kib(&shown, "MemTotal")?, kib(&shown, "MemFree")?);
    ensure!(total == LIMIT_MIB << 10, "{shown}");
    ensure!(kib(&shown, "MemAvailable")? > total / 2, "page cache can be had: {shown}");
    if cgroup.is_pure_v2() {
        let events = cgroup.read("memory", "", "memory.events")?;
        ensure!(!events.contains("high 0\n"), "nothing was taken back: {events}");
        ensure!(total - free < 24 << 10, "{shown}");
    } else {
        // v1 takes back only when the machine runs out of memory, so all of what was read is there.
        ensure!(total - free > 40 << 10 && kib(&shown, "Cached")? > 40 << 10, "{shown}");
    }
    Ok(())
}

/// An unplugged CPU disappears from every file and comes back to each. With v1 cpusets it would be gone for good from
/// every cpuset of this machine, so there the container alone loses it.
#[test]
fn an_unplugged_cpu_is_in_no_file() -> Result<()> {
    let _alone = alone();
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("hotplug")?;
    cgroup.limit_cpus("0-1")?;
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    ensure!(container.cpus()? == [0, 1]);
    let idle = |container: &mut Running| -> Result<f64> {
        let text = container.say("cat /proc/uptime")?;
        Ok(text.split_whitespace().nth(1).context("no idle time")?.parse()?)
    };
    let both = idle(&mut container)?;
    if cgroup.is_pure_v2() {
        let unplugged = Setting::set("/sys/devices/system/cpu/cpu1/online", "0")?;
        ensure!(container.cpus()? == [0]);
        // The host's readers see it too, and a container that has the CPU's number alone moves to what is left.
        let online = "sys/devices/system/cpu/online";
        ensure!(fs::read_to_string(daemon.path(online))? == "0\n");
        let rows = fs::read_to_string(daemon.path("proc/stat"))?;
        ensure!(rows.contains("\ncpu0 ") && !rows.contains("\ncpu1 "), "{rows}");
        let alone = Cgroup::new("alone")?;
        alone.limit_cpus("1")?;
        ensure!(Container::new(&alone).files(&daemon.mount_point()).shell()?.cpus()? == [0]);
        drop(unplugged);
        ensure!(fs::read_to_string(daemon.path(online))? == "0-1\n");
        ensure!(Container::new(&alone).files(&daemon.mount_point()).shell()?.cpus()? == [1]);
    } else {
        cgroup.limit_cpus("0")?;
        ensure!(container.cpus()? == [0]);
        cgroup.limit_cpus("0-1")?;
    }
    ensure!(container.cpus()? == [0, 1]);
    ensure!(idle(&mut container)? >= both, "idle time does not fall");
    Ok(())
}

/// A container's huge pages are those of the machine's pool that its limit lets it have.
#[test]
fn huge_pages_are_those_within_the_limit() -> Result<()> {
    let _alone = alone();
    let daemon = Daemon::start()?;
    let _pool = Setting::set("/proc/sys/vm/nr_hugepages", "4")?;
    let cgroup = Cgroup::new("huge")?;
    cgroup.limit_huge_pages("2MB", 4 << 20)?;
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    let mut line = |name: &str| -> Result<u64> {
        let text = container.say("cat /proc/meminfo")?;
        kib(&text, name)
    };
    ensure!(line("HugePages_Total")? == 2 && line("HugePages_Free")? == 2);
    ensure!(line("Hugetlb")? == 4 << 10 && line("Hugepagesize")? == 2 << 10);
    cgroup.limit_huge_pages("2MB", 1 << 30)?;
    ensure!(line("HugePages_Total")? == 4, "no more than the machine has");
    Ok(())
}
