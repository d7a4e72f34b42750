//! `/proc/loadavg` below FUSE, as `files/loadavg.rs` makes it.

use core::ptr;

use aya_ebpf::bindings::{seq_file, task_struct};
use aya_ebpf::helpers::bpf_get_current_task_btf;
use lxcfs_abi::word::{self, RUN};
use lxcfs_abi::{Ctrl, decay};

use crate::reader::{self, AGAIN, Counted, IterContext, at_least};
use crate::sum::Load;
use crate::text::Text;
use crate::whose::Reader;
use crate::{host, kernel, load, maps, sum, task, whose};

/// What the file says.
struct Line {
    /// Hundredths for 1, 5 and 15 minutes.
    averages: [u64; 3],
    running: u64,
    threads: u64,
    last_pid: u64,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub(crate) extern "C" fn loadavg(ctx: *const IterContext) -> i32 {
    // SAFETY: the context of this program type; the helper returns the current task.
    unsafe {
        if IterContext::is_behind(ctx) {
            return 0;
        }
        let current: *const task_struct = bpf_get_current_task_btf();
        let reader = whose::reader(current);
        let line = match reader.home {
            whose::HOST => host(current, reader),
            _ => container(reader, running_in(current)),
        };
        let Some(line) = line else { return AGAIN };
        print(IterContext::file(ctx), &line);
    }
    0
}

/// What a reader in a container is told, who is counted as running in the slot `own`.
#[inline(always)]
fn container(reader: Reader, own: u32) -> Option<Line> {
    let ctrl = maps::enabled()?;
    let counted = Counted::at(reader.boundary(kernel::W_COUNTED.load()))?;
    // SAFETY: the map's element.
    let carried = unsafe { carried(ctrl, reader, counted) }?;
    let (load, own_seen) = sum::load_under(counted.slot, maps::jiffies(), own)?;
    let newest = whose::newest_pid(reader.pids);
    counted.is_current().then(|| line(&load, own_seen, carried, newest))
}

/// What is left of the averages from before the programs. `None`: they are not known.
///
/// # Safety
/// `ctrl` is the map's element.
#[inline(always)]
unsafe fn carried(ctrl: *mut Ctrl, reader: Reader, counted: Counted) -> Option<[u64; 3]> {
    // SAFETY: by contract.
    let (earlier, loaded_ns) = unsafe {
        let started_ns = whose::started_ns(reader.init());
        (
            counted.earlier(ctrl, started_ns)?,
            ptr::read_volatile(&raw const (*ctrl).loaded_boottime_ns),
        )
    };
    let [one, five, fifteen] = earlier.average;
    let periods = maps::boottime_ns().wrapping_sub(loaded_ns) / decay::PERIOD_NS;
    let [a, b, c] = decay::EXPONENTS;
    let rest = |average: u64, e| load::decayed(average as i64, 0, e, periods) as u64;
    Some([rest(one, a), rest(five, b), rest(fifteen, c)])
}

/// The slot that `reader` is counted in as running; the overflow slot, which no container has, if it is in none.
///
/// # Safety
/// `reader` is the current task.
#[inline(always)]
unsafe fn running_in(reader: *const task_struct) -> u32 {
    // SAFETY: by contract; an entry's word is read whole.
    unsafe {
        let Some(entry) = task::find(reader) else { return lxcfs_abi::OVERFLOW_SLOT };
        let word = ptr::read_volatile(&raw const (*entry).word);
        if word & RUN == 0 { lxcfs_abi::OVERFLOW_SLOT } else { word::slot(word) }
    }
}

/// As `source/bpf.rs` and `files/loadavg.rs` make it.
#[inline(always)]
fn line(load: &Load, own_seen: u64, carried: [u64; 3], last_pid: u32) -> Line {
    let [a, b, c] = load.average;
    let [d, e, f] = carried;
    let running = others_running(load.running, own_seen);
    Line {
        averages: [hundredths(a, d), hundredths(b, e), hundredths(c, f)],
        running,
        threads: at_least(load.threads, running),
        last_pid: u64::from(last_pid),
    }
}

// Choices are made in functions of their own, each of which the verifier follows once, and not with everything behind it.

/// Hundredths of a sum, which may have been caught between two events but is not below zero, and of what was before.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn hundredths(average: i64, carried: u64) -> u64 {
    let average = if average < 0 { 0 } else { average as u64 };
    let (whole, hundredths) = decay::hundredths(average.wrapping_add(carried));
    100 * whole + hundredths
}

/// Whoever reads is counted as running only where nobody else is, because the daemon's readers sleep while they are answered.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn others_running(running: i64, own_seen: u64) -> u64 {
    let running = if own_seen == 0 { running } else { running - 1 };
    if running < 1 { 1 } else { running as u64 }
}

/// What the kernel tells a reader on the host (fs/proc/loadavg.c), from its own counts. `None`: their addresses are not known.
///
/// # Safety
/// `current` is the current task.
#[inline(always)]
unsafe fn host(current: *const task_struct, reader: Reader) -> Option<Line> {
    let ctrl = maps::ctrl()?;
    // SAFETY: a map value; the daemon writes the addresses before it makes the file.
    let [avenrun, threads] = unsafe { ptr::read_volatile(&raw const (*ctrl).symbols) };
    if avenrun == 0 {
        return None;
    }
    let at = |nth: u64| {
        // SAFETY: a copy that does not fault, of an array of three words.
        let average = unsafe { kernel::copy(avenrun + 8 * nth) };
        hundredths((average << (decay::FRACTION_BITS - decay::KERNEL_BITS)) as i64, 0)
    };
    Some(Line {
        averages: [at(0), at(1), at(2)],
        // SAFETY: by contract.
        running: unsafe { host::running(current) }?,
        threads: u64::from(kernel::follow_u32(threads, 0)),
        last_pid: u64::from(whose::newest_pid(reader.pids)),
    })
}

/// A function of its own, so that its text is not on the stack while sums are made.
///
/// # Safety
/// `file` is the iterator's.
#[inline(never)]
unsafe fn print(file: *mut seq_file, line: &Line) {
    let mut text = Text::new();
    for average in line.averages {
        text.fraction(average);
        text.byte(b' ');
    }
    text.number(line.running);
    text.byte(b'/');
    text.number(line.threads);
    text.byte(b' ');
    text.number(line.last_pid);
    text.byte(b'\n');
    // SAFETY: by contract.
    unsafe { reader::write(file, &text) };
}
