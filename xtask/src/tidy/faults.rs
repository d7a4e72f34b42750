//! Every numbered fault of LXCFS, and every numbered complaint of its users about what a file says, has a test that is
//! named after it, or a reason here.
//!
//! In the name of a test `w07` and `b05` are faults, `ask_311` an issue of lxc/lxcfs and `ask_lxd18609` one of another
//! project. One test may shut out several.

use std::collections::BTreeSet;

use super::Tree;

/// The faults of LXCFS as it is, and those of its first releases, are numbered from 1 to these.
const FAULTS: [(char, u32); 2] = [('w', 30), ('b', 10)];

/// Numbers without a test, and why.
const WITHOUT: [(&str, &str); 2] = [
    ("w01", "a decision and no fault: every test runs on v1, hybrid and v2"),
    ("b08", "no process is cloned, so no stack of one is lost"),
];

/// Issues about what a file says. Those about packages, kernels and other programs are not here.
const ASKS: &str = "13 40 42 44 56 84 88 105 115 120 122 148 162 164 165 169 170 175 180 181 184 187 189 191 203 210 \
    212 217 222 223 227 239 240 244 248 251 254 258 265 273 276 283 284 298 301 303 305 306 307 310 311 313 317 334 \
    384 389 401 406 409 414 416 432 438 442 443 444 447 452 462 465 469 493 500 522 525 538 542 551 553 556 562 578 \
    587 593 598 608 628 629 642 653 654 665 670 673 677 680 684 690 691 731 lxd18609";

/// A line for every number that has neither a test nor a reason, or both.
pub(super) fn breaches(tree: &Tree) -> Vec<String> {
    // Our own tests are of names that are none.
    let others = tree.rust().filter(|file| file.path != "xtask/src/tidy/faults.rs");
    let tested: BTreeSet<String> = others.flat_map(|file| numbers(&file.text)).collect();
    wanted()
        .into_iter()
        .filter_map(|number| {
            let reason = WITHOUT.iter().find(|(without, _)| *without == number);
            match (tested.contains(&number), reason) {
                (true, Some((_, why))) => {
                    Some(format!("{number} has a test, and the reason for none: {why}"))
                }
                (false, None) => {
                    Some(format!("{number}: no test has it in its name, and no reason is given"))
                }
                _ => None,
            }
        })
        .collect()
}

/// Every number there must be something of.
fn wanted() -> Vec<String> {
    let faults = FAULTS
        .into_iter()
        .flat_map(|(kind, last)| (1..=last).map(move |number| format!("{kind}{number:02}")));
    faults.chain(ASKS.split_whitespace().map(|issue| format!("ask_{issue}"))).collect()
}

/// The numbers in the names of the tests of a file.
fn numbers(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let names = text
        .split("#[test]")
        .skip(1)
        .filter_map(|test| test.split_once("fn ")?.1.split('(').next());
    for name in names {
        let mut is_ask = false;
        for word in name.split('_') {
            let digits = word.trim_start_matches(|c: char| c.is_ascii_lowercase());
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            match &word[..word.len() - digits.len()] {
                "ask" if digits.is_empty() => is_ask = true,
                "w" | "b" if digits.len() == 2 && is_number => found.push(word.to_owned()),
                _ if is_ask && is_number => found.push(format!("ask_{word}")),
                _ => is_ask = false,
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::File;
    use super::*;

    #[test]
    fn names_say_what_is_tested() {
        let text = "#[test]\nfn w15_b02_ask_593_lxd18609_busy_2_times() {\n #[test]\n\
                    /// A comment (of b03).\n    pub fn ask_7_of_w17() {}\nfn w16_no_test() {";
        assert_eq!(numbers(text), ["w15", "b02", "ask_593", "ask_lxd18609", "ask_7", "w17"]);
    }

    #[test]
    fn a_number_without_a_test_or_a_reason_is_found() {
        let tree = |text: &str| Tree {
            files: vec![File { path: "x.rs".to_owned(), text: text.to_owned() }],
        };
        let found = breaches(&tree("#[test]\nfn w02_x() {"));
        assert!(found.iter().any(|line| line.starts_with("w03: no test")), "{found:?}");
        assert!(!found.iter().any(|line| line.starts_with("w02")), "{found:?}");
        assert!(!found.iter().any(|line| line.starts_with("b08")), "{found:?}");
        let found = breaches(&tree("#[test]\nfn b08_x() {"));
        assert!(found.iter().any(|line| line.starts_with("b08 has a test, and")), "{found:?}");
    }
}
