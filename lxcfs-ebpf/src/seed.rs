//! The task iterator: counts the tasks that are older than the programs, and repairs words that
//! disagree with the kernel. Both are the same comparison.

use core::ptr;

use aya_ebpf::bindings::task_struct;
use lxcfs_abi::Task;
use lxcfs_abi::word::{self, IOWAIT};

use crate::{atomic, cpu, kernel, life, load, maps, slot, task};

/// `struct bpf_iter__task`.
#[repr(C)]
pub(crate) struct IterContext {
    pub(crate) meta: *const core::ffi::c_void,
    pub(crate) task: *const task_struct,
}

/// Runs once per task when user space reads the iterator.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub(crate) extern "C" fn seed(ctx: *const IterContext) -> i32 {
    // SAFETY: the context of this program type; `task` is null at the end of the walk.
    unsafe {
        let current = (*ctx).task;
        if current.is_null() || kernel::pid(current) == 0 {
            return 0;
        }
        let entry = match task::find(current) {
            Some(entry) => entry,
            None => {
                let mut initial = task::entry_of(0, cpu::times(current));
                let Some(entry) = task::create(current, &mut initial) else { return 0 };
                entry
            }
        };
        agree(current, entry);
    }
    0
}

/// Makes the word say what the kernel says. If an event comes between, the exchange fails and the
/// event has set the word; if it comes after, it finds a word that is counted and replaces it.
///
/// # Safety
/// `entry` is the task's.
#[inline(always)]
unsafe fn agree(current: *const task_struct, entry: *mut Task) {
    // SAFETY: by contract.
    unsafe {
        let old = ptr::read_volatile(&raw const (*entry).word);
        let state = task::state(current);
        let place = if old & IOWAIT != 0 {
            word::cpu(old)
        } else {
            kernel::load(current, &kernel::F_TASK_CPU) as u32
        };
        let slot = slot::resolve(kernel::css_set(current));
        let new = word::make(slot, state, place);
        if old == new {
            return;
        }
        if old != 0 && word::slot(old) != slot {
            life::remember_move(current, entry, word::slot(old));
            task::forget(entry);
        }
        if !atomic::replace(&raw mut (*entry).word, old, new) {
            return;
        }
        load::change_shared(old, new);
        if old == 0 {
            maps::count!(seeded);
        } else if (old ^ new) & word::STATE == 0 {
            maps::count!(rehomed);
        } else {
            maps::count!(healed);
        }
    }
}
