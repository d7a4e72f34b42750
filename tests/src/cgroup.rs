//! A cgroup of the same name in every hierarchy of this machine, v1 and v2 alike.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Controllers the tests set limits with.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "hugetlb", "memory", "io", "pids"];

/// One mounted hierarchy.
#[derive(Debug, Clone)]
struct Hierarchy {
    mount_point: PathBuf,
    /// Empty for v2.
    controllers: String,
}

/// A cgroup in every hierarchy. Dropping it kills what is in it and removes it with everything below.
#[derive(Debug)]
pub struct Cgroup {
    hierarchies: Vec<Hierarchy>,
    name: String,
    is_child: bool,
}

impl Cgroup {
    /// Makes a new one below the root, under a name nobody else has.
    ///
    /// # Errors
    /// Not root, or no hierarchy is mounted.
    pub fn new(name: &str) -> Result<Self> {
        let name = new_name(name);
        let hierarchies = hierarchies()?;
        for root in hierarchies.iter().filter(|hierarchy| hierarchy.controllers.is_empty()) {
            enable_controllers(&root.mount_point);
        }
        let cgroup = Self { hierarchies, name, is_child: false };
        cgroup.make()?;
        Ok(cgroup)
    }

    /// Makes one below this one in which processes can be but no limits set. It goes when this one goes.
    ///
    /// # Errors
    /// It exists already, or this one is gone.
    pub fn leaf(&self, name: &str) -> Result<Self> {
        let name = format!("{}/{name}", self.name);
        let leaf = Self { hierarchies: self.hierarchies.clone(), name, is_child: true };
        leaf.make()?;
        Ok(leaf)
    }

    /// Makes one below this one in which limits can be set; on v2 no process can then be in this one itself.
    ///
    /// # Errors
    /// It exists already, or this one is gone.
    pub fn child(&self, name: &str) -> Result<Self> {
        self.delegate();
        self.leaf(name)
    }

    /// Has limits be set in those below this one; on v2 no process can then be in this one itself.
    pub fn delegate(&self) {
        for directory in self.directories().filter(|(_, controllers)| controllers.is_empty()) {
            enable_controllers(&directory.0);
        }
    }

