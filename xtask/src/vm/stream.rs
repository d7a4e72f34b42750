//! What comes out of a guest's serial ports, taken apart and shown.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::time::Duration;

use super::guest::End;

const MARK: &[u8] = b"\x1evm-step ";
const MARK_END: u8 = 0x1e;

/// No mark is longer.
const MARK_BYTES: usize = MARK.len() + 6;

/// Splits the output port into the commands' outputs at init's marks.
#[derive(Debug, Default)]
pub(crate) struct Split {
    /// Shown where a command starts, if there are more than one.
    names: Vec<String>,
    outputs: BTreeMap<usize, Vec<u8>>,
    current: usize,
    /// The start of what may become a mark.
    pending: Vec<u8>,
}

impl Split {
    pub(crate) fn new(names: Vec<String>) -> Self {
        Self { names, ..Self::default() }
    }

    /// Takes what came; `show` gets it without the marks.
    pub(crate) fn push(&mut self, bytes: &[u8], mut show: impl FnMut(&[u8])) {
        self.pending.extend_from_slice(bytes);
        while let Some(start) = self.pending.iter().position(|byte| *byte == MARK_END) {
            self.emit(start, &mut show);
            match Mark::at(&self.pending) {
                Mark::Step(number, length) => {
                    self.current = number;
                    self.pending.drain(..length);
                    if self.names.len() > 1 {
                        let name = self.names.get(number).map_or("?", String::as_str);
                        show(format!("=== {name}\n").as_bytes());
                    }
                }
                Mark::None => self.emit(1, &mut show),
                Mark::Incomplete => return,
            }
        }
        self.emit(self.pending.len(), &mut show);
    }

    /// Nothing more comes: what looked like a mark was none.
    pub(crate) fn finish(&mut self, mut show: impl FnMut(&[u8])) {
        self.emit(self.pending.len(), &mut show);
    }

    pub(crate) fn take(&mut self, step: usize) -> Vec<u8> {
        self.outputs.remove(&step).unwrap_or_default()
    }

    fn emit(&mut self, count: usize, show: &mut impl FnMut(&[u8])) {
        if count > 0 {
            let bytes: Vec<u8> = self.pending.drain(..count).collect();
            show(&bytes);
            self.outputs.entry(self.current).or_default().extend(bytes);
        }
    }
}

/// What stands at the start of some bytes that start with a mark's first byte.
enum Mark {
    Step(usize, usize),
    None,
    Incomplete,
}

impl Mark {
    fn at(bytes: &[u8]) -> Self {
        let compared = bytes.len().min(MARK.len());
        if bytes[..compared] != MARK[..compared] {
            return Self::None;
        }
        let digits = &bytes[compared..];
        match digits.iter().position(|byte| *byte == MARK_END) {
            None if bytes.len() < MARK_BYTES => Self::Incomplete,
            None => Self::None,
            Some(length) => {
                let number = std::str::from_utf8(&digits[..length]).ok();
                let number = number.and_then(|digits| digits.parse().ok());
                number.map_or(Self::None, |number| Self::Step(number, compared + length + 1))
            }
        }
    }
}

/// The lines of the status port.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) started: bool,
    pub(crate) done: bool,
    pub(crate) steps: BTreeMap<usize, (End, Duration)>,
}

impl Status {
    /// A line cut off by death is no line.
    pub(crate) fn parse(text: &str) -> Self {
        let mut status = Self::default();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["started"] => status.started = true,
                ["done"] => status.done = true,
                ["step", number, kind, value, took_ms] => {
                    if let Some((number, result)) = step(number, kind, value, took_ms) {
                        status.steps.insert(number, result);
                    }
                }
                _ => {}
            }
        }
        status
    }
}

fn step(number: &str, kind: &str, value: &str, took_ms: &str) -> Option<(usize, (End, Duration))> {
    let value: u8 = value.parse().ok()?;
    let end = match kind {
        "exit" => End::Exit(value),
        "signal" => End::Signal(value),
        "timeout" => End::TimedOut,
        _ => return None,
    };
    Some((number.parse().ok()?, (end, Duration::from_millis(took_ms.parse().ok()?))))
}

/// Shows a guest's output while it comes.
#[derive(Debug)]
pub(crate) enum Display {
    /// As it is, on standard output.
    Raw,
    /// In whole lines behind a name: more guests write at the same time.
    Lines { name: String, rest: Vec<u8> },
}

impl Display {
    pub(crate) const fn lines(name: String) -> Self {
        Self::Lines { name, rest: Vec::new() }
    }

    pub(crate) fn show(&mut self, bytes: &[u8]) {
        let mut out = io::stdout().lock();
        // A reader that went away does not end the guest.
        let _ = match self {
            Self::Raw => out.write_all(bytes).and_then(|()| out.flush()),
            Self::Lines { name, rest } => {
                rest.extend_from_slice(bytes);
                let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
                let whole: Vec<u8> = rest.drain(..end).collect();
                let mut lines = whole.split_inclusive(|byte| *byte == b'\n');
                lines.try_for_each(|line| {
                    write!(out, "[{name}] ").and_then(|()| out.write_all(line))
                })
            }
        };
    }

    /// Ends the last line.
    pub(crate) fn finish(&mut self) {
        if matches!(self, Self::Lines { rest, .. } if !rest.is_empty()) {
            self.show(b"\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"\x1evm-step 0\x1eone\n\x1evm-step 1\x1etwo\x1e\x00\x1evm-stop";

    #[test]
    fn outputs_are_split_at_the_marks_however_they_arrive() {
        for size in 1..=STREAM.len() {
            let (mut split, mut shown) = (Split::default(), Vec::new());
            for chunk in STREAM.chunks(size) {
                split.push(chunk, |bytes| shown.extend_from_slice(bytes));
            }
            split.finish(|bytes| shown.extend_from_slice(bytes));
            assert_eq!(split.take(0), b"one\n", "in chunks of {size}");
            assert_eq!(split.take(1), b"two\x1e\x00\x1evm-stop", "in chunks of {size}");
            assert_eq!(shown, b"one\ntwo\x1e\x00\x1evm-stop", "in chunks of {size}");
        }
    }

    #[test]
    fn the_names_of_many_are_shown_but_not_kept() {
        let mut split = Split::new(vec!["a".to_owned(), "b".to_owned()]);
        let mut shown = Vec::new();
        split.push(b"\x1evm-step 1\x1etwo\n", |bytes| shown.extend_from_slice(bytes));
        assert_eq!(shown, b"=== b\ntwo\n");
        assert_eq!(split.take(1), b"two\n");
    }

    #[test]
    fn status_lines_are_read() {
        let text =
            "started\r\nstep 0 exit 7 1500\nstep 1 signal 9 20\nstep 2 timeout 0 600\ndone\n";
        let Status { started, done, steps } = Status::parse(text);
        assert!(started && done);
        assert_eq!(steps[&0], (End::Exit(7), Duration::from_millis(1500)));
        assert_eq!(steps[&1], (End::Signal(9), Duration::from_millis(20)));
        assert_eq!(steps[&2], (End::TimedOut, Duration::from_millis(600)));
    }

    #[test]
    fn a_cut_or_strange_line_counts_for_nothing() {
        let status = Status::parse("started\nstep 0 exit 700 1\nstep 1 exit 0 2");
        assert_eq!(status, Status { started: true, ..Status::default() });
    }
}
