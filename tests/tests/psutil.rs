//! psutil's own tests in a limited container over our files and without them: nothing may fail with ours that does not
//! fail without.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::Container;
use lxcfs_tests::mount::Daemon;
use lxcfs_tests::rootfs::find;

/// Where Debian's python3-psutil has them.
const FOLDER: &str = "/usr/lib/python3/dist-packages/psutil/tests";

/// Those about what the files say.
const SUITES: [&str; 3] = ["test_linux.py", "test_system.py", "test_misc.py"];

/// Fewer tests than psutil has in them, 218.
const TESTS: usize = 150;

/// Those about processes: they read no file of ours, and fail where a process that sleeps is late.
const NOT_THESE: &str = "not TestProcessAPIs";

/// How psutil (5.9) is told that the machine is not its own: it waits longer.
const PATIENT: &str = "GITHUB_ACTIONS";

/// Runs a command with some shared memory in use: psutil takes none for a free(1) that cannot show it.
const SHARED_MEMORY: &str =
    "mount -t tmpfs none /mnt && head -c 16M /dev/zero > /mnt/file && exec \"$@\"";

/// What may fail, and why it is not our doing or not wrong.
const EXPECTED: [(&str, &str); 4] = [
    (
        "test_linux.py::TestLoadAvg::test_getloadavg",
        "os.getloadavg() is sysinfo(2), the host's; it is compared with /proc/loadavg, the container's",
    ),
    (
        "test_linux.py::TestSystemDiskIoCounters::test_emulate_use_sysfs",
        "/proc/diskstats has what the container has done, /sys/block what the machine has",
    ),
    (
        "test_linux.py::TestSystemCPUStats::test_ctx_switches",
        "reads the machine's counter twice, where a busy machine counts more than 500 meanwhile",
    ),
    ("test_linux.py::TestSystemCPUStats::test_interrupts", "the same"),
];

/// What a test came to, by its name.
type Outcomes = BTreeMap<String, String>;

#[test]
fn psutils_tests_pass_as_they_do_without_our_files() -> Result<()> {
    let daemon = Daemon::start()?;
    let (without, _) = run(&daemon, false)?;
    let (with, text) = run(&daemon, true)?;
    ensure!(with.keys().eq(without.keys()), "not the same tests: {without:#?} {with:#?}");
    ensure!(with.len() >= TESTS, "only {} tests", with.len());
    for (name, reason) in EXPECTED {
        ensure!(with.contains_key(name), "there is no {name} any more, which may fail: {reason}");
    }
    // A test that is skipped with our files alone found less in them: as bad as one that fails.
    let worse = with.iter().zip(without.values()).filter(|((name, with), without)| {
        let expected = EXPECTED.iter().any(|(known, _)| name == known);
        *without == "PASSED" && *with != "PASSED" && !expected
    });
    let worse: Vec<_> = worse.map(|((name, with), _)| format!("{name} {with}")).collect();
    ensure!(worse.is_empty(), "passed without our files: {worse:#?}\n{text}");
    Ok(())
}

/// A process started when it did, and the machine with the host: psutil adds the start to btime, as ps does.
#[test]
fn starts_and_boot_are_right() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("psutil")?;
    let now_s = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let began_s = now_s()?.as_secs();
    let text = Container::new(&cgroup).files(&daemon.mount_point()).sh(
        "/usr/bin/python3 -c 'import psutil; print(int(psutil.Process().create_time()), int(psutil.boot_time()))'",
    )?;
    let (started, booted) = text.trim().split_once(' ').context("two numbers")?;
    let (started_s, booted_s): (u64, u64) = (started.parse()?, booted.parse()?);
    ensure!((began_s - 1..=now_s()?.as_secs() + 1).contains(&started_s), "at {began_s}: {text}");
    let stat = std::fs::read_to_string("/proc/stat")?;
    let btime = stat.lines().find_map(|line| line.strip_prefix("btime ")).context("no btime")?;
    ensure!(booted_s.abs_diff(btime.parse()?) <= 1, "the host says {btime}: {text}");
    Ok(())
}

/// What the tests came to, and what pytest said.
fn run(daemon: &Daemon, with_files: bool) -> Result<(Outcomes, String)> {
    let cgroup = Cgroup::new("psutil")?;
    // psutil takes the machine's watermarks, of /proc/zoneinfo, from what is available: less than 15 % of this.
    cgroup.limit_memory(1 << 30)?;
    cgroup.limit_cpu(100_000, 100_000)?;
    cgroup.limit_cpus("1")?;
    let mut container = Container::new(&cgroup);
    if with_files {
        container = container.files(&daemon.mount_point());
    }
    let python = find("python3")?.display().to_string();
    let mut command = vec!["/bin/sh", "-c", SHARED_MEMORY, "sh"];
    command.extend([
        &*python,
        "-m",
        "pytest",
        "-v",
        "--tb=line",
        "-p",
        "no:cacheprovider",
        "-k",
        NOT_THESE,
    ]);
    let suites = SUITES.map(|suite| format!("{FOLDER}/{suite}"));
    command.extend(suites.iter().map(String::as_str));
    let output = container
        .command(&command)
        // Its tests leave nothing there, but make files where they run.
        .current_dir(daemon.directory())
        .envs([(PATIENT, "1"), ("PYTHONDONTWRITEBYTECODE", "1"), ("PATH", "/usr/bin:/bin")])
        .output()
        .context("start contain: is it built?")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // 1 is: some have failed.
    ensure!(matches!(output.status.code(), Some(0 | 1)), "{text}");
    Ok((outcomes(&text), text))
}

/// Reads lines like `../psutil/tests/test_misc.py::TestMisc::test_setup_script FAILED [ 79%]`.
fn outcomes(text: &str) -> Outcomes {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let tests = lines.filter(|(name, _)| name.contains(".py::"));
    tests
        .filter_map(|(name, rest)| {
            let name = name.rsplit('/').next()?;
            Some((name.to_owned(), rest.split_whitespace().next()?.to_owned()))
        })
        .collect()
}