    /// Lets `user` make cgroups below this one of the v2 hierarchy and move its processes between them.
    ///
    /// # Errors
    /// There is no v2 hierarchy.
    pub fn give_to(&self, user: u32) -> Result<()> {
        let (directory, _) = self
            .directories()
            .find(|(_, controllers)| controllers.is_empty())
            .context("no v2 hierarchy")?;
        for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            let path = directory.join(file);
            std::os::unix::fs::chown(&path, Some(user), Some(user))
                .with_context(|| format!("give away {}", path.display()))?;
        }
        Ok(())
    }

    fn make(&self) -> Result<()> {
        for (directory, controllers) in self.directories() {
            fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
            if controllers == "cpuset" {
                // A v1 cpuset is empty at first, and nothing can run in it.
                for file in ["cpuset.mems", "cpuset.cpus"] {
                    let parent = fs::read_to_string(directory.join("..").join(file))?;
                    fs::write(directory.join(file), parent)?;
                }
            }
        }
        Ok(())
    }

    /// The path from the root of each hierarchy.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// The `cgroup.procs` of each hierarchy: a process that writes itself to all of them is in the cgroup.
    #[must_use]
    pub fn procs_files(&self) -> Vec<PathBuf> {
        self.directories().map(|(directory, _)| directory.join("cgroup.procs")).collect()
    }

    /// Its directory in the v2 hierarchy, if there is one.
    #[must_use]
    pub fn unified(&self) -> Option<PathBuf> {
        self.directories()
            .find(|(_, controllers)| controllers.is_empty())
            .map(|(directory, _)| directory)
    }

    /// Whether the machine is pure cgroup v2.
    #[must_use]
    pub fn is_pure_v2(&self) -> bool {
        self.hierarchies.iter().all(|hierarchy| hierarchy.controllers.is_empty())
    }

    /// Limits memory.
    ///
    /// # Errors
    /// The controller is missing.
    pub fn limit_memory(&self, bytes: u64) -> Result<()> {
        self.set("memory", "memory.limit_in_bytes", "memory.max", &bytes.to_string())
    }

    /// Limits swap. On v1 memory and swap are limited together, so the limit of memory has to be set before.
    ///
    /// # Errors
    /// The controller is missing.
    pub fn limit_swap(&self, bytes: u64) -> Result<()> {
        let memory = match self.v1("memory") {
            Some(_) => self.read("memory", "memory.limit_in_bytes", "")?.trim().parse()?,
            None => 0,
        };
        let value = (memory + bytes).to_string();
        self.set("memory", "memory.memsw.limit_in_bytes", "memory.swap.max", &value)
    }

    /// The limit that may be exceeded: `memory.high`, and on v1 the soft limit.
    ///
    /// # Errors
    /// The controller is missing.
    pub fn limit_memory_softly(&self, bytes: u64) -> Result<()> {
        self.set("memory", "memory.soft_limit_in_bytes", "memory.high", &bytes.to_string())
    }

    /// Limits writing to the device with a number like `7:0`.
    ///
    /// # Errors
    /// The controller is missing.
    pub fn limit_writes(&self, device: &str, bytes_per_second: u64) -> Result<()> {
        if self.v1("blkio").is_some() {
            let value = format!("{device} {bytes_per_second}");
            self.set("blkio", "blkio.throttle.write_bps_device", "", &value)
        } else {
            self.set("io", "", "io.max", &format!("{device} wbps={bytes_per_second}"))
        }
    }

    /// Limits huge pages of a size like `2MB`.
    ///
    /// # Errors
    /// The controller is missing.
    pub fn limit_huge_pages(&self, size: &str, bytes: u64) -> Result<()> {
        let v1_file = format!("hugetlb.{size}.limit_in_bytes");
        self.set("hugetlb", &v1_file, &format!("hugetlb.{size}.max"), &bytes.to_string())
    }

    /// Limits the CPU time to `quota_us` in every `period_us`.
    ///
    /// # Errors
    /// The controller is missing.
    pub fn limit_cpu(&self, quota_us: u64, period_us: u64) -> Result<()> {
        if self.v1("cpu").is_some() {
            self.set("cpu", "cpu.cfs_period_us", "", &period_us.to_string())?;
            self.set("cpu", "cpu.cfs_quota_us", "", &quota_us.to_string())
        } else {
            self.set("cpu", "", "cpu.max", &format!("{quota_us} {period_us}"))
        }
    }

    /// Limits the CPUs to a list like `0-1`.
    ///
    /// # Errors
    /// The controller is missing.
    pub fn limit_cpus(&self, list: &str) -> Result<()> {
        self.set("cpuset", "cpuset.cpus", "cpuset.cpus", list)
    }

    /// Stops everything in it, or lets it go on.
    ///
    /// # Errors
    /// The controller is missing.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let value = match (self.v1("freezer"), frozen) {
            (Some(_), true) => "FROZEN",
            (Some(_), false) => "THAWED",
            (None, true) => "1",
            (None, false) => "0",
        };
        self.set("freezer", "freezer.state", "cgroup.freeze", value)
    }

    /// Reads a file of the cgroup: `v1_file` where `controller` has a hierarchy of its own, else `v2_file`.
    ///
    /// # Errors
    /// There is no such file.
    pub fn read(&self, controller: &str, v1_file: &str, v2_file: &str) -> Result<String> {
        let path = self.file(controller, v1_file, v2_file)?;
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// CPU time used by the cgroup and everything below it, nanoseconds, as the kernel counts it.
    ///
    /// # Errors
    /// It is not counted here.
    pub fn used_ns(&self) -> Result<u64> {
        let path = self.usage_file()?;
        parse_used_ns(
            &fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?,
        )
    }

    /// The file in which the kernel says so; see [`parse_used_ns`].
    ///
    /// # Errors
    /// It is not counted here.
    pub fn usage_file(&self) -> Result<PathBuf> {
        self.file("cpuacct", "cpuacct.usage", "cpu.stat")
    }

    /// Moves a process here.
    ///
    /// # Errors
    /// It has ended.
    pub fn add(&self, pid: u32) -> Result<()> {
        for file in self.procs_files() {
            fs::write(&file, pid.to_string())
                .with_context(|| format!("write {pid} to {}", file.display()))?;
        }
        Ok(())
    }

    /// Moves everything here to `other` and removes this one.
    ///
    /// # Panics
    /// It does not become empty.
    pub fn empty_into(self, other: &Self) {
        let is_gone = |directory: &Path| fs::remove_dir(directory).is_ok() || !directory.exists();
        for (directory, controllers) in self.directories() {
            crate::wait_for(&format!("{} to be empty", directory.display()), || {
                let to = other.directories().find(|(_, own)| *own == controllers);
                for pid in members(&directory) {
                    // It may have ended meanwhile.
                    let _ = to
                        .as_ref()
                        .map(|(to, _)| fs::write(to.join("cgroup.procs"), pid.to_string()));
                }
                is_gone(&directory)
            });
        }
    }

    /// The directory of the cgroup in the hierarchy that has `controller`.
    ///
    /// # Errors
    /// No hierarchy has it.
    pub fn directory_of(&self, controller: &str) -> Result<PathBuf> {
        self.file(controller, "", "")
    }

    fn set(&self, controller: &str, v1_file: &str, v2_file: &str, value: &str) -> Result<()> {
        let path = self.file(controller, v1_file, v2_file)?;
        fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
    }

    fn file(&self, controller: &str, v1_file: &str, v2_file: &str) -> Result<PathBuf> {
        match self.v1(controller) {
            Some(directory) => Ok(directory.join(v1_file)),
            None => self
                .directories()
                .find(|(_, controllers)| controllers.is_empty())
                .map(|(directory, _)| directory.join(v2_file))
                .with_context(|| format!("no hierarchy has the controller {controller}")),
        }
    }

    fn v1(&self, controller: &str) -> Option<PathBuf> {
        self.directories()
            .find(|(_, controllers)| controllers.split(',').any(|name| name == controller))
            .map(|(directory, _)| directory)
    }

    fn directories(&self) -> impl Iterator<Item = (PathBuf, &str)> {
        self.hierarchies.iter().map(|hierarchy| {
            (hierarchy.mount_point.join(&self.name), hierarchy.controllers.as_str())
        })
    }
}

