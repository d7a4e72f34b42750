//! Decimal numbers, appended to a page. The same bytes as `write!` gives, for a tenth of the instructions: a page has up to a
//! hundred of them, and making them was most of what some pages took.

/// Appends `number`.
pub(super) fn push(page: &mut Vec<u8>, number: u64) {
    page.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends `number` at the right of at least `width` columns.
pub(super) fn push_right(page: &mut Vec<u8>, number: u64, width: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number);
    pad(page, width.saturating_sub(digits.len()));
    page.extend_from_slice(digits.as_bytes());
}

/// Appends a decimal fraction: `whole`, a point and two digits of `hundredths`.
pub(super) fn push_fraction(page: &mut Vec<u8>, whole: u64, hundredths: u64) {
    push(page, whole);
    page.push(b'.');
    if hundredths < 10 {
        page.push(b'0');
    }
    push(page, hundredths);
}

/// Appends a line of a name, a space and a number.
pub(super) fn push_line(page: &mut Vec<u8>, name: &[u8], number: u64) {
    page.extend_from_slice(name);
    page.push(b' ');
    push(page, number);
    page.push(b'\n');
}

/// Appends `count` spaces.
pub(super) fn pad(page: &mut Vec<u8>, count: usize) {
    page.resize(page.len() + count, b' ');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut page = b"x ".to_vec();
        write(&mut page);
        String::from_utf8(page).unwrap()
    }

    proptest! {
        #[test]
        fn the_bytes_are_those_of_write(number: u64, width in 0_usize..24, hundredths in 0_u64..100) {
            prop_assert_eq!(text(|page| push(page, number)), format!("x {number}"));
            prop_assert_eq!(text(|page| push_right(page, number, width)), format!("x {number:width$}"));
            let fraction = text(|page| push_fraction(page, number, hundredths));
            prop_assert_eq!(text(|page| push_line(page, b"ctxt", number)), format!("x ctxt {number}\n"));
            prop_assert_eq!(fraction, format!("x {number}.{hundredths:02}"));
        }
    }
}
