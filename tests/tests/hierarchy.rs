//! Containers deep in a tree of cgroups, at their limits, and in trees that change under them: what pure v2 is for, and
//! what v1 and hybrid machines show of the same.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::{Cgroup, add_to_root};
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::kib;
use lxcfs_tests::mount::{self, Daemon};

const LIMIT_KIB: u64 = 128 << 10;

/// A cgroup limited to [`LIMIT_KIB`].
fn limited(name: &str) -> Result<Cgroup> {
    let cgroup = Cgroup::new(name)?;
    cgroup.limit_memory(LIMIT_KIB << 10)?;
    Ok(cgroup)
}

fn shell(daemon: &Daemon, cgroup: &Cgroup) -> Result<Running> {
    Container::new(cgroup).files(&daemon.mount_point()).shell()
}

fn total_kib(container: &mut Running) -> Result<u64> {
    kib(&container.say("cat /proc/meminfo")?, "MemTotal")
}

/// How many pages were the host's for want of the container's.
fn fallback_pages(daemon: &Daemon) -> Result<u64> {
    let status = daemon.run(&["status", "--json", &daemon.mount_point().display().to_string()])?;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    let fallbacks = status["fallbacks"].as_array().context("no fallbacks in status")?;
    Ok(fallbacks.iter().filter_map(|fallback| fallback["pages"].as_u64()).sum())
}

/// The number behind `key` in the lines of a cgroup file.
fn counter(text: &str, key: &str) -> Result<u64> {
    let number = |line: &str| line.strip_prefix(key)?.trim().parse().ok();
    text.lines().find_map(number).with_context(|| format!("no {key} in: {text}"))
}

/// Six levels with limits at different ones, the container's boundary at the fourth, its reader in the sixth.
#[test]
fn ask_690_limits_and_use_of_a_container_in_a_deep_tree() -> Result<()> {
    let (daemon, quota) = (Daemon::start()?, Daemon::with(&["--cpu-view", "quota"])?);
    let first = Cgroup::new("deep")?;
    first.limit_memory(512 << 20)?;
    first.limit_cpu(50_000, 100_000)?;
    let third = first.child("second")?.child("third")?;
    third.limit_memory(LIMIT_KIB << 10)?;
    let fourth = third.child("fourth")?;
    fourth.limit_memory(256 << 20)?;
    let fifth = fourth.leaf("fifth")?;
    let (beside, sixth) = (fifth.leaf("beside")?, fifth.leaf("sixth")?);
    let mut container = shell(&daemon, &fourth)?;
    container.enter(&beside)?;
    container.hold(20)?;
    container.enter(&sixth)?;
    // The container's manager takes over what it was given, and limits its reader.
    fourth.delegate();
    fifth.delegate();
    sixth.limit_memory(48 << 20)?;
    container.hold(10)?;
    let shown = container.say("cat /proc/meminfo")?;
    ensure!(kib(&shown, "MemTotal")? == LIMIT_KIB, "the third level has the smallest: {shown}");
    let used = LIMIT_KIB - kib(&shown, "MemFree")?;
    ensure!(used > 30 << 10, "the use of the whole container: {shown}");
    let kernel = fourth.read("memory", "memory.usage_in_bytes", "memory.current")?;
    let kernel: u64 = kernel.trim().parse::<u64>()? / 1_024;
    ensure!(used.abs_diff(kernel) < 4 << 10, "{kernel} KiB are used: {shown}");
    ensure!(container.cpus()? == [0, 1]);
    let online = quota.path("sys/devices/system/cpu/online");
    let online = container.say(&format!("cat {}", online.display()))?;
    ensure!(online == "0\n", "half a CPU, which the first level has: {online}");
    ensure!(fallback_pages(&daemon)? == 0 && fallback_pages(&quota)? == 0);
    Ok(())
}

