//! Who asks: every way a process can be in a container, or not.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lxcfs::caller::{Caller, InitLookup};
use lxcfs::daemon::Rooms;
use lxcfs::files::Policy;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::mount::Daemon;

const LIMIT_KIB: u64 = 128 << 10;

fn limited(name: &str) -> Result<Cgroup> {
    let cgroup = Cgroup::new(name)?;
    cgroup.limit_memory(LIMIT_KIB << 10)?;
    Ok(cgroup)
}

fn total_kib(meminfo: &str) -> Result<u64> {
    let line = meminfo.lines().next().context("empty meminfo")?;
    let number = line.split_whitespace().nth(1).context("no number")?;
    number.parse().with_context(|| meminfo.to_owned())
}

/// Starts a container that prints a line when it is up and then waits for its standard input to close.
fn waiting(container: &Container) -> Result<Running> {
    let mut running = container.spawn(&["/bin/sh", "-c", "echo up; read line"])?;
    ensure!(running.line()? == "up");
    Ok(running)
}

/// The init of the container that `pid` is in.
fn init_of(rooms: &Rooms, pid: u32) -> Result<u32> {
    match rooms.road.callers().find(pid)? {
        Caller::Container(container) => Ok(container.init),
        Caller::Host => anyhow::bail!("{pid} was taken for the host's"),
    }
}

#[test]
fn w04_an_init_in_a_leaf_of_its_own_gets_the_whole_container() -> Result<()> {
    let daemon = Daemon::start()?;
    let meminfo = daemon.path("proc/meminfo").display().to_string();
    // With a cgroup namespace any leaf; without one, the names that inits are known to use.
    for (leaf, shared) in
        [("supervisor", false), ("init.scope", false), ("init.scope", true), ("init", true)]
    {
        let cgroup = limited("leaf")?;
        let below = cgroup.leaf(leaf)?;
        let container = Container::new(&cgroup);
        let container = if shared { container.sharing_cgroup_namespace() } else { container };
        let script = format!(
            "x=$(yes | head -c 20000000); for f in {}; do echo $$ > $f; done; cat {meminfo}; :",
            words(&below.procs_files())
        );
        let text = container.sh(&script)?;
        ensure!(total_kib(&text)? == LIMIT_KIB, "{leaf}: {text}");
        let free = text.lines().nth(1).context("no MemFree")?;
        let free: u64 = free.split_whitespace().nth(1).context("no number")?.parse()?;
        ensure!(LIMIT_KIB - free > 15_000, "{leaf}: the use before the move is missing: {text}");
    }
    Ok(())
}

#[test]
fn ask_276_a_nested_container_sees_its_own() -> Result<()> {
    let daemon = Daemon::start()?;
    let meminfo = daemon.path("proc/meminfo").display().to_string();
    for shares_cgroup_namespace in [false, true] {
        let outer = limited("nested")?;
        let leaf = outer.leaf("init")?;
        // The outer init makes room for the inner cgroup, as v2 demands, and then starts the inner container.
        let script = format!(
            "for f in {}; do echo $$ > $f; done; head -1 {meminfo}; read inner; $inner",
            words(&leaf.procs_files())
        );
        let mut running = Container::new(&outer).spawn(&["/bin/sh", "-c", &script])?;
        ensure!(total_kib(&running.line()?)? == LIMIT_KIB);
        let inner = outer.child("inner")?;
        inner.limit_memory(LIMIT_KIB << 9)?;
        let nested = Container::new(&inner);
        let nested =
            if shares_cgroup_namespace { nested.sharing_cgroup_namespace() } else { nested };
        let command = nested.command(&["/usr/bin/head", "-1", &meminfo]);
        let line: Vec<_> =
            std::iter::once(command.get_program()).chain(command.get_args()).collect();
        let stdin = running.child.stdin.as_mut().context("stdin is piped")?;
        writeln!(stdin, "{}", words(&line))?;
        ensure!(total_kib(&running.line()?)? == LIMIT_KIB / 2, "shared: {shares_cgroup_namespace}");
    }
    Ok(())
}

