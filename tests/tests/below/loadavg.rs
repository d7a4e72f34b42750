//! `/proc/loadavg`: what it says, to whom, and what it outlives.

use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lxcfs::model::load::LoadAverage;
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::mount::{self, Daemon};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{OPTIONS, below, beside, give, loaded, number, pins, served_by};

/// By the shell itself: no process is made for it, which would be the newest.
const READ: &str = "read line < /proc/loadavg && echo \"$line\"";

/// The file says what the daemon's own does. Each is read at its own time, so that it is looked between two readings that are the
/// same, but for the newest pid: where that is of all processes, asking the daemon makes one.
fn says_the_same(daemon: &Daemon, shell: &mut Running, pid: u32) -> Result<()> {
    let split = |text: &str| -> Result<(String, u32)> {
        let (rest, newest) = text.trim_end().rsplit_once(' ').context("one word")?;
        Ok((rest.to_owned(), newest.parse()?))
    };
    let (mut said, stat) = (Vec::new(), format!("/proc/{}/stat", shell.init()));
    for _ in 0..20 {
        let (before, oldest) = split(&shell.say(READ)?)?;
        // It has answered, and may run on for a moment.
        lxcfs_tests::wait_for("the shell to sleep", || {
            fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "))
        });
        let (daemons, newest) = split(&daemon.page_as(pid, "loadavg")?)?;
        let (after, latest) = split(&shell.say(READ)?)?;
        if after == before {
            ensure!(daemons == before, "the daemon says {daemons}, the kernel {before}");
            ensure!((oldest..=latest).contains(&newest), "{oldest}, {newest}, {latest}");
            return Ok(());
        }
        said.push(before);
    }
    anyhow::bail!("never twice the same: {said:?}")
}

/// Waits for so many samples of the load.
fn samples(count: u32) {
    std::thread::sleep(Duration::from_millis(5_100) * count);
}

#[test]
fn it_says_what_the_daemon_says_whoever_reads() -> Result<()> {
    let _beside = beside();
    // Older than the programs: of what it was before, only the daemon can tell.
    let old = Cgroup::new("below-old")?;
    let mut older = Container::new(&old).shell()?;
    older.say("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")?;
    let daemon = below()?;
    let point = daemon.mount_point();
    let own = Cgroup::new("below-own")?;
    let (inner, other) = (own.leaf("supervisor")?, Cgroup::new("below-shared")?);
    let named = other.leaf("init.scope")?;
    let third = Cgroup::new("below-pids")?;
    let mut containers = vec![
        ("in a cgroup namespace", Container::new(&own).files(&point).shell()?),
        ("in the host's", {
            let mut shell =
                Container::new(&other).sharing_cgroup_namespace().files(&point).shell()?;
            shell.enter(&named)?;
            shell
        }),
        ("in the host's pid namespace", {
            Container::new(&third).sharing_pid_namespace().files(&point).shell()?
        }),
        ("as an ordinary user's root", {
            Container::new(&own).in_user_namespace().files(&point).shell()?
        }),
    ];
    let _waiting = Burden::start("vfork", 3, &inner);
    let _running = Burden::start("nice", 1, &named);
    let _sleeping = Burden::start("sleep", 5, &third);
    samples(2);
    give(&point, "loadavg", older.init())?;
    containers.push(("older than the programs", older));
    for (which, shell) in &mut containers {
        let init = shell.init();
        says_the_same(&daemon, shell, init).context(*which)?;
    }
    let [one, ..] = lxcfs_tests::averages(&containers[0].1.say(READ)?)?;
    ensure!(one > 0.2, "three that wait in the kernel are a load: {one}");
    Ok(())
}

/// One daemon for all that is asked of a file that stays: starting one with its programs takes an emulated guest half a minute.
#[test]
fn readers_of_every_kind() -> Result<()> {
    let _beside = beside();
    let daemon = below()?;
    under_load_it_says_the_same_in_every_container(&daemon).context("under load")?;
    a_nested_container_reads_its_own(&daemon).context("a nested container")?;
    it_cannot_be_rewound_and_can_be_read_in_pieces(&daemon).context("in pieces")?;
    a_reader_that_is_not_known_gets_eagain(&daemon).context("not known")?;
    a_reader_on_the_host_reads_the_host(&daemon).context("on the host")?;
    a_container_that_vanishes_reads_its_own_or_nothing(&daemon).context("vanishing")?;
    everybody_may_read_it(&daemon).context("an ordinary user")
}

