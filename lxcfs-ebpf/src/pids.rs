//! What user space cannot see of a process, and the newest pid of a pid namespace, which the kernel tells nobody who is not in it.

use core::ffi::c_void;

use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::generated::bpf_seq_write;
use aya_ebpf::programs::RawTracePointContext;
use lxcfs_abi::{PidNamespace, Process};

use crate::seed::IterContext;
use crate::{kernel, whose};

/// Tells user space the one task the iterator was made for.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub(crate) extern "C" fn process(ctx: *const IterContext) -> i32 {
    // SAFETY: the context of this program type; `task` is null at the end of the walk.
    unsafe {
        let task = (*ctx).task;
        if task.is_null() {
            return 0;
        }
        let (address, _) = whose::pid_namespace(task);
        let told = Process {
            address: task as u64,
            started_ns: kernel::load_u64(task, &kernel::O_START_BOOTTIME),
            pid_namespace: PidNamespace { address, number: u64::from(whose::pids_number(address)) },
        };
        let bytes = size_of::<Process>() as u32;
        bpf_seq_write(*(*ctx).meta.cast::<*mut seq_file>(), (&raw const told).cast(), bytes);
    }
    0
}

/// Run on demand with the two words of a [`PidNamespace`]: returns the newest pid in it, 0 if it is another one by now.
///
/// Without the macro of its program type, which returns 0 whatever we return.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub(crate) extern "C" fn newest_pid(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let (address, number): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    if u64::from(whose::pids_number(address)) != number {
        return 0;
    }
    whose::newest_pid(address) as i32
}
