//! `cargo xtask`: one subcommand per file.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool talks to its user"
)]

mod vm;

use std::process::ExitCode;

use clap::Parser;

/// Everything a developer runs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
enum Command {
    /// Run a command or test binaries in guests with other kernels.
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Vm(args) => vm::main(args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
