//! `cargo xtask build-ebpf`: rebuilds the committed eBPF object, with tools it sets up by itself.
//!
//! The one place that knows of build-std and bpf-linker. Whoever does not change the programs needs
//! none of this: the object is committed and embedded.

mod strip;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};

use tools::Tools;

const TARGET: &str = "bpfel-unknown-none";

/// The command line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fail if the committed object is not what its source gives, and change nothing.
    #[arg(long)]
    check: bool,
}

pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let root = crate::root();
    let tools = Tools::set_up(&root.join("target/bpf-tools"))?;
    let object = build(&root, &tools)?;
    let prebuilt = root.join("lxcfs-ebpf/prebuilt");
    let (object_path, versions_path) =
        (prebuilt.join("lxcfs-ebpf.o"), prebuilt.join("lxcfs-ebpf.txt"));
    if args.check {
        return check(&object, &tools.versions, &object_path, &versions_path);
    }
    fs::create_dir_all(&prebuilt).with_context(|| format!("make {}", prebuilt.display()))?;
    for (path, bytes) in
        [(&object_path, object.as_slice()), (&versions_path, tools.versions.as_bytes())]
    {
        fs::write(path, bytes).with_context(|| format!("write {}", path.display()))?;
    }
    println!("{}: {} bytes", object_path.display(), object.len());
    Ok(ExitCode::SUCCESS)
}

/// Compares byte by byte, if the tools are those that made the committed object.
fn check(object: &[u8], versions: &str, path: &Path, versions_path: &Path) -> Result<ExitCode> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    let made_with = String::from_utf8_lossy(&read(versions_path)?).into_owned();
    let committed = read(path)?;
    if committed == object {
        println!("{}: {} bytes, as built from source", path.display(), object.len());
        return Ok(ExitCode::SUCCESS);
    }
    if made_with != versions {
        println!("built, but with other tools the bytes cannot be compared; these are\n{versions}");
        println!("the committed object was made with\n{made_with}");
        return Ok(ExitCode::SUCCESS);
    }
    let differs = committed.iter().zip(object).position(|(a, b)| a != b);
    bail!(
        "{}: {} bytes, its source gives {} (first difference at {:?}); hint: cargo xtask build-ebpf",
        path.display(),
        committed.len(),
        object.len(),
        differs.unwrap_or(committed.len().min(object.len())),
    );
}

/// Builds and strips. Nothing of this machine ends up in the bytes: paths are remapped.
fn build(root: &Path, tools: &Tools) -> Result<Vec<u8>> {
    let cargo_home = home("CARGO_HOME", ".cargo")?;
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [
        "-Clinker=bpf-linker".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Atomic instructions with a result, and 32-bit ones.
        "-Ctarget-cpu=v3".to_owned(),
        // Type information is made from it; the rest is stripped.
        "-Cdebuginfo=2".to_owned(),
        // Of several that match, rustc takes the last.
        remap(root, "/lxcfs"),
        remap(&cargo_home, "/cargo"),
        remap(&tools.sysroot, "/rust"),
        remap(&tools.rust_src, "/rust/lib/rustlib/src/rust"),
        remap(&tools.rust_src_fixed, "/rust/lib/rustlib/src/rust"),
    ];
    let target_dir = root.join("target/bpf");
    let path = std::env::var("PATH").unwrap_or_default();
    let status = Command::new("cargo")
        .args(["build", "--release", "--package", "lxcfs-ebpf", "--bin", "lxcfs-ebpf"])
        .args(["--target", TARGET, "-Zbuild-std=core", "--target-dir"])
        .arg(&target_dir)
        .current_dir(root)
        // `-Z` on a release toolchain, for this one call.
        .env("RUSTC_BOOTSTRAP", "1")
        // Where cargo looks for `core`, instead of in the sysroot.
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", tools.rust_src_fixed.join("library"))
        .env("PATH", format!("{}:{path}", tools.linker_dir.display()))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "the eBPF programs do not build");
    let built = target_dir.join(TARGET).join("release/lxcfs-ebpf");
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    strip::debug_sections(&bytes)
}

/// A folder named by a variable, or below the home directory.
fn home(variable: &str, default: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(Path::new(&home).join(default))
}
