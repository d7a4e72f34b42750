//! bpf-linker and the sources of `core`, found or made.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::vm::{Apt, unpack_deb};

/// The bpf-linker that fits our rustc.
const LINKER_VERSION: &str = "0.13.0";

/// Where the sources of `core` lie for cargo on whatever machine.
const FIXED: &str = "/tmp/lxcfs-build-ebpf";

/// What the build needs beside cargo.
#[derive(Debug)]
pub(super) struct Tools {
    /// A folder for PATH.
    pub(super) linker_dir: PathBuf,
    pub(super) sysroot: PathBuf,
    /// Where the sources of `core` really lie.
    pub(super) rust_src: PathBuf,
    /// The same sources by a path that is the same on every machine: cargo hashes it into the names of symbols.
    pub(super) rust_src_fixed: PathBuf,
    /// What made the object, one line per tool.
    pub(super) versions: String,
}

impl Tools {
    /// Finds the tools, and sets up under `home` those that are missing.
    pub(super) fn set_up(home: &Path) -> Result<Self> {
        let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?);
        let rustc = output(Command::new("rustc").arg("--version"))?;
        let rust_src = rust_src(home, &sysroot, &rustc)?;
        let rust_src_fixed = own_directory(Path::new(FIXED))?.join("rust");
        link(&rust_src, &rust_src_fixed)?;
        let linker_dir = linker(home, &sysroot)?;
        let linker = output(Command::new(linker_dir.join("bpf-linker")).arg("--version"))?;
        let versions = format!("{rustc}\n{linker}\n");
        Ok(Self { linker_dir, sysroot, rust_src, rust_src_fixed, versions })
    }
}

/// The folder that holds bpf-linker: on PATH, ours from before, or ours from now.
fn linker(home: &Path, sysroot: &Path) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let ours = home.join("bin");
    let folders = std::env::split_paths(&path).chain([ours.clone()]);
    for folder in folders {
        if folder.join("bpf-linker").is_file() {
            return Ok(folder);
        }
    }
    // It needs an LLVM of rustc's own version, which is the one that rustc brings.
    let lib = home.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("make {}", lib.display()))?;
    let llvm = sysroot_llvm(sysroot)?;
    link(&llvm, &lib.join("libLLVM.so"))?;
    let major = llvm_major(&llvm)?;
    println!("building bpf-linker {LINKER_VERSION} with rustc's LLVM {major}");
    let status = Command::new("cargo")
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
        .args(["--no-default-features", "--features", &format!("llvm-{major}"), "--root"])
        .arg(home)
        .env("LLVM_PREFIX", home)
        .env("CARGO_TARGET_DIR", home.join("build"))
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!("-Clink-arg=-Wl,-rpath,{}", sysroot.join("lib").display()),
        )
        .status()
        .context("run cargo install")?;
    ensure!(status.success(), "bpf-linker does not build; hint: install it and put it on PATH");
    Ok(ours)
}

/// rustc's own LLVM, `libLLVM.so.22.1-rust-...`.
fn sysroot_llvm(sysroot: &Path) -> Result<PathBuf> {
    let lib = sysroot.join("lib");
    let entries = fs::read_dir(&lib).with_context(|| format!("read {}", lib.display()))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths
        .find(|path| llvm_major(path).is_ok())
        .with_context(|| format!("no libLLVM in {}: put bpf-linker on PATH", lib.display()))
}

fn llvm_major(library: &Path) -> Result<String> {
    let name = library.file_name().unwrap_or_default().to_string_lossy();
    let version = name.strip_prefix("libLLVM.so.").and_then(|rest| rest.split_once('.'));
    let (major, _) = version.with_context(|| format!("{name} names no version"))?;
    Ok(major.to_owned())
}

/// Sees to it that cargo finds the sources of `core`, and says where they are.
fn rust_src(home: &Path, sysroot: &Path, rustc: &str) -> Result<PathBuf> {
    let place = sysroot.join("lib/rustlib/src/rust");
    let there = || place.join("library/Cargo.lock").is_file();
    if !there() {
        // With rustup this is all; where it is absent or cannot download, Debian has the same tree.
        let _tried = Command::new("rustup").args(["component", "add", "rust-src"]).status();
    }
    if !there() {
        let tree = debian_rust_src(home, rustc)?;
        fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
        link(&tree, &place.join("library"))?;
    }
    ensure!(there(), "{} is not a rust-src tree", place.display());
    let library = place.join("library").canonicalize().context("find the sources of core")?;
    Ok(library.parent().unwrap_or(&place).to_owned())
}

/// Unpacks the library sources of Debian's rust-src package of the same upstream version. Nothing
/// is installed.
fn debian_rust_src(home: &Path, rustc: &str) -> Result<PathBuf> {
    let version = rustc.split(' ').nth(1).context("rustc says no version")?;
    let tree = home.join("rust-src");
    let library = tree.join("library");
    if library.join("Cargo.lock").is_file() {
        return Ok(library);
    }
    for suite in ["trixie-backports", "forky", "sid"] {
        let apt = Apt::of(home, &[suite])?;
        let versions = apt.versions("rust-src")?;
        let Some(found) = versions.iter().find(|v| v.starts_with(&format!("{version}+"))) else {
            continue;
        };
        let debs = apt.alone(&[format!("rust-src={found}")])?;
        apt.fetch(&debs, home)?;
        let unpacked = home.join("unpacked");
        for deb in &debs {
            unpack_deb(&home.join(&deb.file), &unpacked)?;
            fs::remove_file(home.join(&deb.file)).context("remove the package")?;
        }
        fs::create_dir_all(&tree).with_context(|| format!("make {}", tree.display()))?;
        let from = unpacked.join(format!("usr/src/rustc-{version}/library"));
        fs::rename(&from, &library).with_context(|| format!("find {}", from.display()))?;
        fs::remove_dir_all(&unpacked).context("remove the rest of the package")?;
        return Ok(library);
    }
    bail!("no rust-src of {version}; hint: rustup component add rust-src")
}

/// Makes a directory of ours at a place where anybody could have made one before.
fn own_directory(path: &Path) -> Result<&Path> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("make {}", path.display()));
        }
        _ => {}
    }
    let found = fs::symlink_metadata(path).with_context(|| format!("find {}", path.display()))?;
    let is_ours = found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw();
    ensure!(is_ours, "{} is somebody else's; hint: remove it", path.display());
    Ok(path)
}

/// A symbolic link, in place of an older one that leads nowhere.
fn link(to: &Path, at: &Path) -> Result<()> {
    if fs::symlink_metadata(at).is_ok_and(|old| old.is_symlink()) {
        fs::remove_file(at).with_context(|| format!("replace {}", at.display()))?;
    }
    std::os::unix::fs::symlink(to, at).with_context(|| format!("link {}", at.display()))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
