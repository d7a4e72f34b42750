//! PSI triggers through the mount: what they are told, when, and what is left of them.
//!
//! The kernel's own pressure files, asked the same by the same process at the same time, say what is right.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::machine::Disk;
use lxcfs_tests::mount::Daemon;
use lxcfs_tests::wait_for;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const ATTEMPTS: &str = include_str!("pressure/attempts.py");
const EVENTS: &str = include_str!("pressure/events.py");
const CROWD: &str = include_str!("pressure/crowd.py");
const GONE: &str = include_str!("pressure/gone.py");

/// Looks at more of a disk than its memory holds.
const THRASH: &str = "import mmap, os, sys; f = os.open(sys.argv[1], os.O_RDONLY)\n\
                      m = mmap.mmap(f, 64 << 20, prot=mmap.PROT_READ)\n\
                      while True: [m[n] for n in range(0, 64 << 20, 4096)]";

/// A pressure file of the cgroup as the kernel has it.
fn kernels(cgroup: &Cgroup, resource: &str) -> Result<PathBuf> {
    let directory = cgroup.unified().context("the kernel counts pressure in cgroup v2 only")?;
    Ok(directory.join(format!("{resource}.pressure")))
}

/// The pressure file of whoever reads `daemon`'s.
fn ours(daemon: &Daemon, resource: &str) -> PathBuf {
    daemon.path(&format!("proc/pressure/{resource}"))
}

/// A container whose processes may write to their own cgroup's files: where the hierarchy is mounted with `nsdelegate`,
/// the kernel refuses that at the root of a cgroup namespace.
fn watching(cgroup: &Cgroup) -> Container {
    Container::new(cgroup).sharing_cgroup_namespace()
}

/// Whether we, and with us the daemon, have `CAP_SYS_RESOURCE`.
fn is_privileged() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("CapEff")?;
    Ok(u64::from_str_radix(set.trim(), 16)? & (1 << 24) != 0)
}

/// What `ATTEMPTS` prints for `path` in `container`, run behind `prefix`.
fn attempts(container: &Container, prefix: &[&str], path: &Path) -> Result<String> {
    let path = path.to_str().context("an odd path")?;
    let output = container.run(&[prefix, &["/usr/bin/python3", "-c", ATTEMPTS, path]].concat())?;
    lxcfs_tests::printed(format!("{prefix:?} {path}"), output)
}

/// In a container, each open, write and poll has the answer of the cgroup's own file.
#[test]
fn every_attempt_is_answered_as_by_the_cgroups_file() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("attempts")?;
    let container = watching(&cgroup);
    for resource in ["cpu", "io", "memory"] {
        let ours = attempts(&container, &[], &ours(&daemon, resource))?;
        let kernel = attempts(&container, &[], &kernels(&cgroup, resource)?)?;
        ensure!(ours == kernel, "{resource}: ours\n{ours}\nthe kernel's\n{kernel}");
        ensure!(ours.contains("b'some 150000 2000000\\n' 20\n"), "{ours}");
        ensure!(ours.contains("\nagain EBUSY "), "{ours}");
    }
    Ok(())
}

/// Without `CAP_SYS_RESOURCE` windows are whole multiples of two seconds, whatever the daemon has; before 6.5 such a
/// caller may not even open the file. Each answer is that of the kernel's own /proc/pressure to the same caller.
#[test]
fn w27_the_callers_capability_decides_about_windows() -> Result<()> {
    let daemon = Daemon::start()?;
    fs::set_permissions(daemon.directory(), PermissionsExt::from_mode(0o755))?;
    let cgroup = Cgroup::new("windows")?;
    let none: [&str; 0] = [];
    let unprivileged = ["setpriv", "--bounding-set", "-sys_resource"];
    let user = ["setpriv", "--reuid", "4321", "--clear-groups"];
    let container = Container::new(&cgroup);
    let callers = [
        (container.clone(), &none[..], is_privileged()?),
        (container.clone(), &unprivileged, false),
        (container.clone(), &user, false),
        (container.in_user_namespace(), &none, true),
    ];
    for (container, prefix, has_capability) in callers {
        let ours = attempts(&container, prefix, &ours(&daemon, "memory"))?;
        let mut kernel = attempts(&container, prefix, Path::new("/proc/pressure/memory"))?;
        if has_capability && !is_privileged()? {
            // The caller could, and this daemon cannot.
            kernel = kernel.replace(" 1000000\\n' 20\n", " 1000000\\n' EINVAL\n");
            kernel = kernel.replace(" 500000\\n' 19\n", " 500000\\n' EINVAL\n");
        }
        ensure!(ours == kernel, "{prefix:?}: ours\n{ours}\nthe kernel's\n{kernel}");
        let is_refused = ours.contains("b'some 150000 1000000\\n' E");
        ensure!(has_capability && is_privileged()? || is_refused, "{prefix:?}: {ours}");
    }
    Ok(())
}

