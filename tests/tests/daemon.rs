//! The daemon's life: start, bad input, signals, crashes, and what it leaves behind.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::Container;
use lxcfs_tests::mount::{self, Daemon};
use nix::sys::signal::Signal;

/// Asserts that the command fails with `status` and one line that says all of `words`.
fn refused(output: &Output, status: i32, words: &[&str]) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(status), "{}: {stderr}", output.status);
    for word in words {
        ensure!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
    ensure!(!stderr.contains("panicked"), "{stderr}");
    Ok(())
}

/// A directory for one test, removed at its end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self> {
        Ok(Self(mount::new_directory()?))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn it_leaves_nothing_behind() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut daemon = Daemon::start()?;
        let pidfile = daemon.directory().join("run/lxcfs.pid");
        ensure!(fs::read_to_string(&pidfile)?.trim() == daemon.pid().to_string());
        daemon.signal(signal)?;
        ensure!(daemon.wait()?.code() == Some(0), "{}", daemon.log());
        ensure!(!mount::is_mounted(&daemon.mount_point()));
        ensure!(!pidfile.exists());
        ensure!(fs::read_dir(daemon.directory().join("run/lxcfs"))?.next().is_none());
    }
    Ok(())
}

#[test]
fn an_unmount_by_somebody_else_ends_it() -> Result<()> {
    let mut daemon = Daemon::start()?;
    nix::mount::umount(&daemon.mount_point())?;
    ensure!(daemon.wait()?.code() == Some(0), "{}", daemon.log());
    Ok(())
}

#[test]
fn a_mount_point_that_is_none_is_refused() -> Result<()> {
    let directory = Directory::new()?;
    let at = |point: &Path| {
        let mut command = Command::new(lxcfs_tests::program("lxcfs"));
        command.arg("--runtime-dir").arg(directory.0.join("run")).arg(point);
        command.output()
    };
    refused(
        &at(&directory.0.join("missing"))?,
        1,
        &["mount at", "missing", "No such file", "mkdir -p"],
    )?;
    fs::write(directory.0.join("file"), "")?;
    refused(&at(&directory.0.join("file"))?, 1, &["mount at", "file", "Not a directory"])?;
    let nothing = Command::new(lxcfs_tests::program("lxcfs")).output()?;
    refused(&nothing, 2, &["MOUNTPOINT", "Usage"])
}

#[test]
fn a_busy_mount_point_and_a_held_pidfile_are_refused() -> Result<()> {
    let daemon = Daemon::start()?;
    let other = Directory::new()?;
    let mut command = Command::new(lxcfs_tests::program("lxcfs"));
    let run = other.0.join("run");
    let output = command.arg("--runtime-dir").arg(run).arg(daemon.mount_point()).output()?;
    refused(&output, 1, &["mount at", "another lxcfs is mounted there"])?;
    let output = mount::command(&other.0)
        .arg("--pidfile")
        .arg(daemon.directory().join("run/lxcfs.pid"))
        .output()?;
    refused(&output, 1, &["lock", "lxcfs.pid", "another lxcfs holds it", "--pidfile"])?;
    ensure!(
        !fs::read_to_string(daemon.path("proc/meminfo"))?.is_empty(),
        "the first one serves on"
    );
    Ok(())
}

#[test]
fn b09_two_daemons_live_side_by_side() -> Result<()> {
    let (first, second) = (Daemon::start()?, Daemon::start()?);
    drop(first);
    ensure!(!fs::read_to_string(second.path("proc/meminfo"))?.is_empty());
    Ok(())
}

#[test]
fn a_dead_mount_is_taken_away_and_its_place_used() -> Result<()> {
    let mut daemon = Daemon::start()?;
    let directory = daemon.directory().to_owned();
    daemon.crash()?;
    let dead = fs::read(daemon.path("proc/meminfo")).err().and_then(|error| error.raw_os_error());
    ensure!(dead == Some(nix::errno::Errno::ENOTCONN as i32), "{dead:?}");
    let mut next = Daemon::start_in(directory, &[] as &[&str])?;
    ensure!(!fs::read_to_string(next.path("proc/meminfo"))?.is_empty());
    ensure!(next.stop()?.code() == Some(0));
    ensure!(!mount::is_mounted(&next.mount_point()));
    Ok(())
}

