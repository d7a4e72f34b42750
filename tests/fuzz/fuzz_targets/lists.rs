//! See `lxcfs_fuzz::targets::lists`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lxcfs_fuzz::targets::lists(data));
