//! A text of the host's whose lines begin with names, and where each is. It is found out once for all who read the text, for
//! some of these files have two hundred lines, and a page asks for as many by name.

use std::hash::BuildHasher as _;
use std::ops::Deref;
use std::sync::OnceLock;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::parse;

/// The text. It can be used as the bytes it is.
#[derive(Debug, Default)]
pub struct Sheet {
    text: Vec<u8>,
    index: OnceLock<Index>,
}

#[derive(Debug, Default)]
struct Index {
    lines: Vec<Line>,
    /// The first line of each name.
    by_name: HashTable<usize>,
    hasher: DefaultHashBuilder,
}

/// Where a line is in the text: from `start` to before its end of line. Up to `name_end` it is a name.
#[derive(Debug, Clone, Copy)]
struct Line {
    start: usize,
    name_end: usize,
    end: usize,
}

impl Sheet {
    /// One of `text`.
    #[must_use]
    pub const fn new(text: Vec<u8>) -> Self {
        Self { text, index: OnceLock::new() }
    }

    /// How many lines have a name.
    #[must_use]
    pub fn line_count(&self) -> usize {
        self.index().lines.len()
    }

    /// Which of the named lines has `name`, counted from 0.
    #[must_use]
    pub fn position(&self, name: &[u8]) -> Option<usize> {
        let index = self.index();
        let is_it = |&nth: &usize| self.name(nth) == name;
        index.by_name.find(index.hasher.hash_one(name), is_it).copied()
    }

    /// The name of line `nth`. Empty where there is no such line.
    #[must_use]
    pub fn name(&self, nth: usize) -> &[u8] {
        self.index().lines.get(nth).map_or(&[], |line| &self.text[line.start..line.name_end])
    }

    /// Line `nth` without its end, likewise.
    #[must_use]
    pub fn line(&self, nth: usize) -> &[u8] {
        self.index().lines.get(nth).map_or(&[], |line| &self.text[line.start..line.end])
    }

    /// The line that has `name`.
    #[must_use]
    pub fn named(&self, name: &[u8]) -> Option<&[u8]> {
        self.position(name).map(|nth| self.line(nth))
    }

    /// The number behind `name`.
    #[must_use]
    pub fn number(&self, name: &[u8]) -> Option<u64> {
        let rest = self.named(name)?.get(name.len()..)?;
        parse::fields(rest.strip_prefix(b":").unwrap_or(rest)).next().and_then(parse::number)
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| Index::of(&self.text))
    }
}

impl Index {
    fn of(text: &[u8]) -> Self {
        let hasher = DefaultHashBuilder::default();
        let mut lines = Vec::with_capacity(64);
        let mut start = 0;
        for line in parse::lines(text) {
            let name = memchr::memchr2(b':', b' ', line).unwrap_or(line.len());
            if name > 0 {
                lines.push(Line { start, name_end: start + name, end: start + line.len() });
            }
            start += line.len() + 1;
        }
        let name = |nth: usize| &text[lines[nth].start..lines[nth].name_end];
        let mut by_name = HashTable::with_capacity(lines.len());
        for nth in 0..lines.len() {
            let hash = |&nth: &usize| hasher.hash_one(name(nth));
            by_name.entry(hash(&nth), |&known| name(known) == name(nth), hash).or_insert(nth);
        }
        Self { lines, by_name, hasher }
    }
}

impl From<&str> for Sheet {
    fn from(text: &str) -> Self {
        Self::new(text.into())
    }
}

impl Deref for Sheet {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_found_by_their_names() {
        let sheet = Sheet::new(b"MemTotal:  7 kB\n\nctxt 9\nctxt 10\n 3\nlast".to_vec());
        assert_eq!(sheet.line_count(), 4);
        assert_eq!(sheet.named(b"ctxt"), Some(&b"ctxt 9"[..]));
        assert_eq!((sheet.position(b"ctxt"), sheet.position(b"last")), (Some(1), Some(3)));
        assert_eq!((sheet.number(b"MemTotal"), sheet.number(b"ctxt")), (Some(7), Some(9)));
        assert_eq!((sheet.number(b"last"), sheet.number(b"Mem")), (None, None));
        assert_eq!(
            (sheet.name(2), sheet.line(2), sheet.line(4)),
            (&b"ctxt"[..], &b"ctxt 10"[..], &b""[..])
        );
    }

    proptest! {
        #[test]
        fn any_text_is_one(text in proptest::collection::vec(any::<u8>(), 0..300), name in "[a-z: \n]{0,3}") {
            let sheet = Sheet::new(text);
            prop_assert!((0..sheet.line_count()).all(|nth| sheet.position(sheet.name(nth)) <= Some(nth)));
            let _ = (sheet.named(name.as_bytes()), sheet.number(name.as_bytes()));
        }
    }
}
