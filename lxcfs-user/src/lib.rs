//! x

pub mod bpf;
