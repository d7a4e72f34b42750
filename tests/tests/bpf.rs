//! The eBPF accounting on this kernel: what it counts against closed forms and against the kernel's own numbers.
//!
//! Everything is asserted on cgroups of the test's own: elsewhere tasks come and go.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lxcfs::bpf::{Accounting, CpuSample, LoadSample, Options, Slot, clock};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::{patience, wait_for};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Loaded once for all tests; the programs go with the process.
fn accounting() -> &'static Accounting {
    static LOADED: OnceLock<Accounting> = OnceLock::new();
    LOADED.get_or_init(|| match Accounting::load(&Options::default()) {
        Ok(accounting) => accounting,
        Err(error) => panic!("{error}: {error:?}"),
    })
}

/// The programs are loaded, and no other test burdens the CPUs.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    accounting();
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The directory of a cgroup in the hierarchy that is counted.
fn directory(cgroup: &Cgroup) -> PathBuf {
    let root = Accounting::plan().expect("a plan for this kernel").root;
    root.join(cgroup.path().trim_start_matches('/'))
}

fn id(cgroup: &Cgroup) -> u64 {
    fs::metadata(directory(cgroup)).expect("the cgroup is there").ino()
}

fn slot(cgroup: &Cgroup) -> Slot {
    accounting().slot_of(id(cgroup)).expect("the cgroup has had a task")
}

fn load(cgroup: &Cgroup) -> LoadSample {
    accounting().load_under(slot(cgroup)).expect("the cgroup is there")
}

/// A burden that stands in a cgroup. Dropping it kills its processes.
struct Burden(Child);

impl Burden {
    fn start(kind: &str, number: u32, cgroup: &Cgroup) -> Self {
        let mut burden = Self::waiting(kind, number, cgroup);
        burden.go();
        burden
    }

