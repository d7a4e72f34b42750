//! See `lxcfs_fuzz::targets::source`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lxcfs_fuzz::targets::source(data));
