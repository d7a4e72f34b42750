//! An allocator that counts what the thread asks of it, for tests of what must not allocate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Of each thread its own, because tests run beside each other.
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

/// To be made the `#[global_allocator]` of a test.
#[derive(Debug)]
pub struct Counting;

/// How often the thread has allocated, or had something grown, while `work` was done.
pub fn during(work: impl FnOnce()) -> u64 {
    let before = ASKED.get();
    work();
    ASKED.get() - before
}

/// What `work` makes, without its allocations being counted.
pub fn uncounted<T>(work: impl FnOnce() -> T) -> T {
    let before = ASKED.get();
    let made = work();
    ASKED.set(before);
    made
}

fn count() {
    // A thread that ends allocates after its counter is gone, and nobody asks for its count any more.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: memory is `System`'s, which keeps the contract; the counter has no destructor and is made without allocating.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the layout is passed on as the caller, who keeps the contract, gave it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory is `System`'s, because all we give is, and of the layout the caller gave.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above, and the new size is the caller's, who keeps the contract.
        unsafe { System.realloc(memory, layout, size) }
    }
}
