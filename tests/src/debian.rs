//! Programs of Debian packages that are unpacked and not installed: installing one would start its service.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The files of `package`, unpacked below cargo's target directory; downloaded once.
///
/// # Errors
/// It cannot be downloaded.
pub fn unpacked(package: &str) -> Result<PathBuf> {
    let program = crate::program("lxcfs");
    let target = program.parent().and_then(Path::parent).context("no target directory")?;
    let folder = target.join("debian").join(package);
    if folder.exists() {
        return Ok(folder);
    }
    // Of another name until it is whole: another suite may want the same.
    let draft = target.join("debian").join(format!(".{package}-{}", std::process::id()));
    fs::create_dir_all(&draft).with_context(|| format!("make {}", draft.display()))?;
    let download = || run(Command::new("apt-get").args(["download", "-q", package]), &draft);
    if download().is_err() {
        run(Command::new("apt-get").args(["update", "-q"]), &draft)?;
        download()?;
    }
    let mut files = fs::read_dir(&draft)?.flatten().map(|entry| entry.path());
    let deb = files.find(|path| path.extension().is_some_and(|end| end == "deb"));
    let deb = deb.context("apt-get downloaded no package")?;
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg("tree"), &draft)?;
    let renamed = fs::rename(draft.join("tree"), &folder);
    fs::remove_dir_all(&draft).context("remove the package")?;
    ensure!(folder.exists(), "unpack {package}: {renamed:?}");
    Ok(folder)
}

/// Debian's lxcfs: its program, and the folder of its library.
///
/// # Errors
/// It cannot be had.
pub fn lxcfs() -> Result<(PathBuf, PathBuf)> {
    let folder = unpacked("lxcfs")?;
    let libraries = fs::read_dir(folder.join("usr/lib"))?.flatten().map(|entry| entry.path());
    let mut libraries = libraries.map(|path| path.join("lxcfs"));
    let library = libraries.find(|path| path.is_dir()).context("it has no library")?;
    Ok((folder.join("usr/bin/lxcfs"), library))
}

fn run(command: &mut Command, directory: &Path) -> Result<()> {
    let output = command.current_dir(directory).output();
    let output = output.with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}