/// Starts what makes tasks of the container wait for `resource` all the time.
fn strain(container: &mut Running, cgroup: &Cgroup, resource: &str, disk: &Disk) -> Result<()> {
    let device = disk.device().display();
    container.say(&match resource {
        "cpu" => "for n in 1 2 3 4; do while :; do :; done & done".to_owned(),
        "io" => {
            format!(
                "while :; do dd if={device} of=/dev/null bs=4k iflag=direct 2> /dev/null; done &"
            )
        }
        _ => {
            cgroup.limit_memory(24 << 20)?;
            format!("for n in 1 2 3; do /usr/bin/python3 -c '{THRASH}' {device} & done")
        }
    })?;
    Ok(())
}

/// The time between events, microseconds: the lower median, for where a machine stands still for a moment, two events of the kernel's
/// come together, and who looks later sees one, which makes times longer.
fn period_us(times_us: &[u64]) -> Result<u64> {
    ensure!(times_us.len() >= 4, "only {} events", times_us.len());
    let mut periods_us: Vec<_> = times_us.windows(2).map(|pair| pair[1] - pair[0]).collect();
    periods_us.sort_unstable();
    Ok(periods_us[(periods_us.len() - 1) / 2])
}

/// Under real pressure events come when the kernel's come, to each of several triggers of one file, those among them
/// that ask for so much that they have none or few.
fn compare_events(daemon: &Daemon, resource: &str, how: &str) -> Result<()> {
    let cgroup = Cgroup::new(resource)?;
    let disk = Disk::new(64)?;
    let mut container = watching(&cgroup).shell()?;
    strain(&mut container, &cgroup, resource, &disk)?;
    let (ours, kernel) = (ours(daemon, resource), kernels(&cgroup, resource)?);
    let window_us = if is_privileged()? { 1_000_000 } else { 2_000_000 };
    let (ours, kernel) = (ours.display(), kernel.display());
    let seconds = 13;
    let text = container.say(&format!(
        "/usr/bin/python3 -c '{EVENTS}' {how} {seconds} '{ours}=some 5000 {window_us}' \
         '{kernel}=some 5000 {window_us}' '{ours}=some 10000 2000000' \
         '{kernel}=some 10000 2000000' '{ours}=full 10000000 10000000' \
         '{kernel}=full 10000000 10000000' 2>&1"
    ))?;
    let mut events = Vec::new();
    for line in text.lines() {
        let times = line.split(' ').filter(|time| !time.is_empty());
        let times: Result<Vec<u64>, _> = times.map(str::parse).collect();
        events.push(times.with_context(|| text.clone())?);
    }
    let [ours, kernel, ours_too, kernel_too, ours_rarely, kernel_rarely] = &events[..] else {
        anyhow::bail!("not six lines: {text}");
    };
    for (ours, kernel) in [(ours, kernel), (ours_too, kernel_too)] {
        ensure!(ours.len().abs_diff(kernel.len()) <= 1, "{resource}: {ours:?} {kernel:?}");
        let (ours_us, kernel_us) = (period_us(ours)?, period_us(kernel)?);
        ensure!(ours_us.abs_diff(kernel_us) <= kernel_us / 20, "{resource}: {ours:?} {kernel:?}");
    }
    ensure!(ours_rarely.len() == kernel_rarely.len(), "{ours_rarely:?} {kernel_rarely:?}");
    Ok(())
}

#[test]
fn ask_665_691_events_come_at_the_kernels_rate() -> Result<()> {
    let daemon = Daemon::start()?;
    std::thread::scope(|scope| {
        let of = [("cpu", "epoll"), ("io", "poll"), ("memory", "select")];
        let runs = of.map(|(resource, how)| {
            let daemon = &daemon;
            scope.spawn(move || compare_events(daemon, resource, how))
        });
        runs.into_iter().try_for_each(|run| run.join().expect("no panic"))
    })
}

