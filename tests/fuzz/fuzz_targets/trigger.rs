//! See `lxcfs_fuzz::targets::trigger`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lxcfs_fuzz::targets::trigger(data));
