//! The text of a file. The kernel's own formatter is a helper (`bpf_seq_printf`), and takes a quarter of the file's time.

use core::arch::asm;
use core::ptr;

/// The index of a text's end is masked with this, so that the verifier can see that it is inside. Six numbers of seven digits,
/// six more digits and nine other bytes are less, and so are two of fourteen.
const MASK: usize = 63;

/// A text that grows.
pub(crate) struct Text {
    bytes: [u8; MASK + 1 + 8],
    length: usize,
}

impl Text {
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; MASK + 1 + 8], length: 0 }
    }

    #[inline(always)]
    pub(crate) fn written(&self) -> (*const u8, u32) {
        (self.bytes.as_ptr(), (unknown(self.length) & MASK) as u32)
    }

    #[inline(always)]
    pub(crate) fn byte(&mut self, byte: u8) {
        self.put(u64::from(byte), 1);
    }

    #[inline(always)]
    pub(crate) fn number(&mut self, number: u64) {
        let packed = digits(number);
        self.put(packed, (packed >> 56) as usize);
    }

    /// A number of up to fourteen digits.
    #[inline(always)]
    fn long(&mut self, number: u64) {
        let high = number / (MOST + 1);
        let low = number - high * (MOST + 1);
        for packed in [leading(high), trailing(low, high)] {
            self.put(packed, (packed >> 56) as usize);
        }
    }

    /// Hundredths as a whole number, a point and two digits.
    #[inline(always)]
    pub(crate) fn fraction(&mut self, hundredths: u64) {
        let whole = hundredths / 100;
        self.number(whole);
        self.point(hundredths - 100 * whole);
    }

    /// As [`Self::fraction`], of a number of any length.
    #[inline(always)]
    pub(crate) fn long_fraction(&mut self, hundredths: u64) {
        let whole = hundredths / 100;
        self.long(whole);
        self.point(hundredths - 100 * whole);
    }

    /// A point and two digits.
    #[inline(always)]
    fn point(&mut self, rest: u64) {
        let tens = rest / 10;
        let (tens, ones) = (48 + tens, 48 + rest - 10 * tens);
        self.put(u64::from(b'.') | tens << 8 | ones << 16, 3);
    }

    /// Puts the lowest `count` bytes; the others lie behind the end.
    #[inline(always)]
    fn put(&mut self, bytes: u64, count: usize) {
        let end = unknown(self.length) & MASK;
        // SAFETY: the index is masked, and there are eight bytes behind the last one it can be.
        unsafe {
            let at = self.bytes.as_mut_ptr().add(end);
            ptr::write_unaligned(at.cast(), bytes);
        }
        self.length = end + count;
    }
}

/// The same number, of which the compiler knows nothing: it would leave out a mask that changes nothing, and the verifier, which
/// knows less, needs it.
#[inline(always)]
fn unknown(mut number: usize) -> usize {
    // SAFETY: an instruction that changes nothing (without any, two places have the same line information, which the kernel refuses).
    unsafe { asm!("{0} += 0", inout(reg) number) };
    number
}

/// The largest number of seven digits.
const MOST: u64 = 9_999_999;

/// The digits of a number of up to seven, the first in the lowest byte, and how many in the highest. A function of its own, which
/// the verifier follows once.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn digits(number: u64) -> u64 {
    let mut left = if number > MOST { MOST as u32 } else { number as u32 };
    let (mut packed, mut count) = (0_u64, 0_u64);
    for _ in 0..7 {
        packed = packed << 8 | u64::from(48 + left % 10);
        count += 1;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    packed | count << 56
}

/// The digits of a number that more digits follow: none of 0.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn leading(high: u64) -> u64 {
    if high == 0 { 0 } else { digits(high) }
}

/// The digits of a number behind those of `high`: all seven, if there are such.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn trailing(low: u64, high: u64) -> u64 {
    if high == 0 {
        return digits(low);
    }
    let (mut left, mut packed) = (low as u32, 0_u64);
    for _ in 0..7 {
        packed = packed << 8 | u64::from(48 + left % 10);
        left /= 10;
    }
    packed | 7 << 56
}