/// CPU time used, nanoseconds, from the text of v1's `cpuacct.usage` or v2's `cpu.stat`.
///
/// # Errors
/// It is neither.
pub fn parse_used_ns(text: &str) -> Result<u64> {
    let usec = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    let (number, unit_ns) = usec.map_or((text, 1), |usec| (usec, 1_000));
    let number: u64 = number.trim().parse().with_context(|| format!("parse {text}"))?;
    Ok(number * unit_ns)
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.is_child {
            for (directory, _) in self.directories() {
                remove(&directory);
            }
        }
    }
}

/// The processes in the cgroup. The kernel lists one that ends at that moment as 0, which to kill(2) is our own process
/// group, and to `cgroup.procs` we ourselves.
fn members(directory: &Path) -> Vec<i32> {
    let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|pid| pid.parse().ok()).filter(|&pid| pid > 0).collect()
}

/// A name for cgroups that somebody else makes: a container runtime. Dropping it removes every cgroup at the root of any
/// hierarchy whose name begins with it, as [`Cgroup`] does.
#[derive(Debug)]
pub struct Reserved {
    name: String,
}

impl Reserved {
    /// Reserves a name that nobody has.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: new_name(name) }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // systemd's own hierarchy too: a runtime makes cgroups in all there are.
        for root in mounts().unwrap_or_default() {
            let entries = fs::read_dir(root.mount_point).into_iter().flatten().flatten();
            for entry in entries {
                if entry.file_name().to_string_lossy().starts_with(&self.name) {
                    remove(&entry.path());
                }
            }
        }
    }
}

fn new_name(name: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("lxcfs-test-{}-{number}-{name}", std::process::id())
}

/// Where cgroup v2 is mounted beside v1, on a hybrid machine.
///
/// # Errors
/// mountinfo cannot be read.
pub fn hybrid_v2() -> Result<Option<PathBuf>> {
    let (v2, v1): (Vec<_>, Vec<_>) =
        hierarchies()?.into_iter().partition(|hierarchy| hierarchy.controllers.is_empty());
    let v2 = v2.into_iter().next().map(|hierarchy| hierarchy.mount_point);
    Ok(v2.filter(|_| !v1.is_empty()))
}

/// Whether the machine has cgroup v2 and nothing else.
///
/// # Errors
/// No hierarchy is mounted.
pub fn is_pure_v2() -> Result<bool> {
    Ok(hierarchies()?.iter().all(|hierarchy| hierarchy.controllers.is_empty()))
}

/// Kills what is in the cgroup and removes it, from the bottom up. It must not fail: a test that leaves a cgroup
/// behind disturbs the next one.
fn remove(directory: &Path) {
    let below = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&entry.path());
    }
    crate::wait_for(&format!("{} to be removed", directory.display()), || {
        for pid in members(directory) {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        fs::remove_dir(directory).is_ok() || !directory.exists()
    });
}

/// Delegates what the tests need to the children of `directory`. What a kernel does not have is missed when it is used.
fn enable_controllers(directory: &Path) {
    for controller in CONTROLLERS {
        let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Moves a process to the root cgroup of each hierarchy.
///
/// # Errors
/// It has ended.
pub fn add_to_root(pid: u32) -> Result<()> {
    for file in root_procs_files()? {
        fs::write(&file, pid.to_string())
            .with_context(|| format!("write {pid} to {}", file.display()))?;
    }
    Ok(())
}

/// The `cgroup.procs` of the root of each hierarchy.
pub(crate) fn root_procs_files() -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?.into_iter().map(|root| root.mount_point.join("cgroup.procs")).collect())
}

/// Every hierarchy that counts or limits something.
fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mut found = mounts()?;
    found.retain(|hierarchy| !hierarchy.controllers.contains("name="));
    if found.is_empty() {
        bail!("no cgroup hierarchy is mounted");
    }
    Ok(found)
}

/// Every mounted hierarchy, each once.
fn mounts() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else {
            continue;
        };
        let fields: Vec<_> = filesystem.split(' ').collect();
        let controllers = match fields.as_slice() {
            ["cgroup2", ..] => String::new(),
            ["cgroup", _, options] => {
                let names = options.split(',').filter(|name| !matches!(*name, "rw" | "ro"));
                names.collect::<Vec<_>>().join(",")
            }
            _ => continue,
        };
        let Some(mount_point) = mount.split(' ').nth(4) else {
            continue;
        };
        if !found.iter().any(|known| known.controllers == controllers) {
            found.push(Hierarchy { mount_point: mount_point.into(), controllers });
        }
    }
    Ok(found)
}