/// A cgroup may have no controller of its own: rootless managers are often given two. The nearest above has its memory
/// and its CPUs; its I/O is counted nowhere, so that page is the host's, and status says so.
#[test]
fn a_container_without_controllers() -> Result<()> {
    let daemon = Daemon::start()?;
    let above = limited("bare")?;
    above.limit_cpus("1")?;
    let cgroup = above.leaf("container")?;
    let mut container = shell(&daemon, &cgroup)?;
    container.hold(20)?;
    let shown = container.say("cat /proc/meminfo")?;
    ensure!(kib(&shown, "MemTotal")? == LIMIT_KIB, "{shown}");
    ensure!(LIMIT_KIB - kib(&shown, "MemFree")? > 20 << 10, "{shown}");
    ensure!(container.cpus()? == [1]);
    ensure!(
        container.say("cat /proc/stat /proc/uptime /proc/loadavg /proc/swaps | wc -l")? != "0\n"
    );
    ensure!(container.say("cat /proc/pressure/cpu")?.starts_with("some "));
    ensure!(fallback_pages(&daemon)? == 0);
    container.say("cat /proc/diskstats")?;
    ensure!(fallback_pages(&daemon)? == u64::from(cgroup.is_pure_v2()));
    Ok(())
}

/// A child may ask for more CPUs than its parent has, on v2: what it gets is what is shown.
#[test]
fn w16_the_effective_cpuset_is_shown() -> Result<()> {
    let daemon = Daemon::start()?;
    let parent = Cgroup::new("narrow")?;
    parent.limit_cpus("0")?;
    let child = parent.child("asks")?;
    let asked = child.limit_cpus("0-1");
    if child.is_pure_v2() {
        asked?;
        ensure!(child.read("cpuset", "", "cpuset.cpus")? == "0-1\n");
    } else {
        // v1 does not let it ask, so the two cannot differ.
        let error = asked.expect_err("v1 cpusets are nested");
        let errno = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        ensure!(errno == Some(nix::libc::EACCES), "{error:#}");
    }
    let mut container = shell(&daemon, &child)?;
    ensure!(container.cpus()? == [0]);
    ensure!(container.say("nproc")? == "1\n");
    // Its own demand matters as soon as there is more to have.
    parent.limit_cpus("0-1")?;
    child.limit_cpus("0-1")?;
    ensure!(container.cpus()? == [0, 1]);
    Ok(())
}

/// `cpu` row of `/proc/stat`: ticks used, all ticks.
fn ticks(stat: &str) -> Result<(u64, u64)> {
    let row = stat.lines().next().and_then(|row| row.strip_prefix("cpu ")).context("no cpu row")?;
    let row: Vec<u64> = row.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    Ok((row[..3].iter().sum(), row.iter().sum()))
}

/// Three busy loops with a fifth of a CPU among them.
#[test]
fn ask_500_452_283_throttled_tasks_are_load_and_use_no_more_than_they_get() -> Result<()> {
    let (daemon, quota) = (Daemon::start()?, Daemon::with(&["--cpu-view", "quota"])?);
    let cgroup = Cgroup::new("throttled")?;
    cgroup.limit_cpu(20_000, 100_000)?;
    let mut container = shell(&daemon, &cgroup)?;
    container.say("for i in 1 2 3; do (while :; do :; done) & done")?;
    let quota_stat = format!("cat {}", quota.path("proc/stat").display());
    let started = Instant::now();
    container.say("cat /proc/loadavg")?;
    let before = [ticks(&container.say("cat /proc/stat")?)?, ticks(&container.say(&quota_stat)?)?];
    std::thread::sleep(Duration::from_secs(11));
    let load = container.say("cat /proc/loadavg")?;
    let after = [ticks(&container.say("cat /proc/stat")?)?, ticks(&container.say(&quota_stat)?)?];
    let wall = started.elapsed().as_secs_f64() * 100.0;
    let stat = cgroup.read("cpu", "cpu.stat", "cpu.stat")?;
    ensure!(counter(&stat, "nr_throttled ")? > 10, "the kernel did not throttle: {stat}");
    for (cpus, (before, after)) in [2.0, 1.0].into_iter().zip(before.into_iter().zip(after)) {
        let busy = u32::try_from(after.0 - before.0).map(f64::from)?;
        let all = u32::try_from(after.1 - before.1).map(f64::from)?;
        // What a CPU has in hand when it is throttled, a slice of 5 ms a period, may come on top.
        ensure!(busy > 30.0 && busy < wall * 0.4, "{busy} of {wall} ticks are a fifth");
        ensure!(all <= wall * cpus + 5.0 && all > busy, "{all} of {wall} ticks on {cpus} CPUs");
    }
    // Two samples of three tasks at least; at most of them, the shell and its reader, who wait for their turn like the
    // others, all the time and one period more.
    let one: f64 = load.split(' ').next().context("no average")?.parse()?;
    let most = 5.0 * (1.0 - (-(wall / 100.0 + 5.0) / 60.0).exp());
    ensure!(one >= 0.30 && one <= most, "throttled tasks want a CPU, {most}: {load}");
    let rows = container.say(&quota_stat)?;
    ensure!(
        rows.contains("\ncpu0 ") && !rows.contains("\ncpu1 "),
        "a fifth of a CPU is one: {rows}"
    );
    Ok(())
}

