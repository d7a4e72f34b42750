//! A small root filesystem for containers: a few of this machine's programs, each with its libraries.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// What is in it, beside busybox.
const PROGRAMS: [&str; 6] = ["free", "getconf", "lscpu", "nproc", "top", "uptime"];

/// What busybox is called by.
const APPLETS: [&str; 3] = ["cat", "sh", "sleep"];

/// Where runtimes and LXCFS's LXC hook mount something.
const FOLDERS: [&str; 8] = ["dev", "etc", "proc", "run", "sys", "tmp", "usr/bin", "var/lib/lxcfs"];

/// Where Debian keeps its terminals, of which `top` needs one.
const TERMINALS: [&str; 2] = ["/usr/share/terminfo/d/dumb", "/lib/terminfo/d/dumb"];

/// Makes one at `root`.
///
/// # Errors
/// A program is not installed.
pub fn make(root: &Path) -> Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("make {folder}"))?;
    }
    symlink("usr/bin", root.join("bin")).context("link /bin")?;
    copy_program(root, "busybox")?;
    for applet in APPLETS {
        symlink("busybox", root.join("usr/bin").join(applet)).context("link an applet")?;
    }
    for program in PROGRAMS {
        copy_program(root, program)?;
    }
    let terminal = TERMINALS.iter().map(Path::new).find(|path| path.is_file());
    copy(root, terminal.context("no terminal is described: install ncurses-base")?)
}

/// A program of this machine by name, not what a user's `PATH` puts in its place.
///
/// # Errors
/// It is not installed.
pub fn find(name: &str) -> Result<PathBuf> {
    let folders = ["/usr/bin", "/usr/sbin"].iter().map(Path::new);
    let mut places = folders.map(|folder| folder.join(name));
    places.find(|path| path.is_file()).with_context(|| format!("{name} is not installed"))
}

fn copy_program(root: &Path, name: &str) -> Result<()> {
    let program = find(name)?;
    // The dynamic loader lists what it would load: `libc.so.6 => /lib/... (0x...)`.
    let listed = Command::new(&program).env("LD_TRACE_LOADED_OBJECTS", "1").output();
    let listed = listed.with_context(|| format!("list the libraries of {name}"))?;
    let text = String::from_utf8_lossy(&listed.stdout);
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        copy(root, Path::new(library))?;
    }
    copy_as(root, &program, &Path::new("/usr/bin").join(name))
}

fn copy(root: &Path, file: &Path) -> Result<()> {
    copy_as(root, file, file)
}

fn copy_as(root: &Path, file: &Path, name: &Path) -> Result<()> {
    let to = root.join(name.strip_prefix("/").unwrap_or(name));
    let parent = to.parent().context("a file lies in a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    fs::copy(file, &to).with_context(|| format!("copy {}", file.display()))?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).context("make it executable")
}
