//! `cargo xtask`: one subcommand per file.

const fn main() {}
