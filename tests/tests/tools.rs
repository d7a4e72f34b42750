//! The tools people use, in a limited container over our files: they must show the container.

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::Container;
use lxcfs_tests::mount::Daemon;

/// A CPU less idle than this, percent, has a busy loop on it, whoever else wants the host's CPU meanwhile.
const BUSY: f64 = 90.0;

/// 256 MiB, the time of one CPU, and the second CPU alone.
fn limited() -> Result<(Daemon, Cgroup, Container)> {
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let cgroup = Cgroup::new("tools")?;
    cgroup.limit_memory(256 << 20)?;
    cgroup.limit_cpu(100_000, 100_000)?;
    cgroup.limit_cpus("1")?;
    let container = Container::new(&cgroup).files(&daemon.mount_point());
    Ok((daemon, cgroup, container))
}

/// The words of the first line that begins with `name`.
fn line<'a>(text: &'a str, name: &str) -> Result<Vec<&'a str>> {
    let line = text.lines().find(|line| line.trim_start().starts_with(name));
    let line = line.with_context(|| format!("no line `{name}` in: {text}"))?;
    Ok(line.split_whitespace().collect())
}

#[test]
fn free_shows_the_limit() -> Result<()> {
    let (_daemon, _cgroup, container) = limited()?;
    let text = container.sh("free -k")?;
    let memory = line(&text, "Mem:")?;
    ensure!(memory[1] == "262144", "{text}");
    ensure!(memory[2].parse::<u64>()? <= 262_144 && memory[6].parse::<u64>()? <= 262_144, "{text}");
    Ok(())
}

#[test]
fn ask_181_462_465_493_lscpu_and_getconf_show_the_cpuset() -> Result<()> {
    let (_daemon, _cgroup, container) = limited()?;
    let text =
        container.sh("LC_ALL=C lscpu; echo; echo online $(getconf _NPROCESSORS_ONLN); nproc")?;
    ensure!(line(&text, "On-line CPU(s) list:")?.last() == Some(&"1"), "{text}");
    ensure!(line(&text, "online")? == ["online", "1"], "{text}");
    ensure!(text.lines().last() == Some("1"), "{text}");
    Ok(())
}

#[test]
fn uptime_shows_the_containers() -> Result<()> {
    let (_daemon, _cgroup, container) = limited()?;
    let text = container.sh("uptime -p; cat /proc/uptime")?;
    ensure!(text.starts_with("up 0 minutes"), "{text}");
    let up: f64 =
        text.lines().last().context("empty")?.split(' ').next().context("empty")?.parse()?;
    ensure!(up < 60.0, "{text}");
    Ok(())
}

#[test]
fn ask_180_244_273_406_409_414_313_top_shows_one_busy_cpu_and_the_limit() -> Result<()> {
    let (_daemon, _cgroup, container) = limited()?;
    let text = container.sh("(while :; do :; done) & LC_ALL=C top -b -n 2 -d 2")?;
    let second = text.rfind("top -").context("no second page")?;
    let page = &text[second..];
    let idle = line(page, "%Cpu(s)")?;
    let at = idle.iter().position(|word| word.starts_with("id")).context("no idle")?;
    let idle: f64 = idle[at - 1].trim_start_matches("ni,").parse()?;
    ensure!(idle < BUSY, "a busy loop on the only CPU: {page}");
    ensure!(line(page, "MiB Mem")?[3] == "256.0", "{page}");
    let tasks: u64 = line(page, "Tasks:")?[1].parse()?;
    ensure!(tasks <= 6, "{page}");
    Ok(())
}

#[test]
fn mpstat_shows_the_one_cpu_busy() -> Result<()> {
    let (_daemon, _cgroup, container) = limited()?;
    let text = container.sh("(while :; do :; done) & LC_ALL=C S_COLORS=never mpstat -P ALL 2 1")?;
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("Average:"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    let row = |cpu: &str| rows.iter().find(|row| row[1] == cpu).with_context(|| text.clone());
    let idle: f64 = row("1")?.last().context("no idle")?.parse()?;
    ensure!(idle < BUSY, "{text}");
    let all: f64 = row("all")?.last().context("no idle")?.parse()?;
    ensure!((all - idle).abs() < 0.1 && rows.len() == 3, "all CPUs are the one CPU: {text}");
    Ok(())
}

#[test]
fn vmstat_and_iostat_can_read_their_files() -> Result<()> {
    let (_daemon, _cgroup, container) = limited()?;
    let text = container.sh("vmstat 1 2")?;
    let words = text.lines().last().context("empty")?.split_whitespace().count();
    ensure!(words >= 17 && text.lines().count() == 4, "{text}");
    container.sh("LC_ALL=C iostat -d > /dev/null && w -h > /dev/null && ps aux > /dev/null")?;
    Ok(())
}
