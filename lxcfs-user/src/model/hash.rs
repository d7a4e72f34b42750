//! A hash of short names that is the same in every version: numbers made from it outlive the daemon that gave them out.

/// FNV-1a, 64 bits.
#[must_use]
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The same folded to `bits`, fewer than 64, and never 0.
#[must_use]
pub fn folded(bytes: &[u8], bits: u32) -> u64 {
    let hash = fnv1a(bytes);
    ((hash >> bits) ^ hash) & ((1 << bits) - 1) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_its_authors_say() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(folded(b"foobar", 22), 0x003c_a035);
    }
}
