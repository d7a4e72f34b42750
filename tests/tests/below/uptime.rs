//! `/proc/uptime`: what it says, to whom, and what it outlives.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::machine::Disk;
use lxcfs_tests::mount::Daemon;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{alone, below, beside, give, loaded, number, served_by};

/// By the shell itself: it goes on using what it used for as long as the reading takes.
const READ: &str = "read line < /proc/uptime && echo \"$line\"";

/// The daemon's mount once more, without what is bound over its files.
struct Uncovered(PathBuf);

impl Uncovered {
    fn of(daemon: &Daemon) -> Result<Self> {
        let place = daemon.directory().join("uncovered");
        fs::create_dir_all(&place)?;
        let (from, none) = (daemon.mount_point(), None::<&str>);
        mount(Some(&from), &place, none, MsFlags::MS_BIND, none).context("bind the mount")?;
        Ok(Self(place))
    }
}

impl Drop for Uncovered {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The numbers of one or more readings, in hundredths.
fn hundredths(said: &str) -> Result<Vec<u64>> {
    let number = |word: &str| word.replace('.', "").parse().with_context(|| said.to_owned());
    said.split_whitespace().map(number).collect()
}

/// The file says what the daemon's own does: of three readings, each at its own time, the daemon's lies between the kernel's, and
/// where these are the same it is the same. Returns how often that was.
fn says_the_same(shell: &mut Running, uncovered: &Uncovered, times: u32) -> Result<u32> {
    let script = format!(
        "read a < /proc/uptime && read b < {}/proc/uptime && read c < /proc/uptime && echo $a $b $c",
        uncovered.0.display()
    );
    let mut same = 0;
    for _ in 0..times {
        same += u32::from(lies_between(&shell.say(&script)?)?);
    }
    Ok(same)
}

/// Whether all three readings are the same.
fn lies_between(readings: &str) -> Result<bool> {
    let [up, idle, daemons_up, daemons_idle, later, later_idle] = hundredths(readings)?[..] else {
        anyhow::bail!("not six numbers: {readings}");
    };
    ensure!((up..=later).contains(&daemons_up), "up: {readings}");
    ensure!((idle..=later_idle).contains(&daemons_idle), "idle: {readings}");
    Ok((up, idle) == (later, later_idle))
}

/// Idle time is what so many CPUs had less what the kernel says that the cgroup used, to a few ticks. It may stand still for a
/// moment, where it is not known who runs on a CPU, and is then right again; it is never more.
fn is_right(shell: &mut Running, cgroup: &Cgroup, cpus: u64) -> Result<()> {
    let mut looked = looks_right(shell, cgroup, cpus);
    lxcfs_tests::wait_for("idle time to be what is left", || {
        if let Ok(false) = looked {
            looked = looks_right(shell, cgroup, cpus);
        }
        !matches!(looked, Ok(false))
    });
    looked.map(|_| ())
}

/// What idle time may be beside the kernel's own counts, which go by the tick, in hundredths.
const TICKS: u64 = 4;

/// `false`: it is less. More is an error.
fn looks_right(shell: &mut Running, cgroup: &Cgroup, cpus: u64) -> Result<bool> {
    let used_before = cgroup.used_ns()? / 10_000_000;
    let said = shell.say(READ)?;
    let used_after = cgroup.used_ns()? / 10_000_000;
    let [up, idle] = hundredths(&said)?[..] else { anyhow::bail!("not two numbers: {said}") };
    let least = (up * cpus).saturating_sub(used_after + TICKS);
    let most = (up * cpus).saturating_sub(used_before) + TICKS;
    ensure!(idle <= most, "{least} to {most}: {said}");
    Ok(idle >= least)
}

#[test]
fn it_says_what_the_daemon_says_whoever_reads() -> Result<()> {
    let _beside = beside();
    // Older than the programs: what it used before, only the daemon can tell.
    let old = Cgroup::new("uptime-old")?;
    let mut older = Container::new(&old).shell()?;
    older.say("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")?;
    let daemon = below()?;
    let uncovered = Uncovered::of(&daemon)?;
    let point = daemon.mount_point();
    let names = ["own", "shared", "pids", "user"];
    let cgroups = names.map(|name| Cgroup::new(&format!("uptime-{name}")));
    let [own, shared, pids, user] = cgroups;
    let (own, shared, pids, user) = (own?, shared?, pids?, user?);
    let (inner, named) = (own.leaf("supervisor")?, shared.leaf("init.scope")?);
    let mut containers = vec![
        ("in a cgroup namespace", &own, Container::new(&own).files(&point).shell()?),
        ("in the host's", &shared, {
            let mut shell =
                Container::new(&shared).sharing_cgroup_namespace().files(&point).shell()?;
            shell.enter(&named)?;
            shell
        }),
        ("in the host's pid namespace", &pids, {
            Container::new(&pids).sharing_pid_namespace().files(&point).shell()?
        }),
        ("as an ordinary user's root", &user, {
            Container::new(&user).in_user_namespace().files(&point).shell()?
        }),
    ];
    let _running = Burden::start("nice", 1, &inner);
    let _sleeping = Burden::start("sleep", 5, &pids);
    give(&point, "uptime", older.init())?;
    for _ in 0..3 {
        let before = older.say(READ)?;
        let daemons = daemon.page_as(older.init(), "uptime")?;
        lies_between(&[before, daemons, older.say(READ)?].concat()).context("older")?;
        is_right(&mut older, &old, online()?).context("older")?;
    }
    for (which, cgroup, shell) in &mut containers {
        // Of one without an init of its own the daemon tells when somebody has asked.
        lxcfs_tests::wait_for("an answer", || shell.say(READ).is_ok_and(|said| !said.is_empty()));
        let cpus = shell.cpus()?.len().try_into()?;
        for _ in 0..3 {
            says_the_same(shell, &uncovered, 10).context(*which)?;
            is_right(shell, cgroup, cpus).context(*which)?;
        }
    }
    Ok(())
}

/// One daemon for all that is asked of a file that stays: starting one with its programs takes an emulated guest half a minute.
#[test]
fn readers_of_every_kind() -> Result<()> {
    let _beside = beside();
    let daemon = below()?;
    under_load_it_says_the_same_in_every_container(&daemon).context("under load")?;
    idle_time_goes_by_the_cpus_shown(&daemon).context("another cpuset")?;
    the_next_container_in_a_cgroup_begins_anew(&daemon).context("the next container")?;
    a_container_that_moves_goes_on(&daemon).context("a container that moves")?;
    the_oldest_process_stands_for_an_init(&daemon).context("without an init")?;
    a_reader_on_the_host_reads_the_hosts(&daemon).context("on the host")
}

fn under_load_it_says_the_same_in_every_container(daemon: &Daemon) -> Result<()> {
    let uncovered = Uncovered::of(daemon)?;
    let mut containers = loaded(daemon)?;
    let (mut left, mut same) = (number("LXCFS_TEST_BELOW_READINGS", 100), 0);
    while left > 0 {
        for (shell, ..) in &mut containers {
            same += says_the_same(shell, &uncovered, left.min(10))?;
            left = left.saturating_sub(10);
        }
    }
    writeln!(std::io::stdout(), "so often all three readings were the same: {same}")?;
    // An emulator may take a hundredth of a second and more for each.
    let is_emulated = lxcfs_tests::patience(Duration::from_secs(1)) > Duration::from_secs(1);
    ensure!(same > 0 || is_emulated, "never");
    Ok(())
}

/// With one CPU less it grows by one CPU less from then on, and what was had before stays.
fn idle_time_goes_by_the_cpus_shown(daemon: &Daemon) -> Result<()> {
    let uncovered = Uncovered::of(daemon)?;
    let cgroup = Cgroup::new("uptime-cpus")?;
    let mut shell = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    let all = fs::read_to_string("/sys/devices/system/cpu/online")?;
    let mut last = hundredths(&shell.say(READ)?)?;
    for (cpuset, cpus) in [("0", 1), (all.trim(), shell.cpus()?.len().try_into()?)] {
        cgroup.limit_cpus(cpuset)?;
        says_the_same(&mut shell, &uncovered, 3).context("behind a change")?;
        let first = settled(&mut shell, cpus)?;
        std::thread::sleep(Duration::from_secs(1));
        let said = shell.say(READ)?;
        let next = hundredths(&said)?;
        let (passed, idle): (u64, u64) = (next[0] - first[0], next[1] - first[1]);
        ensure!(
            idle <= (passed + 1) * cpus && idle + 30 >= passed * cpus,
            "{cpus}: {first:?}, {said}"
        );
        ensure!(first[1] >= last[1], "it falls from {last:?} to {first:?}");
        last = next;
        says_the_same(&mut shell, &uncovered, 3).context("some time behind a change")?;
    }
    Ok(())
}

/// A reading behind which idle time has caught up: it may have stood still for a moment before.
fn settled(shell: &mut Running, cpus: u64) -> Result<Vec<u64>> {
    let mut last = hundredths(&shell.say(READ)?)?;
    lxcfs_tests::wait_for("idle time to go on", || {
        std::thread::sleep(Duration::from_millis(100));
        let next = shell.say(READ).and_then(|said| hundredths(&said)).unwrap_or_default();
        let is_settled = match (&last[..], &next[..]) {
            ([up, idle], [next_up, next_idle]) => {
                ((next_up - up) * cpus).abs_diff(next_idle - idle) <= TICKS
            }
            _ => false,
        };
        last = next;
        is_settled
    });
    Ok(last)
}

/// What was shown to another container in the same cgroup is not its own.
fn the_next_container_in_a_cgroup_begins_anew(daemon: &Daemon) -> Result<()> {
    let cgroup = Cgroup::new("uptime-next")?;
    let container = Container::new(&cgroup).files(&daemon.mount_point());
    let mut first = container.shell()?;
    std::thread::sleep(Duration::from_secs(1));
    let before = hundredths(&first.say(READ)?)?;
    ensure!(before[1] >= 90, "{before:?}");
    drop(first);
    let mut next = container.shell()?;
    let said = next.say(READ)?;
    let after = hundredths(&said)?;
    let cpus: u64 = next.cpus()?.len().try_into()?;
    ensure!(after[1] <= (after[0] + 1) * cpus, "{said}");
    Ok(())
}

/// Idle time does not fall when a container's cgroup is another one, once the daemon has told.
fn a_container_that_moves_goes_on(daemon: &Daemon) -> Result<()> {
    let uncovered = Uncovered::of(daemon)?;
    let from = Cgroup::new("uptime-from")?;
    let to = Cgroup::new("uptime-to")?;
    let shares = Container::new(&from).sharing_cgroup_namespace();
    let mut shell = shares.files(&daemon.mount_point()).shell()?;
    shell.say("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")?;
    // By then: what it uses between the daemon's last look and the move, nobody knows.
    let used = from.used_ns()? / 10_000_000;
    ensure!(used > 2 * TICKS, "it has used no more than {used}");
    says_the_same(&mut shell, &uncovered, 1)?;
    let before = hundredths(&shell.say(READ)?)?;
    shell.enter(&to)?;
    let ask = format!("read line < {}/proc/uptime && echo $line", uncovered.0.display());
    let (said, cpus) = (shell.say(&ask)?, shell.cpus()?.len().try_into()?);
    let (after, cpus): (_, u64) = (hundredths(&said)?, cpus);
    ensure!(after[1] >= before[1], "it falls from {before:?} to {said}");
    // What it used in the first cgroup is not had again.
    let most = (after[0] * cpus).saturating_sub(used) + TICKS;
    ensure!(after[1] <= most, "{before:?} leaps to {said}: {used}");
    says_the_same(&mut shell, &uncovered, 3).map(|_| ())
}

/// A container in the host's pid namespace begins with its oldest process, and with the next oldest when that has ended.
fn the_oldest_process_stands_for_an_init(daemon: &Daemon) -> Result<()> {
    let uncovered = Uncovered::of(daemon)?;
    let cgroup = Cgroup::new("uptime-oldest")?;
    let oldest = Burden::start("sleep", 1, &cgroup);
    std::thread::sleep(Duration::from_secs(2));
    let container = Container::new(&cgroup).sharing_pid_namespace();
    let mut shell = container.files(&daemon.mount_point()).shell()?;
    let up = |shell: &mut Running| -> Option<u64> {
        shell.say(READ).ok().and_then(|said| hundredths(&said).ok()?.first().copied())
    };
    lxcfs_tests::wait_for("an answer", || up(&mut shell).is_some());
    ensure!(up(&mut shell).is_some_and(|up| up >= 200), "it begins with the oldest");
    says_the_same(&mut shell, &uncovered, 3)?;
    drop(oldest);
    let at_once = up(&mut shell);
    ensure!(at_once.is_none_or(|up| up < 200), "it is gone: {at_once:?}");
    lxcfs_tests::wait_for("an answer", || up(&mut shell).is_some());
    says_the_same(&mut shell, &uncovered, 3)?;
    Ok(())
}

/// A reader on the host is shown the host's numbers, while tasks wait for a slow disk, and while they come and go.
fn a_reader_on_the_host_reads_the_hosts(daemon: &Daemon) -> Result<()> {
    let by = served_by(daemon, "uptime")?;
    ensure!(by == "the kernel, without a daemon", "{by}");
    let cgroup = Cgroup::new("uptime-host")?;
    let disk = Disk::new(16)?;
    cgroup.limit_writes(&disk.number()?, 1 << 20)?;
    let mut shell = Container::new(&cgroup).shell()?;
    let device = disk.device().display();
    let write = format!("dd if=/dev/zero of={device} oflag=direct bs=64k count=32");
    shell.say(&format!("{write} 2> /dev/null &"))?;
    reads_the_hosts(daemon).context("a slow disk")?;
    shell.say("wait")?;
    let _storm = Burden::start("storm", 1, &cgroup);
    reads_the_hosts(daemon).context("a storm")
}

fn reads_the_hosts(daemon: &Daemon) -> Result<()> {
    let (mut right, mut wrong) = (0, Vec::new());
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        let before = fs::read_to_string("/proc/uptime")?;
        let ours = fs::read_to_string(daemon.path("proc/uptime"))?;
        let readings = [before, ours, fs::read_to_string("/proc/uptime")?].concat();
        match lies_between(&readings) {
            Ok(_) => right += 1,
            Err(_) => wrong.push(readings),
        }
    }
    // The kernel's own falls when a task of a CPU that is idle begins to wait for its disk.
    ensure!(wrong.len() * 20 <= right, "{right} are right, and not {wrong:?}");
    Ok(())
}