#[test]
fn without_root_one_line_says_how() -> Result<()> {
    let directory = Directory::new()?;
    // The program lies where an ordinary user may not look; a copy does not.
    let program = directory.0.join("lxcfs");
    // Not fs::copy: another test may fork while it writes, and the program then be too busy to run.
    ensure!(
        Command::new("cp").arg(lxcfs_tests::program("lxcfs")).arg(&program).status()?.success()
    );
    let output =
        Command::new(&program).arg(directory.0.join("mnt")).uid(4321).gid(4321).output()?;
    refused(&output, 1, &["serve lxcfs", "root", "sudo"])
}

#[test]
fn wrong_options_are_refused_with_their_reason() -> Result<()> {
    let directory = Directory::new()?;
    let with = |options: &[&str]| mount::command(&directory.0).args(options).output();
    refused(&with(&["--no-such-option"])?, 2, &["--no-such-option", "Usage"])?;
    refused(&with(&["-o", "allow_othr"])?, 1, &["mount option allow_othr", "unknown"])?;
    let cause = ["--give-up host", "--strict", "leave one of them out"];
    refused(&with(&["--give-up", "host", "--strict"])?, 1, &cause)?;
    refused(&with(&["--give-up", "host", "--no-keeper"])?, 1, &cause)?;
    refused(&with(&["--cpu-view", "some"])?, 2, &["some", "cpuset", "quota", "host"])?;
    refused(
        &with(&["--pidfile", "/nonexistent/pid"])?,
        1,
        &["open /nonexistent/pid", "No such file"],
    )
}

#[test]
fn without_a_device_the_line_says_what_is_needed() -> Result<()> {
    let directory = Directory::new()?;
    // A /dev without fuse, in a mount namespace of its own.
    let script = format!(
        "mount -t tmpfs none /dev && exec {} --runtime-dir {1}/run {1}/mnt",
        lxcfs_tests::program("lxcfs").display(),
        directory.0.display()
    );
    let output = Command::new("unshare").args(["-m", "/bin/sh", "-c", &script]).output()?;
    refused(&output, 1, &["open /dev/fuse", "No such file", "modprobe fuse"])
}

#[test]
fn every_option_of_lxcfs_is_accepted() -> Result<()> {
    let daemon = Daemon::with(&[
        "-l",
        "-u",
        "-f",
        "-s",
        "--disable-zswap",
        "--enable-cfs",
        "--enable-cgroup",
        "--enable-pidfd",
        "--enable-psi-poll",
        "-o",
        "allow_other,nonempty,direct_io,entry_timeout=0.5",
    ])?;
    let cgroup = Cgroup::new("options")?;
    let text =
        Container::new(&cgroup).sh(&format!("cat {}", daemon.path("proc/swaps").display()))?;
    ensure!(text.lines().count() == 1, "-u shows no swap: {text}");
    Ok(())
}

#[test]
fn sigusr2_shows_the_host_and_ends_it() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("toggle")?;
    cgroup.limit_memory(128 << 20)?;
    let total = || {
        Container::new(&cgroup).sh(&format!("head -1 {}", daemon.path("proc/meminfo").display()))
    };
    ensure!(total()?.contains(" 131072 kB"));
    for (state, limited) in [("is on", false), ("is off", true)] {
        daemon.signal(Signal::SIGUSR2)?;
        lxcfs_tests::wait_for(state, || daemon.log().contains(state));
        ensure!(total()?.contains(" 131072 kB") == limited);
    }
    Ok(())
}

