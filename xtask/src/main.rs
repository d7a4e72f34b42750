//! `cargo xtask`: one subcommand per file.

fn main() {}
