//! The eBPF programs: load and CPU time per cgroup, counted as it happens.
//!
//! Read in this order: [`maps`] (what is kept), [`sched`] (the events), [`task`] and [`slot`] (whose
//! event it is), [`load`] and [`cpu`] (what is counted), [`life`] (moves and removals), [`seed`]
//! (what was there before us, and repair), [`control`] (run on demand by user space), [`reader`] (files that the kernel serves by
//! itself: [`whose`] one is, [`loadavg`] and [`uptime`], the [`sum`] of its cgroups, how many [`cpus`] it is shown, and what the [`host`] counts), [`pids`] (what
//! user space cannot see of a process).
//!
//! On the host this is an empty main, so that the workspace builds with plain stable Rust.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch, core_intrinsics),
    expect(
        internal_features,
        reason = "core::sync::atomic has no read-modify-write on BPF, the instructions exist"
    )
)]

#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod control;
#[cfg(target_arch = "bpf")]
mod cpu;
#[cfg(target_arch = "bpf")]
mod cpus;
#[cfg(target_arch = "bpf")]
mod host;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod life;
#[cfg(target_arch = "bpf")]
mod load;
#[cfg(target_arch = "bpf")]
mod loadavg;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod pids;
#[cfg(target_arch = "bpf")]
mod reader;
#[cfg(target_arch = "bpf")]
mod report;
#[cfg(target_arch = "bpf")]
mod sched;
#[cfg(target_arch = "bpf")]
mod seed;
#[cfg(target_arch = "bpf")]
mod slot;
#[cfg(target_arch = "bpf")]
mod sum;
#[cfg(target_arch = "bpf")]
mod task;
#[cfg(target_arch = "bpf")]
mod text;
#[cfg(target_arch = "bpf")]
mod uptime;
#[cfg(target_arch = "bpf")]
mod whose;

/// The helpers we call are for programs under a GPL-compatible licence.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
