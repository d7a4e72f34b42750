//! An array map seen through memory: elements are read and written as atomic words.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A `BPF_F_MMAPABLE` array map of `T`, mapped whole.
#[derive(Debug)]
pub(crate) struct Mapping<T> {
    base: NonNull<u8>,
    bytes: usize,
    elements: u32,
    of: PhantomData<T>,
}

// SAFETY: the memory is shared with the kernel anyway and is only reached as atomics.
unsafe impl<T> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapping<T> {}

impl<T> Mapping<T> {
    /// Maps the array behind `fd`, which has `elements` elements.
    pub(crate) fn new(fd: impl AsFd, elements: u32) -> io::Result<Self> {
        let bytes = usize::try_from(elements)
            .ok()
            .and_then(|count| count.checked_mul(size_of::<T>()))
            .filter(|bytes| *bytes > 0 && size_of::<T>().is_multiple_of(8))
            .ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice. The kernel refuses a length
        // beyond the map's own.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_fd().as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { base, bytes, elements, of: PhantomData })
    }

    pub(crate) const fn len(&self) -> u32 {
        self.elements
    }

    /// The word at `offset` (from `offset_of!`) of element `index`.
    ///
    /// # Panics
    /// If either lies outside.
    pub(crate) fn word(&self, index: u32, offset: usize) -> &AtomicU64 {
        let at = self.position(index, offset, size_of::<u64>());
        // SAFETY: inside the mapping (`position`), aligned, and valid as long as `self`.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    /// As [`Self::word`] for a member of four bytes.
    pub(crate) fn half(&self, index: u32, offset: usize) -> &AtomicU32 {
        let at = self.position(index, offset, size_of::<u32>());
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    fn position(&self, index: u32, offset: usize, size: usize) -> usize {
        assert!(index < self.elements, "element {index} of {}", self.elements);
        assert!(offset + size <= size_of::<T>() && offset.is_multiple_of(size), "offset {offset}");
        index as usize * size_of::<T>() + offset
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: the range is the one that was mapped; no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
