//! What is kept for the next daemon, when it is not what it should be: nothing is served from it and nothing broken by
//! the attempt. The test is the store; the real ones are in `restart` and `systemd`.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Child;

use anyhow::{Context, Result, ensure};
use lxcfs::keep::store::{DEVICE, JOURNAL};
use lxcfs_tests::mount;
use lxcfs_tests::store::Store;
use nix::mount::{MntFlags, umount2};

/// Where the journal has the version of its layout.
const VERSION_AT: u64 = 8;

/// A mount whose daemon is dead, and what is kept of it.
struct Kept {
    store: Store,
    directory: PathBuf,
    daemons: u32,
}

impl Kept {
    fn new() -> Result<Self> {
        let directory = mount::new_directory()?;
        let mut kept = Self { store: Store::new(&directory)?, directory, daemons: 0 };
        let mut first = kept.start(&[])?.1;
        kept.store.until_ready()?;
        ensure!(kept.store.held.len() == 2, "{:?}", kept.store.held);
        first.kill()?;
        first.wait()?;
        Ok(kept)
    }

    /// Starts a daemon with these descriptors, and returns its name in the store.
    fn start(&mut self, given: &[&(String, OwnedFd)]) -> Result<(String, Child)> {
        self.daemons += 1;
        let name = self.daemons.to_string();
        let mut command = self.store.command(&name)?;
        let given: Vec<_> = given.iter().map(|(name, held)| (name.clone(), held.as_fd())).collect();
        Ok((name, lxcfs::keep::store::start(&mut command, &given)?))
    }

    /// A daemon that is given this refuses it with `cause`, and leaves the mount as it is.
    fn refused(&mut self, given: &[&(String, OwnedFd)], cause: &str) -> Result<()> {
        let (name, mut daemon) = self.start(given)?;
        let status = daemon.wait()?;
        let log = self.store.log(&name);
        ensure!(status.code() == Some(1) && log.contains(cause), "{status}, {cause}: {log}");
        ensure!(self.store.forgotten.is_empty() && mount::is_mounted(&self.point()), "{log}");
        Ok(())
    }

    /// With the right descriptors a daemon serves, and whoever has waited is answered.
    fn serves_again(&mut self) -> Result<()> {
        let meminfo = self.point().join("proc/meminfo");
        let reader = std::thread::spawn(move || fs::read_to_string(meminfo));
        let (device, journal) = (self.store.get(DEVICE)?, self.store.get(JOURNAL)?);
        let (_, mut daemon) = self.start(&[&device, &journal])?;
        self.store.until_ready()?;
        let page = reader.join().expect("no panic")?;
        ensure!(page.starts_with("MemTotal:"), "{page}");
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    fn point(&self) -> PathBuf {
        self.directory.join("mnt")
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = umount2(&self.point(), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn a_store_with_two_of_a_kind_is_refused() -> Result<()> {
    let mut kept = Kept::new()?;
    let (device, journal) = (kept.store.get(DEVICE)?, kept.store.get(JOURNAL)?);
    let (device_too, journal_too) = (kept.store.get(DEVICE)?, kept.store.get(JOURNAL)?);
    kept.refused(&[&device, &device_too, &journal], "the store has 2 devices and 1 journals")?;
    kept.refused(&[&device, &journal, &journal_too], "the store has 1 devices and 2 journals")?;
    kept.refused(&[&device], "the store has 1 devices and 0 journals")?;
    kept.serves_again()
}

#[test]
fn a_journal_that_is_not_this_mounts_is_refused() -> Result<()> {
    let (mut kept, other) = (Kept::new()?, Kept::new()?);
    let (device, journal) = (kept.store.get(DEVICE)?, kept.store.get(JOURNAL)?);
    let others = other.store.get(JOURNAL)?;
    kept.refused(&[&device, &others], "it belongs to another mount")?;

    let short = kept.directory.join("short");
    fs::write(&short, [0; 4_096])?;
    let short = (JOURNAL.to_owned(), OwnedFd::from(fs::File::open(&short)?));
    kept.refused(&[&device, &short], "it has 4096 bytes and not")?;
    // One of the right size that could still be cut short under whoever reads it.
    let whole = fs::File::create(kept.directory.join("whole"))?;
    whole.set_len(fs::File::from(journal.1.try_clone()?).metadata()?.len())?;
    let whole = (JOURNAL.to_owned(), OwnedFd::from(whole));
    kept.refused(&[&device, &whole], "it is not sealed")?;

    let memory = fs::File::from(journal.1.try_clone()?);
    let mut version = [0; 8];
    memory.read_exact_at(&mut version, VERSION_AT)?;
    memory.write_all_at(&999_u64.to_ne_bytes(), VERSION_AT)?;
    kept.refused(&[&device, &journal], "its layout is version 999")?;
    memory.write_all_at(&version, VERSION_AT)?;
    kept.serves_again()
}

/// Somebody unmounted by force while nobody served: nothing is left to take over, and a new mount is made.
#[test]
fn the_device_of_a_connection_that_was_aborted_is_forgotten() -> Result<()> {
    let mut kept = Kept::new()?;
    umount2(&kept.point(), MntFlags::MNT_FORCE | MntFlags::MNT_DETACH).context("unmount")?;
    let (device, journal) = (kept.store.get(DEVICE)?, kept.store.get(JOURNAL)?);
    let (name, mut daemon) = kept.start(&[&device, &journal])?;
    kept.store.until_ready()?;
    let log = kept.store.log(&name);
    ensure!(log.contains("the mount that was kept has ended: a new one is made"), "{log}");
    ensure!(kept.store.forgotten == [DEVICE, JOURNAL], "{:?}", kept.store.forgotten);
    ensure!(kept.store.held.len() == 2, "those of the new mount alone: {:?}", kept.store.held);
    let page = fs::read_to_string(kept.point().join("proc/meminfo"))?;
    ensure!(page.starts_with("MemTotal:"), "{page}");
    daemon.kill()?;
    daemon.wait()?;
    kept.serves_again()
}

/// Of two daemons that are given the same mount at the same time, exactly one serves it, and the other says why it does not.
#[test]
fn two_daemons_race_for_one_mount() -> Result<()> {
    let mut kept = Kept::new()?;
    let (device, journal) = (kept.store.get(DEVICE)?, kept.store.get(JOURNAL)?);
    for _ in 0..5 {
        let mut racing = vec![
            kept.start(&[&device, &journal])?,
            kept.start(&[&device, &journal])?,
            kept.start(&[&device, &journal])?,
        ];
        kept.store.until_ready()?;
        lxcfs_tests::wait_for("all but one to end", || {
            racing.iter_mut().filter_map(|(_, daemon)| daemon.try_wait().ok().flatten()).count()
                == 2
        });
        let page = fs::read_to_string(kept.point().join("proc/meminfo"))?;
        ensure!(page.starts_with("MemTotal:"), "{page}");
        let mut served = 0;
        for (name, mut daemon) in racing {
            let log = kept.store.log(&name);
            match daemon.try_wait()? {
                None => {
                    served += 1;
                    daemon.kill()?;
                    daemon.wait()?;
                }
                Some(status) => {
                    let says = log.contains("another lxcfs serves this mount");
                    ensure!(status.code() == Some(1) && says, "{status}: {log}");
                }
            }
        }
        ensure!(served == 1, "{served} have served");
    }
    kept.serves_again()
}