/// A container whose CPUs become fewer and more again has used what it has used: nothing of the past is dealt out anew.
#[test]
fn time_goes_on_when_the_number_of_cpus_changes() -> Result<()> {
    let (daemon, quota) = (Daemon::start()?, Daemon::with(&["--cpu-view", "quota"])?);
    let cgroup = Cgroup::new("changes")?;
    let mut container = shell(&daemon, &cgroup)?;
    container.say("(while :; do :; done) & (while :; do :; done) &")?;
    let pages = ["/proc/stat".to_owned(), quota.path("proc/stat").display().to_string()];
    let kernel_ticks = || -> Result<u64> {
        let text = cgroup.read("cpuacct", "cpuacct.usage", "cpu.stat")?;
        let nanoseconds =
            text.trim().parse().or_else(|_| counter(&text, "usage_usec ").map(|us| us * 1_000));
        Ok(nanoseconds? / 10_000_000)
    };
    let mut before = [0; 2];
    for (cpus, quota_us, count) in [("0-1", 200_000, 2), ("0", 100_000, 1), ("0-1", 200_000, 2)] {
        cgroup.limit_cpus(cpus)?;
        cgroup.limit_cpu(quota_us, 100_000)?;
        // The first time shows the change, the second what comes after it.
        for _ in 0..2 {
            for (page, before) in pages.iter().zip(&mut before) {
                let least = kernel_ticks()?;
                let shown = container.say(&format!("cat {page}"))?;
                let most = kernel_ticks()?;
                let rows = shown.lines().filter(|line| line.starts_with("cpu")).count();
                ensure!(rows == count + 1, "{cpus}: {shown}");
                let (used, _) = ticks(&shown)?;
                // Three columns of two CPUs are rounded down, and a CPU that goes takes along what it did since it was
                // looked at.
                ensure!(used + 30 >= least && used <= most + 1, "{least} to {most} used: {shown}");
                ensure!(used >= *before, "{before} ticks used before: {shown}");
                *before = used;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
    Ok(())
}

#[test]
fn the_daemon_serves_on_when_the_kernel_kills_in_a_container() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = limited("oom")?;
    cgroup.limit_swap(0)?;
    let hog = "held = b'x' * (400 << 20)";
    let mut container = shell(&daemon, &cgroup)?;
    let said = container.say(&format!("python3 -c \"{hog}\" 2> /dev/null; echo $?"))?;
    ensure!(said == "137\n", "python was not killed: {said}");
    let events = cgroup.read("memory", "memory.oom_control", "memory.events")?;
    ensure!(counter(&events, "oom_kill ")? >= 1, "{events}");
    let shown = container.say("cat /proc/meminfo")?;
    ensure!(kib(&shown, "MemTotal")? == LIMIT_KIB, "{shown}");
    ensure!(kib(&shown, "MemFree")? > LIMIT_KIB / 2, "the memory is free again: {shown}");
    ensure!(kib(&shown, "SwapTotal")? == 0, "{shown}");
    drop(container);
    // The same with the container's init, and with it the whole container.
    let killed = Container::new(&cgroup).run(&["/usr/bin/env", "python3", "-c", hog])?;
    ensure!(killed.status.code() == Some(137), "{killed:?}");
    ensure!(total_kib(&mut shell(&daemon, &cgroup)?)? == LIMIT_KIB);
    ensure!(fallback_pages(&daemon)? == 0);
    Ok(())
}

/// The microseconds of the line `some` of a pressure file.
fn some_us(text: &str) -> Result<u64> {
    let total = text.lines().next().and_then(|some| some.split_once("total="));
    Ok(total.with_context(|| format!("no total in: {text}"))?.1.parse()?)
}

/// The same of the container's file.
fn stalled_us(container: &mut Running, resource: &str) -> Result<u64> {
    some_us(&container.say(&format!("cat /proc/pressure/{resource}"))?)
}

/// Three busy loops on one CPU stand in each other's way, and in nobody else's container.
#[test]
fn pressure_is_the_containers_own() -> Result<()> {
    let daemon = Daemon::start()?;
    let (busy, idle) = (Cgroup::new("pressed")?, Cgroup::new("calm")?);
    busy.limit_cpus("0")?;
    let (mut pressed, mut calm) = (shell(&daemon, &busy)?, shell(&daemon, &idle)?);
    let before = [stalled_us(&mut pressed, "cpu")?, stalled_us(&mut calm, "cpu")?];
    pressed.say("for i in 1 2 3; do (while :; do :; done) & done")?;
    std::thread::sleep(Duration::from_secs(4));
    let calm_us = stalled_us(&mut calm, "cpu")? - before[1];
    let pressed_us = stalled_us(&mut pressed, "cpu")? - before[0];
    ensure!(pressed_us > 1_000_000, "three on one CPU for 4 s waited {pressed_us} us");
    ensure!(calm_us * 4 < pressed_us, "the neighbour waited {calm_us} of {pressed_us} us");
    // Neither the machine's pressure nor the sum of both: the number of this cgroup.
    let kernel = || busy.read("none of v1", "", "cpu.pressure").and_then(|text| some_us(&text));
    let (least, shown, most) = (kernel()?, stalled_us(&mut pressed, "cpu")?, kernel()?);
    ensure!((least..=most).contains(&shown), "{shown} is not between {least} and {most}");
    Ok(())
}

/// A service with a cgroup namespace of its own has the limits of where that begins; one without has the container's.
#[test]
fn a_cgroup_namespace_in_a_container_is_a_boundary() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = limited("unshared")?;
    let init = cgroup.leaf("init")?;
    let mut container = shell(&daemon, &cgroup)?;
    container.enter(&init)?;
    let service = cgroup.child("service")?;
    service.limit_memory(LIMIT_KIB << 9)?;
    let own = container.say("/usr/bin/unshare -C cat /proc/meminfo")?;
    ensure!(kib(&own, "MemTotal")? == LIMIT_KIB, "{own}");
    let join =
        format!("for f in {}; do echo 0 > $f; done", lxcfs_tests::words(service.procs_files()));
    let shared = container.say(&format!("({join}; cat /proc/meminfo)"))?;
    ensure!(kib(&shared, "MemTotal")? == LIMIT_KIB, "{shared}");
    let own = container.say(&format!("({join}; /usr/bin/unshare -C cat /proc/meminfo)"))?;
    ensure!(kib(&own, "MemTotal")? == LIMIT_KIB / 2, "{own}");
    ensure!(fallback_pages(&daemon)? == 0);
    Ok(())
}

#[test]
fn ask_254_598_containers_in_containers_in_containers() -> Result<()> {
    let daemon = Daemon::start()?;
    let mut cgroup = limited("nested")?;
    let mut container = shell(&daemon, &cgroup)?;
    let outermost = cgroup.leaf("init")?;
    container.enter(&outermost)?;
    let mut outer = Vec::new();
    // The second has less than the first; the third asks for more than the second has.
    for (name, mib, want_mib) in [("second", 64, 64), ("third", 96, 64)] {
        let inner = cgroup.child(name)?;
        inner.limit_memory(mib << 20)?;
        container.nest(&Container::new(&inner).files(&daemon.mount_point()))?;
        ensure!(total_kib(&mut container)? == want_mib << 10, "{name}");
        container.enter(&inner.leaf("init")?)?;
        ensure!(total_kib(&mut container)? == want_mib << 10, "{name} in a leaf");
        ensure!(container.say("echo $$")? == "1\n");
        let up: f64 = container.say("cut -d. -f1 /proc/uptime")?.trim().parse()?;
        ensure!(up < 60.0, "{name} has its own uptime: {up}");
        let load = container.say("cat /proc/loadavg")?;
        // Those of the last sample, which may be one of the shell alone. The others have a shell each.
        let is_own = load.contains("/1 ") || load.contains("/2 ");
        ensure!(is_own, "a shell and its cat are all there is in {name}: {load}");
        outer.push(std::mem::replace(&mut cgroup, inner));
    }
    ensure!(fallback_pages(&daemon)? == 0);
    Ok(())
}

/// As an ordinary user in the container, who sees no process of root's in `/proc`.
const AS_NOBODY: &str = "/usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups";

#[test]
fn hidden_processes_of_a_container_change_nothing() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = limited("hidepid")?;
    let mut container = shell(&daemon, &cgroup)?;
    container.say("mount -o remount,hidepid=2 /proc")?;
    let hidden = container.say(&format!("{AS_NOBODY} test -e /proc/1 || echo hidden"))?;
    ensure!(hidden == "hidden\n", "hidepid has no effect");
    for reader in ["", AS_NOBODY] {
        let shown = container.say(&format!("{reader} cat /proc/meminfo"))?;
        ensure!(kib(&shown, "MemTotal")? == LIMIT_KIB, "{shown}");
        let uptime = container.say(&format!("{reader} cat /proc/uptime"))?;
        let up: f64 = uptime.split(' ').next().context("empty")?.parse()?;
        ensure!(up < 60.0, "{uptime}");
    }
    ensure!(fallback_pages(&daemon)? == 0);
    Ok(())
}

