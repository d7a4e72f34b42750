//! Records: keys, and contents that are changed as a whole.
//!
//! What is free is known to the process alone, and found again from what is used.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{MutexGuard, PoisonError};

use super::{
    BLOCK_BYTES, BLOCK_WORDS, CONTENT_BLOCKS, FIRST_CONTENT_BLOCK, FIRST_RECORD_BLOCK, Journal,
    NAME, RECORD_BLOCKS, word,
};
use crate::error::{Errno, Error, Result};

const RECORD_WORDS: usize = 4;
const RECORDS: u32 = 65_536;
const _: () = assert!(RECORDS as usize * RECORD_WORDS == RECORD_BLOCKS * BLOCK_WORDS);

/// Words of a record.
const KIND: usize = 0;
const KEY: usize = 1;
/// The first block of the content, 0 for none, in the upper half; its length in bytes in the lower.
const PLACE: usize = 3;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An open file, by its handle.
    Handle = 1,
    /// A container, by its init and when that started.
    Container = 2,
    /// A trigger, by the handle it was set through.
    Trigger = 3,
}

/// What is kept under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// Bytes.
    Bytes(&'a [u8]),
    /// How many bytes there were; they are not needed any more.
    Length(usize),
}

/// A record that was made. It is not removed with this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record(u32);

/// A record that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The record, now ours.
    pub record: Record,
    /// Its key.
    pub key: [u64; 2],
    /// The length of its content.
    pub length: usize,
    /// The content, unless only the length was kept.
    pub bytes: Option<Vec<u8>>,
}

/// Which records and blocks are free.
#[derive(Debug, Default)]
pub(super) struct Free {
    /// Those below the first that was never used.
    records: Vec<u32>,
    never_used: u32,
    /// One bit for each block of contents, set when it is used.
    blocks: Vec<u64>,
}

/// Where a content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Counted from 1 within the blocks of contents; 0 if there are no bytes.
    block: u32,
    length: u32,
}

impl Place {
    const fn from_word(word: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "each is a half of the word")]
        Self { block: (word >> 32) as u32, length: word as u32 }
    }

    fn to_word(self) -> u64 {
        u64::from(self.block) << 32 | u64::from(self.length)
    }

    /// Its blocks, as bits of [`Free::blocks`].
    const fn bits(self) -> std::ops::Range<usize> {
        let Some(first) = self.block.checked_sub(1) else { return 0..0 };
        let first = first as usize;
        first..first + (self.length as usize).div_ceil(BLOCK_BYTES)
    }

    const fn first_word(self) -> usize {
        (FIRST_CONTENT_BLOCK + self.block as usize - 1) * BLOCK_WORDS
    }
}

impl Free {
    fn is_used(&self, bit: usize) -> bool {
        self.blocks.get(bit / 64).is_none_or(|word| word & (1 << (bit % 64)) != 0)
    }

    fn set(&mut self, bits: std::ops::Range<usize>, used: bool) {
        for bit in bits {
            let mask = 1 << (bit % 64);
            if let Some(word) = self.blocks.get_mut(bit / 64) {
                *word = if used { *word | mask } else { *word & !mask };
            }
        }
    }

    /// Takes a place for `length` bytes: the first where it fits.
    fn take_place(&mut self, length: usize) -> Option<Place> {
        let wanted = length.div_ceil(BLOCK_BYTES);
        let length = u32::try_from(length).ok()?;
        let (mut bit, mut run) = (0, 0);
        while run < wanted {
            if bit >= CONTENT_BLOCKS {
                return None;
            }
            if bit.is_multiple_of(64) && self.blocks.get(bit / 64) == Some(&u64::MAX) {
                (bit, run) = (bit + 64, 0);
                continue;
            }
            run = if self.is_used(bit) { 0 } else { run + 1 };
            bit += 1;
        }
        self.set(bit - wanted..bit, true);
        let block = u32::try_from(bit - wanted + 1).ok()?;
        Some(Place { block: if wanted == 0 { 0 } else { block }, length })
    }

