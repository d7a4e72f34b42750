//! The root filesystem of a guest: cached archives and a small one of this run behind them.
//!
//! * base: busybox with its names, modules, a few files of `/etc`; one per kernel.
//! * packages: one per set of Debian packages.
//! * run: our init, the caller's files with their libraries, and `/vm`, what init is to do.

mod host;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt::Apt;
use super::cpio::{Archive, MERGED};
use super::guest::{Guest, TIMEOUT_FACTOR};
use super::kernel::Kernel;
use super::modules::{self, Modules};
use super::{fetch, shell};

/// Increase it when the base image gets other contents from the same inputs.
const FORMAT: u32 = 2;

const ETC: [(&str, &str); 6] = [
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/subuid", "root:100000:65536\n"),
    ("etc/subgid", "root:100000:65536\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
];

/// Empty, or filled by init.
const FOLDERS: [&str; 11] =
    ["dev", "etc", "home", "mnt", "opt", "proc", "root", "run", "sys", "usr/local/bin", "vm/root"];

type Writer = Archive<BufWriter<File>>;

/// The statically linked busybox of the machine's release.
pub(crate) fn busybox(home: &Path, refresh: bool) -> Result<PathBuf> {
    let tree = fetch::tree(home, "busybox", refresh, || {
        let apt = Apt::of_machine(home)?;
        let debs = apt.alone(&["busybox-static"])?;
        Ok((apt, debs))
    })?;
    let places = ["bin/busybox", "usr/bin/busybox"].map(|place| tree.join(place));
    let found = places.into_iter().find(|place| place.is_file());
    found.with_context(|| format!("no busybox in {}", tree.display()))
}

/// The base archive of a kernel.
pub(crate) fn base(home: &Path, kernel: &Kernel, busybox: &Path) -> Result<PathBuf> {
    let inputs = (FORMAT, modules::choice(), ETC, file_size(busybox)?);
    cached(home, &format!("base-{}", kernel.release), &inputs, |archive| {
        for name in MERGED {
            archive.symlink(Path::new(name), &Path::new("usr").join(name))?;
            archive.directory(&Path::new("usr").join(name), 0o755)?;
        }
        for name in FOLDERS {
            archive.directory(Path::new(name), 0o755)?;
        }
        archive.directory(Path::new("tmp"), 0o1777)?;
        archive.directory(Path::new("var/tmp"), 0o1777)?;
        archive.symlink(Path::new("var/run"), Path::new("/run"))?;
        archive.symlink(Path::new("etc/mtab"), Path::new("/proc/self/mounts"))?;
        archive.character_device(Path::new("dev/console"), (5, 1))?;
        for (path, text) in ETC {
            archive.text(path, text)?;
        }
        put_busybox(archive, busybox)?;
        put_modules(archive, kernel, busybox)
    })
}

/// The archive of Debian packages, none for none.
pub(crate) fn packages(home: &Path, names: &[String]) -> Result<Option<PathBuf>> {
    if names.is_empty() {
        return Ok(None);
    }
    let tree = package_tree(home, names)?;
    let recorded = tree.with_file_name("SHA256SUMS");
    let sums = fs::read(&recorded).with_context(|| format!("read {}", recorded.display()))?;
    let archive = cached(home, "packages", &(FORMAT, sums), |archive| {
        host::put_tree(archive, &tree, Path::new("/"))
    })?;
    Ok(Some(archive))
}

/// Debian packages of the machine's release and what they depend on, unpacked into one tree.
pub(crate) fn package_tree(home: &Path, names: &[String]) -> Result<PathBuf> {
    let mut names = names.to_vec();
    names.sort();
    names.dedup();
    let key = format!("packages-{:016x}", fingerprint(&names));
    fetch::tree(home, &key, false, || {
        let apt = Apt::of_machine(home)?;
        let debs = apt.with_dependencies(&names)?;
        Ok((apt, debs))
    })
}

/// Writes the initramfs of a run: `cached` archives, then init, the caller's files and the steps.
pub(crate) fn initramfs(path: &Path, cached: &[PathBuf], init: &Path, guest: &Guest) -> Result<()> {
    let mut out = File::create(path).with_context(|| format!("create {}", path.display()))?;
    for archive in cached {
        let mut archive = File::open(archive)
            .with_context(|| format!("open the archive {}", archive.display()))?;
        io::copy(&mut archive, &mut out).with_context(|| space(path))?;
    }
    let mut archive = Archive::new(BufWriter::new(out));
    let mut host = host::Host::new(path.with_extension("strip"));
    host.put_as(&mut archive, init, Path::new("/init"))?;
    for file in &guest.files {
        host.put(&mut archive, file)?;
    }
    put_steps(&mut archive, guest).with_context(|| space(path))?;
    archive.finish().with_context(|| space(path))?;
    Ok(())
}

fn put_busybox(archive: &mut Writer, busybox: &Path) -> Result<()> {
    let mut file = File::open(busybox).with_context(|| format!("open {}", busybox.display()))?;
    archive.file(Path::new("usr/bin/busybox"), 0o755, file_size(busybox)?, &mut file)?;
    let applets = shell::output(Command::new(busybox).arg("--list-full"))?;
    for applet in applets.lines().filter(|applet| !applet.ends_with("/busybox")) {
        archive.symlink(Path::new(applet), Path::new("/usr/bin/busybox"))?;
    }
    Ok(())
}

fn put_modules(archive: &mut Writer, kernel: &Kernel, busybox: &Path) -> Result<()> {
    let modules = Modules::read(&kernel.modules, busybox)?;
    let dir = Path::new("usr/lib/modules").join(&kernel.release);
    for module in modules.0.values() {
        archive.text(dir.join(&module.path), &module.content)?;
    }
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        if let Ok(text) = fs::read(kernel.modules.join(name)) {
            archive.text(dir.join(name), text)?;
        }
    }
    archive.text(dir.join("modules.dep"), modules.dependencies())?;
    archive.text(dir.join("modules.alias"), modules.aliases())?;
    archive.text(dir.join("modules.symbols"), "")?;
    let paths = modules.boot_order().into_iter();
    let paths = paths.map(|path| format!("/{}\n", dir.join(path).display()));
    archive.text("vm/modules", paths.collect::<String>())?;
    Ok(())
}

