//! LXCFS built anew: a FUSE filesystem in which every container sees its own machine.
//!
//! The road of one read, in the order of the rooms it passes:
//!
//! ```text
//! FUSE request -> fs        which file, which handle
//!              -> caller    whose container is the reader in
//!              -> files     what the page says, from numbers a
//!                 source    knows: BPF maps, cgroup files, the host
//!              -> fs        reply
//! ```
//!
//! `model` holds the arithmetic and types the rooms share; `daemon` mounts, guards and ends all of it.

pub mod bpf;
pub mod caller;
pub mod cli;
pub mod daemon;
pub mod error;
pub mod files;
pub mod fs;
pub mod keep;
pub mod model;
pub mod output;
pub mod road;
pub mod source;
pub mod survey;
pub mod top;