    fn take_record(&mut self) -> Option<Record> {
        if let Some(number) = self.records.pop() {
            return Some(Record(number));
        }
        let number = self.never_used;
        self.never_used = (number < RECORDS).then_some(number + 1)?;
        Some(Record(number))
    }
}

impl Journal {
    /// Makes a record. `None`: there is no room left for it.
    pub fn put(&self, kind: Kind, key: [u64; 2], content: Content<'_>) -> Option<Record> {
        let place = self.write(content)?;
        let taken = self.free().take_record();
        let Some(record) = taken else {
            self.give_back(place);
            return None;
        };
        self.word(word::RECORDS_USED).fetch_max(u64::from(record.0) + 1, Ordering::Relaxed);
        for (nth, key) in key.into_iter().enumerate() {
            self.record_word(record, KEY + nth).store(key, Ordering::Relaxed);
        }
        self.record_word(record, PLACE).store(place.to_word(), Ordering::Relaxed);
        self.record_word(record, KIND).store(kind as u64, Ordering::Release);
        Some(record)
    }

    /// Gives a record another content. Where there is no room for it, only its length is kept; returns whether all was.
    pub fn replace(&self, record: Record, content: Content<'_>) -> bool {
        let written = self.write(content);
        let place = written.unwrap_or_else(|| {
            let length = match content {
                Content::Bytes(bytes) => bytes.len(),
                Content::Length(length) => length,
            };
            Place { block: 0, length: u32::try_from(length).unwrap_or(0) }
        });
        let old = self.record_word(record, PLACE).swap(place.to_word(), Ordering::Release);
        self.give_back(Place::from_word(old));
        written.is_some()
    }

    /// Removes a record.
    pub fn remove(&self, record: Record) {
        self.record_word(record, KIND).store(0, Ordering::Release);
        self.give_back(self.place(record));
        self.free().records.push(record.0);
    }

    /// The records of a kind.
    #[must_use]
    pub fn list(&self, kind: Kind) -> Vec<Kept> {
        let is_of_kind = |record: &Record| self.kind(*record) == kind as u64;
        let records = (0..self.records_used()).map(Record).filter(is_of_kind);
        let kept = records.map(|record| {
            let place = self.place(record);
            let length = place.length as usize;
            let key = |nth| self.record_word(record, KEY + nth).load(Ordering::Relaxed);
            let bytes = (place.block > 0).then(|| self.load_words(place.first_word(), length));
            Kept { record, key: [key(0), key(1)], length, bytes }
        });
        kept.collect()
    }

    /// Finds out what is free.
    pub(super) fn find_free(&self) -> Result<()> {
        let used = self.records_used();
        let blocks = vec![0; CONTENT_BLOCKS / 64];
        let mut free = Free { records: Vec::new(), never_used: used, blocks };
        for record in (0..used).map(Record) {
            if self.kind(record) == 0 {
                free.records.push(record.0);
                continue;
            }
            let bits = self.place(record).bits();
            if bits.end > CONTENT_BLOCKS || bits.clone().any(|bit| free.is_used(bit)) {
                let cause = format!("record {} lies where it cannot", record.0);
                return Err(Error::because("take over", NAME, Errno::INVAL, cause));
            }
            free.set(bits, true);
        }
        *self.free() = free;
        Ok(())
    }

    fn write(&self, content: Content<'_>) -> Option<Place> {
        match content {
            Content::Length(length) => {
                Some(Place { block: 0, length: u32::try_from(length).ok()? })
            }
            Content::Bytes(bytes) => {
                let place = self.free().take_place(bytes.len())?;
                if place.block > 0 {
                    self.store_words(place.first_word(), bytes);
                }
                Some(place)
            }
        }
    }

    fn give_back(&self, place: Place) {
        let bits = place.bits();
        if !bits.is_empty() {
            self.free().set(bits, false);
        }
    }

    fn records_used(&self) -> u32 {
        let used = self.word(word::RECORDS_USED).load(Ordering::Acquire);
        u32::try_from(used).unwrap_or(u32::MAX).min(RECORDS)
    }

