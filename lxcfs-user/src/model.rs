//! Arithmetic and types shared by files: pure, no I/O, no clock.

pub mod container;
pub mod cpus;
pub mod file;
pub mod hash;
pub mod load;
pub mod lock;
pub mod monotonic;
pub mod mounts;
pub mod subtree;
pub mod topology;
pub mod trigger;
