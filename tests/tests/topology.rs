//! One topology: every way of counting CPUs comes to the same, in every view, and what a container is not shown is not
//! there for it, whatever other containers look at through the same mount.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::kib;
use lxcfs_tests::mount::Daemon;

/// Prints the CPUs as each source has them: a name and a list or a count on each line.
const COUNTS: &str = r#"
cd /sys/devices/system/cpu
for file in online possible present; do echo "list $(cat $file)"; done
echo "list $(cat ../node/node*/cpulist 2>/dev/null || cat online)"
echo "list $(ls -d cpu[0-9]* | sed s/cpu// | sort -n | paste -sd,)"
echo "list $(cd ../node/node0 2>/dev/null || cd . && ls -d cpu[0-9]* | sed s/cpu// | sort -n | paste -sd,)"
echo "list $(sed -n 's/^cpu\([0-9]\+\) .*/\1/p' /proc/stat | paste -sd,)"
echo "list $(sed -n 's/^processor[^0-9]*//p' /proc/cpuinfo | paste -sd,)"
echo "list $(lscpu -p=CPU | grep -v '#' | paste -sd,)"
echo "list $(cat cpu*/topology/package_cpus_list | sort -un | paste -sd,)"
echo "count $(getconf _NPROCESSORS_CONF)"
echo "count $(getconf _NPROCESSORS_ONLN)"
echo "count $(python3 -c 'import os; print(os.cpu_count())')"
echo "offline $(cat offline)"
"#;

/// 64 MiB and these CPUs.
fn limited(name: &str, cpus: &str) -> Result<Cgroup> {
    let cgroup = Cgroup::new(name)?;
    cgroup.limit_cpus(cpus)?;
    cgroup.limit_memory(64 << 20)?;
    Ok(cgroup)
}

fn shell(daemon: &Daemon, cgroup: &Cgroup) -> Result<Running> {
    Container::new(cgroup).files(&daemon.mount_point()).shell()
}

#[test]
fn w28_ask_731_every_way_of_counting_cpus_agrees() -> Result<()> {
    for (view, cpus, list) in [
        ("cpuset", "1", "1"),
        ("cpuset", "0-1", "0-1"),
        ("quota", "0-1", "0"),
        ("host", "1", "0-1"),
    ] {
        let daemon = Daemon::with(&["--cpu-view", view])?;
        let cgroup = limited("counts", cpus)?;
        cgroup.limit_cpu(50_000, 100_000)?;
        let container = Container::new(&cgroup).files(&daemon.mount_point());
        let text = container.sh(COUNTS)?;
        let count = if list == "0-1" { "2" } else { "1" };
        let long = list.replace('-', ",");
        let mut lines = 0;
        for (what, said) in text.lines().filter_map(|line| line.split_once(' ')) {
            let agrees = match what {
                "list" => said == list || said == long,
                "count" => said == count,
                _ => said.is_empty(),
            };
            ensure!(agrees, "{view} of {cpus}: {text}");
            lines += 1;
        }
        ensure!(lines == COUNTS.matches("echo").count() + 2, "{text}");
        // Where one CPU is configured, nproc takes it for a missing file and counts those it may run on.
        if view != "quota" {
            ensure!(container.sh("nproc --all")?.trim() == count, "{view} of {cpus}");
        }
    }
    Ok(())
}

/// Two containers with a CPU each, in turn: what the kernel remembers of the one's names is no answer for the other.
#[test]
fn a_cpu_of_another_container_is_not_there() -> Result<()> {
    let daemon = Daemon::start()?;
    let (first, second) = (limited("first", "0")?, limited("second", "1")?);
    let mut containers = [shell(&daemon, &first)?, shell(&daemon, &second)?];
    let ways = "cd /sys/devices/system/cpu; for way in 'test -e D' 'stat -t D' 'ls D' 'test -x D' 'cat D/topology/core_id' \
         'stat -t D/topology/core_id' 'ls D/topology' 'test -r D/topology/core_id' 'readlink D/subsystem' '(cd D)' \
         'cat D/cache/index0/shared_cpu_map' 'ls ../node/node0/D/'";
    // Not every machine has everything: what the host can do tells which ways there are.
    let each = |cpu: u32| {
        format!(
            "{ways}; do echo $(eval \"$(echo \"$way\" | sed s/D/cpu{cpu}/g)\" > /dev/null 2>&1 && echo 1 || echo 0); \
             done | paste -sd' '"
        )
    };
    let host = [0, 1].map(|cpu| Container::without_cgroup().sh(&each(cpu)));
    for _ in 0..3 {
        for (own, container) in containers.iter_mut().enumerate() {
            for (cpu, host) in host.iter().enumerate() {
                let host = host.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
                let want =
                    if cpu == own { host.trim().to_owned() } else { host.trim().replace('1', "0") };
                let said = container.say(&each(u32::try_from(cpu)?))?;
                ensure!(said.trim() == want, "cpu{cpu} for the owner of {own}: {said} {want}");
            }
        }
    }
    ensure!(host[0].as_ref().is_ok_and(|ways| ways.starts_with("1 1 1 1 1 1 1 1 1 1")));
    Ok(())
}

