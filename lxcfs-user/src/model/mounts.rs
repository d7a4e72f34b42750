//! Where cgroup hierarchies are mounted, from the text of `/proc/self/mountinfo`.

use std::path::PathBuf;

/// One mount of a cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMount {
    /// Comma-separated v1 controllers (`name=systemd` for a hierarchy without any), empty for v2.
    pub controllers: String,
    /// The cgroup the mount shows as its root: `/`, or what a container runtime bound there.
    pub root: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
}

impl CgroupMount {
    /// Every mount of a cgroup hierarchy in `mountinfo`; lines of another form are left out.
    pub fn all(mountinfo: &[u8]) -> impl Iterator<Item = Self> {
        mountinfo.split(|&byte| byte == b'\n').filter_map(Self::parse)
    }

    /// The fields of a line are `id parent major:minor root mount-point options... - type source super-options`; the v1
    /// controllers are among the super options.
    fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next()?;
        let options = filesystem.nth(1)?;
        let controllers = match kind {
            "cgroup2" => String::new(),
            "cgroup" => {
                let names = options.split(',').filter(|option| is_controller(option));
                names.collect::<Vec<_>>().join(",")
            }
            _ => return None,
        };
        let mut mount = mount.split(' ');
        let root = mount.nth(3)?.to_owned();
        let mount_point = unescape(mount.next()?);
        Some(Self { controllers, root, mount_point })
    }

    /// Whether this is cgroup v2.
    #[must_use]
    pub const fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Whether `controller` is one of its v1 controllers.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|name| name == controller)
    }
}

/// Whether a super option of a v1 mount names a controller (or a named hierarchy) and not a mount option.
fn is_controller(option: &str) -> bool {
    const OPTIONS: [&str; 9] = [
        "rw",
        "ro",
        "all",
        "none",
        "clone_children",
        "noprefix",
        "xattr",
        "cpuset_v2_mode",
        "favordynmods",
    ];
    !OPTIONS.contains(&option) && !option.starts_with("release_agent=")
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        (rest, _) = match code {
            Some(code) if byte == b'\\' => (&after[3..], plain.push(code)),
            _ => (after, plain.push(byte)),
        };
    }
    String::from_utf8_lossy(&plain).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<CgroupMount> {
        CgroupMount::parse(line.as_bytes())
    }

    fn mount(controllers: &str, root: &str, mount_point: &str) -> Option<CgroupMount> {
        let (controllers, root) = (controllers.to_owned(), root.to_owned());
        Some(CgroupMount { controllers, root, mount_point: mount_point.into() })
    }

    #[test]
    fn v1_v2_and_named_hierarchies() {
        let v2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(parsed(v2), mount("", "/", "/sys/fs/cgroup"));
        let v1 = "32 24 0:28 /docker/x /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct";
        let v1 = parsed(v1);
        assert_eq!(v1, mount("cpu,cpuacct", "/docker/x", "/sys/fs/cgroup/cpu"));
        assert!(v1.is_some_and(|v1| v1.has("cpu") && !v1.has("acct") && !v1.is_v2()));
        let named = "33 24 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd";
        assert_eq!(parsed(named), mount("name=systemd", "/", "/sys/fs/cgroup/systemd"));
    }

    #[test]
    fn other_lines_are_left_out() {
        let text = b"34 24 0:30 / /proc rw - proc proc rw\nnonsense\n - \n1 2 3 / - cgroup\n\xff\n";
        assert_eq!(CgroupMount::all(text).count(), 0);
    }

    #[test]
    fn a_path_with_odd_characters_is_read() {
        let text = "32 25 0:28 / /my\\040groups\\134x\\9\\ rw - cgroup2 none rw\n";
        let found = CgroupMount::all(text.as_bytes()).next();
        assert_eq!(found, mount("", "/", "/my groups\\x\\9\\"));
    }
}
