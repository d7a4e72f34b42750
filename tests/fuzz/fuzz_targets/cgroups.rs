//! See `lxcfs_fuzz::targets::cgroups`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lxcfs_fuzz::targets::cgroups(data));
