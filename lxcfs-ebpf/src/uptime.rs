//! `/proc/uptime` below FUSE, as `files/uptime.rs` makes it; and the idle time in it, which the daemon asks for here too, so that
//! it is the same whoever is read.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{seq_file, task_struct};
use aya_ebpf::helpers::bpf_get_current_task_btf;
use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::programs::RawTracePointContext;
use lxcfs_abi::{Idle, MAX_DEPTH, decay};

use crate::kernel::{self, follow, follow_field, follow_u32};
use crate::maps::zero;
use crate::reader::{self, AGAIN, Counted, IterContext, at_least};
use crate::text::Text;
use crate::whose::{self, Reader};
use crate::{atomic, cpus, host, load, maps, sum};

/// The unit of the file, and of a process's start in procfs (`USER_HZ`).
const TICK_NS: u64 = 10_000_000;
const TICK_US: u64 = 10_000;

/// Looks at what is remembered, while somebody else changes it, whose CPU may be a virtual one that stands still for a while.
const ATTEMPTS: u32 = 1 << 20;

/// What the file says, in hundredths of a second.
struct Line {
    up: u64,
    idle: u64,
}

/// What idle time follows from.
#[derive(Clone, Copy)]
#[repr(C)]
struct Now {
    /// The container: its init, and when that started.
    init: u64,
    started_ns: u64,
    cpus: u64,
    up_us: u64,
    used_us: u64,
}

