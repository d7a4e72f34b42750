//! CPU time against the kernel's own counters of the cgroup.

use std::thread;
use std::time::Duration;

use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::{patience, wait_for};

use super::{accounting, cpus, load, total, turn};

/// What the kernel says a cgroup has used: total, and user and system by tick per CPU where it says that.
fn kernel_times(cgroup: &Cgroup) -> (u64, Option<Vec<(u64, u64)>>) {
    if cgroup.is_pure_v2() {
        let text = cgroup.read("cpu", "", "cpu.stat").expect("read cpu.stat");
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        return (usage.expect("a usage").parse::<u64>().expect("a number") * 1_000, None);
    }
    let number = |text: &str| text.trim().parse::<u64>().expect("a number");
    let usage = number(&cgroup.read("cpuacct", "cpuacct.usage", "").expect("read the usage"));
    let all = cgroup.read("cpuacct", "cpuacct.usage_all", "").expect("read the usage");
    let cpus = all.lines().skip(1).map(|line| {
        let mut words = line.split(' ').skip(1).map(number);
        (words.next().expect("user"), words.next().expect("system"))
    });
    (usage, Some(cpus.collect()))
}

#[test]
fn cpu_time_is_the_kernels() {
    let _turn = turn();
    let cgroup = Cgroup::new("time").expect("make a cgroup");
    let burden = Burden::start("spin", 2, &cgroup);
    let mut storm = Burden::start("storm", 2, &cgroup);
    storm.ready();
    drop(burden);
    drop(storm);
    wait_for("the cgroup to be empty", || load(&cgroup).nr_tasks == 0);
    let ours = cpus(&cgroup);
    let (usage_ns, by_cpu) = kernel_times(&cgroup);
    let jiffy_ns = accounting().clock().jiffy_ns;
    let near = |ours: u64, kernel: u64, what: &str| {
        let allowed = jiffy_ns + kernel / 1_000;
        let counters = accounting().counters();
        assert!(
            ours.abs_diff(kernel) <= allowed,
            "{what}: {ours} ns, the kernel says {kernel}: {counters:?}"
        );
    };
    assert!(usage_ns > 200_000_000, "it ran, others willing, for two seconds: {usage_ns}");
    near(total(&ours), usage_ns, "all CPUs");
    let mut compared = 0;
    for (cpu, (user_ns, system_ns)) in by_cpu.into_iter().flatten().enumerate() {
        near(ours[cpu].user_ns + ours[cpu].nice_ns, user_ns, &format!("user on CPU {cpu}"));
        near(ours[cpu].system_ns, system_ns, &format!("system on CPU {cpu}"));
        compared += 1;
    }
    assert_eq!(compared, if cgroup.is_pure_v2() { 0 } else { ours.len() });
}

#[test]
fn a_task_that_never_switches_is_seen_to_run() {
    let _turn = turn();
    let cgroup = Cgroup::new("live").expect("make a cgroup");
    let _burden = Burden::start("spin", 1, &cgroup);
    let jiffy_ns = accounting().clock().jiffy_ns;
    thread::sleep(patience(Duration::from_millis(200)));
    let mut last = 0;
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(50));
        let before = kernel_times(&cgroup).0;
        let ours = total(&cpus(&cgroup));
        let after = kernel_times(&cgroup).0;
        // The kernel brings its own number up at ticks and switches; reading it on v2 does so too.
        let allowed = 2 * jiffy_ns + after / 1_000;
        assert!(ours + allowed >= before, "{ours}, the kernel had {before} before");
        assert!(ours <= after + allowed, "{ours}, the kernel has {after} after");
        assert!(ours >= last, "{ours} after {last}");
        last = ours;
    }
    assert!(last > 100_000_000, "it ran for a second: {last}");
}
