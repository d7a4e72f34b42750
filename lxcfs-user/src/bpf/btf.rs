//! A small reader of the kernel's type information: where members lie and how long they are.
//!
//! Pure over bytes. Whatever the bytes are, it answers or returns an error; it never panics.
//! Format: Documentation/bpf/btf.rst.

use std::ops::Range;

const MAGIC: u16 = 0xeb9f;
/// Chains of typedefs and qualifiers, and nesting of anonymous structures, end here.
const MAX_NESTING: u32 = 32;
/// Where type 0, `void`, has its description: nowhere.
const VOID: usize = usize::MAX;

/// What cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("not type information: bad magic number")]
    Magic,
    #[error("type information ends early")]
    Short,
    #[error("type {id} is of unknown kind {kind}")]
    Kind { id: u32, kind: u32 },
}

/// Kinds that are looked up by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Struct,
    Enum,
    Typedef,
    Func,
    Section,
}

/// A member of a structure, counted from the start of the outermost one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    pub offset_bits: u32,
    pub size_bytes: u32,
    /// Width if it is a bit-field, else 0.
    pub bitfield_bits: u32,
}

/// Type information, indexed by type id.
#[derive(Debug)]
pub struct Btf<'a> {
    bytes: &'a [u8],
    strings: Range<usize>,
    /// Position of each type; id 0 is `void`.
    types: Vec<usize>,
}

/// One type's fixed part.
#[derive(Debug, Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    count: u32,
    kind_flag: bool,
    size_or_type: u32,
    /// Where what follows the fixed part begins.
    extra: usize,
}

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

