//! What is shown from the first read on: of a young container, and of one that is older than the daemon.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::Container;
use lxcfs_tests::mount::Daemon;
use lxcfs_tests::wait_for;

use super::{directory, load, settle_moves, turn};

#[test]
fn a_young_container_has_its_own_load_from_zero_on() -> Result<()> {
    let _turn = turn();
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let cgroup = Cgroup::new("young")?;
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    let first = container.say("while :; do :; done & while :; do :; done & cat /proc/loadavg")?;
    let one_minute = |text: &str| text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
    // At most three tasks at one sample, should it fall before the first read.
    ensure!(one_minute(&first).is_some_and(|load| load <= 0.24), "{first}");
    let mut seen = vec![one_minute(&first)];
    // Two tasks at least at each sample: 0.16, 0.31 and so on.
    for expected in [0.16, 0.31] {
        wait_for("the next sample", || {
            let now = container.say("cat /proc/loadavg").expect("a container that lives");
            seen.push(one_minute(&now));
            thread::sleep(Duration::from_millis(200));
            one_minute(&now).is_some_and(|now| now >= expected)
        });
    }
    ensure!(seen.is_sorted(), "it rises: {seen:?}");
    Ok(())
}

#[test]
fn a_daemon_started_late_knows_the_run_queue_at_once() -> Result<()> {
    let _turn = turn();
    let cgroup = Cgroup::new("late")?;
    let container = Container::new(&cgroup).shell()?;
    let init = container.init();
    let mut burdens = [("nice", 2), ("vfork", 1), ("sleep", 3)]
        .map(|(kind, number)| Burden::start(kind, number, &cgroup));
    burdens.iter_mut().for_each(Burden::ready);
    settle_moves();
    wait_for("the burdens to stand", || {
        let load = load(&cgroup);
        (load.nr_running, load.nr_uninterruptible, load.nr_tasks) == (2, 1, 9)
    });
    let daemon = Daemon::with(&["--accounting", "auto"])?;
    let text = daemon.page_as(init, "loadavg")?;
    ensure!(text.split(' ').nth(3) == Some("2/9"), "two of nine threads run: {text}");
    let stat = daemon.page_as(init, "stat")?;
    ensure!(stat.contains("\nprocs_running 2\nprocs_blocked 0\n"), "vfork is no I/O: {stat}");
    let threads = fs::read_to_string(directory(&cgroup).join("cgroup.procs"))?;
    ensure!(threads.lines().count() == 6, "init, three burdens, and a pair in vfork: {threads}");
    Ok(())
}
