//! What runtimes of languages and hwloc take a container for: they count CPUs each in their own way.

use anyhow::{Context, Result, ensure};
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::Container;
use lxcfs_tests::mount::Daemon;

/// Prints the processors the JVM counts, and its default for the largest heap, bytes.
const JAVA: &str = "public class Main { public static void main(String[] a) { Runtime r = Runtime.getRuntime(); \
     System.out.println(r.availableProcessors() + \" \" + r.maxMemory()); } }";

/// 256 MiB and the second CPU alone, under the view that keeps its number.
fn limited() -> Result<(Daemon, Cgroup, Container)> {
    let daemon = Daemon::start()?;
    let cgroup = Cgroup::new("languages")?;
    cgroup.limit_memory(256 << 20)?;
    cgroup.limit_cpus("1")?;
    let container = Container::new(&cgroup).files(&daemon.mount_point());
    Ok((daemon, cgroup, container))
}

/// The JVM counts the CPUs it may run on; the size of its heap comes from sysinfo(2), no file of ours.
#[test]
fn a_jvm_counts_the_cpus() -> Result<()> {
    let (daemon, _cgroup, container) = limited()?;
    let source = daemon.directory().join("Main.java");
    std::fs::write(&source, JAVA)?;
    let text = container.sh(&format!("java -Xshare:auto -Xmx64m {}", source.display()))?;
    ensure!(text.starts_with("1 "), "{text}");
    Ok(())
}

#[test]
fn node_counts_the_cpus_and_the_memory() -> Result<()> {
    let (_daemon, _cgroup, container) = limited()?;
    let text = container.sh("node -e 'const os = require(\"os\"); \
         console.log(os.cpus().length, os.availableParallelism(), os.totalmem() >> 20)'")?;
    ensure!(text == "1 1 256\n", "{text}");
    Ok(())
}

#[test]
fn hwloc_draws_the_one_cpu_in_its_package_and_node() -> Result<()> {
    let (_daemon, _cgroup, container) = limited()?;
    let text = container.sh("lstopo-no-graphics --no-io --of console")?;
    ensure!(text.matches("PU L#").count() == 1 && text.contains("(P#1)"), "{text}");
    ensure!(text.starts_with("Machine (256MB total)"), "{text}");
    // Also with all that the files say, and not what this process may run on.
    let all = container.sh("lstopo-no-graphics --no-io --disallowed --of console")?;
    ensure!(all.matches("PU L#").count() == 1, "{all}");
    Ok(())
}

#[test]
fn numactl_shows_the_node_of_the_container() -> Result<()> {
    let (_daemon, _cgroup, container) = limited()?;
    let text = container.sh("numactl --hardware")?;
    let sizes = text.lines().filter(|line| line.contains(" size: "));
    let sizes: Vec<u64> = sizes
        .map(|line| line.split(' ').nth(3).context("no size")?.parse().context("no number"))
        .collect::<Result<_>>()?;
    ensure!(sizes.iter().sum::<u64>() == 256, "{text}");
    ensure!(text.contains(" cpus: 1\n"), "{text}");
    Ok(())
}
