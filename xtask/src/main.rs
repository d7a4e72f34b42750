//! `cargo xtask`: one subcommand per file.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool talks to its user")]

mod bench;
mod build_ebpf;
mod demo;
mod run;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

/// Everything a developer runs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Build, mount, start a limited container and show what it sees beside what the host sees.
    Run(run::Args),
    /// Run every test there is: style, units, root tests on this machine and in guests.
    Test(test::Args),
    /// Run the long storms whose figures an issue asks for.
    Soak(test::SoakArgs),
    /// Measure the read path against a file that does nothing, Debian's lxcfs and the kernel.
    Bench(bench::Args),
    /// Rebuild the committed eBPF object; its tools are set up if they are missing.
    BuildEbpf(build_ebpf::Args),
    /// Check the invariants of ARCHITECTURE.md.
    Tidy,
    /// Run a command or test binaries in guests with other kernels.
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Run(args) => run::main(&args),
        Command::Test(args) => test::main(&args),
        Command::Soak(args) => test::soak(&args),
        Command::Bench(args) => bench::main(&args),
        Command::BuildEbpf(args) => build_ebpf::main(&args),
        Command::Tidy => tidy::main(),
        Command::Vm(args) => vm::main(args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

/// The folder of the workspace.
fn root() -> std::path::PathBuf {
    let xtask = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask lies in the workspace").to_owned()
}

/// Runs cargo in the workspace, and says what it runs.
fn cargo(arguments: &[&str]) -> Result<()> {
    println!("> cargo {}", arguments.join(" "));
    let status = std::process::Command::new("cargo")
        .args(arguments)
        .current_dir(root())
        // A failed assertion says where; pages of frames of the test harness only hide it.
        .env("RUST_BACKTRACE", "0")
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

/// Fails with one line on how, unless we are root.
fn need_root(what: &str) -> Result<()> {
    let how = format!("{what} takes root: sudo -E env \"PATH=$PATH\" cargo xtask ...");
    ensure!(nix::unistd::geteuid().is_root(), "{how}");
    Ok(())
}
