//! Where a kernel field lies, packed into one `u32` that becomes a constant to the verifier.
//!
//! Offset **and** size come from the running kernel's BTF: `task_struct.on_rq` has four bytes in
//! 6.1 and one in 7.3, and the verifier refuses a load that reaches beyond a member.

/// The field is not there on this kernel.
pub const ABSENT: u32 = 0;

/// Added to the offset in a css_set of a pointer that leads to a subsystem's state, and through that to the cgroup (v1); without, it
/// leads to the cgroup itself (v2).
pub const THROUGH_STATE: u32 = 1 << 31;

const SIZE_SHIFT: u32 = 16;
const BIT_SHIFT: u32 = 24;
const ONE_BIT: u32 = 1 << 31;

/// A whole member of `size` bytes (1, 2, 4 or 8) at `offset`.
#[must_use]
pub const fn whole(offset: u16, size: u8) -> u32 {
    offset as u32 | (size as u32) << SIZE_SHIFT
}

/// One bit, `bit` counted from the start of the structure.
#[must_use]
pub const fn bit(byte_offset: u16, bit_in_byte: u8) -> u32 {
    whole(byte_offset, 1) | (bit_in_byte as u32) << BIT_SHIFT | ONE_BIT
}

#[must_use]
#[inline(always)]
pub const fn offset(field: u32) -> usize {
    (field & 0xffff) as usize
}

/// Bytes to load; 0 = absent.
#[must_use]
#[inline(always)]
pub const fn size(field: u32) -> u32 {
    (field >> SIZE_SHIFT) & 0xff
}

/// The value of a field whose bytes are `loaded`.
#[must_use]
#[inline(always)]
pub const fn extract(field: u32, loaded: u64) -> u64 {
    if field & ONE_BIT == 0 {
        return loaded;
    }
    (loaded >> ((field >> BIT_SHIFT) & 7)) & 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_gives_back_its_parts() {
        let field = whole(2_696, 8);
        assert_eq!((offset(field), size(field), extract(field, 77)), (2_696, 8, 77));
        let field = bit(1_129, 3);
        assert_eq!((offset(field), size(field)), (1_129, 1));
        assert_eq!((extract(field, 0b1000), extract(field, 0b0111)), (1, 0));
        assert_eq!(size(ABSENT), 0);
    }
}
