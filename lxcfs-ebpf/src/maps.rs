//! Every map: who writes it, who reads it, who deletes from it.
//!
//! Sizes here are placeholders; the loader sets them from its options and the number of CPUs.

use core::ptr;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, bpf_map_type, bpf_spin_lock};
use aya_ebpf::btf_maps::{Array, HashMap, RingBuf, Stack};
use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use aya_ebpf::{Global, helpers};
use lxcfs_abi::{Cpu, Ctrl, EXTRA_RECORDS, Earlier, Idle, Record, Slot, Task};

use crate::atomic;

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Switches (written by the loader) and counters (written by the programs, read by user space).
#[btf_map]
static CTRL: Array<Ctrl, 1, MMAPABLE> = Array::new();

/// Taken by `slot::claim`, given back by the daemon.
#[btf_map]
static SLOTS: Array<Slot, 1, MMAPABLE> = Array::new();

/// Written by `load`, `cpu` and `control`, read by user space; cleared by the daemon.
#[btf_map]
static RECORDS: Array<Record, 1, MMAPABLE> = Array::new();

/// Written by the CPU it describes.
#[btf_map]
static CPUS: Array<Cpu, 1, MMAPABLE> = Array::new();

/// One lock per slot. A map with a lock cannot be mapped into memory, hence a map of their own.
#[btf_map]
static LOCKS: Array<Lock, 1> = Array::new();

/// Cgroup id -> slot. Inserted by `slot::claim`, deleted by the daemon.
#[btf_map]
pub(crate) static SLOT_OF: HashMap<u64, u32, 1> = HashMap::new();

/// Cgroup id -> what a container that is older was when the programs began to count. Written and deleted by the daemon, read by
/// `reader`.
#[btf_map]
pub(crate) static EARLIER: HashMap<u64, Earlier, 1> = HashMap::new();

/// By slot. Written by `uptime`, read by user space; cleared by the daemon with the slot.
#[btf_map]
static IDLES: Array<Idle, 1, MMAPABLE> = Array::new();

/// Free slots: filled by the loader, popped by `slot::claim`, pushed by the daemon.
#[btf_map]
pub(crate) static FREE: Stack<u32, 1> = Stack::new();

/// State of each task; goes with the task.
#[btf_map]
pub(crate) static TASKS: TaskStorage<Task> = TaskStorage::new();

/// Wakes the daemon when it has something to do; holds one element at most.
#[btf_map]
static NOTIFY: RingBuf<u64, 4096> = RingBuf::new();

/// Possible CPUs, the number of per-CPU records of a slot.
#[unsafe(no_mangle)]
static CPU_COUNT: Global<u32> = Global::new(1);

#[repr(C)]
pub(crate) struct Lock {
    pub(crate) lock: bpf_spin_lock,
    padding: u32,
}

/// The map definition of task local storage, which aya-ebpf does not have yet.
#[repr(C)]
pub(crate) struct TaskStorage<T> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; 1],
}

// SAFETY: the pointers describe the map to the loader and are never followed.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    #[inline(always)]
    pub(crate) const fn as_ptr(&self) -> *mut core::ffi::c_void {
        ptr::from_ref(self).cast_mut().cast()
    }
}

#[inline(always)]
pub(crate) fn ctrl() -> Option<*mut Ctrl> {
    CTRL.get_ptr_mut(0)
}

/// The switches, once the loader has opened the gate.
#[inline(always)]
pub(crate) fn enabled() -> Option<*mut Ctrl> {
    let ctrl = ctrl()?;
    // SAFETY: a map value; the loader writes the word once, a stale 0 only ignores an event that
    // the iterator has yet to see.
    let open = unsafe { ptr::read_volatile(&raw const (*ctrl).enabled) };
    (open != 0).then_some(ctrl)
}

/// See `Slot::folds`.
#[inline(always)]
pub(crate) fn folds(index: u32) -> u64 {
    // SAFETY: a map value, whose word is read whole.
    slot(index).map_or(0, |slot| u64::from(unsafe { ptr::read_volatile(&raw const (*slot).folds) }))
}

/// 0, which the verifier does not know.
#[inline(always)]
pub(crate) fn zero() -> u64 {
    // SAFETY: a map value that nobody writes.
    cpu(0).map_or(0, |cpu| unsafe { ptr::read_volatile(&raw const (*cpu).zero) })
}

#[inline(always)]
pub(crate) fn slot(index: u32) -> Option<*mut Slot> {
    SLOTS.get_ptr_mut(index)
}

#[inline(always)]
pub(crate) fn lock(slot: u32) -> Option<*mut Lock> {
    LOCKS.get_ptr_mut(slot)
}

#[inline(always)]
pub(crate) fn idle(slot: u32) -> Option<*mut Idle> {
    IDLES.get_ptr_mut(slot)
}

#[inline(always)]
pub(crate) fn cpu(index: u32) -> Option<*mut Cpu> {
    CPUS.get_ptr_mut(index)
}

/// Index of the record of (`slot`, `cpu`).
#[inline(always)]
pub(crate) fn record_index(slot: u32, cpu: u32) -> u32 {
    slot.wrapping_mul(CPU_COUNT.load().wrapping_add(EXTRA_RECORDS)).wrapping_add(cpu)
}

/// Index of the slot's shared record.
#[inline(always)]
pub(crate) fn shared_index(slot: u32) -> u32 {
    record_index(slot, CPU_COUNT.load())
}

#[inline(always)]
pub(crate) fn record(index: u32) -> Option<*mut Record> {
    RECORDS.get_ptr_mut(index)
}

#[inline(always)]
pub(crate) fn current_cpu() -> u32 {
    // SAFETY: the helper takes no arguments and cannot fail.
    unsafe { helpers::bpf_get_smp_processor_id() }
}

#[inline(always)]
pub(crate) fn jiffies() -> u64 {
    // SAFETY: as above.
    unsafe { helpers::bpf_jiffies64() }
}

#[inline(always)]
pub(crate) fn cpu_count() -> u32 {
    CPU_COUNT.load()
}

#[inline(always)]
pub(crate) fn boottime_ns() -> u64 {
    // SAFETY: as above.
    unsafe { bpf_ktime_get_boot_ns() }
}

#[inline(always)]
pub(crate) fn monotonic_ns() -> u64 {
    // SAFETY: as above.
    unsafe { bpf_ktime_get_ns() }
}

/// Counts an anomaly or a rare event and returns whether it is the first; `$field` is a counter of
/// `Ctrl`.
macro_rules! count {
    ($field:ident) => {
        $crate::maps::bump(core::mem::offset_of!(lxcfs_abi::Ctrl, $field))
    };
}
pub(crate) use count;

#[inline(always)]
pub(crate) fn bump(offset: usize) -> bool {
    let Some(ctrl) = ctrl() else { return false };
    // SAFETY: `offset` is that of a counter (`count!`).
    unsafe { atomic::add(ctrl.cast::<u8>().add(offset).cast(), 1) == 0 }
}

/// Has the daemon look for containers of which only it can say something.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn ask() -> u32 {
    count!(unknown);
    notify()
}

/// Makes the daemon's descriptor readable, once until it has answered.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn notify() -> u32 {
    let Some(ctrl) = ctrl() else { return 0 };
    // SAFETY: a map value.
    let pending = unsafe { atomic::swap32(&raw mut (*ctrl).notified, 1) };
    if pending == 0 {
        // A full ring cannot be: the daemon empties it before it clears `notified`.
        let _ = NOTIFY.output(1u64, 0);
    }
    0
}
