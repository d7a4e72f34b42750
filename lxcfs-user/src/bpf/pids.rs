//! The newest pid of a pid namespace, from the kernel's own search for the next.

use std::io::Read;
use std::os::fd::AsFd;

use lxcfs_abi::PidNamespace;

use super::kept::PID_NAMESPACE;
use super::{Accounting, sys};

impl Accounting {
    /// The pid namespace of the process `pid`. `None`: the kernel tells it of no single process (before 6.1), or it has ended.
    ///
    /// It is only good while the process, dead or alive, has its number: while a pidfd of it is held.
    #[must_use]
    pub fn pid_namespace(&self, pid: u32) -> Option<PidNamespace> {
        let mut file = sys::iterate_task(self.kept.get(PID_NAMESPACE).ok()?, pid).ok()?;
        let mut words = [[0; 8]; 2];
        file.read_exact(words.as_flattened_mut()).ok()?;
        let [address, number] = words.map(u64::from_ne_bytes);
        (address != 0 && number != 0).then_some(PidNamespace { address, number })
    }

    /// The newest pid in a pid namespace, in its own numbering. `None`: it is gone.
    #[must_use]
    pub fn newest_pid(&self, namespace: PidNamespace) -> Option<u32> {
        let program = self.newest_pid.as_ref()?;
        let arguments = [namespace.address, namespace.number];
        sys::test_run(program.as_fd(), &arguments, None).ok().filter(|pid| *pid != 0)
    }
}
