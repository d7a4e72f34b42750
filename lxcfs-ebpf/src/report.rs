//! Diagnostics: what an administrator should know, said once by each cause, never on the hot path.

use aya_log_ebpf::warn;

/// No slot is left for this cgroup.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn report_no_slot(cgroup_id: u64) -> u32 {
    warn!(
        (),
        "no slot is left for cgroup {}: its tasks are not counted; raise the number of slots",
        cgroup_id
    );
    0
}

/// The cgroup could not be linked under its parent.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn report_unlinked(slot: u32) -> u32 {
    warn!((), "slot {} could not be linked: its cgroup is missing in its parents' sums", slot);
    0
}