fn words<T: AsRef<std::ffi::OsStr>>(list: &[T]) -> String {
    let words: Vec<_> = list.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    words.join(" ")
}

#[test]
fn ask_303_310_a_container_in_the_hosts_pid_namespace_has_the_limits_of_its_cgroup_namespace()
-> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = limited("shared-pid")?;
    let container = Container::new(&cgroup).sharing_pid_namespace();
    let meminfo = daemon.path("proc/meminfo").display().to_string();
    let text = container.sh(&format!("cat {meminfo}"))?;
    ensure!(total_kib(&text)? == LIMIT_KIB, "{text}");
    let uptime =
        container.sh(&format!("sleep 0.3; cat {}", daemon.path("proc/uptime").display()))?;
    let up: f64 = uptime.split(' ').next().context("empty")?.parse()?;
    ensure!(up < 60.0, "the container's uptime, not the host's: {uptime}");
    Ok(())
}

#[test]
fn ask_447_680_the_root_of_a_user_namespace_reads_its_container() -> Result<()> {
    let daemon = Daemon::start()?;
    std::fs::set_permissions(
        daemon.directory(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let cgroup = limited("user")?;
    let container = Container::new(&cgroup).in_user_namespace();
    let text = container.sh(&format!("cat {}", daemon.path("proc/meminfo").display()))?;
    ensure!(total_kib(&text)? == LIMIT_KIB, "{text}");
    // What only the host's root may read, the container's may not.
    let slabinfo = daemon.path("proc/slabinfo");
    let refused = container.run(&["/bin/cat", &slabinfo.display().to_string()])?;
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && stderr.contains("Permission denied"), "{stderr}");
    Ok(())
}

#[test]
fn w20_threads_and_odd_names_are_no_obstacle() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = limited("threads")?;
    let script = format!(
        "import os, threading\n\
         open('/proc/self/comm', 'w').write('a) R (b c')\n\
         out = []\n\
         def read(): out.append(open('{}').readline())\n\
         threads = [threading.Thread(target=read) for _ in range(8)]\n\
         [t.start() for t in threads]; [t.join() for t in threads]\n\
         assert len(set(out)) == 1 and out[0].split()[1] == '{LIMIT_KIB}', out\n\
         print(open('{}').read())\n",
        daemon.path("proc/meminfo").display(),
        daemon.path("proc/uptime").display(),
    );
    let python = std::env::temp_dir().join(format!("lxcfs-test-threads-{}.py", std::process::id()));
    std::fs::write(&python, script)?;
    let output =
        Container::new(&cgroup).run(&["/usr/bin/env", "python3", &python.display().to_string()]);
    std::fs::remove_file(&python)?;
    let text = lxcfs_tests::printed("python3", output?)?;
    let up: f64 = text.split(' ').next().context("empty")?.parse()?;
    ensure!(up < 60.0, "{text}");
    Ok(())
}

#[test]
fn a_container_older_than_the_daemon_looks_the_same() -> Result<()> {
    let cgroup = limited("older")?;
    let running = waiting(&Container::new(&cgroup))?;
    let daemon = Daemon::start()?;
    // The container's mounts are older than ours: a reader in its namespaces but with our mounts reaches the file.
    let output = Command::new("nsenter")
        .args(["-t", &running.init().to_string(), "-p", "-C", "cat"])
        .arg(daemon.path("proc/meminfo"))
        .output()?;
    ensure!(total_kib(&String::from_utf8(output.stdout)?)? == LIMIT_KIB);
    Ok(())
}

#[test]
fn a_container_that_moves_takes_its_new_limits() -> Result<()> {
    let daemon = Daemon::start()?;
    let (first, second) = (limited("first")?, Cgroup::new("second")?);
    second.limit_memory(LIMIT_KIB << 9)?;
    let meminfo = daemon.path("proc/meminfo").display().to_string();
    let container = Container::new(&first).sharing_cgroup_namespace();
    let script = format!("head -1 {meminfo}; read line; head -1 {meminfo}");
    let mut running = container.spawn(&["/bin/sh", "-c", &script])?;
    ensure!(total_kib(&running.line()?)? == LIMIT_KIB);
    second.add(running.init())?;
    running.child.stdin.as_mut().context("stdin is piped")?.write_all(b"\n")?;
    ensure!(total_kib(&running.line()?)? == LIMIT_KIB / 2);
    Ok(())
}

