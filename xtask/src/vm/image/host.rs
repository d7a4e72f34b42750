//! Files of the host in the image, at their own paths and with the libraries they need.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::vm::cpio::Archive;
use crate::vm::shell;

/// A program of this size or more is stripped of its debug information.
const STRIP_BYTES: u64 = 4 << 20;

/// Remembers what the archive has already: programs share their libraries.
#[derive(Debug)]
pub(super) struct Host {
    done: BTreeSet<PathBuf>,
    /// A file to write and read again.
    scratch: PathBuf,
}

impl Host {
    pub(super) const fn new(scratch: PathBuf) -> Self {
        Self { done: BTreeSet::new(), scratch }
    }

    /// A file or a folder at its own absolute path.
    pub(super) fn put(&mut self, archive: &mut Archive<impl Write>, path: &Path) -> Result<()> {
        let path = std::path::absolute(path).with_context(|| format!("find {}", path.display()))?;
        if path.is_dir() {
            return put_tree(archive, &path, &path);
        }
        self.put_as(archive, &path, &path)
    }

    /// A file under another name. Links are followed: the guest gets the file itself.
    pub(super) fn put_as(
        &mut self,
        archive: &mut Archive<impl Write>,
        file: &Path,
        name: &Path,
    ) -> Result<()> {
        if !self.done.insert(name.to_owned()) {
            return Ok(());
        }
        if self.put_program(archive, file, name)? {
            for library in libraries(file)? {
                self.put_as(archive, &library, &library)?;
            }
        }
        Ok(())
    }

    /// Writes the file and says whether it is a program or a library. A large one goes without its
    /// debug information: the guest has to keep it in memory.
    fn put_program(
        &self,
        archive: &mut Archive<impl Write>,
        file: &Path,
        name: &Path,
    ) -> Result<bool> {
        let hint = || format!("read {} for the image", file.display());
        let mut start = Vec::new();
        let content = File::open(file).with_context(hint)?;
        let about = content.metadata().with_context(hint)?;
        content.take(4).read_to_end(&mut start).with_context(hint)?;
        if start != *b"\x7fELF" {
            put_file(archive, file, name)?;
            return Ok(false);
        }
        if about.len() < STRIP_BYTES {
            put_file(archive, file, name)?;
            return Ok(true);
        }
        let mut strip = Command::new("strip");
        strip.arg("--strip-debug").arg(file).arg("-o").arg(&self.scratch);
        shell::output(&mut strip).with_context(|| format!("strip {}", file.display()))?;
        let content = fs::read(&self.scratch).with_context(hint)?;
        fs::remove_file(&self.scratch).with_context(hint)?;
        let mode = about.permissions().mode() & 0o7777;
        archive
            .file(name, mode, content.len() as u64, &mut content.as_slice())
            .with_context(hint)?;
        Ok(true)
    }
}

/// Everything under `tree`, as if `tree` were `root`; links stay links.
pub(super) fn put_tree(archive: &mut Archive<impl Write>, tree: &Path, root: &Path) -> Result<()> {
    let list = || format!("list {}", tree.display());
    let mut entries = fs::read_dir(tree).with_context(list)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    archive.directory(root, 0o755)?;
    for entry in entries {
        let (path, name) = (entry.path(), root.join(entry.file_name()));
        let kind = entry.file_type().with_context(list)?;
        if kind.is_dir() {
            put_tree(archive, &path, &name)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).with_context(list)?;
            archive.symlink(&name, &target)?;
        } else if kind.is_file() {
            put_file(archive, &path, &name)?;
        }
    }
    Ok(())
}

fn put_file(archive: &mut Archive<impl Write>, file: &Path, name: &Path) -> Result<()> {
    let hint = || format!("read {} for the image", file.display());
    let mut content = File::open(file).with_context(hint)?;
    let about = content.metadata().with_context(hint)?;
    let mode = about.permissions().mode() & 0o7777;
    archive.file(name, mode, about.len(), &mut content).with_context(hint)
}

/// What the dynamic loader would map for `file`, the loader included.
fn libraries(file: &Path) -> Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    let done = ldd.arg(file).env("LC_ALL", "C").output().context("start ldd")?;
    let printed =
        String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    parse_ldd(&printed).with_context(|| {
        format!("find the libraries of {}:\n{}", file.display(), shell::tail(&printed, 6))
    })
}

/// The paths in ldd's output; none when a library was not found.
fn parse_ldd(printed: &str) -> Option<Vec<PathBuf>> {
    if printed.contains("=> not found") {
        return None;
    }
    let paths = printed.lines().filter_map(|line| {
        let path = line.split_once("=> ").map_or(line, |it| it.1).trim();
        let path = path.split(" (0x").next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    // "/usr/bin/x: error" starts with a slash too.
    Some(paths.filter(|path| !path.to_string_lossy().contains(": ")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_gives_the_libraries_and_the_loader() {
        let printed = "\tlinux-vdso.so.1 (0x00007ffc)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(printed).unwrap(), expected.map(PathBuf::from));
    }

    #[test]
    fn a_static_program_has_none() {
        assert_eq!(parse_ldd("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
        assert_eq!(parse_ldd("\tnot a dynamic executable\n").unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_missing_library_is_an_error() {
        assert_eq!(parse_ldd("\tlibx.so.1 => not found\n"), None);
    }

    #[test]
    fn this_very_program_comes_with_its_loader() {
        let mut archive = Archive::new(Vec::new());
        let program = std::env::current_exe().unwrap();
        let mut host =
            Host::new(std::env::temp_dir().join(format!("xtask-strip-{}", std::process::id())));
        host.put(&mut archive, &program).unwrap();
        assert!(host.done.contains(&program));
        let has = |part: &str| host.done.iter().any(|it| it.to_string_lossy().contains(part));
        assert!(has("ld-linux-x86-64") && has("libc.so.6"), "{:?}", host.done);
    }
}