    /// In its cgroup, but not yet begun.
    fn waiting(kind: &str, number: u32, cgroup: &Cgroup) -> Self {
        let mut command = Command::new(lxcfs_tests::program("burden"));
        command.args([kind, &number.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().expect("start burden: is it built?");
        cgroup.add(child.id()).expect("move a process");
        Self(child)
    }

    fn go(&mut self) {
        self.0.stdin.as_mut().expect("piped").write_all(b"\n").expect("start the burden");
    }

    /// Waits until it says that it stands.
    fn ready(&mut self) {
        let mut line = [0; 6];
        self.0.stdout.as_mut().expect("piped").read_exact(&mut line).expect("a burden that stands");
    }
}

impl Drop for Burden {
    fn drop(&mut self) {
        self.0.kill().expect("kill a child");
        self.0.wait().expect("wait for a child");
    }
}

/// Where threads cannot be walked in the kernel, the daemon is told to count again.
fn settle_moves() {
    if Accounting::plan().expect("a plan").walk.is_none() {
        accounting().maintain().expect("maintain");
    }
}

/// Samples of the load so far in the kernel's series, and the load of a cgroup after that many.
fn load_at_tick(cgroup: &Cgroup) -> (u64, LoadSample) {
    let clock = accounting().clock();
    let tick = || clock.next_tick(clock.jiffies_at(clock::monotonic_ns())) / clock.tick_jiffies;
    loop {
        let before = tick();
        let load = load(cgroup);
        if tick() == before {
            return (before, load);
        }
    }
}

/// What is left of an average after some ticks with nothing to count, for 1, 5 and 15 minutes.
#[expect(clippy::float_arithmetic, reason = "the exact result to compare with")]
fn kept(ticks: u64) -> [f64; 3] {
    [1884.0, 2014.0, 2037.0].map(|e: f64| (e / 2048.0).powi(i32::try_from(ticks).expect("few")))
}

#[expect(clippy::float_arithmetic, reason = "to compare with exact results")]
fn as_floats(load: &LoadSample) -> [f64; 3] {
    load.average.map(|average| average as f64 / (1u64 << 32) as f64)
}

#[test]
fn averages_follow_the_closed_form_at_every_tick() {
    const TICKS: u64 = 6;
    let _turn = turn();
    let top = Cgroup::new("ticks").expect("make a cgroup");
    let leaf = ["a", "b", "c"].iter().fold(None, |above: Option<Cgroup>, name| {
        Some(above.as_ref().unwrap_or(&top).leaf(name).expect("make a leaf"))
    });
    let leaf = leaf.expect("three levels");
    let mut blocked = Burden::start("vfork", 1, &leaf);
    let _spinning = Burden::start("spin", 3, &leaf);
    blocked.ready();
    let standing = |load: &LoadSample| (load.nr_running, load.nr_uninterruptible) == (3, 1);
    wait_for("the burden to stand", || standing(&load(&top)));
    let (start, first) = load_at_tick(&top);
    let base = as_floats(&first);
    assert!(standing(&first) && base[0] < 2.0, "the burden has just begun: {first:?}");
    let (mut ticks, mut compared) = (0, 0);
    while ticks < TICKS {
        let (tick, now) = load_at_tick(&top);
        if tick - start == ticks {
            thread::sleep(Duration::from_millis(50));
            continue;
        }
        ticks = tick - start;
        assert!(standing(&now), "{now:?}");
        for ((ours, kept), base) in as_floats(&now).into_iter().zip(kept(ticks)).zip(base) {
            let expected = 4.0 + (base - 4.0) * kept;
            assert!((ours - expected).abs() < 1e-6, "tick {ticks}: {ours}, expected {expected}");
            compared += 1;
        }
        for (printed, exact) in now.avenrun().into_iter().zip(as_floats(&now)) {
            assert!((printed as f64 / 2048.0 - exact).abs() < 0.001, "{printed}, {exact}");
        }
    }
    assert!(compared >= 3 && compared % 3 == 0, "{compared}");
    let own = accounting().slot_of(id(&top)).and_then(|slot| accounting().load_of(slot));
    assert!(own.is_none_or(|own| own.average == [0; 3]), "the load is the leaf's own");
}

#[test]
fn a_moved_process_counts_at_once_with_all_its_threads() {
    let _turn = turn();
    let here = Cgroup::new("from").expect("make a cgroup");
    let there = Cgroup::new("to").expect("make a cgroup");
    let mut sleeping = Burden::start("sleep", 14, &here);
    let mut spinning = Burden::start("spin", 2, &here);
    sleeping.ready();
    spinning.ready();
    wait_for("two threads to run and fourteen to sleep", || {
        let load = load(&here);
        (load.nr_running, load.nr_tasks) == (2, 16)
    });
    for nth in 0..10 {
        let (to, from) = if nth % 2 == 0 { (&there, &here) } else { (&here, &there) };
        for burden in [&sleeping, &spinning] {
            to.add(burden.0.id()).expect("move a process");
        }
        settle_moves();
        let (now, before) = (load(to), load(from));
        assert_eq!((now.nr_running, now.nr_tasks), (2, 16), "move {nth}");
        assert_eq!((before.nr_running, before.nr_tasks), (0, 0), "move {nth}");
    }
}

#[test]
fn every_fork_is_counted() {
    let _turn = turn();
    let cgroup = Cgroup::new("forks").expect("make a cgroup");
    let mut burden = Burden::start("fork", 500, &cgroup);
    burden.ready();
    let load = load(&cgroup);
    assert_eq!(load.forks, 500);
    assert!(load.switches >= 500, "each child was switched away from: {}", load.switches);
}

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

fn cpus(cgroup: &Cgroup) -> Vec<CpuSample> {
    accounting().cpus_under(slot(cgroup)).expect("the cgroup is there")
}

fn total(cpus: &[CpuSample]) -> u64 {
    cpus.iter().map(|cpu| cpu.run_ns).sum()
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
        assert!(ours.abs_diff(kernel) <= allowed, "{what}: {ours} ns, the kernel says {kernel}");
    };
    assert!(usage_ns > 1_000_000_000, "it ran for two seconds: {usage_ns}");
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

#[test]
fn removed_groups_give_back_their_slots_and_leave_their_numbers() {
    let _turn = turn();
    let accounting = accounting();
    let top = Cgroup::new("removed").expect("make a cgroup");
    let mut stays = Burden::start("sleep", 1, &top);
    stays.ready();
    let mut ids = Vec::new();
    for nth in 0..40 {
        let leaf = top.leaf(&format!("leaf{nth}")).expect("make a leaf");
        let mut burden = Burden::start("fork", 5, &leaf);
        burden.ready();
        ids.push(id(&leaf));
        drop(burden);
        let path = directory(&leaf);
        wait_for("the leaf to be empty", || fs::remove_dir(&path).is_ok());
    }
    assert!(ids.iter().any(|id| accounting.slot_of(*id).is_some()), "they had slots");
    let (forks, run_ns) = (load(&top).forks, total(&cpus(&top)));
    assert_eq!(forks, 40 * 5);
    wait_for("the slots to come back", || {
        accounting.maintain().expect("maintain");
        ids.iter().all(|id| accounting.slot_of(*id).is_none())
    });
    let slots = accounting.slots_under(slot(&top)).expect("the cgroup is there");
    assert_eq!(slots.len(), 1, "only the cgroup itself is left: {slots:?}");
    assert_eq!(load(&top).forks, forks);
    assert!(total(&cpus(&top)) >= run_ns, "time does not run backwards");
    assert_eq!((load(&top).nr_tasks, load(&top).nr_running), (1, 0));
}

#[test]
fn a_removed_groups_load_decays_in_its_parent() {
    let _turn = turn();
    let accounting = accounting();
    let top = Cgroup::new("decay").expect("make a cgroup");
    let mut stays = Burden::start("sleep", 1, &top);
    stays.ready();
    let leaf = top.leaf("leaf").expect("make a leaf");
    let burden = Burden::start("spin", 2, &leaf);
    wait_for("a load", || load(&top).avenrun()[0] > 0);
    let leaf_id = id(&leaf);
    drop(burden);
    let path = directory(&leaf);
    wait_for("the leaf to be empty", || fs::remove_dir(&path).is_ok());
    let (start, before) = load_at_tick(&top);
    assert!(before.average[0] > 0);
    wait_for("the slot to come back", || {
        accounting.maintain().expect("maintain");
        accounting.slot_of(leaf_id).is_none()
    });
    let mut ticks = 0;
    while ticks == 0 {
        let (tick, after) = load_at_tick(&top);
        ticks = tick - start;
        let expected = as_floats(&before).into_iter().zip(kept(ticks));
        for (ours, (base, kept)) in as_floats(&after).into_iter().zip(expected) {
            assert!((ours - base * kept).abs() < 1e-6, "tick {ticks}: {ours} of {base}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Letter of the state of each process in the cgroup.
fn states(cgroup: &Cgroup) -> Vec<(u32, String)> {
    let procs =
        fs::read_to_string(directory(cgroup).join("cgroup.procs")).expect("read the processes");
    let state = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        Some((pid, rest.get(..1)?.to_owned()))
    };
    procs.lines().filter_map(|pid| state(pid.parse().ok()?)).collect()
}

/// Compares each process of the cgroup, and the cgroup's counts; returns how many processes.
fn compare_with_proc(home: &Cgroup) -> usize {
    let accounting = accounting();
    let own = slot(home).cgroup_id();
    let states = states(home);
    for (pid, letter) in &states {
        let pid = Pid::from_raw(i32::try_from(*pid).expect("a pid")).expect("not 0");
        let fd = pidfd_open(pid, PidfdFlags::empty()).expect("the process lives");
        let task = accounting.task(fd.as_fd()).expect("look it up").expect("it is counted");
        assert_eq!(task.cgroup_id, own, "{pid:?} in {letter}");
        assert_eq!(task.running, letter == "R", "{pid:?} in {letter}: {task:?}");
        assert_eq!(task.uninterruptible, letter == "D", "{pid:?} in {letter}: {task:?}");
        assert!(task.alive && !task.iowait, "{pid:?} in {letter}: {task:?}");
    }
    let load = load(home);
    let blocked = states.iter().filter(|(_, letter)| letter == "D").count();
    assert_eq!((load.nr_running, load.nr_iowait), (0, 0), "all of them sleep");
    assert_eq!(load.nr_uninterruptible, i64::try_from(blocked).expect("few"));
    let file = if home.is_pure_v2() { "cgroup.threads" } else { "tasks" };
    let tasks = fs::read_to_string(directory(home).join(file)).expect("read the threads");
    assert_eq!(load.nr_tasks, i64::try_from(tasks.lines().count()).expect("few"));
    states.len()
}

#[test]
fn after_a_storm_every_task_is_what_the_kernel_says() {
    let _turn = turn();
    let homes = ["x", "y"].map(|name| Cgroup::new(name).expect("make a cgroup"));
    let mut burdens: Vec<_> = (0..8)
        .map(|nth| match nth % 4 {
            0 => Burden::start("vfork", 3, &homes[0]),
            1 => Burden::start("sleep", 5, &homes[1]),
            _ => Burden::start("storm", 5, &homes[nth % 2]),
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(5);
    let mut moves = 0;
    while Instant::now() < end {
        let burden = &burdens[moves % burdens.len()];
        homes[(moves / burdens.len()) % 2].add(burden.0.id()).expect("move a process");
        let passing = Cgroup::new("passing").expect("make a cgroup");
        drop(Burden::waiting("sleep", 1, &passing));
        moves += 1;
    }
    burdens.iter_mut().for_each(Burden::ready);
    settle_moves();
    thread::sleep(Duration::from_millis(300));
    let compared: usize = homes.iter().map(compare_with_proc).sum();
    assert!(compared >= 8 + 2 * 2 * 3, "eight burdens and six pairs in vfork: {compared}");
    drop(burdens);
    for home in &homes {
        wait_for("the cgroup to be empty", || {
            let load = load(home);
            (load.nr_tasks, load.nr_running, load.nr_uninterruptible) == (0, 0, 0)
        });
    }
    let counters = accounting().counters();
    assert_eq!(
        (counters.no_slot, counters.no_record, counters.unlinked),
        (0, 0, 0),
        "{counters:?}"
    );
    assert_eq!(counters.healed, 0, "{counters:?}");
}

#[test]
fn without_slots_tasks_are_in_nobodys_numbers() {
    let _turn = turn();
    // One slot, and the root cgroup or this test's own is in it.
    let small = Accounting::load(&Options { slots: 2 }).expect("load with one slot");
    let cgroup = Cgroup::new("crowded").expect("make a cgroup");
    let mut burden = Burden::start("spin", 1, &cgroup);
    burden.ready();
    thread::sleep(Duration::from_millis(100));
    assert!(small.slot_of(id(&cgroup)).is_none());
    let pid = Pid::from_raw(i32::try_from(burden.0.id()).expect("a pid")).expect("not 0");
    let fd = pidfd_open(pid, PidfdFlags::empty()).expect("the process lives");
    let task = small.task(fd.as_fd()).expect("look it up").expect("it is known");
    assert_eq!((task.cgroup_id, task.running), (0, true));
    assert!(small.counters().no_slot > 0 && small.slots_used() == 1);
    small.maintain().expect("maintain");
    // The other programs of this process, with slots to spare, count it all the same.
    assert_eq!(load(&cgroup).nr_running, 1);
}