/// Goes into the cgroups of the files named last, and reads the first file in its own cgroup namespace and in that of the process
/// named second, in turns.
const COMES_AND_GOES: &str = "
import ctypes, sys
file, pid, procs = sys.argv[1], sys.argv[2], sys.argv[3:]
for cgroup in procs:
    open(cgroup, 'w').write('0')
setns = ctypes.CDLL(None).setns
homes = [open(f'/proc/{whose}/ns/cgroup') for whose in ('self', pid)]
for turn in range(12):
    assert setns(homes[turn % 2].fileno(), 0) == 0
    print(open(file).readline(), end='')
";

/// Who has read before is known by links of its own, and what they say is never remembered.
#[test]
fn a_reader_that_goes_elsewhere_is_there_at_once() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = limited("elsewhere")?;
    let mut running = waiting(&Container::new(&cgroup).sharing_pid_namespace())?;
    let output = Command::new("python3")
        .args(["-c", COMES_AND_GOES])
        .arg(daemon.path("proc/meminfo"))
        .arg(running.init().to_string())
        .args(cgroup.procs_files())
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{stderr}");
    let text = String::from_utf8(output.stdout)?;
    let totals = text.lines().map(total_kib).collect::<Result<Vec<_>>>()?;
    let host = total_kib(&std::fs::read_to_string("/proc/meminfo")?)?;
    ensure!(totals == [host, LIMIT_KIB].repeat(6), "{totals:?}");
    drop(running.child.stdin.take());
    Ok(())
}

/// A thread has no pid 1 among its own ids, and its process's parent is outside.
#[test]
fn searching_finds_the_init_of_a_thread() -> Result<()> {
    let cgroup = limited("search-thread")?;
    let script = "import threading, sys; threading.Thread(target=sys.stdin.read).start(); print('up', flush=True)";
    let mut running = Container::new(&cgroup).spawn(&["/usr/bin/env", "python3", "-c", script])?;
    ensure!(running.line()? == "up");
    let init = running.init();
    let threads = std::fs::read_dir(format!("/proc/{init}/task"))?;
    for thread in threads {
        let tid = thread?.file_name().to_string_lossy().parse()?;
        for lookup in [InitLookup::Ask, InitLookup::Search] {
            let rooms = Rooms::open(Policy::default(), lookup)?;
            let found =
                init_of(&rooms, tid).with_context(|| format!("{lookup:?} of thread {tid}"))?;
            ensure!(found == init, "{lookup:?} of thread {tid}");
        }
    }
    Ok(())
}