#[test]
fn status_and_cat_speak_to_the_daemon() -> Result<()> {
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let point = daemon.mount_point().display().to_string();
    let status = daemon.run(&["status", &point])?;
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    ensure!(status.status.success() && text.contains("What supplies what"), "{text}");
    ensure!(text.contains("load               eBPF programs"), "eBPF is to be had here: {text}");

    let cgroup = Cgroup::new("cat")?;
    cgroup.limit_memory(128 << 20)?;
    cgroup.limit_cpus("1")?;
    let mut running = Container::new(&cgroup).spawn(&["/bin/sh", "-c", "echo up; read line"])?;
    running.line()?;
    let pid = running.init().to_string();
    for mount in [point.as_str(), "/nonexistent"] {
        let page = daemon.run(&["cat", "--as", &pid, "--mount", mount, "meminfo"])?;
        let page = String::from_utf8(page.stdout)?;
        ensure!(page.starts_with("MemTotal:         131072 kB\n"), "{mount}: {page}");
    }
    let cat = |file: &str| daemon.run(&["cat", "--as", &pid, "--mount", &point, file]);
    let possible = cat("/sys/devices/system/cpu/possible")?;
    ensure!(possible.stdout == b"1\n", "{possible:?}");
    ensure!(!cat("/sys/devices/system/cpu/cpu1/topology/core_id")?.stdout.is_empty());
    for hidden in ["cpu0/topology/core_id", "cpu1/topology/nothing"] {
        refused(&cat(&format!("/sys/devices/system/cpu/{hidden}"))?, 1, &["No such device"])?;
    }
    refused(&cat("/sys/devices/system/cpu/cpu1/crash_notes")?, 2, &["no such file"])?;
    refused(&daemon.run(&["cat", "--as", "1", "version"])?, 2, &["no such file", "/proc/meminfo"])?;
    refused(&daemon.run(&["cat", "--as", "0", "stat"])?, 2, &["--as"])?;
    let gone = daemon.run(&["cat", "--as", "4000000", "--mount", &point, "stat"])?;
    refused(&gone, 1, &["/proc/4000000", "No such process"])?;
    refused(&daemon.run(&["status", "/nonexistent"])?, 1, &["no lxcfs is running there"])
}

#[test]
fn help_manual_and_completion_are_there() -> Result<()> {
    let print = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(lxcfs_tests::program("lxcfs")).args(arguments).output()?;
        lxcfs_tests::printed(format!("{arguments:?}"), output)
    };
    ensure!(print(&["--help"])?.contains("Exit status:"));
    ensure!(print(&["man"])?.contains(".TH lxcfs 1"));
    ensure!(print(&["completion", "bash"])?.contains("_lxcfs"));
    ensure!(print(&["--version"])?.starts_with("lxcfs "));
    Ok(())
}

/// Under strace, reads of every kind, first ones too, make no process.
#[test]
fn w03_b01_no_read_makes_a_process() -> Result<()> {
    let daemon = Daemon::start()?;
    let server = daemon.server();
    let trace = daemon.directory().join("trace");
    let mut strace = Command::new("strace")
        .args(["-f", "-q", "-e", "trace=clone,clone3,fork,vfork,execve", "-o"])
        .arg(&trace)
        .args(["-p", &server.to_string()])
        .spawn()
        .context("start strace")?;
    lxcfs_tests::wait_for("strace to attach", || is_traced(server));
    let cgroup = Cgroup::new("strace")?;
    let files =
        lxcfs::model::file::File::ALL.map(|file| daemon.path(file.path()).display().to_string());
    for container in [
        Container::new(&cgroup),
        Container::new(&cgroup).sharing_cgroup_namespace(),
        Container::new(&cgroup).sharing_pid_namespace(),
    ] {
        container.sh(&format!("cat {} > /dev/null", files.join(" ")))?;
    }
    let pid = i32::try_from(strace.id())?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGINT)?;
    strace.wait()?;
    let calls = fs::read_to_string(&trace)?;
    let processes: Vec<_> = calls
        .lines()
        .filter(|line| line.contains("fork(") || line.contains("execve(") || line.contains("clone"))
        .filter(|line| !line.contains("CLONE_THREAD"))
        .collect();
    ensure!(processes.is_empty(), "{processes:?}");
    Ok(())
}

