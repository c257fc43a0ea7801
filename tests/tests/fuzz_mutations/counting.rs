//! An allocator that counts, per thread, the bytes currently allocated and their maximum.
//!
//! Other tests use dhat, which records the origin of each allocation. That is too slow for the number of allocations
//! here.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts a change of the bytes of this thread. An allocation that another thread frees is counted by
/// the thread that makes each call.
fn count(bytes: isize) {
    // Neither has a destructor, so both can be accessed as long as the thread exists.
    let held = HELD.get() + bytes;
    HELD.set(held);
    MOST.set(MOST.get().max(held));
}

// SAFETY: all calls are forwarded to `System` unchanged, which upholds the contract of `GlobalAlloc`. Counting
// neither allocates nor unwinds: the counters are constants of each thread's memory, and a sum of sizes does not
// overflow.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller upholds the contract of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller upholds the contract of `System`, which has allocated the memory.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller upholds the contract of `System`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // If the memory moves, the old and the new allocation exist at the same time.
        count(size as isize);
        // SAFETY: the caller upholds the contract of `System`, which has allocated the memory.
        let moved = unsafe { System.realloc(memory, layout, size) };
        count(-(layout.size() as isize));
        moved
    }
}

/// Runs `work`, and returns its result and the peak of the bytes that this thread allocated in it.
pub(crate) fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST.set(before);
    let result = work();
    (result, usize::try_from(MOST.get() - before).unwrap_or(0))
}
