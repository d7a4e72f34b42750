//! What the files below FUSE have in common. Each is an iterator pinned in bpffs: a file whose program runs in its reader's own
//! context.
//!
//! They print what the daemon would, and need no daemon. Where the kernel cannot know the reader's container or what that was
//! before the programs, the reader gets `EAGAIN`: never another's numbers, never the host's.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::generated::bpf_seq_write;
use lxcfs_abi::{Ctrl, Earlier};

use crate::text::Text;
use crate::{kernel, maps};

/// What a program of an iterator returns to be asked again: its reader gets `EAGAIN`.
pub(crate) const AGAIN: i32 = 1;

/// The beginning of `struct bpf_iter_meta`.
#[repr(C)]
pub(crate) struct Meta {
    seq: *mut seq_file,
}

/// `struct bpf_iter__bpf_map_elem`: the program runs for the one element of a map, and once more behind it.
#[repr(C)]
pub(crate) struct IterContext {
    meta: *const Meta,
    map: *const c_void,
    key: *const c_void,
    value: *const c_void,
}

impl IterContext {
    /// # Safety
    /// `ctx` is the context of such a program.
    #[inline(always)]
    pub(crate) unsafe fn is_behind(ctx: *const Self) -> bool {
        // SAFETY: by contract.
        unsafe { (*ctx).key.is_null() }
    }

    /// # Safety
    /// As [`Self::is_behind`].
    #[inline(always)]
    pub(crate) unsafe fn file(ctx: *const Self) -> *mut seq_file {
        // SAFETY: by contract.
        unsafe { (*(*ctx).meta).seq }
    }
}

/// Where a container is counted.
#[derive(Clone, Copy)]
pub(crate) struct Counted {
    /// The address and the id of its cgroup.
    pub(crate) cgroup: u64,
    pub(crate) id: u64,
    pub(crate) slot: u32,
}

impl Counted {
    /// `None`: nothing has run in it yet, or it is the root cgroup, whose numbers are the host's and no container's.
    #[inline(always)]
    pub(crate) fn at(cgroup: u64) -> Option<Self> {
        let id = kernel::cgroup_id(cgroup);
        // SAFETY: the value is copied.
        let slot = unsafe { maps::SLOT_OF.get(id).copied() }?;
        // SAFETY: a map value, whose word is read whole.
        let parent = unsafe { ptr::read_volatile(&raw const (*maps::slot(slot)?).parent) };
        (parent != 0).then_some(Self { cgroup, id, slot })
    }

    /// Given back since, the slot may be another group's by now.
    #[inline(always)]
    pub(crate) fn is_current(self) -> bool {
        // SAFETY: a map value, whose word is read whole.
        maps::slot(self.slot).is_some_and(
            |slot| unsafe { ptr::read_volatile(&raw const (*slot).cgroup_id) } == self.id,
        )
    }

    /// What a container whose init started at `started_ns` was before the programs. `None`: it is older, and the daemon has not
    /// said.
    ///
    /// # Safety
    /// `ctrl` is the map's element.
    #[inline(always)]
    pub(crate) unsafe fn earlier(self, ctrl: *mut Ctrl, started_ns: u64) -> Option<Earlier> {
        // SAFETY: map values; the daemon writes them once, before anybody reads here.
        unsafe {
            let nothing = Earlier { average: [maps::zero(); 3], used_ns: maps::zero() };
            // A cgroup that came later has no past.
            let counted_since_ns = ptr::read_volatile(&raw const (*ctrl).loaded_monotonic_ns);
            let slot = maps::slot(self.slot)?;
            if ptr::read_volatile(&raw const (*slot).created_ns) >= counted_since_ns {
                return Some(nothing);
            }
            let loaded_ns = ptr::read_volatile(&raw const (*ctrl).loaded_boottime_ns);
            if started_ns >= loaded_ns {
                return Some(nothing);
            }
            let earlier = maps::EARLIER.get(self.id).copied();
            if earlier.is_none() {
                maps::ask();
            }
            earlier
        }
    }
}

/// # Safety
/// `file` is the iterator's.
#[inline(always)]
pub(crate) unsafe fn write(file: *mut seq_file, text: &Text) {
    let (bytes, length) = text.written();
    // SAFETY: by contract; so many bytes are written.
    unsafe { bpf_seq_write(file, bytes.cast(), length) };
}

/// A choice in a function of its own, which the verifier follows once, and not with everything behind it.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn at_least(number: i64, least: u64) -> u64 {
    if number < least as i64 { least } else { number as u64 }
}
