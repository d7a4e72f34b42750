//! `cargo xtask run`: the main job on a fresh machine, in one command.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lxcfs_tests::mount::Daemon;

use crate::demo::{Demo, Views};

/// The load average is sampled every 5 s; the table shows one that has begun to rise.
const UNTIL_A_SAMPLE: Duration = Duration::from_secs(11);

/// The command line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to mount
    #[arg(long, default_value = "/var/lib/lxcfs", value_name = "DIR")]
    mount: PathBuf,
    /// End after the table; fail when a container value is wrong
    #[arg(long)]
    once: bool,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    crate::need_root("mounting and making a container")?;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).context("handle signals")?;
    }
    crate::cargo(&["build", "--package", "lxcfs-user", "--package", "lxcfs-tests"])?;

    let made = make_mount_point(&args.mount)?;
    let served = serve(args, &ended);
    for directory in made.iter().rev() {
        // Somebody may have put something there meanwhile: then it stays.
        let _ = std::fs::remove_dir(directory);
    }
    served
}

/// Makes the mount point and returns the directories that were made for it.
fn make_mount_point(point: &std::path::Path) -> Result<Vec<PathBuf>> {
    let missing: Vec<_> = point
        .ancestors()
        .take_while(|path| {
            path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
        })
        .map(ToOwned::to_owned)
        .collect();
    std::fs::create_dir_all(point)
        .or_else(|error| match error.raw_os_error() {
            // A mount whose daemon has died: the new daemon takes it away.
            Some(code) if code == nix::errno::Errno::ENOTCONN as i32 => Ok(()),
            _ => Err(error),
        })
        .with_context(|| format!("make the mount point {}", point.display()))?;
    Ok(missing.into_iter().rev().collect())
}

fn serve(args: &Args, ended: &AtomicBool) -> Result<ExitCode> {
    println!("> mounting at {} with --cpu-view quota", args.mount.display());
    let mut daemon =
        Daemon::start_at(args.mount.clone(), &["--cpu-view", "quota", "--accounting", "auto"])?;
    println!("> starting a container: 256 MiB, the time of 1 CPU, a busy loop");
    let mut demo = Demo::start(&args.mount)?;
    println!("> waiting {} s for its load average to rise", UNTIL_A_SAMPLE.as_secs());
    if sleep(UNTIL_A_SAMPLE, ended) {
        return Ok(ExitCode::SUCCESS);
    }
    let views = Views::read(&mut demo)?;
    print!("\n{}", views.table());
    let wrong = views.wrong();
    for line in &wrong {
        println!("WRONG: {line}");
    }
    if args.once {
        return Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    println!(
        "\nServing until Ctrl-C. Try it:\n  \
         nsenter -t {0} -a top        the container from inside\n  \
         target/debug/lxcfs cat --as {0} meminfo{1}\n  \
         target/debug/lxcfs status {2}{1}",
        demo.init(),
        daemon.runtime_option(),
        args.mount.display()
    );
    while !ended.load(Ordering::Relaxed) {
        if daemon.has_ended()? {
            bail!("lxcfs has ended: {}", daemon.log());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("\n> ending: container, mount, cgroup");
    Ok(ExitCode::SUCCESS)
}

/// Sleeps for `duration`, or until a signal; says which.
fn sleep(duration: Duration, ended: &AtomicBool) -> bool {
    let until = Instant::now() + duration;
    while Instant::now() < until && !ended.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
    }
    ended.load(Ordering::Relaxed)
}
