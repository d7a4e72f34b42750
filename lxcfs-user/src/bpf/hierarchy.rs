//! Which cgroup hierarchy groups CPU time, decided from what is mounted.

use std::path::PathBuf;

/// A v1 controller that can group CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    Cpuacct,
    Cpu,
}

/// The hierarchy whose groups are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// `None`: the default hierarchy (v2).
    pub controller: Option<Controller>,
    /// Where its root is mounted.
    pub root: PathBuf,
}

/// The hierarchy to use, from the text of `/proc/self/mountinfo`.
///
/// A v1 `cpuacct` mount comes first, then v1 `cpu`, then v2: where a v1 controller is mounted, the
/// runtimes put their containers there, and the v2 tree of a hybrid system is systemd's own.
#[must_use]
pub fn parse(mountinfo: &str) -> Option<Hierarchy> {
    let mounts: Vec<_> = mountinfo.lines().filter_map(mount).collect();
    let v1 = |name: &str, controller| {
        let found =
            mounts.iter().find(|mount| mount.v1 && mount.options.split(',').any(|o| o == name));
        found.map(|mount| Hierarchy { controller: Some(controller), root: mount.target.clone() })
    };
    let v2 = || {
        let found = mounts.iter().find(|mount| !mount.v1);
        found.map(|mount| Hierarchy { controller: None, root: mount.target.clone() })
    };
    v1("cpuacct", Controller::Cpuacct).or_else(|| v1("cpu", Controller::Cpu)).or_else(v2)
}

struct Mount<'a> {
    v1: bool,
    target: PathBuf,
    options: &'a str,
}

/// One line, if it mounts the root of a cgroup hierarchy (proc_pid_mountinfo(5)).
fn mount(line: &str) -> Option<Mount<'_>> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ').skip(3);
    let (root, target) = (head.next()?, head.next()?);
    let mut tail = tail.split(' ');
    let v1 = match tail.next()? {
        "cgroup" => true,
        "cgroup2" => false,
        _ => return None,
    };
    (root == "/").then(|| Mount {
        v1,
        target: unescape(target),
        options: tail.nth(1).unwrap_or(""),
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "24 1 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "\
        20 1 0:20 / /proc rw - proc proc rw\n\
        30 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        31 25 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
        32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct\n";

    fn at(controller: Option<Controller>, root: &str) -> Option<Hierarchy> {
        Some(Hierarchy { controller, root: root.into() })
    }

    #[test]
    fn v2_alone_is_used() {
        assert_eq!(parse(V2), at(None, "/sys/fs/cgroup"));
    }

    #[test]
    fn cpuacct_goes_before_v2() {
        assert_eq!(parse(HYBRID), at(Some(Controller::Cpuacct), "/sys/fs/cgroup/cpu,cpuacct"));
    }

    #[test]
    fn cpu_stands_in_for_cpuacct() {
        let text = "32 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup none rw,cpu\n";
        assert_eq!(parse(text), at(Some(Controller::Cpu), "/sys/fs/cgroup/cpu"));
    }

    #[test]
    fn a_part_of_a_hierarchy_is_not_its_root() {
        let text = "32 25 0:28 /docker/1 /sys/fs/cgroup rw - cgroup2 none rw\n";
        assert_eq!(parse(text), None);
        assert_eq!(parse("nonsense\n - \n1 2 3 / - cgroup"), None);
    }

    #[test]
    fn a_path_with_a_space_is_read() {
        let text = "32 25 0:28 / /my\\040groups\\x rw - cgroup2 none rw\n";
        assert_eq!(parse(text), at(None, "/my groups\\x"));
    }
}
