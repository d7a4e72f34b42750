//! The root tests in guests: what a kernel can change with every kernel, the rest with one.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::{Args, HOST_SUITES, TOOLS, suites_for};
use crate::vm;

/// Where no more than these suites run; every suite does with 6.12, the kernel of most machines with pure cgroup v2, and with
/// all of them by `cargo xtask soak --only guests`. A kernel decides whether it takes our programs and how it counts (`below`,
/// `bpf`, `whole`); what FUSE does, what files look like and who a reader is may change from the oldest to the newest.
const PARTLY: [(&str, &[&str]); 3] = [
    // It cannot be asked to send the requests of a daemon that died again.
    ("6.1", &["below", "bpf", "caller", "files", "fs", "kept", "pressure", "restart", "whole"]),
    ("6.18", &["below", "bpf", "whole"]),
    ("7.3", &["below", "bpf", "caller", "files", "fs", "kept", "pressure", "whole"]),
];

/// What the packages of [`TOOLS`] find on any Debian machine and a guest has not: terminals, for `top`.
const GUEST_PACKAGES: [&str; 1] = ["ncurses-base"];

/// An emulated CPU is ten times slower: storms are as many times smaller, and what takes seconds by the clock is done less
/// often.
pub(super) const ENVIRONMENT: [(&str, &str); 10] = [
    ("RUST_BACKTRACE", "0"),
    ("LXCFS_TEST_READS", "300"),
    ("LXCFS_TEST_CONTAINERS", "80"),
    ("LXCFS_TEST_POLLERS", "300"),
    ("LXCFS_TEST_KILLS", "3"),
    ("LXCFS_TEST_RESTARTS", "5"),
    ("LXCFS_TEST_STEADY_SECONDS", "30"),
    ("LXCFS_TEST_TICKS", "3"),
    ("LXCFS_TEST_BELOW_READINGS", "30"),
    ("LXCFS_TEST_BELOW_CGROUPS", "20"),
];

/// Our programs that the root tests start.
const PROGRAMS: [&str; 5] = ["lxcfs", "burden", "contain", "hammer", "witness"];

/// Long enough for any suite on this machine; a guest has ten times as long.
const SUITE_TIMEOUT: Duration = Duration::from_secs(90);

/// The suites that were asked for with every kernel that was; if none was, each where it belongs.
pub(super) fn run(args: &Args) -> Result<Vec<vm::KernelReport>> {
    let options = vm::Options { kernels: args.kernel.0.clone(), ..vm::Options::default() };
    let mut suites: Vec<_> = suites_for(&HOST_SUITES, args)?.into_iter().map(suite).collect();
    if args.suites.is_empty() {
        for suite in &mut suites {
            suite.kernels.retain(|series| belongs(&suite.name, &series.to_string()));
        }
    }
    vm::run_suites(&options, &suites, &guest(&ENVIRONMENT))
}

fn belongs(suite: &str, kernel: &str) -> bool {
    let partly = PARTLY.iter().find(|(series, _)| *series == kernel);
    partly.is_none_or(|(_, suites)| suites.contains(&suite))
}

/// A suite with every kernel.
pub(super) fn suite((name, binary): (String, PathBuf)) -> vm::Suite {
    vm::Suite {
        name,
        binary,
        arguments: Vec::new(),
        directory: crate::root().join("tests"),
        timeout: SUITE_TIMEOUT,
        kernels: vm::Options::default().kernels,
    }
}

/// A guest with all that the suites start.
pub(super) fn guest(environment: &[(&str, &str)]) -> vm::Guest {
    let packages = TOOLS.iter().map(|(_, package)| *package).chain(GUEST_PACKAGES);
    let mut packages: Vec<_> = packages.map(ToOwned::to_owned).collect();
    packages.dedup();
    let programs = PROGRAMS.iter().map(|name| lxcfs_tests::program(name));
    let pairs = environment.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    let (files, environment) = (programs.collect(), pairs.collect());
    vm::Guest { files, packages, environment, ..vm::Guest::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_of_the_table_is_one_that_guests_run() {
        let tests = crate::root().join("tests/tests");
        for name in PARTLY.iter().flat_map(|(_, suites)| *suites) {
            let is_there = [format!("{name}.rs"), format!("{name}/main.rs")];
            assert!(is_there.iter().any(|path| tests.join(path).exists()), "{name}");
            assert!(!HOST_SUITES.contains(name), "{name}");
        }
    }

    #[test]
    fn every_suite_runs_with_one_kernel_and_those_of_the_table_with_others() {
        let kernels = vm::Options::default().kernels;
        let with = |suite: &str| {
            kernels
                .iter()
                .map(ToString::to_string)
                .filter(|k| belongs(suite, k))
                .collect::<Vec<_>>()
        };
        assert_eq!(with("tools"), ["6.12"]);
        assert_eq!(with("restart"), ["6.1", "6.12"]);
        assert_eq!(with("bpf").len(), kernels.len());
        assert!(PARTLY.iter().all(|(known, _)| kernels.iter().any(|k| k.to_string() == *known)));
    }
}
