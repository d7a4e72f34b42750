//! The command line: types and help, nothing else.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bpf::FILES_BELOW;
use crate::model::cpus::CpuView;
use crate::model::file::Path;

/// Where the files are by default, as with LXCFS.
pub const DEFAULT_MOUNT_POINT: &str = "/var/lib/lxcfs";

/// Show every container its own machine in /proc and /sys.
///
/// Mounts a filesystem at MOUNTPOINT whose files are bound over those of a container: each reader sees the CPUs, memory,
/// swap, uptime, load and pressure of the container it is in.
#[derive(Debug, Parser)]
#[command(
    name = "lxcfs",
    version,
    disable_version_flag = true,
    args_conflicts_with_subcommands = true
)]
#[command(after_help = "\
Exit status:
  0  success, or ended by SIGTERM, SIGINT or SIGHUP
  1  the operation failed; one line on standard error says what, where, why and what to do
  2  the command line is wrong

Signals:
  SIGUSR1  start the program anew, beside the running one, and hand over to it when it is ready
  SIGUSR2  show everybody the host's files, or end that

Environment:
  LXCFS_LOG  what to log, e.g. `debug` or `lxcfs::caller=debug` (default: info)")]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: Serve,
    /// Print the version.
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// Options of the daemon: those of LXCFS 4 to 7 with their meaning, and ours.
#[derive(Debug, Args)]
pub struct Serve {
    /// Directory to mount at, usually /var/lib/lxcfs
    pub mountpoint: Option<PathBuf>,
    /// Which CPUs a container is shown
    #[arg(long, value_enum, default_value_t)]
    pub cpu_view: View,
    /// Same as `--cpu-view quota`
    #[arg(long, conflicts_with = "cpu_view")]
    pub enable_cfs: bool,
    /// Where load and CPU time come from: eBPF where the kernel allows it, or cgroup files alone
    #[arg(long, value_enum, default_value_t)]
    pub accounting: Supplier,
    /// Cgroups to keep counts for at once, with eBPF: each takes 128 bytes per possible CPU and some 480 more, 10,000 take
    /// 7 MB on 2 CPUs and 86 MB on 64
    #[arg(long, default_value_t = 4_096, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(64..=1_000_000))]
    pub cgroups: u32,
    /// Files that the kernel itself serves, without a daemon on the way: `loadavg`, `uptime`, or none with `off`. Such a file has to
    /// be opened anew for each reading; `auto` is those that no program is known to rewind, today none
    #[arg(long, default_value = "auto", value_name = "auto|off|LIST")]
    pub kernel_files: KernelFiles,
    /// Show no swap
    #[arg(short = 'u', long)]
    pub disable_swap: bool,
    /// Show no zswap
    #[arg(long)]
    pub disable_zswap: bool,
    /// Answer EIO where a container's own values cannot be had, instead of showing it the host's
    #[arg(long)]
    pub strict: bool,
    /// Threads that answer requests
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub threads: u16,
    /// Serve in this process, with nobody to start another when it dies; readers then get ENOTCONN
    #[arg(long)]
    pub no_keeper: bool,
    /// What readers get when no daemon can be started any more: ENOTCONN, which everybody notices, or the host's files from the
    /// keeper, which programs take for the container's
    #[arg(long, value_enum, default_value_t, value_name = "WAY")]
    pub give_up: GiveUp,
    /// Leave the mount where it is at the end: readers get ENOTCONN until the next start
    #[arg(long)]
    pub leave_mounted: bool,
    /// File to write our pid to, and to lock [default: RUNTIME_DIR/lxcfs.pid]
    #[arg(short, long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,
    /// Directory for the pidfile and the control socket
    #[arg(long, default_value = "/run", value_name = "DIR")]
    pub runtime_dir: PathBuf,
    /// Mount options: ro, rw, [no]suid, [no]dev, [no]exec, [no]atime; those of libfuse are accepted and ignored
    #[arg(short, value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Log everything
    #[arg(short, long, conflicts_with = "foreground")]
    pub debug: bool,
    /// Accepted: we always stay in the foreground
    #[arg(short, long)]
    pub foreground: bool,
    /// Accepted: load averages are always on
    #[arg(short = 'l', long)]
    pub enable_loadavg: bool,
    /// Accepted: pidfds are always used
    #[arg(long)]
    pub enable_pidfd: bool,
    /// Accepted for LXCFS's sake; triggers can always be set on pressure files, and cost nothing until they are
    #[arg(long)]
    pub enable_psi_poll: bool,
    /// Show each container its own cgroups of the v1 hierarchies in cgroup/, to read, for hooks of LXC before cgroup namespaces
    #[arg(long)]
    pub enable_cgroup: bool,
    /// Accepted: LXCFS's old single-thread switch
    #[arg(short = 's', hide = true)]
    pub single_thread: bool,
}