/// As many CPUs as the quota is worth, where that is what containers are shown.
#[test]
fn it_goes_by_the_quota_where_that_is_shown() -> Result<()> {
    let _beside = beside();
    let options = ["--cpu-view", "quota"];
    let daemon = Daemon::with(&[&super::OPTIONS[..], &options].concat())?;
    ensure!(served_by(&daemon, "uptime")?.starts_with("the kernel"));
    let uncovered = Uncovered::of(&daemon)?;
    let outer = Cgroup::new("uptime-quota")?;
    let cgroup = outer.child("inner")?;
    let mut shell = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    for (limited, quota_us) in [(&outer, 150_000), (&cgroup, 70_000)] {
        limited.limit_cpu(quota_us, 100_000)?;
        says_the_same(&mut shell, &uncovered, 10)?;
        let cpus: u64 = shell.cpus()?.len().try_into()?;
        ensure!(cpus == quota_us.div_ceil(100_000).min(online()?), "{cpus} CPUs");
        let first = hundredths(&shell.say(READ)?)?;
        std::thread::sleep(Duration::from_secs(1));
        let next = hundredths(&shell.say(READ)?)?;
        let (passed, idle) = (next[0] - first[0], next[1] - first[1]);
        ensure!(
            idle <= (passed + 1) * cpus && idle + 30 >= passed * cpus,
            "{cpus}: {first:?} {next:?}"
        );
    }
    Ok(())
}

