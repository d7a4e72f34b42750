//! The tools people use, in a limited container over our files: they must show the container.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
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

/// Numbers of the last row that begins with `row`, by the names in the last line that has `name` in it.
fn columns(text: &str, name: &str, row: &[&str]) -> Result<HashMap<String, f64>> {
    let lines = || text.lines().rev().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let header = lines().find(|words| words.contains(&name)).context("no header")?;
    let words = lines().find(|words| words.starts_with(row)).context("no such row")?;
    // A row may have a word before its first column: the names are over the last ones.
    let names = header.iter().rev().zip(words.iter().rev());
    let numbers = names.filter_map(|(name, word)| Some(((*name).to_owned(), word.parse().ok()?)));
    Ok(numbers.collect())
}

/// `[user and nice, system, idle, steal]`, percent, by tool and CPU.
type Shown = Vec<(String, [f64; 4])>;

/// What mpstat, vmstat and top show of the two CPUs over some seconds.
fn shown(container: &mut Running) -> Result<Shown> {
    let sum = |numbers: &[f64]| numbers.iter().sum::<f64>();
    let mut shown = Shown::new();
    let text = container.say("LC_ALL=C S_COLORS=never mpstat -P ALL 1 3")?;
    for cpu in ["all", "0", "1"] {
        let row = columns(&text, "%idle", &["Average:", cpu])?;
        let user = sum(&[row["%usr"], row["%nice"]]);
        shown.push((format!("mpstat {cpu}"), [user, row["%sys"], row["%idle"], row["%steal"]]));
    }
    let text = container.say("LC_ALL=C vmstat -n 3 2")?;
    let row = columns(&text, "id", &[])?;
    shown.push(("vmstat".to_owned(), [row["us"], row["sy"], row["id"], row["st"]]));
    let text = container.say("LC_ALL=C top -1 -b -n 2 -d 3 -w 200")?;
    let page = &text[text.rfind("top -").context("no second page")?..];
    for line in page.lines().flat_map(|line| line.split("%Cpu").skip(1)) {
        let (cpu, rest) = line.split_once(':').context("no colon")?;
        let of = |name: &str| -> Result<f64> {
            let field = rest.split(',').find_map(|field| {
                let (number, of) = field.trim().split_once(' ')?;
                of.starts_with(name).then_some(number)
            });
            Ok(field.with_context(|| format!("no {name} in {line}"))?.parse()?)
        };
        let row = [sum(&[of("us")?, of("ni")?]), of("sy")?, of("id")?, of("st")?];
        shown.push((format!("top {cpu}"), row));
    }
    ensure!(shown.len() == 6, "three rows, one, and two: {shown:?}");
    Ok(shown)
}

/// The two CPUs of this machine, without a quota, and a shell in them.
fn two_cpus(daemon: &Daemon) -> Result<(Cgroup, Running)> {
    let cgroup = Cgroup::new("two")?;
    cgroup.limit_cpus("0-1")?;
    let running = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    Ok((cgroup, running))
}

/// One on each CPU: while both want the same one, the other is idle.
const TWO_LOOPS: &str = "for i in 0 1; do taskset -c $i sh -c 'while :; do :; done' & done";

#[test]
fn two_busy_loops_fill_both_cpus_in_every_tool() -> Result<()> {
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let (_cgroup, mut container) = two_cpus(&daemon)?;
    container.say(TWO_LOOPS)?;
    for (tool, row) in shown(&mut container)? {
        let [user, system, idle, steal] = row;
        ensure!(idle < 5.0 && user > 5.0, "{tool}: {row:?}");
        ensure!((user + system + steal + idle - 100.0).abs() < 5.0, "{tool}: {row:?}");
    }
    Ok(())
}

#[test]
fn a_busy_neighbour_is_steal_and_never_use() -> Result<()> {
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let (_cgroup, mut container) = two_cpus(&daemon)?;
    let neighbour = Cgroup::new("neighbour")?;
    let _busy = Burden::start("spin", 4, &neighbour);
    for (tool, row) in shown(&mut container)? {
        let [user, system, idle, _] = row;
        ensure!(user + system < 25.0 && idle > 40.0, "only the tool runs: {tool}: {row:?}");
    }
    container.say(TWO_LOOPS)?;
    for (tool, row) in shown(&mut container)? {
        let [user, _, idle, steal] = row;
        ensure!(idle < 5.0 && user > 5.0 && steal > 20.0, "both want them: {tool}: {row:?}");
    }
    Ok(())
}

#[test]
fn htop_shows_both_cpus_full() -> Result<()> {
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let (_cgroup, mut container) = two_cpus(&daemon)?;
    container.say(TWO_LOOPS)?;
    // A terminal that can be looked at.
    let tmux = "LC_ALL=C TERM=screen HOME=/nonexistent tmux -L lxcfs-test -f /dev/null";
    container.say(&format!("{tmux} new-session -d -x 100 -y 30 'htop -C -d 20' 2>&1"))?;
    let mut text = String::new();
    lxcfs_tests::wait_for("htop to show something", || {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        text = container.say(&format!("{tmux} capture-pane -p 2>&1")).unwrap_or_default();
        let percents = text.lines().flat_map(|line| line.split('[').skip(1)).filter_map(|bar| {
            let (bar, _) = bar.split_once("%]")?;
            bar.rsplit(|c: char| !c.is_ascii_digit() && c != '.').next()?.parse::<f64>().ok()
        });
        percents.filter(|percent| *percent > 95.0).count() == 2
    });
    container.say(&format!("{tmux} kill-server"))?;
    ensure!(text.contains("Load average:"), "{text}");
    Ok(())
}
