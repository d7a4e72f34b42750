//! The unit tests of the rooms that do no I/O, by an interpreter that finds undefined behaviour in what they call.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Parsing, arithmetic, pages.
const ROOMS: [&str; 3] = ["source::parse", "model::", "files::"];

/// Pages of a thousand CPUs and lines of a mebibyte: hours, and nothing that smaller ones do not call.
const TOO_LONG: [&str; 3] = ["a_thousand_cpus", "a_line_of_a_mebibyte", "any_file_of_the_host"];

/// The interpreter is a hundred times slower: properties are looked at with so many cases.
const CASES: &str = "4";

/// Runs them.
pub(super) fn run() -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["+nightly", "miri", "test", "--package", "lxcfs-user", "--lib", "--target-dir"]);
    command.arg(crate::root().join("target/miri")).arg("--").args(ROOMS);
    for test in TOO_LONG {
        command.args(["--skip", test]);
    }
    let status = command
        .current_dir(crate::root())
        // Wanted pages are read from files.
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .env("PROPTEST_CASES", CASES)
        .status()
        .context("run cargo")?;
    ensure!(
        status.success(),
        "miri failed; it comes with `rustup toolchain install nightly --component miri,rust-src`"
    );
    Ok(())
}
