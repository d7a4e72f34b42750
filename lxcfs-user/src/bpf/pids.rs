//! A process as the kernel knows it, and the newest pid of its namespace, from the kernel's own search for the next.

use std::io::Read;
use std::os::fd::AsFd;

use lxcfs_abi::{PidNamespace, Process};

use super::kept::PROCESS;
use super::{Accounting, sys};

impl Accounting {
    /// The process `pid`. `None`: the kernel tells of no single process (before 6.1), or it has ended.
    ///
    /// It is only good while the process, dead or alive, has its number: while a pidfd of it is held.
    #[must_use]
    pub fn process(&self, pid: u32) -> Option<Process> {
        let mut file = sys::iterate_task(self.kept.get(PROCESS).ok()?, pid).ok()?;
        let mut words = [[0; 8]; 4];
        file.read_exact(words.as_flattened_mut()).ok()?;
        let [task, started_ns, address, number] = words.map(u64::from_ne_bytes);
        let pid_namespace = PidNamespace { address, number };
        let is_whole = task != 0 && address != 0 && number != 0;
        is_whole.then_some(Process { address: task, started_ns, pid_namespace })
    }

    /// The newest pid in a pid namespace, in its own numbering. `None`: it is gone.
    #[must_use]
    pub fn newest_pid(&self, namespace: PidNamespace) -> Option<u32> {
        let program = self.newest_pid.as_ref()?;
        let arguments = [namespace.address, namespace.number];
        sys::test_run(program.as_fd(), &arguments, None).ok().filter(|pid| *pid != 0)
    }
}
