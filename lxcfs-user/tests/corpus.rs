//! The fuzz targets over their committed corpus: what was found once stays found. `cargo xtask soak --only fuzz` looks for more.

#[allow(unreachable_pub, reason = "what is public is for the programs that fuzz")]
#[path = "../../tests/fuzz/src/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

/// What takes any bytes.
type Target = fn(&[u8]);

/// Each by its name.
const TARGETS: [(&str, Target); 9] = [
    ("btf", targets::btf),
    ("cgroups", targets::cgroups),
    ("journal", targets::journal),
    ("kernel_text", targets::kernel_text),
    ("lists", targets::lists),
    ("pages", targets::pages),
    ("source", targets::source),
    ("topology", targets::topology),
    ("trigger", targets::trigger),
];

#[test]
fn every_target_stands_its_corpus() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz");
    for (name, target) in TARGETS {
        let mut inputs = 0;
        for input in fs::read_dir(fuzz.join("corpus").join(name)).expect("it has a corpus") {
            let input = fs::read(input.expect("list").path()).expect("read an input");
            // And each cut short at any place: a file that shrinks while it is read.
            for end in (0..=input.len()).rev().step_by(input.len() / 16 + 1) {
                target(&input[..end]);
            }
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no input");
    }
    let programs = fs::read_dir(fuzz.join("fuzz_targets")).expect("list the targets").count();
    assert_eq!(programs, TARGETS.len(), "each is fuzzed, and looked at here");
}
