//! Standard output, which may be closed at any time: `lxcfs status | head -1` is no failure.

use std::io::Write;

use crate::error::{Error, Result};

/// Prints `bytes`. Returns whether anybody reads on.
///
/// # Errors
/// They cannot be written, for another reason than that nobody reads.
pub fn print(bytes: &[u8]) -> Result<bool> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::std("write", "standard output", &error)),
    }
}