fn under_load_it_says_the_same_in_every_container(daemon: &Daemon) -> Result<()> {
    let mut containers = loaded(daemon)?;
    let mut left = number("LXCFS_TEST_BELOW_READINGS", 30);
    while left > 0 {
        for (shell, ..) in &mut containers {
            let init = shell.init();
            says_the_same(daemon, shell, init)?;
            left = left.saturating_sub(1);
        }
    }
    Ok(())
}

/// A container in a container, with and without a cgroup namespace of its own.
fn a_nested_container_reads_its_own(daemon: &Daemon) -> Result<()> {
    for shares_cgroup_namespace in [false, true] {
        let outer = Cgroup::new("below-outer")?;
        let leaf = outer.leaf("init")?;
        let mut shell = Container::new(&outer).files(&daemon.mount_point()).shell()?;
        shell.enter(&leaf)?;
        let inner = outer.child("inner")?;
        let nested = Container::new(&inner).files(&daemon.mount_point());
        shell.nest(&if shares_cgroup_namespace {
            nested.sharing_cgroup_namespace()
        } else {
            nested
        })?;
        let _sleeping = Burden::start("sleep", 4, &leaf);
        let members = fs::read_to_string(&inner.procs_files()[0])?;
        let init = members.lines().next().context("nobody is in the inner cgroup")?.parse()?;
        says_the_same(daemon, &mut shell, init)?;
        let said = shell.say(READ)?;
        ensure!(said.contains("/1 "), "the outer container's are not the inner one's: {said}");
    }
    Ok(())
}

