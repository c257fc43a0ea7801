//! An allocator that counts, for each thread, the bytes that it holds and the most that it held.
//!
//! dhat, which other tests use, records where each allocation comes from; here there are too many for that.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts a change of what this thread holds. What one thread allocates and another frees is counted by either as its
/// own.
fn count(bytes: isize) {
    // Neither has a destructor, so that both are there as long as the thread is.
    let held = HELD.get() + bytes;
    HELD.set(held);
    MOST.set(MOST.get().max(held));
}

// SAFETY: all calls go to `System` as they are, which keeps the promises of `GlobalAlloc`. Counting neither allocates
// nor unwinds: the counters are constants of each thread's memory, and a sum of sizes does not overflow.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are those of `System`, which has allocated the memory.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Where the memory moves, old and new are there at once.
        count(size as isize);
        // SAFETY: the caller's promises are those of `System`, which has allocated the memory.
        let moved = unsafe { System.realloc(memory, layout, size) };
        count(-(layout.size() as isize));
        moved
    }
}

/// Runs `work`, and returns the most bytes that this thread held at a time beyond what it held before.
pub(crate) fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST.set(before);
    let result = work();
    (result, usize::try_from(MOST.get() - before).unwrap_or(0))
}
