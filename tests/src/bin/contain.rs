//! Runs a command in a container: `contain [OPTIONS] -- COMMAND...`.
//!
//! A first child joins the cgroups given, makes the namespaces, forks the container's init and ends, so that nothing but
//! the container is in its cgroup. The init becomes our child, binds our files over its own, and runs the command. When
//! we are killed, the kernel kills the init, and with the init everything else.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, setgid, setgroups, setuid};

/// The files a container gets: those LXCFS's LXC hook and its README bind, and the files it has not.
const FILES: [&str; 12] = [
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/slabinfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "proc/vmstat",
    "proc/pressure",
    "sys/devices/system/cpu",
    "sys/devices/system/node",
];

/// The first id of the user namespace, and how many it has.
const USERS: &str = "0 100000 65536";

#[derive(Debug, Parser)]
struct Arguments {
    /// A cgroup.procs to write ourselves to
    #[arg(long)]
    procs: Vec<PathBuf>,
    /// Where lxcfs is mounted
    #[arg(long)]
    files: Option<PathBuf>,
    /// Make no cgroup namespace
    #[arg(long)]
    share_cgroup: bool,
    /// Make no pid namespace
    #[arg(long)]
    share_pid: bool,
    /// Make a user namespace
    #[arg(long)]
    user: bool,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    set_child_subreaper(true).context("adopt the container's init")?;
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: this program has one thread, so the child may do anything the parent may.
    match unsafe { fork() }.context("fork the maker of the container")? {
        ForkResult::Child => {
            drop(writer);
            make(&arguments, &reader)
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => {
                drop(writer);
                wait()
            }
            status => bail!("the container was not made: {status:?}"),
        },
    }
}

/// Makes the namespaces and the container's init. Only the init goes on from here, when the pipe behind `go` is closed:
/// its maker has ended then, and it is our child.
fn make(arguments: &Arguments, go: &OwnedFd) -> Result<ExitCode> {
    for file in &arguments.procs {
        fs::write(file, getpid().to_string())
            .with_context(|| format!("join {}", file.display()))?;
    }
    if arguments.user {
        enter_user_namespace()?;
    }
    let mut namespaces = CloneFlags::CLONE_NEWNS;
    if !arguments.share_cgroup {
        namespaces |= CloneFlags::CLONE_NEWCGROUP;
    }
    if !arguments.share_pid {
        namespaces |= CloneFlags::CLONE_NEWPID;
    }
    unshare(namespaces).context("make namespaces")?;
    // SAFETY: this program has one thread, so the child may do anything the parent may.
    match unsafe { fork() }.context("fork the container's init")? {
        ForkResult::Parent { .. } => Ok(ExitCode::SUCCESS),
        ForkResult::Child => {
            nix::unistd::read(go, &mut [0]).context("wait for our maker to end")?;
            set_pdeathsig(Signal::SIGKILL).context("tie the container to us")?;
            become_init(arguments)
        }
    }
}

/// Enters a new user namespace as its root. A process that stays outside has to write the map.
#[allow(clippy::exit, reason = "the forked writer of the map ends here and returns to nobody")]
fn enter_user_namespace() -> Result<()> {
    let (reader, writer) = nix::unistd::pipe()?;
    let us = getpid();
    // SAFETY: this program has one thread, so the child may do anything the parent may.
    match unsafe { fork() }.context("fork the writer of the id map")? {
        ForkResult::Child => {
            drop(writer);
            let mut byte = [0];
            nix::unistd::read(&reader, &mut byte)?;
            fs::write(format!("/proc/{us}/uid_map"), USERS).context("write uid_map")?;
            fs::write(format!("/proc/{us}/gid_map"), USERS).context("write gid_map")?;
            std::process::exit(0)
        }
        ForkResult::Parent { child } => {
            unshare(CloneFlags::CLONE_NEWUSER).context("make a user namespace")?;
            drop(writer);
            match waitpid(child, None)? {
                WaitStatus::Exited(_, 0) => {}
                status => bail!("the id map was not written: {status:?}"),
            }
            setgroups(&[]).context("drop groups")?;
            setgid(0.into()).context("become group 0")?;
            setuid(0.into()).context("become root of the namespace")
        }
    }
}

fn become_init(arguments: &Arguments) -> Result<ExitCode> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("make mounts private")?;
    if !arguments.share_pid {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("proc"), "/proc", Some("proc"), flags, none).context("mount /proc")?;
    }
    if let Some(files) = &arguments.files {
        bind(files)?;
    }
    let (program, rest) = arguments.command.split_first().context("no command")?;
    let error = Command::new(program).args(rest).exec();
    Err(error).with_context(|| format!("run {program}"))
}

fn bind(files: &Path) -> Result<()> {
    let none: Option<&str> = None;
    for file in FILES {
        let (from, to) = (files.join(file), Path::new("/").join(file));
        if from.exists() && to.exists() {
            mount(Some(&from), &to, none, MsFlags::MS_BIND, none)
                .with_context(|| format!("bind {} over {}", from.display(), to.display()))?;
        }
    }
    Ok(())
}

/// Ends as the container's init ended: with its status, or 128 and the signal's number.
fn wait() -> Result<ExitCode> {
    let any: Option<Pid> = None;
    let code = match waitpid(any, None).context("wait for the container's init")? {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        status => bail!("the container's init did not end: {status:?}"),
    };
    Ok(ExitCode::from(u8::try_from(code)?))
}
