//! Turns placeholders in the object into calls of kernel functions, which aya cannot name yet.

use super::support::WALK;

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// Register half of a call of a kernel function.
const PSEUDO_KFUNC_CALL: u8 = 2 << 4;
/// `r0 = 0`: what is left of a call that no path reaches.
const NOTHING: [u8; 8] = [0xb7, 0, 0, 0, 0, 0, 0, 0];
const FIRST_PLACEHOLDER: u32 = 0x7f00_0001;

/// Replaces the calls in place and returns how many there were of each.
///
/// Instructions are eight bytes long and lie at multiples of eight in their sections, as sections do
/// in the file; no other data of ours looks like a call of a helper numbered two billion.
pub(crate) fn walk_calls(object: &mut [u8], ids: Option<[u32; WALK.len()]>) -> [usize; WALK.len()] {
    let mut found = [0; WALK.len()];
    let (instructions, _) = object.as_chunks_mut::<8>();
    for instruction in instructions {
        let [CALL, 0, 0, 0, a, b, c, d] = *instruction else { continue };
        let number = u32::from_le_bytes([a, b, c, d]);
        let nth = number.checked_sub(FIRST_PLACEHOLDER).and_then(|nth| usize::try_from(nth).ok());
        let Some((nth, count)) = nth.and_then(|nth| Some((nth, found.get_mut(nth)?))) else {
            continue;
        };
        *count += 1;
        *instruction = NOTHING;
        if let Some(id) = ids.and_then(|ids| ids.get(nth).copied()) {
            *instruction = [CALL, PSEUDO_KFUNC_CALL, 0, 0, 0, 0, 0, 0];
            instruction[4..].copy_from_slice(&id.to_le_bytes());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELPER: [u8; 8] = [CALL, 0, 0, 0, 5, 0, 0, 0];

    fn object() -> Vec<u8> {
        let second = [CALL, 0, 0, 0, 2, 0, 0, 0x7f];
        let beyond = [CALL, 0, 0, 0, 4, 0, 0, 0x7f];
        [HELPER, second, beyond, second].concat()
    }

    #[test]
    fn placeholders_become_calls() {
        let mut bytes = object();
        assert_eq!(walk_calls(&mut bytes, Some([7, 0x1_0203, 9])), [0, 2, 0]);
        assert_eq!(bytes[..8], HELPER);
        assert_eq!(bytes[8..16], [CALL, 0x20, 0, 0, 3, 2, 1, 0]);
        assert_eq!(bytes[16..24], [CALL, 0, 0, 0, 4, 0, 0, 0x7f]);
        assert_eq!(bytes[24..], bytes[8..16]);
    }

    #[test]
    fn placeholders_become_nothing() {
        let mut bytes = object();
        assert_eq!(walk_calls(&mut bytes, None), [0, 2, 0]);
        assert_eq!(bytes[8..16], NOTHING);
    }
}
