//! What is fuzzed; each target of `fuzz_targets` is one function of [`targets`].

pub mod targets;
