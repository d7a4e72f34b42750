//! Tasks, moves, forks and removals: each is counted where it belongs, at once.

use std::fs;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use lxcfs::bpf::{Accounting, Options};
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::wait_for;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{accounting, cpus, directory, id, load, settle_moves, slot, total, turn};

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
            to.add(burden.pid()).expect("move a process");
        }
        settle_moves();
        let (now, before) = (load(to), load(from));
        assert_eq!((now.nr_running, now.nr_tasks), (2, 16), "move {nth}");
        assert_eq!((before.nr_running, before.nr_tasks), (0, 0), "move {nth}");
    }
}

#[test]
fn w18_ask_654_every_fork_is_counted() {
    let _turn = turn();
    let cgroup = Cgroup::new("forks").expect("make a cgroup");
    let mut burden = Burden::start("fork", 500, &cgroup);
    burden.ready();
    let load = load(&cgroup);
    assert_eq!(load.forks, 500);
    assert!(load.switches >= 500, "each child was switched away from: {}", load.switches);
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
fn without_slots_tasks_are_in_nobodys_numbers() {
    let _turn = turn();
    // One slot, and the root cgroup or this test's own is in it.
    let small = Accounting::load(&Options { slots: 2 }).expect("load with one slot");
    let cgroup = Cgroup::new("crowded").expect("make a cgroup");
    let mut burden = Burden::start("spin", 1, &cgroup);
    burden.ready();
    thread::sleep(Duration::from_millis(100));
    assert!(small.slot_of(id(&cgroup)).is_none());
    let pid = Pid::from_raw(i32::try_from(burden.pid()).expect("a pid")).expect("not 0");
    let fd = pidfd_open(pid, PidfdFlags::empty()).expect("the process lives");
    let task = small.task(fd.as_fd()).expect("look it up").expect("it is known");
    assert_eq!((task.cgroup_id, task.running), (0, true));
    assert!(small.counters().no_slot > 0 && small.slots_used() == 1);
    small.maintain().expect("maintain");
    // The other programs of this process, with slots to spare, count it all the same.
    assert_eq!(load(&cgroup).nr_running, 1);
}
