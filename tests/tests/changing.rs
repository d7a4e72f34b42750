//! What is read while the machine changes under the reader: swap, disks and CPUs that come and go. Every page is whole.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::Container;
use lxcfs_tests::machine::{Setting, Swap};
use lxcfs_tests::mount::Daemon;

/// How often each of them goes and comes back, at least, and how many readings of everything there are meanwhile.
const ROUNDS: u64 = 5;

/// Reads everything until the file `stop` is there; a line for each time, or what was wrong first.
const READER: &str = r#"
import errno, os, sys
stop, last, before = sys.argv[1], {}, None

def wrong(path, page):
    sys.exit('wrong: %s: %.500s; before: %s' % (path, page, before))

def grows(name, numbers):
    global before
    before = last.get(name, numbers)
    last[name] = numbers
    return all(old <= new for old, new in zip(before, numbers))

def stat(page):
    lines = page.splitlines()
    rows = [line.split() for line in lines if line.startswith('cpu')]
    whole = all(len(row) == 11 for row in rows) and 2 <= len(rows) <= 3
    return whole and rows[0][0] == 'cpu' and lines[-1].startswith('softirq ') and \
        grows('stat', [int(number) for number in rows[0][1:]])

def cpuinfo(page):
    stanzas = page.strip().split('\n\n')
    return 1 <= len(stanzas) <= 2 and all(stanza.count('processor') == 1 for stanza in stanzas)

def meminfo(page):
    return page.startswith('MemTotal:') and all(len(line.split()) in (2, 3) for line in page.splitlines())

def even(page):
    return len({len(line.split()) for line in page.splitlines()}) <= 1 and page[-1:] in ('', '\n')

checks = {
    '/proc/stat': stat,
    '/proc/cpuinfo': cpuinfo,
    '/proc/meminfo': meminfo,
    '/proc/uptime': lambda page: grows('uptime', [float(word) for word in page.split()]) and len(page.split()) == 2,
    '/proc/loadavg': lambda page: len(page.split()) == 5,
    '/proc/diskstats': even,
    '/proc/swaps': lambda page: page.startswith('Filename') and even(page),
    '/sys/devices/system/cpu/online': lambda page: page in ('0\n', '1\n', '0-1\n'),
    '/sys/devices/system/cpu/possible': lambda page: page in ('0\n', '1\n', '0-1\n'),
}
while not os.path.exists(stop):
    for path, is_right in checks.items():
        page = open(path).read()
        if not is_right(page):
            wrong(path, page)
    # A CPU may be gone between its name and its file, and nothing else may go wrong.
    for name in os.listdir('/sys/devices/system/cpu'):
        try:
            if name[3:].isdigit():
                open('/sys/devices/system/cpu/%s/topology/core_id' % name).read()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                wrong(name, error)
    print('whole', flush=True)
print('end')
"#;

#[test]
fn every_page_is_whole_while_swap_disks_and_cpus_come_and_go() -> Result<()> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("changing")?;
    cgroup.limit_cpus("0-1")?;
    cgroup.limit_memory(256 << 20)?;
    let mut container = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
    let path = |name: &str| daemon.directory().join(name);
    fs::write(path("reader.py"), READER)?;
    let (reader, stop) = (path("reader.py"), path("stop"));
    let start = |said: &Path| {
        format!("python3 {} {} > {} 2>&1 &", reader.display(), stop.display(), said.display())
    };
    let readers = ["first", "second"].map(path);
    for said in &readers {
        container.say(&start(said))?;
    }
    let whole = |said: &PathBuf| {
        let said = fs::read_to_string(said).unwrap_or_default();
        said.matches("whole\n").count() as u64
    };
    lxcfs_tests::wait_for("the readers to begin", || readers.iter().all(|said| whole(said) > 0));
    let start = readers.each_ref().map(whole);
    let mut rounds = 0;
    while rounds < ROUNDS
        || readers.iter().zip(&start).any(|(said, start)| whole(said) < start + ROUNDS)
    {
        // A device and a line of swap more, and less.
        let swap = Swap::on_zram(16)?;
        if cgroup.is_pure_v2() {
            drop(Setting::set("/sys/devices/system/cpu/cpu1/online", "0")?);
        } else {
            // With v1 cpusets an unplugged CPU would be gone for good from every cpuset of this machine.
            cgroup.limit_cpus("0")?;
            cgroup.limit_cpus("0-1")?;
        }
        drop(swap);
        rounds += 1;
        let all = readers.each_ref().map(fs::read_to_string);
        let mut lines = all.iter().flatten().flat_map(|said| said.lines());
        ensure!(lines.all(|line| line == "whole"), "{all:?}");
    }
    fs::write(&stop, "")?;
    for said in &readers {
        lxcfs_tests::wait_for("the reader to end", || {
            fs::read_to_string(said).is_ok_and(|said| !said.ends_with("whole\n"))
        });
        let said = fs::read_to_string(said)?;
        ensure!(said.ends_with("whole\nend\n"), "{said}");
    }
    // And none was the host's for want of the container's own.
    let status = daemon.run(&["status", "--json", &daemon.mount_point().display().to_string()])?;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    let fallbacks = status["fallbacks"].as_array().context("no list of fallbacks")?;
    ensure!(fallbacks.is_empty(), "{fallbacks:?}");
    Ok(())
}
