//! Pids as a reader numbers them: what the kernel would print for it, where it printed for us.

use std::collections::HashMap;

use super::lookup::Lookup;
use super::{Callers, pidns};
use crate::error::{Errno, Error, Result};

impl Callers {
    /// The threads or processes `pids`, of our pid namespace, in the numbers of thread `tid`'s and in their order. Those that
    /// it cannot see are left out, as are those that have ended.
    ///
    /// # Errors
    /// The reader has ended.
    pub fn pids_as_seen(&self, tid: u32, pids: Vec<u32>) -> Result<Vec<u32>> {
        let lookup = Lookup(&self.host);
        let theirs = lookup.namespace(tid, "pid")?;
        if theirs == self.ours.pid {
            return Ok(pids);
        }
        let depth = lookup.own_pids(tid)?.len() - 1;
        // Most are of one namespace: that one is below another is asked once.
        let mut is_below = HashMap::from([(theirs, true)]);
        let mut as_seen = |pid: u32| {
            let numbers = lookup.own_pids(pid).ok()?;
            let number = *numbers.get(depth)?;
            let namespace = lookup.namespace(pid, "pid").ok()?;
            let levels = numbers.len() - 1 - depth;
            let below = is_below.entry(namespace);
            let is_below = below
                .or_insert_with(|| lookup.ancestor(pid, levels).is_ok_and(|above| above == theirs));
            is_below.then_some(number)
        };
        let mut seen: Vec<u32> = pids.into_iter().filter_map(&mut as_seen).collect();
        seen.sort_unstable();
        Ok(seen)
    }
}

impl Lookup<'_> {
    /// The pid namespace `levels` above the one that `pid` is in.
    fn ancestor(self, pid: u32, levels: usize) -> Result<u64> {
        let mut namespace = self.open_namespace(pid, "pid")?;
        let failed =
            |errno: Errno| Error::io("find the parent of", format!("/proc/{pid}/ns/pid"), errno);
        for _ in 0..levels {
            namespace = pidns::parent_of(&namespace).map_err(failed)?;
        }
        rustix::fs::fstat(&namespace).map(|stat| stat.st_ino).map_err(failed)
    }
}
