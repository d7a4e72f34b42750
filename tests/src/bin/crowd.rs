//! Many containers: `crowd COUNT`. Each has a pid and a cgroup namespace, one process, and where asked for a cgroup; the
//! process reads the files given, once, and sleeps. Prints a line when all have, and ends with its standard input.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, getpid, pause, pipe, read, write};

#[derive(Debug, Parser)]
struct Arguments {
    count: u32,
    /// A cgroup in which each container gets one of its own
    #[arg(long)]
    cgroup: Vec<PathBuf>,
    /// A file that each reads
    #[arg(long)]
    read: Vec<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    set_child_subreaper(true).context("adopt the containers")?;
    set_pdeathsig(Signal::SIGKILL).context("end with the one who asked")?;
    for number in 0..arguments.count {
        contain(&arguments, number).with_context(|| format!("make container {number}"))?;
    }
    writeln!(std::io::stdout(), "ready")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Makes one container and waits until it has read.
#[allow(clippy::exit, reason = "the forked maker of a container ends here and returns to nobody")]
fn contain(arguments: &Arguments, number: u32) -> Result<()> {
    let (ready, done) = pipe()?;
    // SAFETY: this program has one thread, so the child may do anything the parent may.
    let maker = match unsafe { fork() }.context("fork the maker")? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            for cgroup in &arguments.cgroup {
                join(&cgroup.join(number.to_string()))?;
            }
            unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWCGROUP)
                .context("make namespaces")?;
            let (go, maker) = pipe()?;
            // SAFETY: as above.
            if let ForkResult::Child = unsafe { fork() }.context("fork the init")? {
                drop((ready, maker));
                read(&go, &mut [0]).context("wait for our maker to end")?;
                for file in &arguments.read {
                    fs::read(file).with_context(|| format!("read {}", file.display()))?;
                }
                set_pdeathsig(Signal::SIGKILL).context("tie the container to its maker")?;
                write(&done, b"+")?;
                drop(done);
                loop {
                    pause();
                }
            }
            std::process::exit(0)
        }
    };
    drop(done);
    match waitpid(maker, None)? {
        WaitStatus::Exited(_, 0) => {}
        status => bail!("its maker: {status:?}"),
    }
    if read(&ready, &mut [0])? == 0 {
        bail!("it ended");
    }
    Ok(())
}

fn join(cgroup: &Path) -> Result<()> {
    fs::create_dir(cgroup).with_context(|| format!("make {}", cgroup.display()))?;
    fs::write(cgroup.join("cgroup.procs"), getpid().to_string())
        .with_context(|| format!("join {}", cgroup.display()))
}