/// The daemon's own `/proc` hides processes too. It is root, to whom nothing is hidden. Mounts of its own, because the
/// machine's `/proc` is for everybody.
#[test]
fn w06_hidden_processes_of_the_host_change_nothing() -> Result<()> {
    let directory = mount::new_directory()?;
    let cgroup = limited("hidepid-host")?;
    let (meminfo, log) = (directory.join("mnt/proc/meminfo"), directory.join("log"));
    let command_line = |command: &Command| {
        lxcfs_tests::words(std::iter::once(command.get_program()).chain(command.get_args()))
    };
    let inside = format!("'cat {0}; {AS_NOBODY} cat {0}'", meminfo.display());
    let script = format!(
        "mount -t proc -o hidepid=2 proc /proc || exit 1\n\
         {AS_NOBODY} test -e /proc/1 && exit 2\n\
         {lxcfs} 2> {log} & lxcfs=$!\n\
         until grep -q 'serving at' {log}; do kill -0 $lxcfs || exit 3; sleep 0.05; done\n\
         {contain}; status=$?\n\
         kill $lxcfs; wait $lxcfs || exit 4; exit $status",
        lxcfs = command_line(&mount::command(&directory)),
        contain = command_line(&Container::new(&cgroup).command(&["/bin/sh", "-c", &inside])),
        log = log.display(),
    );
    let output = Command::new("unshare").args(["--mount", "/bin/sh", "-c", &script]).output()?;
    let log = fs::read_to_string(log).unwrap_or_default();
    fs::remove_dir_all(&directory)?;
    let shown = String::from_utf8(output.stdout)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {shown}{stderr}{log}", output.status);
    let total = format!("MemTotal:{LIMIT_KIB:>15} kB\n");
    ensure!(shown.matches(&total).count() == 2, "{shown}");
    ensure!(!log.contains("host values are served"), "{log}");
    Ok(())
}

