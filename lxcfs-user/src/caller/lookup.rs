//! What `/proc` says of one process: its namespaces, its start, its cgroups.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use super::{Namespaces, Privilege, pidns};
use crate::error::{Errno, Error, Result};
use crate::source::host::Host;
use crate::source::parse;

/// Reads processes through one `/proc`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lookup<'a>(pub(super) &'a Host);

impl Lookup<'_> {
    /// The pid and cgroup namespaces of thread `tid`.
    pub(super) fn namespaces(self, tid: u32) -> Result<Namespaces> {
        Ok(Namespaces { pid: self.namespace(tid, "pid")?, cgroup: self.namespace(tid, "cgroup")? })
    }

    pub(super) fn namespace(self, tid: u32, kind: &str) -> Result<u64> {
        let path = format!("{tid}/ns/{kind}");
        read_number(self.0.proc(), &path).map_err(|errno| error("read the link", &path, errno))
    }

    /// A descriptor of a namespace of `tid`.
    pub(super) fn open_namespace(self, tid: u32, kind: &str) -> Result<OwnedFd> {
        let path = format!("{tid}/ns/{kind}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(self.0.proc(), &path, flags, Mode::empty())
            .map_err(|errno| error("open", &path, errno))
    }

    /// What `tid` may do about resources.
    pub(super) fn privilege(self, tid: u32, ours: u64) -> Result<Privilege> {
        /// `CAP_SYS_RESOURCE` of capabilities(7).
        const RESOURCES: u64 = 1 << 24;

        let effective = parse::status_set(&self.read(tid, "status")?, b"CapEff");
        let is_raised = effective.is_some_and(|effective| effective & RESOURCES != 0);
        Ok(match is_raised && self.namespace(tid, "user")? == ours {
            true => Privilege::OnHost,
            false if is_raised => Privilege::InItsNamespace,
            false => Privilege::None,
        })
    }

    /// A file of `tid`.
    pub(super) fn read(self, tid: u32, file: &str) -> Result<Vec<u8>> {
        let path = format!("{tid}/{file}");
        let mut text = Vec::with_capacity(1_024);
        self.0.read_proc(&path, &mut text).map_err(|errno| error("read", &path, errno))?;
        Ok(text)
    }

    /// `/proc/<tid>/stat`.
    pub(super) fn stat(self, tid: u32) -> Result<parse::PidStat> {
        parse::pid_stat(&self.read(tid, "stat")?)
            .ok_or_else(|| Error::parse(format!("/proc/{tid}/stat"), "fields missing"))
    }

    /// The pids of `tid` in our pid namespace, the one below, and so on to its own.
    pub(super) fn own_pids(self, tid: u32) -> Result<Vec<u32>> {
        parse::status_numbers(&self.read(tid, "status")?, b"NSpid")
            .filter(|pids| !pids.is_empty())
            .ok_or_else(|| Error::parse(format!("/proc/{tid}/status"), "no NSpid"))
    }

    /// The init of the pid namespace that `tid` is in.
    pub(super) fn init_of(self, tid: u32, pid_namespace: u64) -> Result<u32> {
        let namespace = self.open_namespace(tid, "pid")?;
        match pidns::init_of(&namespace) {
            Err(Errno::NOTTY | Errno::INVAL) => self.init_by_search(tid, pid_namespace),
            found => {
                found.map_err(|errno| error("find the init of", &format!("{tid}/ns/pid"), errno))
            }
        }
    }

    /// The same on kernels before 6.11, where nothing answers directly. Up the parents first: every task of a container
    /// descends from its init, but for those entered from outside. For these, every process is looked at.
    pub(super) fn init_by_search(self, tid: u32, pid_namespace: u64) -> Result<u32> {
        let mut pid = tid;
        while self.namespace(pid, "pid").is_ok_and(|namespace| namespace == pid_namespace) {
            if self.own_pids(pid)?.last() == Some(&1) {
                return Ok(pid);
            }
            pid = self.stat(pid)?.parent;
        }
        self.processes()?
            .find(|&pid| {
                self.namespace(pid, "pid").is_ok_and(|namespace| namespace == pid_namespace)
                    && self.own_pids(pid).is_ok_and(|pids| pids.last() == Some(&1))
            })
            .ok_or_else(|| error("find the init of", &format!("{tid}/ns/pid"), Errno::SRCH))
    }

    /// The pids of all processes.
    pub(super) fn processes(self) -> Result<impl Iterator<Item = u32>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let entries = rustix::fs::openat(self.0.proc(), ".", flags, Mode::empty())
            .and_then(rustix::fs::Dir::new)
            .map_err(|errno| error("list", "", errno))?;
        let pid = |name: &std::ffi::CStr| u32::try_from(parse::number(name.to_bytes())?).ok();
        Ok(entries.flatten().filter_map(move |entry| pid(entry.file_name())))
    }

    /// The init of the pid namespace above the one that `init` is the init of, if that is still below ours.
    pub(super) fn init_above(self, init: u32, ours: u64) -> Result<Option<u32>> {
        let namespace = self.open_namespace(init, "pid")?;
        let path = || format!("{init}/ns/pid");
        let parent = pidns::parent_of(&namespace)
            .map_err(|errno| error("find the parent of", &path(), errno))?;
        let stat = rustix::fs::fstat(&parent).map_err(|errno| error("stat", &path(), errno))?;
        if stat.st_ino == ours {
            return Ok(None);
        }
        match pidns::init_of(&parent) {
            Err(Errno::NOTTY | Errno::INVAL) => {
                // The parent of an init is a task of the namespace above, or of one further up.
                let parent = self.stat(init)?.parent;
                if self.namespace(parent, "pid")? == stat.st_ino {
                    self.init_by_search(parent, stat.st_ino).map(Some)
                } else {
                    Ok(None)
                }
            }
            found => found.map(Some).map_err(|errno| error("find the parent of", &path(), errno)),
        }
    }
}

/// The number of the namespace that the link at `path` in `directory` leads to; an empty path is the link itself.
///
/// # Errors
/// The thread has ended. A text without a number is `EBADMSG`, and no kernel's.
pub(super) fn read_number(directory: &OwnedFd, path: &str) -> Result<u64, Errno> {
    // The text of the link has the number, `pid:[4026531836]`, for half of what following it takes.
    let mut text = [0_u8; 64];
    let length = rustix::fs::readlinkat_raw(directory, path, &mut text[..])?;
    parse::namespace(&text[..length]).ok_or(Errno::BADMSG)
}

/// An error about `/proc/<path>`. A process that is gone is `ESRCH` here, whatever the system call said.
fn error(operation: &'static str, path: &str, errno: Errno) -> Error {
    let errno = if errno == Errno::NOENT { Errno::SRCH } else { errno };
    Error::io(operation, format!("/proc/{path}"), errno)
}
