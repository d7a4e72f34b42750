//! Open files. A page is made when it is read from its start and kept for the rest of that reading, as the kernel's
//! seq_file does: however small the pieces, they are of one page, also when another daemon serves the rest.
//!
//! The journal gets what that takes. Most readers take the whole page at once, and of it only the length is written down,
//! so that the next daemon knows where it ended; of a page that is read in pieces, the page.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fuser::FileHandle;
use hashbrown::HashMap;

use crate::keep::journal::{Content, Journal, Kind, Record};
use crate::model::lock::lock;

/// The handles of a mount.
#[derive(Debug)]
pub struct Handles {
    journal: Arc<Journal>,
    /// The page of each handle that has been read. A handle never read has none and costs nothing.
    pages: Mutex<HashMap<u64, Held>>,
}

#[derive(Debug)]
struct Held {
    page: Page,
    /// `None`: the journal is full, and the page does not outlive us.
    record: Option<Record>,
}

#[derive(Debug)]
enum Page {
    Whole(Bytes),
    /// A daemon before us has served all of it.
    Length(usize),
}

/// What of a page a read asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) size: u32,
}

impl Handles {
    /// The handles of the mount that `journal` is of.
    #[must_use]
    pub fn new(journal: Arc<Journal>) -> Self {
        Self { journal, pages: Mutex::default() }
    }

    /// Learns the pages of a daemon before us. The journal must be ours by then.
    pub fn take_over(&self) {
        let kept = self.journal.list(Kind::Handle).into_iter().map(|kept| {
            let page = kept.bytes.map_or(Page::Length(kept.length), |b| Page::Whole(b.into()));
            (kept.key[0], Held { page, record: Some(kept.record) })
        });
        self.lock().extend(kept);
    }

    /// The journal of the mount.
    pub(super) fn journal(&self) -> Arc<Journal> {
        Arc::clone(&self.journal)
    }

    pub(super) fn open(&self) -> FileHandle {
        FileHandle(self.journal.next_handle())
    }

    /// The page to serve a read from. `make` makes a new one, and is called at the start of a page and where there is
    /// none; no lock is held over it.
    pub(super) fn page<E>(
        &self,
        handle: FileHandle,
        range: Range,
        make: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, E> {
        if range.offset > 0
            && let Some(held) = self.lock().get(&handle.0)
        {
            match &held.page {
                Page::Whole(page) => return Ok(page.clone()),
                Page::Length(length) if range.offset >= *length as u64 => return Ok(Bytes::new()),
                Page::Length(_) => {}
            }
        }
        let page = make()?;
        self.hold(handle, range, page.clone());
        Ok(page)
    }

    /// Remembers the page, here and in the journal, before any of it is served.
    fn hold(&self, handle: FileHandle, range: Range, page: Bytes) {
        let is_served = range.offset == 0 && range.size as usize >= page.len();
        let content = if is_served { Content::Length(page.len()) } else { Content::Bytes(&page) };
        let mut pages = self.lock();
        let known = pages.get(&handle.0).and_then(|held| held.record);
        let record = match known {
            Some(record) => {
                self.journal.replace(record, content);
                known
            }
            None => self.journal.put(Kind::Handle, [handle.0, 0], content),
        };
        pages.insert(handle.0, Held { page: Page::Whole(page), record });
    }

    pub(super) fn close(&self, handle: FileHandle) {
        let held = self.lock().remove(&handle.0);
        if let Some(record) = held.and_then(|held| held.record) {
            self.journal.remove(record);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Held>> {
        lock(&self.pages)
    }
}

/// The part of `page` that answers a read of `size` bytes at `offset`: never more, which the kernel would refuse.
pub(super) fn slice(page: &Bytes, offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(page.len());
    let end = start.saturating_add(size as usize).min(page.len());
    &page[start..end]
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn page(text: &'static str) -> Result<Bytes, Infallible> {
        Ok(Bytes::from_static(text.as_bytes()))
    }

    fn handles() -> Handles {
        Handles::new(Arc::new(crate::keep::journal::tests::journal()))
    }

    const START: Range = Range { offset: 0, size: 2 };
    const REST: Range = Range { offset: 2, size: 2 };

    #[test]
    fn a_page_lasts_until_the_next_read_from_the_start() {
        let handles = handles();
        let handle = handles.open();
        assert_eq!(handles.page(handle, START, || page("one")).unwrap(), "one");
        assert_eq!(handles.page(handle, REST, || page("two")).unwrap(), "one");
        assert_eq!(handles.page(handle, START, || page("two")).unwrap(), "two");
        assert_ne!(handles.open(), handle);
    }

    #[test]
    fn a_first_read_in_the_middle_makes_the_page() {
        let handles = handles();
        let handle = handles.open();
        assert_eq!(handles.page(handle, REST, || page("page")).unwrap(), "page");
        handles.close(handle);
        assert_eq!(handles.page(handle, REST, || page("anew")).unwrap(), "anew");
    }

    #[test]
    fn the_next_daemon_serves_the_rest_of_the_same_page() {
        let first = handles();
        let (pieces, whole, unread) = (first.open(), first.open(), first.open());
        first.page(pieces, START, || page("pieces")).unwrap();
        first.page(whole, Range { offset: 0, size: 100 }, || page("whole")).unwrap();
        let closed = first.open();
        first.page(closed, START, || page("closed")).unwrap();
        first.close(closed);
        let next = Handles::new(Arc::clone(&first.journal));
        next.take_over();
        assert_eq!(next.page(pieces, REST, || page("another")).unwrap(), "pieces");
        let end = Range { offset: 5, size: 100 };
        assert_eq!(next.page(whole, end, || page("a longer one")).unwrap(), "");
        assert_eq!(next.page(whole, REST, || page("anew")).unwrap(), "anew");
        assert_eq!(next.page(unread, START, || page("anew")).unwrap(), "anew");
        assert_eq!(next.lock().len(), 3);
        assert!(![pieces, whole, unread, closed].contains(&next.open()));
    }

    proptest! {
        #[test]
        fn any_pieces_put_together_are_the_page(sizes in proptest::collection::vec(1_u32..9, 1..40)) {
            let page = Bytes::from_static(b"MemTotal: 1 kB\nMemFree: 1 kB\n");
            let (mut whole, mut offset) = (Vec::new(), 0);
            for size in sizes.iter().cycle() {
                let piece = slice(&page, offset, *size);
                if piece.is_empty() {
                    break;
                }
                prop_assert!(piece.len() <= *size as usize);
                whole.extend_from_slice(piece);
                offset += piece.len() as u64;
            }
            prop_assert_eq!(whole, page);
        }
    }
}
