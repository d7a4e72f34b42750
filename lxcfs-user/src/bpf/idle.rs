//! Idle time of a container, as the programs keep it where a file below FUSE says it too: so that both say the same.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use lxcfs_abi::{Idle, Process};

use super::{Accounting, Slot, sys};

/// What idle time of a container follows from.
#[derive(Debug, Clone, Copy)]
pub struct IdleQuestion {
    /// Its init.
    pub init: Process,
    /// How many CPUs it is shown.
    pub cpus: u32,
    /// CPU time it used before the programs.
    pub earlier_ns: u64,
    /// How long it has been up.
    pub up_us: u64,
    /// What was shown before, with programs or of a cgroup before these; all zero where nothing was.
    pub before: IdleState,
}

/// Idle time of a container when it was shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct IdleState {
    /// As it would be if it might fall.
    pub left_us: i64,
    /// The most that was shown.
    pub shown_us: u64,
    /// When, and what was used by then.
    pub up_us: u64,
    /// See `up_us`.
    pub used_us: u64,
}

macro_rules! idle_word {
    ($maps:expr, $slot:expr, $field:ident) => {
        $maps.idles.word($slot, std::mem::offset_of!(Idle, $field)).load(Ordering::Acquire)
    };
}

impl Accounting {
    /// From now on idle time is the programs'. It costs a system call at each reading, which nobody has to pay where nobody else
    /// says it.
    pub fn keep_idle(&self) {
        self.keeps_idle.store(true, Ordering::Relaxed);
    }

    /// Whether it is.
    pub fn keeps_idle(&self) -> bool {
        self.keeps_idle.load(Ordering::Relaxed)
    }

    /// Idle time of the container counted in `slot` now. `None`: there is no program to ask, or the container is gone.
    #[must_use]
    pub fn idle(&self, slot: Slot, question: &IdleQuestion) -> Option<IdleState> {
        let IdleQuestion { init, cpus, earlier_ns, up_us, before } = *question;
        let arguments = [
            slot.index.into(),
            slot.cgroup_id,
            init.address,
            init.started_ns,
            cpus.into(),
            earlier_ns,
            before.left_us.cast_unsigned(),
            before.shown_us,
            before.up_us,
            before.used_us,
        ];
        let answered = sys::test_run(self.idle.as_ref()?.as_fd(), &arguments, None);
        answered.is_ok_and(|answered| answered == 1).then(|| IdleState {
            up_us,
            shown_us: idle_word!(self.maps, slot.index, shown_us),
            left_us: idle_word!(self.maps, slot.index, left_us).cast_signed(),
            used_us: idle_word!(self.maps, slot.index, used_us),
        })
    }
}