/// Kernels before 6.11 do not answer who the init of a namespace is: both ways must find the same one.
#[test]
fn searching_finds_the_init_that_asking_finds() -> Result<()> {
    let cgroup = limited("search")?;
    let ask = Rooms::open(Policy::default(), InitLookup::Ask)?;
    let search = Rooms::open(Policy::default(), InitLookup::Search)?;
    let running = waiting(&Container::new(&cgroup))?;
    let init = running.init();
    ensure!(init_of(&ask, init)? == init && init_of(&search, init)? == init);
    // A process entered from outside does not descend from the init.
    let mut entered = Command::new("nsenter")
        .args([
            "-t",
            &init.to_string(),
            "-p",
            "-C",
            "-m",
            "/bin/sh",
            "-c",
            "sleep 100 & echo $!; wait",
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut child = None;
    lxcfs_tests::wait_for("the entered process", || {
        let children = format!("/proc/{0}/task/{0}/children", entered.id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        child = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        child.is_some()
    });
    let child = child.context("waited for it")?;
    let found = (init_of(&ask, child), init_of(&search, child));
    entered.kill()?;
    entered.wait()?;
    ensure!(found.0? == init && found.1? == init);
    Ok(())
}

#[test]
fn the_host_is_the_host_and_the_dead_are_nobody() -> Result<()> {
    let rooms = Rooms::open(Policy::default(), InitLookup::Ask)?;
    ensure!(matches!(rooms.road.callers().find(std::process::id())?, Caller::Host));
    ensure!(rooms.road.callers().find(0).is_err(), "a reader we cannot see has no container");
    let mut child = Command::new("true").spawn()?;
    let pid = child.id();
    child.wait()?;
    ensure!(rooms.road.callers().find(pid).is_err());
    Ok(())
}

#[test]
fn the_dead_are_forgotten() -> Result<()> {
    let rooms = Rooms::open(Policy::default(), InitLookup::Ask)?;
    for _ in 0..20 {
        let running = waiting(&Container::without_cgroup())?;
        init_of(&rooms, running.init())?;
        drop(running);
    }
    lxcfs_tests::wait_for("the containers to end and be forgotten", || {
        rooms.road.callers().forget_ended();
        rooms.road.callers().containers().is_empty()
    });
    Ok(())
}

/// Containers one after another, as fast as they come: the kernel gives numbers of processes and namespaces out again,
/// and none of them may be taken for the one before.
#[test]
fn b05_containers_one_after_another_are_not_mixed_up() -> Result<()> {
    let rooms = Rooms::open(Policy::default(), InitLookup::Ask)?;
    let (small, large) = (limited("small")?, Cgroup::new("large")?);
    large.limit_memory(LIMIT_KIB << 11)?;
    for round in 0..20 {
        let (cgroup, want) =
            if round % 2 == 0 { (&small, LIMIT_KIB) } else { (&large, LIMIT_KIB * 2) };
        let running = waiting(&Container::new(cgroup))?;
        let page = rooms.road.page(lxcfs::model::file::File::Meminfo, running.init())?;
        ensure!(total_kib(std::str::from_utf8(&page)?)? == want, "round {round}");
        rooms.road.callers().forget_ended();
    }
    Ok(())
}

/// Without a cgroup of its own there is nothing to tell a container by: the host's values, and status says so.
#[test]
fn w10_ask_40_42_host_values_are_never_served_in_silence() -> Result<()> {
    let daemon = Daemon::start()?;
    let container = Container::in_root_cgroup()?;
    let text = container.sh(&format!("cat {}", daemon.path("proc/meminfo").display()))?;
    let host = std::fs::read_to_string("/proc/meminfo")?;
    ensure!(total_kib(&text)? == total_kib(&host)?);
    ensure!(daemon.log().contains("proc/meminfo: host values are served"), "{}", daemon.log());
    let status = daemon.run(&["status", "--json", &daemon.mount_point().display().to_string()])?;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    let fallback = &status["fallbacks"][0];
    ensure!(fallback["file"] == "proc/meminfo" && fallback["pages"] == 1, "{status}");
    Ok(())
}

/// With `--strict` such a container is refused, and status says why; all others read as ever.
#[test]
fn a_strict_daemon_refuses_instead() -> Result<()> {
    let daemon = Daemon::with(&["--strict"])?;
    let meminfo = daemon.path("proc/meminfo");
    let output = Container::in_root_cgroup()?.run(&["cat", &meminfo.display().to_string()])?;
    let stderr = String::from_utf8(output.stderr)?;
    ensure!(output.stdout.is_empty() && stderr.contains("Input/output error"), "{stderr}");
    let cgroup = limited("strict")?;
    let script = format!("cat {}; cat {}", meminfo.display(), daemon.path("proc/stat").display());
    let text = Container::new(&cgroup).sh(&script)?;
    ensure!(total_kib(&text)? == LIMIT_KIB, "{text}");
    ensure!(daemon.log().contains("proc/meminfo: readers are refused"), "{}", daemon.log());
    let status = daemon.run(&["status", &daemon.mount_point().display().to_string()])?;
    let status = String::from_utf8(status.stdout)?;
    let refused = status.split_once("Refused to containers").context("nothing was refused")?.1;
    ensure!(refused.contains("proc/meminfo") && refused.contains("1 pages, because"), "{status}");
    let decided = status.lines().find(|line| line.contains("btime")).context("nothing decided")?;
    ensure!(decided.contains("proc/stat") && decided.contains("1 pages: "), "{status}");
    Ok(())
}