/// The numbers of descriptors and of threads named `name` of the daemon.
fn held(daemon: &Daemon, name: &str) -> Result<(usize, usize)> {
    let of = PathBuf::from(format!("/proc/{}", daemon.server()));
    let threads = fs::read_dir(of.join("task"))?.filter(|thread| {
        let comm = thread.as_ref().map(|thread| fs::read_to_string(thread.path().join("comm")));
        matches!(comm, Ok(Ok(comm)) if comm.trim() == name)
    });
    // The links of a reader stay until another one takes their place: they tell nothing of triggers.
    let descriptors = fs::read_dir(of.join("fd"))?.filter(|descriptor| {
        let of_what = descriptor.as_ref().map(|descriptor| fs::read_link(descriptor.path()));
        !matches!(of_what, Ok(Ok(path)) if path.to_string_lossy().contains("/ns/"))
    });
    Ok((descriptors.count(), threads.count()))
}

/// How often the thread that waits for triggers has been woken.
fn wakings(daemon: &Daemon) -> Result<u64> {
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.server()))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        if status.starts_with("Name:\ttriggers\n") {
            let line =
                status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            return Ok(line.context("no count")?.trim().parse()?);
        }
    }
    Ok(0)
}

/// Thousands of pollers are served by one thread, which is not there before the first and sleeps after the last, and
/// nothing is left of them when their container has ended. `LXCFS_TEST_POLLERS` says how many.
#[test]
fn pollers_are_served_and_forgotten() -> Result<()> {
    let pollers: usize =
        std::env::var("LXCFS_TEST_POLLERS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let enough = Rlimit { current: Some(20_000), maximum: Some(20_000) };
    if getrlimit(Resource::Nofile).maximum.is_some_and(|maximum| maximum < 20_000) {
        setrlimit(Resource::Nofile, enough).context("have enough descriptors")?;
    }
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("crowd")?;
    let path = ours(&daemon, "cpu").display().to_string();
    let mut busy = Container::new(&cgroup).shell()?;
    ensure!(busy.say(&format!("cat {path}"))?.starts_with("some "));
    let before = held(&daemon, "triggers")?;
    ensure!(before.1 == 0, "a thread waits for no triggers");
    let count = pollers.to_string();
    let script = ["/usr/bin/python3", "-c", CROWD, &path, &count];
    let mut crowd = Container::new(&cgroup).spawn(&script)?;
    for said in ["set", "seen"] {
        ensure!(crowd.line()? == said);
        let (descriptors, threads) = held(&daemon, "triggers")?;
        ensure!(threads == 1, "{threads} threads");
        // The container that was not known before takes one or two, and files are read meanwhile.
        let more = descriptors - before.0;
        ensure!((60..=70).contains(&more), "{more} descriptors");
        if said == "set" {
            busy.say("for n in 1 2 3; do while :; do :; done & done")?;
        }
    }
    drop(crowd);
    wait_for("the triggers to be closed", || {
        held(&daemon, "closing").is_ok_and(|held| held.0 <= before.0 && held.1 == 0)
    });
    let woken = wakings(&daemon)?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(wakings(&daemon)? == woken, "something woke the thread");
    ensure!(busy.say("echo alive")? == "alive\n");
    Ok(())
}

/// A trigger of a cgroup that is removed says so to who polls it, as the kernel's does.
#[test]
fn a_trigger_ends_with_its_cgroup() -> Result<()> {
    let daemon = Daemon::start()?;
    let (cgroup, other) = (Cgroup::new("gone")?, Cgroup::new("other")?);
    let (ours, kernel) = (ours(&daemon, "memory"), kernels(&cgroup, "memory")?);
    let paths = [ours, kernel].map(|path| path.display().to_string());
    let mut container =
        watching(&cgroup).spawn(&["/usr/bin/python3", "-c", GONE, &paths[0], &paths[1]])?;
    ensure!(container.line()? == "set");
    cgroup.empty_into(&other);
    let (ours, kernel) = (container.line()?, container.line()?);
    ensure!(ours == kernel && ours == "[10] ENODEV [10]", "ours {ours}, the kernel's {kernel}");
    ensure!(container.line()? == "end");
    Ok(())
}
