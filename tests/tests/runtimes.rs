//! Containers of crun, runc and LXC over our files: what programs show in them.

use std::time::Instant;

use anyhow::{Result, ensure};
use lxcfs_tests::runtime::{Ground, check, crun, lxc, runc, view};

#[test]
fn a_container_of_crun_sees_itself() -> Result<()> {
    check("crun", crun::run)
}

#[test]
fn a_container_of_runc_sees_itself() -> Result<()> {
    check("runc", runc::run)
}

#[test]
fn a_container_of_lxc_sees_itself() -> Result<()> {
    check("lxc", lxc::run)
}

/// What the kernel itself may have right or wrong: minutes when it has just booted, times when an emulator loses ticks.
const BY_CHANCE: [&str; 2] = ["uptime(1) says so", "stat has the time of a busy loop"];

/// What is asserted above is our doing: without our files the same container fails it.
#[test]
fn without_our_files_it_sees_the_host() -> Result<()> {
    let ground = Ground::bare("bare")?;
    let started = Instant::now();
    let text = runc::run(&ground, &view::script())?;
    let mut wrong = view::wrong(&text, started.elapsed());
    wrong.retain(|what| !BY_CHANCE.contains(&what.as_str()));
    let expected = [
        "free shows the limit",
        "MemTotal is the limit",
        "cpuinfo has the one CPU",
        "uptime is the container's",
        "stat has the one CPU, and the time since the start",
        "the CPU online is that of the cpuset",
        "getconf counts it",
        "lscpu lists it",
        "loadavg counts and numbers the container's processes",
        "top shows the limit and the container's processes",
    ];
    ensure!(wrong == expected, "{wrong:#?}\n{text}");
    Ok(())
}
