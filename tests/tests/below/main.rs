//! Files of `/proc` served by the kernel itself (`--kernel-files`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use anyhow::{Context, Result, ensure};
use lxcfs_tests::burden::Burden;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::{Container, Running};
use lxcfs_tests::mount::Daemon;
use nix::sched::CloneFlags;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

mod answers;
mod loadavg;
mod uptime;

const OPTIONS: [&str; 4] = ["--accounting", "auto", "--kernel-files", "loadavg,uptime"];

/// Tests stand beside each other, but for one that fills a table: the cgroups of others that end would leave it room.
static TESTS: RwLock<()> = RwLock::new(());

/// Until it is dropped, no other test is alone.
fn beside() -> RwLockReadGuard<'static, ()> {
    TESTS.read().unwrap_or_else(PoisonError::into_inner)
}

/// Until it is dropped, no other test runs, and of those before it no cgroup is left.
fn alone() -> RwLockWriteGuard<'static, ()> {
    TESTS.write().unwrap_or_else(PoisonError::into_inner)
}

/// What `lxcfs status` says of who serves `file`, once that is decided.
fn served_by(daemon: &Daemon, file: &str) -> Result<String> {
    let point = daemon.mount_point().display().to_string();
    let mut said = String::new();
    lxcfs_tests::wait_for("the file to be made, or not", || {
        let output = daemon.run(&["status", "--json", &point]).expect("ask for the status");
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        said = status["kernel_files"][file].as_str().unwrap_or("not yet").to_owned();
        !said.starts_with("not yet")
    });
    Ok(said)
}

/// A daemon whose files the kernel serves.
fn below() -> Result<Daemon> {
    let daemon = Daemon::with(&OPTIONS)?;
    for file in ["loadavg", "uptime"] {
        let by = served_by(&daemon, file)?;
        ensure!(by.starts_with("the kernel"), "{file}: {by}");
    }
    Ok(daemon)
}

/// Binds `file` of the daemon at `point` over that of a container that runs already.
fn give(point: &Path, file: &str, init: u32) -> Result<()> {
    let file = Path::new("proc").join(file);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, point.join(&file), flags).context("copy a mount")?;
    let namespace = fs::File::open(format!("/proc/{init}/ns/mnt"))?;
    let enter = move || -> Result<()> {
        nix::sched::unshare(CloneFlags::CLONE_FS)?;
        nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNS)?;
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", CWD, Path::new("/").join(file), empty)
            .context("bind in the container")
    };
    std::thread::spawn(enter).join().expect("it returns what fails")
}

/// A container, its burdens, its leaves, and its cgroup: they go in this order.
type Loaded = (Running, [Burden; 2], [Cgroup; 2], Cgroup);

/// Containers of several leaves with tasks that run, wait in the kernel and sleep; `cargo xtask soak` has more of them.
fn loaded(daemon: &Daemon) -> Result<Vec<Loaded>> {
    let load = |nth| -> Result<Loaded> {
        let cgroup = Cgroup::new("below-load")?;
        let leaves = [cgroup.leaf("one")?, cgroup.leaf("two")?];
        let mut shell = Container::new(&cgroup).files(&daemon.mount_point()).shell()?;
        shell.enter(&leaves[0])?;
        let kind = if nth % 10 == 0 { "nice" } else { "vfork" };
        let burdens = [
            Burden::start(kind, 1 + nth % 3, &leaves[1]),
            Burden::start("sleep", 1 + nth % 5, &leaves[0]),
        ];
        Ok((shell, burdens, leaves, cgroup))
    };
    (0..number("LXCFS_TEST_BELOW_CONTAINERS", 3)).map(load).collect()
}

/// A number that `cargo xtask soak` sets.
fn number(variable: &str, usual: u32) -> u32 {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(usual)
}

/// Where the daemon's file is pinned.
fn pins(daemon: &Daemon) -> PathBuf {
    let name = daemon.mount_point().display().to_string();
    let name = format!("{}.bpf", name.trim_matches('/').replace('/', "-"));
    daemon.directory().join("run/lxcfs").join(name)
}
