//! `cgroup/`: each container's own cgroups of the v1 hierarchies, as from a read-only mount.
//!
//! A machine of pure v2 has none, so each test mounts one: named, without a controller, but with processes, and files by which
//! they are listed. Where the machine has hierarchies with controllers, those are looked at as well.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result, bail, ensure};
use lxcfs::model::lock::lock;
use lxcfs_tests::cgroup::Cgroup;
use lxcfs_tests::container::Container;
use lxcfs_tests::mount::{self, Daemon};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// One that an init of the machine's could have made, but for that it is not running.
const NAMED: &str = "name=openrc";

/// One test at a time: each has the hierarchy to itself.
static ALONE: Mutex<()> = Mutex::new(());

/// The named hierarchy, mounted.
struct Hierarchy {
    point: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Hierarchy {
    fn mount() -> Result<Self> {
        let alone = lock(&ALONE);
        let point = mount::new_directory()?;
        let options = format!("none,{NAMED}");
        mount(Some("cgroup"), &point, Some("cgroup"), MsFlags::empty(), Some(options.as_str()))
            .context("mount a named hierarchy")?;
        Ok(Self { point, _alone: alone })
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        let _ = umount2(&self.point, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.point);
    }
}

/// A cgroup in every hierarchy, the named one too.
struct Home {
    cgroup: Cgroup,
    named: PathBuf,
}

impl Home {
    fn new(hierarchy: &Hierarchy, name: &str) -> Result<Self> {
        let cgroup = Cgroup::new(name)?;
        let named = hierarchy.point.join(cgroup.path().trim_start_matches('/'));
        fs::create_dir(&named).context("make a cgroup in the named hierarchy")?;
        Ok(Self { cgroup, named })
    }

    fn below(&self, name: &str) -> Result<PathBuf> {
        self.cgroup.leaf(name)?;
        let named = self.named.join(name);
        fs::create_dir(&named)?;
        Ok(named)
    }

    fn container(&self) -> Container {
        Container::new(&self.cgroup).also_in(self.named.join("cgroup.procs"))
    }

    fn add(&self, pid: u32) -> Result<()> {
        self.cgroup.add(pid)?;
        fs::write(self.named.join("cgroup.procs"), pid.to_string()).context("move a process")
    }

    /// Where it is in the named hierarchy as the daemon shows it.
    fn shown(&self, daemon: &Daemon) -> String {
        format!("{}{}", daemon.path("cgroup").join(NAMED).display(), self.cgroup.path())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let below = fs::read_dir(&self.named).into_iter().flatten().flatten();
        let below = below.map(|entry| entry.path()).filter(|path| path.is_dir());
        for directory in below.chain([self.named.clone()]) {
            lxcfs_tests::wait_for(&format!("{} to be removed", directory.display()), || {
                fs::remove_dir(&directory).is_ok() || !directory.exists()
            });
        }
    }
}

fn serve() -> Result<Daemon> {
    Daemon::with(&["--enable-cgroup"])
}

/// The v1 hierarchies as they are mounted: their controllers and where.
fn mounted() -> Result<Vec<(String, PathBuf)>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let v1 = lxcfs::model::mounts::CgroupMount::all(text.as_bytes()).filter(|mount| !mount.is_v2());
    Ok(v1.map(|mount| (mount.controllers, mount.mount_point)).collect())
}

fn run(script: &str) -> Result<String> {
    let output = Command::new("/bin/sh").args(["-c", script]).output()?;
    lxcfs_tests::printed(format!("`{script}`"), output)
}