/// What was shown by a daemon, with programs or of a cgroup before these. All zero: nothing.
#[derive(Clone, Copy)]
#[repr(C)]
struct Before {
    /// Idle time, as it would be if it might fall.
    left_us: u64,
    shown_us: u64,
    up_us: u64,
    used_us: u64,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub(crate) extern "C" fn uptime(ctx: *const IterContext) -> i32 {
    // SAFETY: the context of this program type; the helper returns the current task.
    unsafe {
        if IterContext::is_behind(ctx) {
            return 0;
        }
        let current: *const task_struct = bpf_get_current_task_btf();
        let reader = whose::reader(current);
        let run_ns = kernel::load_u64(current, &kernel::O_SUM_EXEC_RUNTIME);
        let own = Own { cpu: maps::current_cpu(), task: current as u64, run_ns };
        let line = match reader.home {
            whose::HOST => host(current),
            _ => container(reader, own),
        };
        let Some(line) = line else { return AGAIN };
        print(IterContext::file(ctx), &line);
    }
    0
}

/// What the kernel tells a reader on the host (fs/proc/uptime.c), if the daemon has found that this is what it tells.
///
/// # Safety
/// `current` is the current task.
#[inline(always)]
unsafe fn host(current: *const task_struct) -> Option<Line> {
    let ctrl = maps::ctrl()?;
    // SAFETY: a map value, whose word is read whole; by contract.
    let idle_ns = unsafe {
        if ptr::read_volatile(&raw const (*ctrl).tells_host_idle) == 0 {
            return None;
        }
        host::idle_ns(current)?
    };
    Some(Line { up: maps::boottime_ns() / TICK_NS, idle: idle_ns / TICK_NS })
}

/// What a reader in a container is told.
#[inline(always)]
fn container(reader: Reader, own: Own) -> Option<Line> {
    let ctrl = maps::enabled()?;
    let counted = Counted::at(reader.boundary(kernel::W_COUNTED.load()))?;
    let init = whose_init(reader.init(), counted.slot);
    let started_ns = whose::started_ns(init);
    if started_ns == 0 {
        return None;
    }
    // SAFETY: the map's element.
    let earlier = unsafe { counted.earlier(ctrl, started_ns) }?;
    let cpus = cpus::shown(reader, counted.cgroup)?;
    let up_ns = maps::boottime_ns().wrapping_sub(started_ns - started_ns % TICK_NS);
    let used_ns = used_ns(counted, own)?.wrapping_add(earlier.used_ns);
    let now = Now { init, started_ns, cpus, up_us: up_ns / 1_000, used_us: used_ns / 1_000 };
    let before = Before { left_us: 0, shown_us: 0, up_us: 0, used_us: 0 };
    let idle_us = advance(counted.slot, &now, &before)?;
    counted.is_current().then_some(Line { up: up_ns / TICK_NS, idle: idle_us / TICK_US })
}

/// Run on demand: brings a container's idle time up to now, and returns 1 if that could be done. Arguments are slot and cgroup id,
/// address and start of the init, CPUs shown, CPU time used before the programs; and the words of [`Before`].
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub(crate) extern "C" fn idle(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let (slot, id): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let (init, started_ns, cpus): (u64, u64, u64) = (ctx.arg(2), ctx.arg(3), ctx.arg(4));
    let earlier_ns: u64 = ctx.arg(5);
    let before = Before {
        left_us: ctx.arg(6),
        shown_us: ctx.arg(7),
        up_us: ctx.arg(8),
        used_us: ctx.arg(9),
    };
    let leaf = kernel::cgroup_of(follow(init, &kernel::O_CGROUPS));
    let counted = Counted { cgroup: with_id(leaf, id), id, slot: slot as u32 };
    let up_ns = maps::boottime_ns().wrapping_sub(started_ns - started_ns % TICK_NS);
    // Who asks is not in the container.
    let own = Own { cpu: maps::current_cpu(), task: 0, run_ns: 0 };
    let Some(used_ns) = used_ns(counted, own) else { return 0 };
    let used_us = used_ns.wrapping_add(earlier_ns) / 1_000;
    let now = Now { init, started_ns, cpus, up_us: up_ns / 1_000, used_us };
    i32::from(counted.is_current() && advance(counted.slot, &now, &before).is_some())
}

/// Where a container has no init of its own, what the daemon told to be one, while that lives.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn whose_init(own: u64, slot: u32) -> u64 {
    if own != 0 {
        return own;
    }
    let Some(idle) = maps::idle(slot) else { return 0 };
    // SAFETY: a map value, whose words are read whole.
    let (init, started_ns) = unsafe {
        (
            ptr::read_volatile(&raw const (*idle).init),
            ptr::read_volatile(&raw const (*idle).started_ns),
        )
    };
    // Where another task is by now, another start is; and one that was ends as dead.
    let is_it = init != 0 && whose::started_ns(init) == started_ns;
    if is_it && follow_u32(init, u64::from(kernel::O_EXIT_STATE.load())) == 0 {
        return init;
    }
    maps::ask();
    0
}

/// The cgroup with that id among `leaf` and its ancestors; 0: it is none of them.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn with_id(leaf: u64, id: u64) -> u64 {
    let mut at = leaf;
    for _ in 0..MAX_DEPTH {
        if at == 0 || kernel::cgroup_id(at) == id {
            return at;
        }
        at = kernel::cgroup_parent(at);
    }
    0
}

/// CPU time used since the programs count: what is charged, and what runs now has gained since, as far as the kernel itself knows
/// (to one tick). What runs is asked first: what is charged meanwhile counts twice, which only holds idle time up for a moment.
#[inline(always)]
fn used_ns(counted: Counted, own: Own) -> Option<u64> {
    let mut running = Running { cgroup: counted.cgroup, own, run_ns: zero() };
    // SAFETY: the function has the type of a callback, and what it adds to outlives the call.
    unsafe {
        bpf_loop(
            maps::cpu_count(),
            add_running as *mut c_void,
            ptr::from_mut(&mut running).cast(),
            0,
        );
    }
    atomic::barrier();
    let charged_ns = sum::charged_ns_under(counted.slot)?;
    Some(charged_ns.wrapping_add(running.run_ns))
}