/// More cgroups than there are counters for: who is not counted is not told another's numbers, and can ask the daemon.
#[test]
fn a_container_that_is_not_counted_gets_eagain() -> Result<()> {
    let _alone = alone();
    let daemon = Daemon::with(&[&super::OPTIONS[..], &["--cgroups", "64"]].concat())?;
    ensure!(served_by(&daemon, "uptime")?.starts_with("the kernel"));
    let crowd = Cgroup::new("uptime-crowd")?;
    let leaves = (0..64).map(|nth| crowd.leaf(&nth.to_string())).collect::<Result<Vec<_>>>()?;
    let mut sleeping: Vec<_> = leaves.iter().map(|leaf| Burden::start("sleep", 1, leaf)).collect();
    sleeping.iter_mut().for_each(Burden::ready);
    let late = Cgroup::new("uptime-late")?;
    let mut shell = Container::new(&late).files(&daemon.mount_point()).shell()?;
    for file in ["loadavg", "uptime"] {
        let said = shell.say(&format!("cat /proc/{file} 2>&1; :"))?;
        ensure!(said.contains("Resource temporarily unavailable"), "{file}: {said}");
    }
    let [up, idle] = hundredths(&daemon.page_as(shell.init(), "uptime")?)?[..] else {
        anyhow::bail!("not two numbers");
    };
    ensure!(up < 10_000 && idle <= (up + 1) * online()?, "of another container: {up}, {idle}");
    Ok(())
}

/// How many CPUs the machine has online.
fn online() -> Result<u64> {
    Ok(std::thread::available_parallelism()?.get().try_into()?)
}

/// Nobody is left who could answer: the file does, and what it says goes on being true.
#[test]
fn it_outlives_the_daemon() -> Result<()> {
    let _beside = beside();
    let mut daemon = below()?;
    let cgroup = Cgroup::new("uptime-outlives")?;
    let mut shell = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    let cpus = shell.cpus()?.len().try_into()?;
    daemon.crash()?;
    let meminfo = shell.say("cat /proc/meminfo 2>&1; :")?;
    ensure!(meminfo.contains("not connected"), "the daemon is dead: {meminfo}");
    let _running = Burden::start("nice", 1, &cgroup);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(number("LXCFS_TEST_BELOW_SECONDS", 8).into()) {
        is_right(&mut shell, &cgroup, cpus)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
