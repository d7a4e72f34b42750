//! Types and constants that cross the line between the eBPF programs and user space.
#![no_std]
