//! Where a daemon's own things are: in the folder `lxcfs` of its runtime directory, and what there is for each mount has the
//! name of its mount point.

use std::path::{Path, PathBuf};

/// The control socket of the daemon mounted at `mount_point`.
#[must_use]
pub fn socket(runtime_dir: &Path, mount_point: &Path) -> PathBuf {
    named(runtime_dir, mount_point, "sock")
}

/// Where its files below FUSE are pinned.
pub(super) fn pins(runtime_dir: &Path, mount_point: &Path) -> PathBuf {
    named(runtime_dir, mount_point, "bpf")
}

/// What the kernel said of programs that it did not take.
pub(super) fn verifier_log(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("lxcfs").join("verifier.log")
}

fn named(runtime_dir: &Path, mount_point: &Path, kind: &str) -> PathBuf {
    let name = mount_point.to_string_lossy().trim_matches('/').replace('/', "-");
    runtime_dir.join("lxcfs").join(format!("{name}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mount_has_its_own() {
        let (run, point) = (Path::new("/run"), Path::new("/var/lib/lxc.fs/"));
        assert_eq!(socket(run, point), Path::new("/run/lxcfs/var-lib-lxc.fs.sock"));
        assert_eq!(pins(run, point), Path::new("/run/lxcfs/var-lib-lxc.fs.bpf"));
    }
}