    fn kind(&self, record: Record) -> u64 {
        self.record_word(record, KIND).load(Ordering::Acquire)
    }

    fn place(&self, record: Record) -> Place {
        Place::from_word(self.record_word(record, PLACE).load(Ordering::Acquire))
    }

    fn record_word(&self, record: Record, nth: usize) -> &AtomicU64 {
        self.word(FIRST_RECORD_BLOCK * BLOCK_WORDS + record.0 as usize * RECORD_WORDS + nth)
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::journal;
    use super::*;

    fn contents(journal: &Journal) -> Vec<(u64, Option<Vec<u8>>)> {
        let mut all: Vec<_> =
            journal.list(Kind::Handle).into_iter().map(|kept| (kept.key[0], kept.bytes)).collect();
        all.sort();
        all
    }

    #[test]
    fn a_record_has_the_last_content_it_was_given() {
        let journal = journal();
        let page = vec![b'x'; 9_000];
        let first = journal.put(Kind::Handle, [7, 0], Content::Bytes(&page)).unwrap();
        journal.put(Kind::Container, [7, 1], Content::Bytes(b"state")).unwrap();
        assert_eq!(contents(&journal), [(7, Some(page))]);
        journal.replace(first, Content::Length(12));
        let kept = journal.list(Kind::Handle);
        assert_eq!((kept[0].length, &kept[0].bytes), (12, &None));
        journal.remove(first);
        assert!(journal.list(Kind::Handle).is_empty());
        assert_eq!(journal.list(Kind::Container)[0].bytes.as_deref(), Some(&b"state"[..]));
    }

    #[test]
    fn room_runs_out_and_comes_back() {
        let journal = journal();
        let half = vec![1; CONTENT_BLOCKS / 2 * BLOCK_BYTES];
        let first = journal.put(Kind::Handle, [1, 0], Content::Bytes(&half)).unwrap();
        let second = journal.put(Kind::Handle, [2, 0], Content::Bytes(&half)).unwrap();
        assert_eq!(journal.put(Kind::Handle, [3, 0], Content::Bytes(b"x")), None);
        journal.replace(second, Content::Bytes(b"yy"));
        let kept = journal.list(Kind::Handle);
        assert_eq!((&kept[1].bytes, kept[1].length), (&None, 2), "the old one was in the way");
        journal.remove(first);
        assert!(journal.put(Kind::Handle, [3, 0], Content::Bytes(b"x")).is_some());
    }

    #[test]
    fn records_that_contradict_themselves_are_refused() {
        let journal = journal();
        for key in [1, 2] {
            journal.put(Kind::Handle, [key, 0], Content::Bytes(b"page")).unwrap();
        }
        let put = |place: u64| {
            journal.record_word(Record(1), PLACE).store(place, Ordering::Relaxed);
            journal.find_free().unwrap_err().to_string()
        };
        assert!(put(journal.place(Record(0)).to_word()).contains("record 1 lies where"));
        assert!(put(Place { block: 20_000, length: 1 }.to_word()).contains("record 1 lies where"));
    }

    proptest! {
        #[test]
        fn what_is_free_is_found_again(lengths in proptest::collection::vec(0_usize..20_000, 1..20)) {
            let journal = journal();
            let mut expected = Vec::new();
            for (key, length) in (0_u64..).zip(&lengths) {
                let bytes = vec![u8::try_from(key).unwrap(); *length];
                let record = journal.put(Kind::Handle, [key, 0], Content::Bytes(&bytes)).unwrap();
                if key % 3 == 0 {
                    journal.remove(record);
                } else {
                    expected.push((key, (*length > 0).then_some(bytes)));
                }
            }
            journal.find_free().unwrap();
            let more = journal.put(Kind::Handle, [999, 0], Content::Bytes(b"more"));
            prop_assert!(more.is_some());
            expected.push((999, Some(b"more".to_vec())));
            prop_assert_eq!(contents(&journal), expected);
        }
    }
}