impl<'a> Btf<'a> {
    /// Indexes `bytes`, the content of `/sys/kernel/btf/vmlinux`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if u16_at(bytes, 0)? != MAGIC {
            return Err(Malformed::Magic);
        }
        let header = index(u32_at(bytes, 4)?)?;
        let types = part(bytes, header, 8)?;
        let strings = part(bytes, header, 16)?;
        let mut btf = Self { bytes, strings, types: vec![VOID] };
        let mut at = types.start;
        while at < types.end {
            let id = u32::try_from(btf.types.len()).map_err(|_| Malformed::Short)?;
            btf.types.push(at);
            at = btf.end_of(id, at)?;
        }
        if at > types.end {
            return Err(Malformed::Short);
        }
        Ok(btf)
    }

    fn end_of(&self, id: u32, at: usize) -> Result<usize, Malformed> {
        let this = read_type(self.bytes, at)?;
        let count = index(this.count)?;
        let extra = match this.kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count * 12,
            kind::ENUM | kind::FUNC_PROTO => count * 8,
            kind::PTR | kind::FWD | kind::TYPEDEF | kind::VOLATILE | kind::CONST => 0,
            kind::RESTRICT | kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
            other => return Err(Malformed::Kind { id, kind: other }),
        };
        Ok(this.extra + extra)
    }

    fn get(&self, id: u32) -> Option<Type> {
        let at = *self.types.get(usize::try_from(id).ok()?)?;
        (at != VOID).then(|| read_type(self.bytes, at).ok())?
    }

    fn name(&self, offset: u32) -> &'a [u8] {
        let strings = self.bytes.get(self.strings.clone()).unwrap_or_default();
        let tail = usize::try_from(offset).ok().and_then(|at| strings.get(at..));
        tail.and_then(|tail| tail.split(|byte| *byte == 0).next()).unwrap_or_default()
    }

    /// Id of the first type of this name and kind.
    #[must_use]
    pub fn find(&self, name: &str, wanted: Kind) -> Option<u32> {
        let kinds: &[u32] = match wanted {
            Kind::Struct => &[kind::STRUCT],
            Kind::Enum => &[kind::ENUM, kind::ENUM64],
            Kind::Typedef => &[kind::TYPEDEF],
            Kind::Func => &[kind::FUNC],
            Kind::Section => &[kind::DATASEC],
        };
        (1..self.types.len()).find_map(|id| {
            let id = u32::try_from(id).ok()?;
            let this = self.get(id)?;
            let found = kinds.contains(&this.kind) && self.name(this.name) == name.as_bytes();
            found.then_some(id)
        })
    }

    /// A member of the named structure; `path` leads through inner structures, dot by dot.
    #[must_use]
    pub fn member(&self, structure: &str, path: &str) -> Option<Member> {
        self.typed_member(structure, path).map(|(member, _)| member)
    }

    /// Whether there is such a member, and it is a pointer.
    #[must_use]
    pub fn is_pointer(&self, structure: &str, path: &str) -> bool {
        let of = self.typed_member(structure, path).and_then(|(_, of)| self.resolved(of));
        of.is_some_and(|(of, _)| of.kind == kind::PTR)
    }

    /// The second is the member's type.
    fn typed_member(&self, structure: &str, path: &str) -> Option<(Member, u32)> {
        let mut id = self.find(structure, Kind::Struct)?;
        let mut offset_bits = 0u32;
        let mut last = None;
        for name in path.split('.') {
            let (mut member, of) = self.member_of(id, name.as_bytes(), MAX_NESTING)?;
            offset_bits = offset_bits.checked_add(member.offset_bits)?;
            member.offset_bits = offset_bits;
            id = of;
            last = Some((member, of));
        }
        last
    }

    /// Finds `name` in a structure and in its anonymous members; the second is the member's type.
    fn member_of(&self, id: u32, name: &[u8], nesting: u32) -> Option<(Member, u32)> {
        let (this, _) = self.resolved(id)?;
        if nesting == 0 || !matches!(this.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        for nth in 0..index(this.count).ok()? {
            let at = this.extra + nth * 12;
            let own_name = self.name(u32_at(self.bytes, at).ok()?);
            let of = u32_at(self.bytes, at + 4).ok()?;
            let place = u32_at(self.bytes, at + 8).ok()?;
            let (offset_bits, bitfield_bits) =
                if this.kind_flag { (place & 0xff_ffff, place >> 24) } else { (place, 0) };
            if own_name == name {
                let size_bytes = self.size_of(of, MAX_NESTING)?;
                return Some((Member { offset_bits, size_bytes, bitfield_bits }, of));
            }
            if own_name.is_empty()
                && let Some((mut inner, of)) = self.member_of(of, name, nesting - 1)
            {
                inner.offset_bits = inner.offset_bits.checked_add(offset_bits)?;
                return Some((inner, of));
            }
        }
        None
    }

    /// Follows typedefs and qualifiers.
    fn resolved(&self, mut id: u32) -> Option<(Type, u32)> {
        for _ in 0..MAX_NESTING {
            let this = self.get(id)?;
            match this.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = this.size_or_type;
                }
                _ => return Some((this, id)),
            }
        }
        None
    }

    fn size_of(&self, id: u32, nesting: u32) -> Option<u32> {
        let (this, _) = self.resolved(id)?;
        match this.kind {
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 | kind::FLOAT => {
                Some(this.size_or_type)
            }
            kind::PTR => Some(8),
            kind::ARRAY if nesting > 0 => {
                let of = u32_at(self.bytes, this.extra).ok()?;
                let count = u32_at(self.bytes, this.extra + 8).ok()?;
                self.size_of(of, nesting - 1)?.checked_mul(count)
            }
            _ => None,
        }
    }

    /// Where the variable of that name lies in the part of the kernel's memory that each CPU has its own of.
    #[must_use]
    pub fn per_cpu(&self, variable: &str) -> Option<u32> {
        let part = self.get(self.find(".data..percpu", Kind::Section)?)?;
        (0..index(part.count).ok()?).find_map(|nth| {
            let at = part.extra + nth * 12;
            let of = self.get(u32_at(self.bytes, at).ok()?)?;
            let is_it = of.kind == kind::VAR && self.name(of.name) == variable.as_bytes();
            is_it.then(|| u32_at(self.bytes, at + 4).ok())?
        })
    }

    /// The value of an enumerator of the named enum (its low 32 bits).
    #[must_use]
    pub fn enumerator(&self, name: &str, enumerator: &str) -> Option<u32> {
        let this = self.get(self.find(name, Kind::Enum)?)?;
        let step = if this.kind == kind::ENUM { 8 } else { 12 };
        (0..index(this.count).ok()?).find_map(|nth| {
            let at = this.extra + nth * step;
            let own = self.name(u32_at(self.bytes, at).ok()?);
            let value = u32_at(self.bytes, at + 4).ok()?;
            (own == enumerator.as_bytes()).then_some(value)
        })
    }
}

fn read_type(bytes: &[u8], at: usize) -> Result<Type, Malformed> {
    let info = u32_at(bytes, at + 4)?;
    Ok(Type {
        name: u32_at(bytes, at)?,
        kind: (info >> 24) & 0x1f,
        count: info & 0xffff,
        kind_flag: info >> 31 != 0,
        size_or_type: u32_at(bytes, at + 8)?,
        extra: at + 12,
    })
}

