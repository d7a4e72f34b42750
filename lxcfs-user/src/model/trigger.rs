//! PSI triggers: what a program writes to a pressure file to be told of stalls (Documentation/accounting/psi.rst).

use std::fmt;

/// The longest window the kernel watches, microseconds.
const LONGEST_WINDOW_US: u32 = 10_000_000;

/// Windows that are a multiple of this cost the kernel no thread, so that anybody may ask for them. Microseconds.
const PERIOD_US: u32 = 2_000_000;

/// Which stalls count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Stall {
    /// At least one task waits.
    Some,
    /// All tasks wait.
    Full,
}

/// Asks for an event whenever tasks have stalled for `threshold_us` within `window_us`, once per window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Trigger {
    /// Which stalls count.
    pub stall: Stall,
    /// From 1 to `window_us`, microseconds.
    pub threshold_us: u32,
    /// From 1 to ten seconds, microseconds.
    pub window_us: u32,
}

impl Trigger {
    /// A trigger as the kernel reads it (`psi_trigger_create`): `sscanf` with `some %u %u` or `full %u %u`.
    ///
    /// So white space between the fields may be any or none, what follows is not looked at, and numbers wrap.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = text.split(|&byte| byte == 0).next()?;
        let (stall, rest) = match text.split_at_checked(4)? {
            (b"some", rest) => (Stall::Some, rest),
            (b"full", rest) => (Stall::Full, rest),
            _ => return None,
        };
        let (threshold_us, rest) = unsigned(rest)?;
        let (window_us, _) = unsigned(rest)?;
        let is_valid =
            (1..=LONGEST_WINDOW_US).contains(&window_us) && (1..=window_us).contains(&threshold_us);
        is_valid.then_some(Self { stall, threshold_us, window_us })
    }

    /// Whether it can be set without `CAP_SYS_RESOURCE`.
    #[must_use]
    pub const fn is_for_anybody(&self) -> bool {
        self.window_us.is_multiple_of(PERIOD_US)
    }
}

/// The form it is written to the kernel in. The line end matters: `/proc/pressure` cuts the last byte off.
impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stall = match self.stall {
            Stall::Some => "some",
            Stall::Full => "full",
        };
        writeln!(f, "{stall} {} {}", self.threshold_us, self.window_us)
    }
}

/// `%u` of the kernel's `sscanf`, with white space before it: the number modulo 2^32, and what follows.
fn unsigned(text: &[u8]) -> Option<(u32, &[u8])> {
    let start = text.iter().position(|&byte| !is_space(byte))?;
    let text = &text[start..];
    let end = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let value =
        |value: u32, digit: &u8| value.wrapping_mul(10).wrapping_add(u32::from(digit - b'0'));
    (!digits.is_empty()).then(|| (digits.iter().fold(0, value), rest))
}

/// `isspace` of the kernel, whose characters are Latin-1.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some(threshold_us: u32, window_us: u32) -> Option<Trigger> {
        Some(Trigger { stall: Stall::Some, threshold_us, window_us })
    }

    #[test]
    fn what_the_kernel_takes_for_a_trigger() {
        for text in [
            &b"some 150000 2000000"[..],
            b"some 150000 2000000\n",
            b"some 150000 2000000\0",
            b"some150000 2000000 and more",
            b"some\t150000\n\x0b2000000",
            b"some\xa0150000\xa02000000",
            b"some 4295117296 4296967296",
            b"some 18446744073709701616 2000000",
        ] {
            assert_eq!(Trigger::parse(text), some(150_000, 2_000_000), "{text:?}");
        }
        let full = Trigger::parse(b"full 10000000 10000000\n").unwrap();
        assert_eq!(
            full,
            Trigger { stall: Stall::Full, threshold_us: 10_000_000, window_us: 10_000_000 }
        );
    }

    #[test]
    fn what_the_kernel_refuses() {
        for text in [
            &b""[..],
            b"\n",
            b"\0some 150000 2000000",
            b"some",
            b"some 150000",
            b"some 150000\0 2000000",
            b" some 150000 2000000",
            b"Some 150000 2000000",
            b"any 150000 2000000",
            b"some 150000,2000000",
            b"some -150000 2000000",
            b"some +150000 2000000",
            b"some 0x150000 2000000",
            b"some 0 2000000",
            b"some 2000001 2000000",
            b"some 0 0",
            b"some 1 10000001",
            b"some 1 4294967296",
            b"\xff\xfe",
        ] {
            assert_eq!(Trigger::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_whole_periods_are_for_anybody() {
        assert!(some(1, 2_000_000).unwrap().is_for_anybody());
        assert!(some(1, 10_000_000).unwrap().is_for_anybody());
        assert!(!some(1, 1_000_000).unwrap().is_for_anybody());
        assert!(!some(1, 3_000_000).unwrap().is_for_anybody());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_and_what_is_written_is_read_back(
            text in proptest::collection::vec(any::<u8>(), 0..60),
            window_us in 1..=LONGEST_WINDOW_US,
        ) {
            let _ = Trigger::parse(&text);
            let trigger = Trigger { stall: Stall::Full, threshold_us: window_us / 2 + 1, window_us };
            prop_assert_eq!(Trigger::parse(trigger.to_string().as_bytes()), Some(trigger));
        }
    }
}