/// Under strace, which has the first read of each thread of the daemon take 7 s.
#[test]
fn a_request_that_takes_long_is_told_with_what_it_waits_for() -> Result<()> {
    let daemon = Daemon::start()?;
    let server = daemon.server();
    let uptime = daemon.path("proc/uptime");
    let cgroup = Cgroup::new("slow")?;
    let mut container = Container::new(&cgroup).shell()?;
    // What is read only once is read by now.
    container.say(&format!("cat {}", uptime.display()))?;
    let mut strace = Command::new("strace")
        .args([
            "-f",
            "-q",
            "-e",
            "trace=pread64",
            "-e",
            "inject=pread64:delay_enter=7000000:when=1",
            "-o",
        ])
        .arg(daemon.directory().join("trace"))
        .args(["-p", &server.to_string()])
        .spawn()
        .context("start strace")?;
    lxcfs_tests::wait_for("strace to attach", || is_traced(server));
    let page = container.say(&format!("cat {}", uptime.display()))?;
    ensure!(page.split(' ').count() == 2, "{page}");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(strace.id())?),
        Signal::SIGINT,
    )?;
    strace.wait()?;
    let log = daemon.log();
    let slow: Vec<_> = log.lines().filter(|line| line.contains("takes more than 5 s")).collect();
    let words = ["a read of proc/uptime", "works on pread of /"];
    let found = words.iter().all(|words| slow.first().is_some_and(|line| line.contains(words)));
    ensure!(slow.len() == 1 && found, "{log}");
    let point = daemon.mount_point().display().to_string();
    let status = daemon.run(&["status", &point])?;
    let status = String::from_utf8(status.stdout)?;
    ensure!(status.contains("slow requests      1 took more than 5 s"), "{status}");
    ensure!(daemon.server() == server, "it waited for the kernel, and nobody is ended for that");
    Ok(())
}

fn is_traced(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
}

/// Containers come and go by the thousand (`LXCFS_TEST_CONTAINERS`), and the daemon does not grow.
#[test]
fn ask_306_684_677_317_122_memory_is_flat_over_many_containers() -> Result<()> {
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let containers: u32 =
        std::env::var("LXCFS_TEST_CONTAINERS").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
    let cgroup = Cgroup::new("many")?;
    let stat = daemon.path("proc/loadavg").display().to_string();
    let make = |count: u32| -> Result<()> {
        for _ in 0..count {
            let output = Container::new(&cgroup).run(&["/bin/cat", &stat])?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    };
    make(containers / 4)?;
    let (before, descriptors) = (resident_kib(&daemon)?, descriptors(&daemon)?);
    make(containers)?;
    let after = resident_kib(&daemon)?;
    ensure!(after <= before + 1_024, "from {before} to {after} KiB over {containers} containers");
    lxcfs_tests::wait_for("the dead to be forgotten", || {
        self::descriptors(&daemon).is_ok_and(|now| now <= descriptors)
    });
    let figures =
        format!("{containers} containers: anonymous memory {before} KiB, then {after} KiB");
    writeln!(std::io::stdout(), "{figures}")?;
    Ok(())
}

fn resident_kib(daemon: &Daemon) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.server()))?;
    // Not VmRSS: pages of the program itself come in as they are first run.
    let line =
        status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.split_whitespace().next().context("no number")?.parse()?)
}

fn descriptors(daemon: &Daemon) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", daemon.server()))?.count())
}

/// `cgroup/` is there only where it is asked for and there is something to show, and else that is said: a hook that finds an
/// empty directory fails.
#[test]
fn the_cgroup_tree_takes_an_option_and_a_v1_hierarchy() -> Result<()> {
    let without = Daemon::start()?;
    let with = Daemon::with(&["--enable-cgroup"])?;
    let is_pure_v2 = lxcfs_tests::cgroup::is_pure_v2()?;
    for (daemon, is_there) in [(&without, false), (&with, !is_pure_v2)] {
        let names: Vec<_> =
            fs::read_dir(daemon.mount_point())?.flatten().map(|e| e.file_name()).collect();
        ensure!(names.iter().any(|name| name == "cgroup") == is_there, "{names:?}");
        ensure!(daemon.path("cgroup").exists() == is_there);
    }
    ensure!(
        with.log().contains("no cgroup v1 hierarchy is mounted") == is_pure_v2,
        "{}",
        with.log()
    );
    Ok(())
}