/// `/vm/steps/N/{argv,directory,deadline_ms}` and `/vm/environment`; lists end each item with a
/// zero byte.
fn put_steps(archive: &mut Writer, guest: &Guest) -> io::Result<()> {
    let list = |items: &[String]| items.iter().flat_map(|item| [item, "\0"]).collect::<String>();
    let factor = ("LXCFS_TEST_TIMEOUT_FACTOR".to_owned(), TIMEOUT_FACTOR.to_string());
    let environment = [&factor].into_iter().chain(&guest.environment);
    let environment = environment.map(|(name, value)| format!("{name}={value}"));
    archive.text("vm/environment", list(&environment.collect::<Vec<_>>()))?;
    for (index, step) in guest.steps.iter().enumerate() {
        archive.directory(&step.directory, 0o755)?;
        let dir = PathBuf::from(format!("vm/steps/{index}"));
        archive.text(dir.join("argv"), list(&step.argv))?;
        archive.text(dir.join("directory"), step.directory.as_os_str().as_encoded_bytes())?;
        archive.text(dir.join("deadline_ms"), step.deadline().as_millis().to_string())?;
    }
    Ok(())
}

/// The archive `NAME-FINGERPRINT.cpio`, made by `fill` when it is not there.
fn cached(
    home: &Path,
    name: &str,
    inputs: &impl Hash,
    fill: impl FnOnce(&mut Writer) -> Result<()>,
) -> Result<PathBuf> {
    let dir = home.join("images");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let path = dir.join(format!("{name}-{:016x}.cpio", fingerprint(inputs)));
    if path.is_file() {
        return Ok(path);
    }
    eprintln!("vm: building the image {name}");
    let new = path.with_extension("new");
    let file = File::create(&new).with_context(|| format!("create {}", new.display()))?;
    let mut archive = Archive::new(BufWriter::new(file));
    fill(&mut archive).with_context(|| space(&new))?;
    archive.finish().with_context(|| space(&new))?;
    fs::rename(&new, &path).with_context(|| format!("rename {} into place", new.display()))?;
    Ok(path)
}

fn fingerprint(inputs: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    inputs.hash(&mut hasher);
    hasher.finish()
}

fn file_size(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len())
}

fn space(path: &Path) -> String {
    format!("write {} (is the disk full?)", path.display())
}
