//! See `lxcfs_fuzz::targets::kernel_text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lxcfs_fuzz::targets::kernel_text(data));