/// Who reads, and where.
#[derive(Clone, Copy)]
#[repr(C)]
struct Own {
    cpu: u32,
    /// The address of the task; 0: it is not in the container.
    task: u64,
    /// For how long it has run.
    run_ns: u64,
}

#[repr(C)]
struct Running {
    cgroup: u64,
    own: Own,
    run_ns: u64,
}

/// Adds what the task on one CPU is not charged for yet, if it is in the subtree.
extern "C" fn add_running(cpu: u64, running: *mut Running) -> i64 {
    let Some(place) = maps::cpu(cpu as u32) else { return 1 };
    // SAFETY: what was handed to the helper, and nobody else's; map values, whose words are read whole.
    unsafe {
        let task = ptr::read_volatile(&raw const (*place).task);
        if task == 0 {
            return 0;
        }
        atomic::barrier();
        let charged_ns = ptr::read_volatile(&raw const (*place).charged_ns);
        let since = ptr::read_volatile(&raw const (*place).since_jiffies);
        let run_ns = if cpu == u64::from((*running).own.cpu) {
            let own = (*running).own;
            if own.task == 0 {
                return 0;
            }
            if own.task == task { gained(own.run_ns, charged_ns) } else { unseen_ns(since) }
        } else if follow_field(task, &kernel::F_ON_CPU) == 0 {
            unseen_ns(since)
        } else {
            let leaf = kernel::cgroup_of(follow(task, &kernel::O_CGROUPS));
            let root = (*running).cgroup;
            if leaf != root && whose::is_below(leaf, root) == 0 {
                return 0;
            }
            gained(follow(task, &kernel::O_SUM_EXEC_RUNTIME), charged_ns)
        };
        atomic::barrier();
        // Whoever left meanwhile is charged.
        if ptr::read_volatile(&raw const (*place).task) == task {
            (*running).run_ns = (*running).run_ns.wrapping_add(run_ns);
        }
    }
    0
}

/// What a container may have used on a CPU whose task has left it, since when nobody has been seen to come. A kernel may have
/// threads of its own that leave without the event; whoever runs then is seen at the next one. Too much is said rather than too
/// little, or idle time would have risen too far and never fallen again.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn unseen_ns(since_jiffies: u64) -> u64 {
    let jiffies = maps::jiffies().wrapping_sub(since_jiffies).wrapping_add(1);
    jiffies.wrapping_mul(decay::PERIOD_NS.checked_div(load::TICK_JIFFIES.load()).unwrap_or(0))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn gained(now: u64, before: u64) -> u64 {
    if now > before { now - before } else { 0 }
}

/// Idle time of the container counted in `slot`, microseconds: what its CPUs had less what it used, and never less than was shown.
/// `None`: somebody else does not stop changing what is remembered.
#[inline(never)]
fn advance(slot: u32, now: &Now, before: &Before) -> Option<u64> {
    let (now, before) = (*now, *before);
    let mut advance = Advance { slot: u64::from(slot), now, before, idle_us: 0, is_done: 0 };
    // SAFETY: the function has the type of a callback, and what it writes to outlives the call.
    unsafe {
        bpf_loop(ATTEMPTS, attempt as *mut c_void, ptr::from_mut(&mut advance).cast(), 0);
    }
    (advance.is_done != 0).then_some(advance.idle_us)
}

#[repr(C)]
struct Advance {
    slot: u64,
    now: Now,
    before: Before,
    idle_us: u64,
    is_done: u64,
}

/// One attempt of [`advance`]; 1 ends it.
extern "C" fn attempt(_nth: u64, advance: *mut Advance) -> i64 {
    // SAFETY: what was handed to the helper, and nobody else's.
    let advance = unsafe { &mut *advance };
    let (now, before) = (&advance.now, &advance.before);
    let Some(idle) = maps::idle(advance.slot as u32) else { return 1 };
    // SAFETY: a map value; the last two words are for whoever has to go on without us.
    unsafe {
        let Some(more_us) = remembered(idle, now, before) else { return 0 };
        let had_us = now.up_us.wrapping_mul(now.cpus).wrapping_add(more_us);
        let left_us = had_us.wrapping_sub(now.used_us) as i64;
        let Some(idle_us) = most(idle, left_us) else { return 0 };
        ptr::write_volatile(&raw mut (*idle).used_us, now.used_us);
        ptr::write_volatile(&raw mut (*idle).left_us, left_us);
        advance.idle_us = idle_us;
    }
    advance.is_done = 1;
    1
}

