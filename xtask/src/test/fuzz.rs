//! The fuzz targets of `tests/fuzz`, on the stable toolchain: what libFuzzer needs of the compiler are flags it has.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Counts which branches were taken and what was compared, for libFuzzer to see.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// Flags for a target that is named are not for build scripts and macros.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// An input that takes so many seconds is a fault.
const SLOW_S: u32 = 20;

/// Builds every target and runs each for so many seconds. What is found new stays in `target/fuzz/found`.
pub(super) fn run(seconds: u64) -> Result<()> {
    let (source, target) = (crate::root().join("tests/fuzz"), crate::root().join("target/fuzz"));
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--target", PLATFORM, "--target-dir"])
        .arg(&target)
        .current_dir(&source)
        .env("RUSTFLAGS", COVERAGE.join(" "))
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "the fuzz targets do not build; they need a C++ compiler");
    for name in names(&source.join("fuzz_targets"))? {
        println!("> fuzz {name}, {seconds} s");
        let found = target.join("found").join(&name);
        std::fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
        let fault = target.join(format!("{name}-"));
        let output = Command::new(target.join(PLATFORM).join("release").join(&name))
            .arg(&found)
            .arg(source.join("corpus").join(&name))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={SLOW_S}"))
            .arg(format!("-artifact_prefix={}", fault.display()))
            .args(["-max_len=16384", "-print_final_stats=1", "-verbosity=0"])
            .output()
            .with_context(|| format!("run {name}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{name}: {said}\nput the input into tests/fuzz/corpus");
        let runs =
            said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        println!("> fuzz {name}: {} inputs", runs.unwrap_or("no").trim());
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let list = std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let paths: Vec<PathBuf> = list.flatten().map(|entry| entry.path()).collect();
    let stems = paths.iter().filter_map(|path| path.file_stem()?.to_str().map(ToOwned::to_owned));
    let mut names: Vec<_> = stems.collect();
    names.sort_unstable();
    Ok(names)
}