/// A file that was opened while its CPU was shown is gone with it, as in sysfs: the reader gets no number of the host's,
/// and is not taken for another container's, whose times begin anew.
#[test]
fn a_cpu_that_goes_takes_its_open_files_and_no_time_with_it() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = limited("goes", "0-1")?;
    let mut container = shell(&daemon, &cgroup)?;
    let times = |container: &mut Running| -> Result<Vec<u64>> {
        let row = container.say("head -n 1 /proc/stat")?;
        row.split_whitespace().skip(1).map(|word| word.parse().context("no number")).collect()
    };
    container.say("exec 3< /sys/devices/system/cpu/cpu1/topology/core_id")?;
    container.say("i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; sleep 1")?;
    let before = times(&mut container)?;
    cgroup.limit_cpus("0")?;
    let said = container.say("python3 -c 'import os; os.read(3, 9)' 2>&1")?;
    ensure!(said.contains("No such device"), "{said}");
    let after = times(&mut container)?;
    ensure!(before.iter().zip(&after).all(|(old, new)| old <= new), "{before:?} {after:?}");
    let status = daemon.run(&["status", "--json", &daemon.mount_point().display().to_string()])?;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    let fallbacks = status["fallbacks"].as_array().context("no list of fallbacks")?;
    ensure!(fallbacks.is_empty(), "{fallbacks:?}");
    Ok(())
}

/// Nothing in the trees can be written to, or read by root alone, or names a CPU that is not shown.
#[test]
fn nothing_in_the_trees_is_writable_or_of_another_cpu() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = limited("trees", "1")?;
    let mut container = shell(&daemon, &cgroup)?;
    let files = container.say(
        "cd /sys/devices/system; find cpu node -type f -printf '%m %p\\n' 2>&1; \
         find cpu node -type d -name 'cpu[0-9]*' -printf 'dir %p\\n'; find cpu node -type l -printf 'link %p\\n'",
    )?;
    let mut names = BTreeSet::new();
    for (mode, path) in files.lines().filter_map(|line| line.split_once(' ')) {
        ensure!(["444", "dir", "link"].contains(&mode), "{path} has mode {mode}");
        ensure!(path.split('/').all(|part| part != "cpu0"), "{path}");
        names.insert(path);
    }
    ensure!(names.contains("cpu/cpu1/topology/core_cpus_list"), "{names:#?}");
    let lists = container.say("cd /sys/devices/system; cat cpu/cpu1/*/*_list cpu/cpu1/cache/*/*_list node/node*/cpulist 2>/dev/null")?;
    ensure!(lists.lines().count() > 3 && lists.lines().all(|list| list == "1"), "{lists}");
    let read = container
        .say("cd /sys/devices/system; cat $(find cpu node -type f) > /dev/null && echo all")?;
    ensure!(read == "all\n", "{read}");
    ensure!(
        container.say("readlink /sys/devices/system/cpu/cpu1/subsystem")?
            == "../../../../bus/cpu\n"
    );
    Ok(())
}

/// The nodes together have the memory that meminfo has.
#[test]
fn ask_542_the_memory_nodes_are_the_containers() -> Result<()> {
    // Every kernel of Debian's has nodes, also on a machine with one.
    ensure!(fs::exists("/sys/devices/system/node/node0")?, "no memory nodes on this machine");
    let daemon = Daemon::start()?;
    let cgroup = limited("nodes", "1")?;
    let mut container = shell(&daemon, &cgroup)?;
    container.hold(20)?;
    let text = container.say("cat /sys/devices/system/node/node*/meminfo")?;
    let numbers = |name: &str| -> Result<u64> {
        let lines: Vec<_> = text.lines().filter_map(|line| line.splitn(3, ' ').nth(2)).collect();
        let own = lines.iter().filter(|line| line.starts_with(name)).map(|line| kib(line, name));
        own.sum::<Result<u64>>().context("sum over the nodes")
    };
    let total = numbers("MemTotal")?;
    ensure!(total.abs_diff(64 << 10) <= 8, "{text}");
    let (free, used) = (numbers("MemFree")?, numbers("MemUsed")?);
    ensure!(free + used == total && used > 20 << 10 && used < 50 << 10, "{text}");
    ensure!(numbers("AnonPages")? > 20 << 10, "{text}");
    let names: BTreeSet<_> = text.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    ensure!(!names.contains("Mlocked:") && !names.contains("HugePages_Total:"), "{names:?}");
    Ok(())
}