/// What to do instead of serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what a running daemon serves, from which source, and what it served from the host
    Status {
        /// Where it is mounted
        #[arg(default_value = DEFAULT_MOUNT_POINT)]
        mountpoint: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The daemon's --runtime-dir
        #[arg(long, default_value = "/run", value_name = "DIR")]
        runtime_dir: PathBuf,
    },
    /// Show all containers in a live table: load, CPU, steal, throttling, memory, pressure
    Top(Top),
    /// Print a file as a process in a container sees it, without entering the container
    Cat {
        /// A process of the container
        #[arg(long = "as", value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
        pid: u32,
        /// The file, e.g. /proc/meminfo or just meminfo, /sys/devices/system/cpu/possible
        file: Path,
        /// Where the daemon to ask is mounted; without a daemon the page is made here
        #[arg(long, default_value = DEFAULT_MOUNT_POINT, value_name = "MOUNTPOINT")]
        mount: PathBuf,
        /// The daemon's --runtime-dir
        #[arg(long, default_value = "/run", value_name = "DIR")]
        runtime_dir: PathBuf,
        /// Which CPUs a container is shown, where no daemon says it
        #[arg(long, value_enum, default_value_t)]
        cpu_view: View,
    },
    /// Have another program, or the same one anew, serve a mount in place of the one that does, with no reader noticing
    Upgrade {
        /// The program [default: the running one's file, as it is now]
        program: Option<PathBuf>,
        /// Where the daemon is mounted
        #[arg(long, default_value = DEFAULT_MOUNT_POINT, value_name = "MOUNTPOINT")]
        mount: PathBuf,
        /// The daemon's --runtime-dir
        #[arg(long, default_value = "/run", value_name = "DIR")]
        runtime_dir: PathBuf,
    },
    /// Print a completion script
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// Options of `lxcfs top`.
#[derive(Debug, Args)]
#[command(after_help = "\
Columns:
  LOAD 1 5 15     load averages; RUN, BLK, THR: threads that run or wait to, in uninterruptible sleep, and all
  CPU%            100 is one CPU; STEAL%: threads that waited for one, summed; THROT%: kept from one by its quota
  MEM LIMIT       memory charged, and the smallest limit on it
  CPU/MEM/IO PSI  percent of the last 10 s in which some thread waited for that
  -               not known here: `lxcfs status` says what supplies what")]
pub struct Top {
    /// Where the daemon is mounted
    #[arg(default_value = DEFAULT_MOUNT_POINT)]
    pub mountpoint: PathBuf,
    /// Print one table, with the rates of one interval, and end
    #[arg(long)]
    pub once: bool,
    /// Print a JSON object on a line for each interval
    #[arg(long)]
    pub json: bool,
    /// Seconds between two looks
    #[arg(short, long, default_value_t = 2.0, value_name = "SECONDS", value_parser = seconds)]
    pub interval: f64,
    /// Which containers come first
    #[arg(short, long, value_enum, default_value_t)]
    pub sort: Sorting,
    /// The daemon's --runtime-dir
    #[arg(long, default_value = "/run", value_name = "DIR")]
    pub runtime_dir: PathBuf,
}

/// What `lxcfs top` sorts by.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Sorting {
    /// The most CPU time
    #[default]
    Cpu,
    /// The most memory
    Memory,
    /// The highest load average
    Load,
    /// By the cgroup's path
    Name,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.1..=3_600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("must be from 0.1 to 3600".to_owned())
    }
}

/// Where load and CPU time come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Supplier {
    /// eBPF where the kernel allows it, else cgroup files
    #[default]
    Auto,
    /// Cgroup files alone
    Files,
}

/// Files that the kernel is to serve, by their names in `/proc`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelFiles(Vec<&'static str>);

impl KernelFiles {
    /// Whether `file` is one of them.
    #[must_use]
    pub fn has(&self, file: &str) -> bool {
        self.0.contains(&file)
    }
}

impl std::str::FromStr for KernelFiles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if ["auto", "off"].contains(&text) {
            return Ok(Self::default());
        }
        let mut files = Self::default();
        for name in text.split(',') {
            let name = name.trim_start_matches('/').trim_start_matches("proc/");
            let known = FILES_BELOW.into_iter().find(|known| *known == name);
            let unknown =
                || format!("`{name}` is not one of auto, off, {}", FILES_BELOW.join(", "));
            files.0.push(known.ok_or_else(unknown)?);
        }
        Ok(files)
    }
}

/// What a keeper does that cannot start a daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum GiveUp {
    /// Unmount: readers get ENOTCONN
    #[default]
    Abort,
    /// Show every container the host's files, with a line in the log each minute
    Host,
}

/// [`CpuView`] on the command line.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum View {
    /// The CPUs of its effective cpuset
    #[default]
    Cpuset,
    /// As many as its CPU quota is worth
    Quota,
    /// All of the host's
    Host,
}

impl From<View> for CpuView {
    fn from(view: View) -> Self {
        match view {
            View::Cpuset => Self::Cpuset,
            View::Quota => Self::Quota,
            View::Host => Self::Host,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn command_lines_of_lxcfs_are_understood() {
        for line in [
            "lxcfs /var/lib/lxcfs",
            "lxcfs -l -u --enable-cfs --enable-pidfd --enable-psi-poll --enable-cgroup /var/lib/lxcfs",
            "lxcfs -f -p /run/lxcfs.pid -o nonempty,allow_other --runtime-dir=/run /var/lib/lxcfs",
            "lxcfs -s -d --disable-zswap --pidfile=/run/x.pid /var/lib/lxcfs/",
        ] {
            let cli =
                Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}"));
            assert!(cli.serve.mountpoint.is_some(), "{line}");
        }
        let files = |list| Cli::try_parse_from(["lxcfs", "--kernel-files", list, "/m"]);
        let wanted = |list| {
            let files = files(list).unwrap().serve.kernel_files;
            FILES_BELOW.map(|name| files.has(name))
        };
        assert_eq!(wanted("loadavg"), [true, false]);
        assert_eq!(wanted("/proc/loadavg,uptime"), [true, true]);
        assert_eq!(["auto", "off"].map(wanted), [[false; 2]; 2]);
        assert!(files("loadavg,stat").is_err() && files("").is_err());
        assert!(Cli::try_parse_from(["lxcfs", "-d", "-f", "/m"]).is_err());
        assert!(Cli::try_parse_from(["lxcfs", "--no-such-option", "/m"]).is_err());
    }
}
