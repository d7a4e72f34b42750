//! Open files. A page is made when it is read from its start and kept for the rest of that reading, as the kernel's
//! seq_file does: however small the pieces, they are of one page.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use fuser::FileHandle;

/// The handles of a mount.
#[derive(Debug)]
pub(super) struct Handles {
    next: AtomicU64,
    /// The page of each handle that has been read. A handle never read has none and costs nothing.
    pages: Mutex<HashMap<u64, Bytes>>,
}

impl Handles {
    /// `first` is where numbers start; another daemon on the same mount must not have given them out before.
    pub(super) fn new(first: u64) -> Self {
        Self { next: AtomicU64::new(first), pages: Mutex::default() }
    }

    pub(super) fn open(&self) -> FileHandle {
        FileHandle(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// The page to serve a read at `offset` from. `make` makes a new one, and is called at the start of a page and
    /// where there is none; no lock is held over it.
    pub(super) fn page<E>(
        &self,
        handle: FileHandle,
        offset: u64,
        make: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, E> {
        if offset > 0
            && let Some(page) = self.lock().get(&handle.0)
        {
            return Ok(page.clone());
        }
        let page = make()?;
        self.lock().insert(handle.0, page.clone());
        Ok(page)
    }

    pub(super) fn close(&self, handle: FileHandle) {
        self.lock().remove(&handle.0);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Bytes>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn a_page_lasts_until_the_next_read_from_the_start() {
        let handles = Handles::new(1);
        let handle = handles.open();
        assert_eq!(handles.page(handle, 0, || page("one")).unwrap(), "one");
        assert_eq!(handles.page(handle, 2, || page("two")).unwrap(), "one");
        assert_eq!(handles.page(handle, 0, || page("two")).unwrap(), "two");
        assert_ne!(handles.open(), handle);
    }

    #[test]
    fn a_first_read_in_the_middle_makes_the_page() {
        let handles = Handles::new(1);
        let handle = handles.open();
        assert_eq!(handles.page(handle, 2, || page("page")).unwrap(), "page");
        handles.close(handle);
        assert_eq!(handles.page(handle, 2, || page("anew")).unwrap(), "anew");
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