/// The root of a user namespace who was given a cgroup makes cgroups in it, as rootless podman and systemd do.
#[test]
fn a_delegated_cgroup_is_its_users_container() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = limited("delegated")?;
    cgroup.give_to(100_000)?;
    let mut container =
        Container::new(&cgroup).files(&daemon.mount_point()).in_user_namespace().shell()?;
    let point = daemon.directory().join("cgroup");
    fs::create_dir(&point)?;
    let point = point.display();
    let said = container.say(&format!(
        "mount -t cgroup2 cgroup2 {point} && mkdir {point}/inner &&\n\
         echo $$ > {point}/inner/cgroup.procs && cat /proc/self/cgroup"
    ))?;
    ensure!(said.contains("0::/inner\n"), "{said}");
    ensure!(total_kib(&mut container)? == LIMIT_KIB);
    let mut own_kib = LIMIT_KIB;
    if cgroup.is_pure_v2() {
        own_kib = LIMIT_KIB / 2;
        let said = container.say(&format!(
            "echo +memory > {point}/cgroup.subtree_control &&\n\
             echo {own_kib}K > {point}/inner/memory.max && echo limited"
        ))?;
        ensure!(said == "limited\n", "{said}");
    }
    ensure!(total_kib(&mut container)? == LIMIT_KIB, "a limit inside is not the container's");
    let own = container.say("/usr/bin/unshare -C cat /proc/meminfo")?;
    ensure!(kib(&own, "MemTotal")? == own_kib, "{own}");
    ensure!(fallback_pages(&daemon)? == 0);
    Ok(())
}