/// A part of the file: offset (counted behind the header) and length lie at `field`.
fn part(bytes: &[u8], header: usize, field: usize) -> Result<Range<usize>, Malformed> {
    let start = header.checked_add(index(u32_at(bytes, field)?)?).ok_or(Malformed::Short)?;
    let end = start.checked_add(index(u32_at(bytes, field + 4)?)?).ok_or(Malformed::Short)?;
    if end > bytes.len() {
        return Err(Malformed::Short);
    }
    Ok(start..end)
}

fn index(number: u32) -> Result<usize, Malformed> {
    usize::try_from(number).map_err(|_| Malformed::Short)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    let two = bytes.get(at..).and_then(|tail| tail.first_chunk::<2>()).ok_or(Malformed::Short)?;
    Ok(u16::from_le_bytes(*two))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    let four = bytes.get(at..).and_then(|tail| tail.first_chunk::<4>()).ok_or(Malformed::Short)?;
    Ok(u32::from_le_bytes(*four))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Builds type information from strings and types.
    #[derive(Default)]
    pub(in crate::bpf) struct Builder {
        strings: Vec<u8>,
        types: Vec<u8>,
    }

    impl Builder {
        fn string(&mut self, text: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if text.is_empty() {
                return 0;
            }
            let at = self.strings.len();
            self.strings.extend_from_slice(text.as_bytes());
            self.strings.push(0);
            u32::try_from(at).unwrap()
        }

        /// Adds a structure of 8 bytes for each of `members`: name, type and place in bits.
        pub(in crate::bpf) fn structure(&mut self, name: &str, members: &[(&str, u32, u32)]) {
            let of = |&(name, of, at): &(&str, u32, u32)| [self.string(name), of, at];
            let words: Vec<u32> = members.iter().flat_map(of).collect();
            let count = u32::try_from(members.len()).unwrap();
            self.push(name, kind::STRUCT << 24 | count, 8 * count, &words);
        }

        /// Adds an unsigned number of so many bytes.
        pub(in crate::bpf) fn number(&mut self, bytes: u32) {
            self.push("", kind::INT << 24, bytes, &[8 * bytes]);
        }

        /// Adds variables that each CPU has: name and place. Their types do not matter, and `next` is the number of the first one.
        pub(in crate::bpf) fn per_cpu(&mut self, next: u32, variables: &[(&str, u32)]) {
            for (name, _) in variables {
                self.push(name, kind::VAR << 24, 1, &[1]);
            }
            let places = variables.iter().zip(next..).flat_map(|((_, at), id)| [id, *at, 8]);
            let count = u32::try_from(variables.len()).unwrap();
            let places: Vec<u32> = places.collect();
            self.push(".data..percpu", kind::DATASEC << 24 | count, 8, &places);
        }

        pub(in crate::bpf) fn enumeration(&mut self, name: &str, enumerator: &str, value: u32) {
            let of = self.string(enumerator);
            self.push(name, kind::ENUM << 24 | 1, 4, &[of, value]);
        }

        fn push(&mut self, name: &str, info: u32, size_or_type: u32, extra: &[u32]) {
            let name = self.string(name);
            for word in [name, info, size_or_type].iter().chain(extra) {
                self.types.extend_from_slice(&word.to_le_bytes());
            }
        }

        pub(in crate::bpf) fn bytes(&self) -> Vec<u8> {
            let (types, strings) = (self.types.len(), self.strings.len());
            let mut bytes = vec![0x9f, 0xeb, 1, 0];
            for word in [24, 0, types, types, strings] {
                bytes.extend_from_slice(&u32::try_from(word).unwrap().to_le_bytes());
            }
            bytes.extend_from_slice(&self.types);
            bytes.extend_from_slice(&self.strings);
            bytes
        }
    }

    /// `struct task { u32 pid; union { u8 on_rq; u32 other; }; unsigned iowait : 1 at bit 75;
    /// struct inner { u64 a; u64 sum; } se; };` `enum ids { cpu = 1, cpuacct = 2 };` and
    /// `struct set { u64 *mask; u64 bits; };` with a typedef of the pointer; `queues` and `ticks` of each CPU.
    fn example() -> Vec<u8> {
        let mut b = Builder::default();
        b.push("u32", kind::INT << 24, 4, &[32]);
        b.push("u8", kind::INT << 24, 1, &[8]);
        b.push("u64", kind::INT << 24, 8, &[64]);
        let (on_rq, other) = (b.string("on_rq"), b.string("other"));
        b.push("", kind::UNION << 24 | 2, 4, &[on_rq, 2, 0, other, 1, 0]);
        let (a, sum) = (b.string("a"), b.string("sum"));
        b.push("inner", kind::STRUCT << 24 | 2, 16, &[a, 3, 0, sum, 3, 64]);
        b.push("inner_t", kind::TYPEDEF << 24, 5, &[]);
        let (pid, iowait, se) = (b.string("pid"), b.string("iowait"), b.string("se"));
        let members = [pid, 1, 0, 0, 4, 32, iowait, 1, 1 << 24 | 75, se, 6, 128];
        b.push("task", 1 << 31 | kind::STRUCT << 24 | 4, 32, &members);
        let (cpu, acct) = (b.string("cpu"), b.string("cpuacct"));
        b.push("ids", kind::ENUM << 24 | 2, 4, &[cpu, 1, acct, 2]);
        b.push("walk", kind::FUNC << 24, 1, &[]);
        b.push("", kind::PTR << 24, 3, &[]);
        b.push("mask_t", kind::TYPEDEF << 24, 10, &[]);
        let (mask, bits) = (b.string("mask"), b.string("bits"));
        b.push("set", kind::STRUCT << 24 | 2, 16, &[mask, 11, 0, bits, 3, 64]);
        b.per_cpu(13, &[("queues", 0), ("ticks", 64)]);
        b.bytes()
    }

    #[test]
    fn members_are_found_through_typedefs_and_anonymous_unions() {
        let bytes = example();
        let btf = Btf::parse(&bytes).unwrap();
        let at = |path| btf.member("task", path);
        let whole =
            |offset_bits, size_bytes| Some(Member { offset_bits, size_bytes, bitfield_bits: 0 });
        assert_eq!(at("pid"), whole(0, 4));
        assert_eq!(at("on_rq"), whole(32, 1));
        assert_eq!(at("se.sum"), whole(192, 8));
        let bit = Member { offset_bits: 75, size_bytes: 4, bitfield_bits: 1 };
        assert_eq!(at("iowait"), Some(bit));
        assert_eq!(at("absent"), None);
        assert_eq!(at("se.absent"), None);
        assert_eq!(at("pid.absent"), None);
        assert_eq!(btf.member("absent", "pid"), None);
        assert_eq!(btf.enumerator("ids", "cpuacct"), Some(2));
        assert_eq!(btf.enumerator("ids", "absent"), None);
        assert_eq!(btf.find("walk", Kind::Func), Some(9));
        assert_eq!(btf.find("walk", Kind::Typedef), None);
        assert_eq!((btf.per_cpu("ticks"), btf.per_cpu("absent")), (Some(64), None));
        assert!(btf.is_pointer("set", "mask") && !btf.is_pointer("set", "bits"));
        assert!(!btf.is_pointer("set", "absent") && !btf.is_pointer("absent", "mask"));
    }

    #[test]
    fn a_typedef_of_itself_is_no_type() {
        let mut b = Builder::default();
        let x = b.string("x");
        b.push("loop", kind::TYPEDEF << 24, 1, &[]);
        b.push("s", kind::STRUCT << 24 | 1, 4, &[x, 1, 0]);
        b.push("self", kind::STRUCT << 24 | 1, 4, &[0, 3, 0]);
        let bytes = b.bytes();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.member("s", "x"), None);
        assert_eq!(btf.member("self", "x"), None);
    }

    #[test]
    fn what_is_not_type_information_is_refused() {
        assert_eq!(Btf::parse(b"").unwrap_err(), Malformed::Short);
        assert_eq!(Btf::parse(&[0x7f; 64]).unwrap_err(), Malformed::Magic);
        let mut b = Builder::default();
        b.push("x", 31 << 24, 0, &[]);
        let error = Btf::parse(&b.bytes()).unwrap_err();
        assert_eq!(error, Malformed::Kind { id: 1, kind: 31 });
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = example();
        for length in 0..whole.len() {
            assert!(Btf::parse(&whole[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn void_has_no_description() {
        let mut b = Builder::default();
        let anything = b.string("anything");
        b.push("task", kind::STRUCT << 24 | 1, 4, &[anything, 0, 0]);
        let bytes = b.bytes();
        assert_eq!(Btf::parse(&bytes).unwrap().member("task", "anything"), None);
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0usize..400, value: u8, more in prop::collection::vec((0usize..400, any::<u8>()), 0..8)) {
            let mut bytes = example();
            for (at, value) in more.into_iter().chain([(at, value)]) {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            if let Ok(btf) = Btf::parse(&bytes) {
                for path in ["pid", "on_rq", "se.sum", "iowait", "x.y.z"] {
                    let _found = btf.member("task", path);
                }
                let _found = btf.enumerator("ids", "cpu");
                let _found = btf.per_cpu("ticks");
            }
        }
    }
}