/// `Idle::more_us`, where `now` is a container that is remembered, with so many CPUs from now on.
///
/// # Safety
/// `idle` is a map value.
#[inline(always)]
unsafe fn remembered(idle: *mut Idle, now: &Now, before: &Before) -> Option<u64> {
    // SAFETY: by contract; words are read whole, and the sequence tells whether they belong together.
    unsafe {
        let sequence = ptr::read_volatile(&raw const (*idle).sequence);
        atomic::barrier();
        let is_its = ptr::read_volatile(&raw const (*idle).init) == now.init
            && ptr::read_volatile(&raw const (*idle).started_ns) == now.started_ns;
        let cpus = ptr::read_volatile(&raw const (*idle).cpus);
        let more_us = ptr::read_volatile(&raw const (*idle).more_us) as u64;
        if is_its && cpus == now.cpus {
            atomic::barrier();
            let is_same = ptr::read_volatile(&raw const (*idle).sequence) == sequence;
            return (is_same && sequence & 1 == 0).then_some(more_us);
        }
        if sequence & 1 != 0
            || !atomic::replace(&raw mut (*idle).sequence, sequence, sequence.wrapping_add(1))
        {
            return None;
        }
        let more_us = if is_its {
            // What the CPUs had until now stays as it was.
            more_us.wrapping_add(now.up_us.wrapping_mul(cpus.wrapping_sub(now.cpus)))
        } else {
            ptr::write_volatile(&raw mut (*idle).shown_us, before.shown_us);
            more_than(now, before)
        };
        ptr::write_volatile(&raw mut (*idle).init, now.init);
        ptr::write_volatile(&raw mut (*idle).started_ns, now.started_ns);
        ptr::write_volatile(&raw mut (*idle).cpus, now.cpus);
        ptr::write_volatile(&raw mut (*idle).more_us, more_us as i64);
        let _ = atomic::add(&raw mut (*idle).sequence, 1);
        Some(more_us)
    }
}

/// What makes idle time go on from what was shown before. A cgroup that the container has come to since counts its own use alone.
#[inline(always)]
fn more_than(now: &Now, before: &Before) -> u64 {
    let used_us = cpus::least(before.used_us, now.used_us);
    let had_us = before.up_us.wrapping_mul(now.cpus);
    before.left_us.wrapping_add(used_us).wrapping_sub(had_us)
}

/// The most that was shown, `left_us` with it. `None`: somebody else has just shown something else.
///
/// # Safety
/// `idle` is a map value.
#[inline(always)]
unsafe fn most(idle: *mut Idle, left_us: i64) -> Option<u64> {
    // SAFETY: by contract.
    unsafe {
        let shown_us = ptr::read_volatile(&raw const (*idle).shown_us);
        let most = at_least(left_us, shown_us);
        let is_most =
            most == shown_us || atomic::replace(&raw mut (*idle).shown_us, shown_us, most);
        is_most.then_some(most)
    }
}

/// A function of its own, so that its text is not on the stack while sums are made.
///
/// # Safety
/// `file` is the iterator's.
#[inline(never)]
unsafe fn print(file: *mut seq_file, line: &Line) {
    let mut text = Text::new();
    text.long_fraction(line.up);
    text.byte(b' ');
    text.long_fraction(line.idle);
    text.byte(b'\n');
    // SAFETY: by contract.
    unsafe { reader::write(file, &text) };
}