/// Names, modes, owners and bytes are the kernel's, from the container's own cgroup downwards, and there is nothing else.
#[test]
fn a_container_sees_its_own_cgroups_and_those_below() -> Result<()> {
    let hierarchy = Hierarchy::mount()?;
    let (home, _beside) = (Home::new(&hierarchy, "own")?, Home::new(&hierarchy, "beside")?);
    let below = home.below("a cgroup")?;
    let daemon = serve()?;
    std::os::unix::fs::chown(below.join("tasks"), Some(4_321), Some(4_321))?;
    let mut container = home.container().shell()?;
    let path = home.cgroup.path();
    let own = path.trim_start_matches('/');
    let names = |top: &Path| format!("find '{}' -printf '%y %m %U %G /%P\n'", top.display());
    let bytes = |top: &Path| format!("cd '{}/{own}/a cgroup' && grep -s . *; true", top.display());
    let is_own = |line: &&str| {
        let name = line.split_once('/').map_or("", |(_, name)| name);
        let rest = name.strip_prefix(own);
        name.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mut with_own = 0;
    for (controllers, point) in mounted()? {
        let top = daemon.path("cgroup").join(&controllers);
        let (shown, there) = (container.say(&names(&top))?, run(&names(&point))?);
        let shown: BTreeSet<_> = shown.lines().collect();
        let expected: BTreeSet<_> = there.lines().filter(is_own).collect();
        ensure!(shown == expected, "{controllers}: {shown:?}\nexpected: {expected:?}");
        if shown.len() > 1 {
            with_own += 1;
            let (ours, kernels) = (container.say(&bytes(&top))?, run(&bytes(&point))?);
            ensure!(ours == kernels, "{controllers}: {ours}\nkernel: {kernels}");
            ensure!(ours.contains("notify_on_release:0\n"), "{ours}");
        }
    }
    ensure!(with_own > 0);
    // The host's readers see the host's, the pids among them.
    let tasks = fs::read_to_string(daemon.path("cgroup").join(NAMED).join("tasks"))?;
    ensure!(tasks.lines().any(|line| line == "1"), "{tasks}");
    Ok(())
}

/// Tries to change, and to read, all there is in a directory, and prints what each attempt is answered.
const ATTEMPTS: &str = r#"
import errno, os, sys
def attempt(what, call, *arguments):
    try:
        call(*arguments)
        print(what, "done")
    except OSError as error:
        print(what, errno.errorcode[error.errno])
def read(name):
    with open(name, "rb") as file:
        file.read()
for directory in sys.argv[1:]:
    os.chdir(directory)
    for flags in os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND:
        attempt(f"open {flags}", os.open, "tasks", flags)
    attempt("create", os.open, "new", os.O_CREAT | os.O_WRONLY)
    # Who may not write is told either, by one kernel or another.
    if os.stat("tasks").st_uid == 0:
        attempt("truncate", os.truncate, "tasks", 0)
    attempt("mkdir", os.mkdir, "new")
    attempt("rmdir", os.rmdir, "child")
    attempt("unlink", os.unlink, "tasks")
    attempt("rename", os.rename, "child", "new")
    attempt("link", os.link, "tasks", "new")
    attempt("symlink", os.symlink, "tasks", "new")
    attempt("mknod", os.mkfifo, "new")
    attempt("chmod", os.chmod, "tasks", 0o777)
    attempt("chown", os.chown, "tasks", 0, 0)
    attempt("chown a directory", os.chown, "child", 0, 0)
    attempt("utime", os.utime, "tasks")
    for name in "tasks", "child", ".":
        print("access", name, os.access(name, os.R_OK), os.access(name, os.W_OK))
    attempt("look at a long name", os.stat, 255 * "x")
    attempt("look at too long a name", os.stat, 256 * "x")
    attempt("look at a name with bytes", os.stat, b"\xff\n")
    for name in sorted(os.listdir(".")):
        if os.path.isfile(name):
            attempt(f"read {name}", read, name)
"#;

/// Every attempt is answered as the kernel answers it on a read-only mount of the same cgroup, for root and for the root of
/// a user namespace.
#[test]
fn nothing_can_be_changed_and_only_what_the_kernel_allows_read() -> Result<()> {
    let hierarchy = Hierarchy::mount()?;
    let home = Home::new(&hierarchy, "attempts")?;
    home.below("child")?;
    let daemon = serve()?;
    fs::set_permissions(daemon.directory(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::set_permissions(&hierarchy.point, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let script = daemon.directory().join("attempts.py");
    fs::write(&script, ATTEMPTS)?;
    let own = home.cgroup.path();
    let (mut ours, mut kernels, mut mounts) = (Vec::new(), Vec::new(), String::new());
    for (controllers, point) in mounted()? {
        let real = point.join(own.trim_start_matches('/'));
        if real.exists() {
            ours.push(format!("'{}{own}'", daemon.path("cgroup").join(&controllers).display()));
            kernels.push(format!("'{}'", real.display()));
            let real = real.display();
            mounts +=
                &format!("mount --bind '{real}' '{real}' && mount -o remount,bind,ro '{real}' && ");
        }
    }
    let count = ours.len();
    let places = [ours, kernels].concat().join(" ");
    let script = format!("{mounts} python3 {} {places} 2>&1", script.display());
    for container in [home.container(), home.container().in_user_namespace()] {
        let answers = container.sh(&script)?;
        let lines: Vec<_> = answers.lines().collect();
        let (ours, kernels) = lines.split_at(lines.len() / 2);
        if let Some((ours, kernels)) = ours.iter().zip(kernels).find(|(a, b)| a != b) {
            bail!("{ours}, and the kernel: {kernels}");
        }
        ensure!(ours.len() == kernels.len() && ours.len() > 20 * count, "{answers}");
        for line in ["mkdir EROFS", "chmod EROFS", "access tasks True False", "read tasks done"] {
            ensure!(
                ours.iter().filter(|known| **known == line).count() == count,
                "{line}: {answers}"
            );
        }
        let mut done = ours.iter().filter(|line| line.ends_with(" done"));
        ensure!(done.all(|line| line.starts_with("read ")), "{answers}");
    }
    Ok(())
}

/// The pids in the container, nested ones too; none of the host's, and none of a container that has as many namespaces.
#[test]
fn pids_are_the_readers_own() -> Result<()> {
    let hierarchy = Hierarchy::mount()?;
    let (home, other) = (Home::new(&hierarchy, "pids")?, Home::new(&hierarchy, "other")?);
    let daemon = serve()?;
    let mut container = home.container().shell()?;
    let stranger = other.container().shell()?;
    let strange = stranger.init();
    home.add(strange)?;
    container.say(
        "sleep 1000 & unshare --pid --fork sh -c 'sleep 1000; true' & \
         until set -- /proc/[0-9]*; [ $# -ge 5 ]; do sleep 0.01; done",
    )?;
    let shown = home.shown(&daemon);
    // By the shell itself: no process is made that would be in the list.
    let lists = container.say(&format!(
        "echo /proc/[0-9]*; for list in tasks cgroup.procs; do while read pid; do echo $pid; done < {shown}/$list; echo; done"
    ))?;
    let (processes, lists) = lists.split_once('\n').context("no processes")?;
    let mut processes: Vec<u32> = processes
        .split(' ')
        .map(|path| Ok(path.trim_start_matches("/proc/").parse()?))
        .collect::<Result<_>>()?;
    processes.sort_unstable();
    ensure!(processes.len() == 5, "init, two sleeping, unshare and its shell: {processes:?}");
    let expected: String = processes.iter().map(|pid| format!("{pid}\n")).collect();
    ensure!(lists == format!("{expected}\n{expected}\n"), "{lists}\nexpected: {expected}");
    // For the host's readers nothing is left out.
    let host = fs::read_to_string(format!("{shown}/tasks"))?;
    ensure!(host == fs::read_to_string(home.named.join("tasks"))?);
    ensure!(host.lines().count() == 6 && host.lines().any(|line| line == strange.to_string()));
    // Who shares our pid namespace has our pids.
    let mut sharing = other.container().sharing_pid_namespace().shell()?;
    let theirs =
        sharing.say(&format!("read pid < {}/tasks; echo $pid $$", other.shown(&daemon)))?;
    let mut words = theirs.split_whitespace();
    ensure!(words.next().is_some() && words.next().is_some(), "{theirs}");
    ensure!(theirs.contains(&sharing.init().to_string()), "{theirs}");
    Ok(())
}

/// Two at the same time, and what one mounts on a cgroup of its own stays when the other looks there.
#[test]
fn two_containers_see_two_trees() -> Result<()> {
    let hierarchy = Hierarchy::mount()?;
    let (first, second) = (Home::new(&hierarchy, "first")?, Home::new(&hierarchy, "second")?);
    let daemon = serve()?;
    let (mut one, mut two) = (first.container().shell()?, second.container().shell()?);
    let top = daemon.path("cgroup").join(NAMED).display().to_string();
    one.say(&format!("mount -t tmpfs none {0} && touch {0}/mark", first.shown(&daemon)))?;
    let (own, others) = (second.shown(&daemon), first.shown(&daemon));
    for _ in 0..3 {
        let names = |path: String| path.trim_start_matches('/').to_owned() + "\n";
        ensure!(one.say(&format!("ls {top}"))? == names(first.cgroup.path()));
        ensure!(two.say(&format!("ls {top}"))? == names(second.cgroup.path()));
        let look = "for a in stat ls cat; do $a PATH PATH/tasks 2>/dev/null; done; \
                    cd PATH 2>/dev/null && echo entered";
        let seen = two.say(&look.replace("PATH", &others))?;
        ensure!(seen.is_empty(), "{seen}");
        ensure!(two.say(&format!("cat {own}/notify_on_release"))? == "0\n");
        ensure!(one.say(&format!("ls {others}"))? == "mark\n", "it was unmounted");
    }
    Ok(())
}

/// What a mount hook of an LXC before cgroup namespaces does, for `FILES` and `ROOT`.
const HOOK: &str = r#"
mkdir -p ROOT/sys/fs/cgroup && mount -t tmpfs none ROOT/sys/fs/cgroup
for entry in FILES/cgroup/*; do
    name=$(basename "$entry"); if [ "$name" = NAMED ]; then name=openrc; fi
    mkdir "ROOT/sys/fs/cgroup/$name" && mount -n --bind "$entry" "ROOT/sys/fs/cgroup/$name"
done
"#;

/// What is bound and what is open goes on being served by the next daemon; what is removed is gone, as in the kernel.
#[test]
fn what_a_hook_binds_outlives_a_daemon_and_no_cgroup() -> Result<()> {
    let hierarchy = Hierarchy::mount()?;
    let home = Home::new(&hierarchy, "bound")?;
    let short = home.below("short lived")?;
    let daemon = serve()?;
    let mut container = home.container().shell()?;
    let root = daemon.directory().join("root").display().to_string();
    let files = daemon.mount_point().display().to_string();
    let hook = HOOK.replace("ROOT", &root).replace("FILES", &files).replace("NAMED", NAMED);
    let said = container.say(&format!("{{ {hook} }} 2>&1; ls {root}/sys/fs/cgroup | wc -l"))?;
    let hierarchies: BTreeSet<_> = mounted()?.into_iter().map(|(name, _)| name).collect();
    ensure!(said == format!("{}\n", hierarchies.len()), "{said}");
    let bound = format!("{root}/sys/fs/cgroup/openrc{}", home.cgroup.path());
    container.say(&format!(
        "cd '{bound}/short lived' && exec 5< '{bound}' 6< tasks 7< notify_on_release"
    ))?;
    let server = daemon.server();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(server.try_into()?),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    let _ = daemon.server_after(server);
    let again =
        "read flag < notify_on_release; echo $flag; read flag <&7; echo $flag; ls /proc/$$/fd/5/";
    let said = container.say(&format!("{again}; cat '{bound}/cgroup.clone_children'"))?;
    ensure!(said.starts_with("0\n0\ncgroup.clone_children\n") && said.ends_with("\n0\n"), "{said}");
    ensure!(said.contains("\nshort lived\n"), "{said}");
    // Removed under an open directory and an open file, and made again under the same name.
    let real = fs::File::open(short.join("tasks"))?;
    fs::remove_dir(&short)?;
    let kernels = (&real).read_to_end(&mut Vec::new()).err().and_then(|error| error.raw_os_error());
    ensure!(kernels == Some(nix::libc::ENODEV));
    let said = container.say("head -c 1 <&6 2>&1; ls . 2>&1; cat tasks 2>&1")?;
    let lines: Vec<_> = said.lines().collect();
    ensure!(lines.len() == 3 && lines[0].ends_with(": No such device"), "{said}");
    ensure!(lines[1..].iter().all(|line| line.ends_with(": No such file or directory")), "{said}");
    fs::create_dir(&short)?;
    fs::write(short.join("notify_on_release"), "1")?;
    let said =
        container.say(&format!("cat tasks 2>&1; cat '{bound}/short lived/notify_on_release'"))?;
    ensure!(said.contains("No such file or directory\n") && said.ends_with("\n1\n"), "{said}");
    Ok(())
}
