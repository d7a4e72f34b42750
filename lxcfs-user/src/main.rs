//! `lxcfs`: parse the command line, dispatch, and say in one line what went wrong.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use lxcfs::caller::InitLookup;
use lxcfs::cli::{Cli, Command, View};
use lxcfs::daemon::{self, Rooms, control, places};
use lxcfs::error::{Error, Result};
use lxcfs::files::Policy;
use lxcfs::model::file;
use lxcfs::output;
use lxcfs::top;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let default = if cli.serve.debug { "debug" } else { "info,fuser=error" };
    let filter = EnvFilter::try_from_env("LXCFS_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
    match run(&cli) {
        Ok(code) => code,
        Err(error) => {
            // Standard error may be closed; there is nobody left to tell then.
            let _ = writeln!(std::io::stderr(), "lxcfs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        None if cli.serve.mountpoint.is_some() => daemon::serve(&cli.serve),
        command => tell(command.as_ref()).map(|()| ExitCode::SUCCESS),
    }
}

/// Everything that ends by itself.
fn tell(command: Option<&Command>) -> Result<()> {
    match command {
        None => Cli::command()
            .error(clap::error::ErrorKind::MissingRequiredArgument, "MOUNTPOINT is missing")
            .exit(),
        Some(Command::Status { mountpoint, json, runtime_dir }) => {
            status(&places::socket(runtime_dir, mountpoint), *json)
        }
        Some(Command::Top(arguments)) => {
            top::run(arguments, &places::socket(&arguments.runtime_dir, &arguments.mountpoint))
        }
        Some(Command::Cat { pid, file, mount, runtime_dir, cpu_view }) => {
            let socket = places::socket(runtime_dir, mount);
            print(&text(&socket, *pid, file, *cpu_view)?)
        }
        Some(Command::Upgrade { program, mount, runtime_dir }) => {
            upgrade(&places::socket(runtime_dir, mount), program.as_deref())
        }
        Some(Command::Completion { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "lxcfs", &mut script);
            print(&script)
        }
        Some(Command::Man) => {
            let mut manual = Vec::new();
            // Writing to a Vec cannot fail.
            let _ = clap_mangen::Man::new(Cli::command()).render(&mut manual);
            print(&manual)
        }
    }
}

fn status(socket: &Path, json: bool) -> Result<()> {
    let request = if json { "status" } else { "status text" };
    print(&control::ask_running(socket, request)?)
}

/// Has the program at `program` take over. Says nothing if it does.
fn upgrade(socket: &Path, program: Option<&Path>) -> Result<()> {
    let program = program
        .map(|program| {
            std::path::absolute(program).map_err(|error| Error::std("find", program, &error))
        })
        .transpose()?
        .unwrap_or_default();
    control::ask_running(socket, &format!("upgrade {}", program.display())).map(|_| ())
}

/// The text from the daemon, or without one, made here.
fn text(socket: &Path, pid: u32, file: &file::Path, view: View) -> Result<Vec<u8>> {
    match control::ask(socket, &format!("cat {pid} {file}"))? {
        Some(page) => Ok(page),
        None => {
            let policy = Policy { cpu_view: view.into(), ..Policy::default() };
            let rooms = Rooms::open(policy, InitLookup::Ask)?;
            Ok(rooms.road.text(file, pid)?.to_vec())
        }
    }
}

fn print(bytes: &[u8]) -> Result<()> {
    output::print(bytes).map(|_| ())
}
