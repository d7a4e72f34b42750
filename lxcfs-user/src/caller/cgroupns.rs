//! The root of another process's cgroup namespace, as a path in ours.
//!
//! The kernel tells nobody where a cgroup namespace begins. But `/proc/PID/cgroup` is printed relative to the reader's
//! namespace: read once from ours and once from inside, the two differ by exactly the path of the root. One thread of
//! ours lives to do the second read; entering a namespace moves only the thread that enters.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Errno, Error, Result};
use crate::model::container::CgroupPaths;
use crate::model::lock::lock;
use crate::source::host::Host;

/// Reads `/proc/<pid>/cgroup` as it looks in the namespace given.
#[derive(Debug)]
struct Job {
    namespace: OwnedFd,
    pid: u32,
    answer: SyncSender<Result<Vec<u8>, Errno>>,
}

/// The thread that visits other cgroup namespaces.
#[derive(Debug)]
pub(super) struct Visitor {
    jobs: Mutex<SyncSender<Job>>,
}

impl Visitor {
    /// Starts the thread, which ends with the visitor. `home` is our own namespace, to return to.
    ///
    /// # Errors
    /// No thread can be made.
    pub(super) fn start(host: Arc<Host>, home: OwnedFd) -> Result<Self> {
        let (jobs, receiver) = sync_channel(0);
        std::thread::Builder::new()
            .name("cgroup-ns".to_owned())
            .spawn(move || visit(&receiver, &host, &home))
            .map_err(|error| Error::std("start", "thread cgroup-ns", &error))?;
        Ok(Self { jobs: Mutex::new(jobs) })
    }

    /// The content of `/proc/<pid>/cgroup` as seen from `namespace`.
    pub(super) fn read_cgroup(&self, namespace: OwnedFd, pid: u32) -> Result<CgroupPaths> {
        let (answer, answered) = sync_channel(1);
        let job = Job { namespace, pid, answer };
        let jobs = lock(&self.jobs).clone();
        let gone = |cause: &str| Error::because("ask", "thread cgroup-ns", Errno::IO, cause);
        jobs.send(job).map_err(|_| gone("it has ended"))?;
        let text = answered.recv().map_err(|_| gone("it did not answer"))?;
        let text = text.map_err(|errno| Error::io("read", format!("/proc/{pid}/cgroup"), errno))?;
        Ok(CgroupPaths::parse(&text))
    }
}

fn visit(jobs: &Receiver<Job>, host: &Host, home: &OwnedFd) {
    use std::os::fd::AsFd;

    while let Ok(Job { namespace, pid, answer }) = jobs.recv() {
        let control_group = Some(LinkNameSpaceType::ControlGroup);
        let text = move_into_link_name_space(namespace.as_fd(), control_group).and_then(|()| {
            let mut text = Vec::with_capacity(1_024);
            host.read_proc(&format!("{pid}/cgroup"), &mut text).map(|()| text)
        });
        // Staying would keep a dead container's cgroups alive until the next job. If the way back fails the thread
        // stays, and does no harm: it enters anew for every job.
        if let Err(error) = move_into_link_name_space(home.as_fd(), control_group) {
            tracing::warn!("return to our cgroup namespace: {error}");
        }
        // The asker may have given up.
        let _ = answer.send(text);
    }
}

/// The roots of a cgroup namespace: `ours` is a member's `/proc/PID/cgroup` read from our namespace, `inside` the same
/// file read from within.
pub(super) fn roots(ours: &CgroupPaths, inside: &CgroupPaths) -> CgroupPaths {
    ours.map(|controllers, path| {
        let within = inside.iter().find(|(name, _)| *name == controllers).map_or("/", |(_, p)| p);
        match within {
            "/" => path.to_owned(),
            // The member sits outside of its namespace's root: its own cgroup is all we know.
            within if within.starts_with("/..") => path.to_owned(),
            within => match path.strip_suffix(within) {
                Some("") | None => path.to_owned(),
                Some(root) => root.to_owned(),
            },
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> CgroupPaths {
        CgroupPaths::parse(text.as_bytes())
    }

    #[test]
    fn the_difference_is_the_root() {
        let ours = paths("2:cpu:/lxc/c1/init.scope\n1:pids:/lxc/c1\n0::/lxc/c1/a/b\n");
        let inside = paths("2:cpu:/init.scope\n1:pids:/\n0::/a/b\n");
        assert_eq!(roots(&ours, &inside), paths("2:cpu:/lxc/c1\n1:pids:/lxc/c1\n0::/lxc/c1\n"));
    }

    #[test]
    fn a_member_outside_the_root_keeps_its_own_cgroup() {
        assert_eq!(roots(&paths("0::/other\n"), &paths("0::/../other\n")), paths("0::/other\n"));
    }
}