/// A page that was begun stays what it was; the next one is that of the cgroup the container is in now.
#[test]
fn ask_187_a_cgroup_removed_under_a_reader() -> Result<()> {
    let daemon = Daemon::start()?;
    let (first, second) = (limited("first")?, Cgroup::new("second")?);
    second.limit_memory(LIMIT_KIB << 9)?;
    let mut container = shell(&daemon, &first)?;
    let begun = container.say("exec 3< /proc/meminfo; dd bs=20 count=1 <&3 2> /dev/null; echo")?;
    first.empty_into(&second);
    let rest = container.say("cat <&3")?;
    let page = format!("{}{rest}", begun.trim_end_matches('\n'));
    ensure!(kib(&page, "MemTotal")? == LIMIT_KIB, "{page}");
    let fresh = container.say("cat /proc/meminfo")?;
    ensure!(kib(&fresh, "MemTotal")? == LIMIT_KIB / 2, "{fresh}");
    let names = |text: &str| {
        text.lines().map(|l| l.split(':').next().map(str::to_owned)).collect::<Vec<_>>()
    };
    ensure!(names(&page) == names(&fresh), "halves of two pages: {page}");
    ensure!(fallback_pages(&daemon)? == 0);
    // In no cgroup of its own it has the host's numbers, and that is counted.
    add_to_root(container.init())?;
    let third = Cgroup::new("third")?;
    second.empty_into(&third);
    let host = kib(&fs::read_to_string("/proc/meminfo")?, "MemTotal")?;
    ensure!(total_kib(&mut container)? == host);
    ensure!(fallback_pages(&daemon)? == 1);
    Ok(())
}

/// Cgroups come and go under a reader that never stops: each page is one of theirs, and none is empty.
#[test]
fn a_reader_whose_cgroups_are_removed_again_and_again() -> Result<()> {
    let daemon = Daemon::start()?;
    let mut cgroup = limited("again")?;
    let mut container = shell(&daemon, &cgroup)?;
    let out = daemon.directory().join("out");
    container.say(&format!(
        "(while :; do echo begin; head -1 /proc/meminfo; done) > {} 2>&1 &",
        out.display()
    ))?;
    let mut mib = 128;
    for _ in 0..12 {
        mib = if mib == 128 { 64 } else { 128 };
        let next = Cgroup::new("again")?;
        next.limit_memory(mib << 20)?;
        std::mem::replace(&mut cgroup, next).empty_into(&cgroup);
        lxcfs_tests::wait_for("a page of the next cgroup", || {
            let text = fs::read_to_string(&out).unwrap_or_default();
            text.lines().last().is_some_and(|line| line.ends_with(&format!(" {} kB", mib << 10)))
        });
    }
    let text = fs::read_to_string(&out)?;
    let pages: Vec<_> = text.split("begin\n").skip(1).collect();
    ensure!(pages.len() > 12, "the reader was not seen at work: {text}");
    let (_, whole) = pages.split_last().context("no page")?;
    let host = kib(&fs::read_to_string("/proc/meminfo")?, "MemTotal")?;
    let mut from_host = 0;
    for page in whole {
        let total = kib(page, "MemTotal")?;
        ensure!([65_536, 131_072, host].contains(&total), "{page}");
        from_host += u64::from(total == host);
    }
    ensure!(fallback_pages(&daemon)? >= from_host, "{from_host} pages were the host's");
    Ok(())
}
