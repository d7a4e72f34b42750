//! Trees unpacked from Debian packages, cached under `target/vm/trees`.
//!
//! A tree is complete when its `SHA256SUMS` is there: it is written last, beside the unpacked
//! files, and names the packages the tree came from.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::apt::{self, Apt, Deb};

/// All kernels, QEMU and some packages take about this much.
const ROOM_MIB: u64 = 1500;

/// The apt to ask and the packages it named.
pub(crate) type Offer = (Apt, Vec<Deb>);

/// The tree called `key`, from the cache or from what `offer` says. With `refresh` the archive is
/// asked even if the tree is there, and the tree is used as it is when the archive is not.
pub(crate) fn tree(
    home: &Path,
    key: &str,
    refresh: bool,
    offer: impl FnOnce() -> Result<Offer>,
) -> Result<PathBuf> {
    let dir = home.join("trees").join(key);
    let unpacked = dir.join("tree");
    let recorded = fs::read_to_string(dir.join("SHA256SUMS")).ok();
    if recorded.is_some() && !refresh {
        return Ok(unpacked);
    }
    let fresh = offer().and_then(|(apt, debs)| {
        if recorded.as_deref() != Some(&sums(&debs)) {
            unpack(home, &dir, &apt, &debs)?;
        }
        Ok(())
    });
    match fresh {
        Ok(()) => Ok(unpacked),
        Err(error) if recorded.is_some() => {
            eprintln!("vm: no fresh {key}, the cached one is used: {error:#}");
            Ok(unpacked)
        }
        Err(error) => Err(error.context(format!("could not fetch {key} and it is not cached"))),
    }
}

/// Downloads and unpacks, and only then replaces what was there.
fn unpack(home: &Path, dir: &Path, apt: &Apt, debs: &[Deb]) -> Result<()> {
    ensure_room(home)?;
    let folder = home.join("debs");
    apt.fetch(debs, &folder)?;
    let new = dir.with_extension("new");
    remove(&new)?;
    let tree = new.join("tree");
    fs::create_dir_all(&tree).with_context(|| format!("create {}", tree.display()))?;
    for deb in debs {
        apt::unpack(&folder.join(&deb.file), &tree)?;
    }
    fs::write(new.join("SHA256SUMS"), sums(debs))
        .with_context(|| format!("write the sums in {} (is the disk full?)", new.display()))?;
    remove(dir)?;
    fs::rename(&new, dir).with_context(|| format!("rename {} into place", new.display()))
}

/// In the format of sha256sum(1).
fn sums(debs: &[Deb]) -> String {
    debs.iter().map(|deb| format!("{}  {}\n", deb.sha256, deb.file)).collect()
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    Ok(())
}

fn ensure_room(home: &Path) -> Result<()> {
    let free = nix::sys::statvfs::statvfs(home)
        .with_context(|| format!("ask for the free space of {}", home.display()))?;
    let free_mib = free.blocks_available() * free.fragment_size() / (1 << 20);
    ensure!(
        free_mib >= ROOM_MIB,
        "{}: {free_mib} MiB are free, kernels and QEMU need {ROOM_MIB} MiB; hint: make room or \
         set CARGO_TARGET_DIR to a larger disk",
        home.display()
    );
    Ok(())
}

/// Held while something is fetched or cached, so that two runs do not build the same thing.
pub(crate) fn lock(home: &Path) -> Result<File> {
    fs::create_dir_all(home).with_context(|| format!("create {}", home.display()))?;
    let path = home.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn home(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("xtask-fetch-{}-{name}", std::process::id()))
    }

    #[test]
    fn what_is_not_cached_and_not_offered_is_named() {
        let error = tree(&home("none"), "linux-6.1", false, || Err(anyhow!("no network")));
        let text = format!("{:#}", error.unwrap_err());
        assert_eq!(text, "could not fetch linux-6.1 and it is not cached: no network");
    }

    #[test]
    fn a_cached_tree_is_used_without_asking_or_when_nobody_answers() {
        let home = home("cached");
        let dir = home.join("trees/qemu");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("SHA256SUMS"), "").unwrap();
        let asked = std::cell::Cell::new(0);
        let offer = || {
            asked.set(asked.get() + 1);
            Err(anyhow!("no network"))
        };
        assert_eq!(tree(&home, "qemu", false, offer).unwrap(), dir.join("tree"));
        assert_eq!(asked.get(), 0);
        assert_eq!(tree(&home, "qemu", true, offer).unwrap(), dir.join("tree"));
        assert_eq!(asked.get(), 1);
        fs::remove_dir_all(&home).unwrap();
    }
}