/// Nobody is left who could answer: the file does, and what it says goes on being true.
#[test]
fn it_outlives_the_daemon() -> Result<()> {
    let _beside = beside();
    let mut daemon = below()?;
    let cgroup = Cgroup::new("below-outlives")?;
    let mut shell = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    shell.say(READ)?;
    daemon.crash()?;
    let meminfo = shell.say("cat /proc/meminfo 2>&1; :")?;
    ensure!(meminfo.contains("not connected"), "the daemon is dead: {meminfo}");
    let _waiting = Burden::start("vfork", 3, &cgroup);
    // What it began with: starting three tasks that wait may have been a load of its own.
    let (started, first) = (Instant::now(), hundredths(&shell.say(READ)?)?);
    let length = Duration::from_secs(number("LXCFS_TEST_BELOW_SECONDS", 16).into());
    while started.elapsed() < length {
        let before = started.elapsed();
        let text = shell.say(READ)?;
        let after = started.elapsed();
        // More or less the sample that falls between two looks; and whoever looks may run when one is taken.
        let least = with_tasks(3, before.as_millis() / 5_004, first)?;
        let most = with_tasks(4, after.as_millis() / 5_004 + 1, first)?;
        for (is, (least, most)) in hundredths(&text)?.into_iter().zip(least.into_iter().zip(most)) {
            ensure!(is + 2 >= least && is <= most + 2, "{least} to {most}: {text}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let [one, ..] = lxcfs_tests::averages(&shell.say(READ)?)?;
    ensure!(one > 0.6, "it stands still: {one}");
    Ok(())
}

/// The averages of a loadavg, in hundredths.
fn hundredths(loadavg: &str) -> Result<[u64; 3]> {
    let numbers = loadavg.split(' ').take(3).map(|average| average.replace('.', "").parse());
    let numbers: Vec<u64> = numbers.collect::<Result<_, _>>()?;
    numbers.try_into().ok().with_context(|| format!("three averages: {loadavg}"))
}

/// The averages that were `first` hundredths, after so many samples with `tasks` tasks.
fn with_tasks(tasks: u64, samples: u128, first: [u64; 3]) -> Result<[u64; 3]> {
    let average = LoadAverage::from_fixed(first.map(|hundredths| (hundredths << 32) / 100));
    let later = average.advance(tasks, u64::try_from(samples)?);
    Ok(later.hundredths().map(|(whole, hundredths)| whole * 100 + hundredths))
}

/// The next daemon finds the file where it is, and leaves it there.
#[test]
fn a_restart_adopts_it() -> Result<()> {
    let _beside = beside();
    let daemon = below()?;
    let cgroup = Cgroup::new("below-restart")?;
    let mut shell = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    let file = daemon.path("proc/loadavg");
    let before = fs::metadata(&file)?;
    let server = daemon.server();
    kill(Pid::from_raw(server.try_into()?), Signal::SIGKILL)?;
    ensure!(daemon.server_after(server) != server, "nobody serves");
    let by = served_by(&daemon, "loadavg")?;
    ensure!(by.starts_with("the kernel"), "{by}");
    let after = fs::metadata(&file)?;
    ensure!((before.dev(), before.ino()) == (after.dev(), after.ino()), "it was made anew");
    let init = shell.init();
    says_the_same(&daemon, &mut shell, init)
}

#[test]
fn it_is_taken_down_at_the_end() -> Result<()> {
    let _beside = beside();
    for keeper in [true, false] {
        let options: &[&str] = if keeper { &[] } else { &["--no-keeper"] };
        let mut daemon = Daemon::with(&[&OPTIONS, options].concat())?;
        ensure!(served_by(&daemon, "loadavg")?.starts_with("the kernel"));
        let file = fs::metadata(daemon.path("proc/loadavg"))?;
        ensure!(file.permissions().mode() & 0o777 == 0o444 && file.uid() == 0, "{file:?}");
        ensure!(daemon.stop()?.success(), "{}", daemon.log());
        ensure!(!mount::is_mounted(daemon.directory()), "keeper {keeper}: something is mounted");
        ensure!(!pins(&daemon).exists(), "keeper {keeper}: a directory is left");
    }
    Ok(())
}

/// Readers that rewind, and those that read a byte at a time, as FILES.md has it.
fn it_cannot_be_rewound_and_can_be_read_in_pieces(daemon: &Daemon) -> Result<()> {
    let cgroup = Cgroup::new("below-rewind")?;
    let script = "
import os
fd = os.open('/proc/loadavg', os.O_RDONLY)
pieces = b''
while piece := os.read(fd, 3): pieces += piece
print(len(pieces.split()), pieces.endswith(b'\\n'), os.read(fd, 3))
for how in (lambda: os.lseek(fd, 0, os.SEEK_SET), lambda: os.write(fd, b'x')):
    try: print(how())
    except OSError as error: print(error.strerror)
print(os.access('/proc/loadavg', os.W_OK), os.stat('/proc/loadavg').st_size)
";
    let container = Container::new(&cgroup).files(&daemon.mount_point());
    let output = container.run(&["/usr/bin/env", "python3", "-c", script])?;
    let said = lxcfs_tests::printed("python3", output)?;
    ensure!(said == "5 True b''\nIllegal seek\nBad file descriptor\nFalse 0\n", "{said}");
    Ok(())
}

/// Who cannot be told from others gets no answer: not another's, and not the host's.
fn a_reader_that_is_not_known_gets_eagain(daemon: &Daemon) -> Result<()> {
    let container = Container::in_root_cgroup()?.files(&daemon.mount_point());
    let said = container.sh("cat /proc/loadavg 2>&1; :")?;
    ensure!(said.contains("Resource temporarily unavailable"), "{said}");
    Ok(())
}

/// A reader on the host is shown the host's numbers where the kernel says where they are; else none.
fn a_reader_on_the_host_reads_the_host(daemon: &Daemon) -> Result<()> {
    let by = served_by(daemon, "loadavg")?;
    let mut file = fs::File::open(daemon.path("proc/loadavg"))?;
    let mut text = String::new();
    let read = file.read_to_string(&mut text);
    if by.contains("EAGAIN") {
        ensure!(read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{text}");
        let kallsyms = fs::read_to_string("/proc/kallsyms")?;
        ensure!(!kallsyms.lines().any(|line| line.ends_with(" avenrun")), "it is told: {by}");
        return Ok(());
    }
    read?;
    ensure!(file.seek(SeekFrom::Start(0)).is_err(), "it cannot be rewound");
    // Something of the machine's may run for just the moment of the middle one.
    let (mut differ, mut same, mut but_for_running) = (Vec::new(), 0, 0);
    for _ in 0..200 {
        let before = fs::read_to_string("/proc/loadavg")?;
        let ours = fs::read_to_string(daemon.path("proc/loadavg"))?;
        if before != fs::read_to_string("/proc/loadavg")? {
            differ.push(before);
            continue;
        }
        ensure!(but_running(&ours)? == but_running(&before)?, "{ours} is not {before}");
        *(if ours == before { &mut same } else { &mut but_for_running }) += 1;
    }
    ensure!(same > but_for_running, "{same} times the same, {but_for_running} not; {differ:?}");
    Ok(())
}

/// What a loadavg says before and after how many run.
fn but_running(loadavg: &str) -> Result<(&str, &str)> {
    let (before, threads) = loadavg.split_once('/').context("how many run, of how many")?;
    let (averages, _) = before.rsplit_once(' ').context("how many run")?;
    Ok((averages, threads))
}

/// Containers that end while they read: whatever is read is a line of theirs.
fn a_container_that_vanishes_reads_its_own_or_nothing(daemon: &Daemon) -> Result<()> {
    let cgroup = Cgroup::new("below-vanish")?;
    let container = Container::new(&cgroup).files(&daemon.mount_point());
    let script = "(while :; do cat /proc/loadavg; done) 2> /dev/null & \
        (while :; do cat /proc/loadavg; done) 2> /dev/null & sleep 0.0$1";
    let mut lines = 0;
    for nth in 1..=9_u32 {
        let output = container.run(&["/bin/sh", "-c", script, "sh", &nth.to_string()])?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let threads = line.split(['/', ' ']).nth(4).and_then(|n| n.parse::<u32>().ok());
            // Two loops, a `cat` in each, the init and its `sleep`.
            ensure!(threads.is_some_and(|threads| threads <= 8), "{line}");
            lines += 1;
        }
    }
    ensure!(lines > 0, "nothing was read");
    Ok(())
}

/// What is not possible is said, and the daemon serves the file itself.
#[test]
fn where_it_cannot_be_the_daemon_serves_and_says_why() -> Result<()> {
    let _beside = beside();
    let daemon = Daemon::with(&["--accounting", "files", "--kernel-files", "loadavg"])?;
    let by = served_by(&daemon, "loadavg")?;
    ensure!(by == "this daemon, because: not wanted (--accounting files)", "{by}");
    ensure!(fs::read_to_string(daemon.path("proc/loadavg"))?.split(' ').count() == 5);
    drop(daemon);
    // Somebody has put a file where the bpffs is to be.
    let directory = mount::new_directory()?;
    let name = directory.join("mnt").display().to_string().trim_matches('/').replace('/', "-");
    fs::create_dir_all(directory.join("run/lxcfs"))?;
    let pins = directory.join("run/lxcfs").join(format!("{name}.bpf"));
    fs::write(&pins, "not a directory")?;
    let daemon = Daemon::start_in(directory, &OPTIONS)?;
    let by = served_by(&daemon, "loadavg")?;
    ensure!(by.starts_with("this daemon, because: make") && by.contains("File exists"), "{by}");
    ensure!(fs::read_to_string(&pins)? == "not a directory");
    Ok(())
}

/// A bpffs of somebody else's is taken away, and what is pinned in it is not used.
#[test]
fn pins_of_others_are_not_used() -> Result<()> {
    let _beside = beside();
    let directory = mount::new_directory()?;
    let name = directory.join("mnt").display().to_string().trim_matches('/').replace('/', "-");
    let pins = directory.join("run/lxcfs").join(format!("{name}.bpf"));
    fs::create_dir_all(&pins)?;
    mount(Some("others"), &pins, Some("bpf"), MsFlags::empty(), None::<&str>)?;
    fs::create_dir(pins.join("counting"))?;
    let daemon = Daemon::start_in(directory, &OPTIONS)?;
    let by = served_by(&daemon, "loadavg")?;
    ensure!(by.starts_with("the kernel"), "{by}");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains("- bpf others "), "{mounts}");
    let cgroup = Cgroup::new("below-others")?;
    let mut shell = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    let init = shell.init();
    says_the_same(&daemon, &mut shell, init)
}

/// Nobody who may not read the rest of the machine is kept from it: an ordinary user reads.
fn everybody_may_read_it(daemon: &Daemon) -> Result<()> {
    let cgroup = Cgroup::new("below-nobody")?;
    let file = daemon.path("proc/loadavg");
    let container = Container::new(&cgroup).files(&daemon.mount_point());
    let script = "setpriv --reuid 65534 --regid 65534 --clear-groups cat /proc/loadavg";
    let said = container.sh(script)?;
    ensure!(said.starts_with("0.00 0.00 0.00 1/"), "{said}");
    let flags = container.sh("grep ' /proc/loadavg ' /proc/self/mountinfo")?;
    ensure!(flags.contains("ro,nosuid,nodev,noexec"), "{flags}");
    let refused = fs::OpenOptions::new().write(true).open(&file);
    ensure!(refused.is_err(), "it can be written to");
    Ok(())
}
