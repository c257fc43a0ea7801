//! The mover of the CPU, with calls that no pager makes: it rejects ranges that are not pieces, and never changes
//! bytes.
#![allow(clippy::unwrap_used)]
#![cfg(all(target_os = "linux", not(miri)))]

use lion_paging::{HostMemory, HostMover, HostRegion, PageMover, PagingError};
use std::ops::Range;

const PAGE: usize = HostMover::PAGE;

/// Large enough to be moved to anonymous memory.
const PIECE: usize = 256 << 10;

/// Returns a state of two pieces and a short one.
fn allocate() -> (HostMover, HostRegion, HostMemory) {
    let mover = HostMover::in_folder(&std::env::temp_dir()).unwrap();
    let (region, memory) = mover.allocate(2 * PIECE + PAGE, PIECE).unwrap();
    (mover, region, memory)
}

fn fetch(mover: &HostMover, region: &HostRegion, part: &Range<usize>, keep: bool) {
    let ticket = mover.fetch(region, part.clone(), true, keep, None);
    mover.wait(&ticket.unwrap()).unwrap();
}

fn evict(mover: &HostMover, region: &HostRegion, part: &Range<usize>, dirty: bool) {
    let ticket = mover.evict(region, part.clone(), dirty, None);
    mover.wait(&ticket.unwrap()).unwrap();
}

/// The index of a byte in the middle of each piece.
const PARTS: [Range<usize>; 3] = [0..PIECE, PIECE..2 * PIECE, 2 * PIECE..2 * PIECE + PAGE];

fn change(memory: &mut HostMemory, number: u8) {
    // SAFETY: all transfers that were queued have been waited for.
    let bytes = unsafe { memory.bytes_mut() };
    bytes.fill(number);
}

#[test]
fn eviction_as_unchanged_keeps_the_bytes() {
    let (mover, region, mut memory) = allocate();
    let mut number = 0;
    for keep in [true, false] {
        for dirty in [false, true] {
            for part in &PARTS {
                fetch(&mover, &region, part, keep);
            }
            number += 7;
            change(&mut memory, number);
            let bytes = memory.bytes();
            for part in &PARTS {
                evict(&mover, &region, part, dirty);
            }
            let changed = bytes.iter().filter(|&&byte| byte != number).count();
            assert_eq!(changed, 0, "keep {keep}, dirty {dirty}");
        }
    }
}

#[test]
fn a_second_fetch_keeps_the_bytes() {
    let (mover, region, mut memory) = allocate();
    for (number, again) in [(7, true), (8, false)] {
        fetch(&mover, &region, &PARTS[0], true);
        change(&mut memory, number);
        fetch(&mover, &region, &PARTS[0], again);
        assert!(memory.bytes().iter().all(|&byte| byte == number));
    }
    // Also evicts a piece that was never fetched.
    evict(&mover, &region, &PARTS[1], true);
    evict(&mover, &region, &PARTS[0], false);
    evict(&mover, &region, &PARTS[0], false);
    assert!(memory.bytes().iter().all(|&byte| byte == 8));
}

#[test]
fn ranges_that_are_not_pieces_are_an_error_and_the_threads_continue() {
    let (mover, region, _memory) = allocate();
    let end = 2 * PIECE + PAGE;
    #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
    let ranges = [
        0..0,
        0..PAGE,
        0..2 * PIECE,
        PAGE..PIECE + PAGE,
        PIECE..0,
        2 * PIECE..3 * PIECE,
        end..end,
        end..end + PAGE,
        3 * PIECE..4 * PIECE,
        usize::MAX - PAGE..usize::MAX,
        usize::MAX..0,
    ];
    for part in ranges {
        let errors = [
            mover
                .fetch(&region, part.clone(), true, true, None)
                .unwrap_err(),
            mover.evict(&region, part.clone(), true, None).unwrap_err(),
            mover.resident(&region, part.clone()).unwrap_err(),
        ];
        for error in errors {
            assert!(
                matches!(error, PagingError::NotAPiece { start, end, piece: PIECE, .. }
                    if start == part.start && end == part.end),
                "{part:?}: {error}"
            );
        }
    }
    for part in &PARTS {
        fetch(&mover, &region, part, true);
        evict(&mover, &region, part, true);
    }
}

#[test]
fn sizes_that_are_not_whole_pages_are_an_error() {
    let mover = HostMover::in_folder(&std::env::temp_dir()).unwrap();
    for (bytes, piece) in [
        (0, PAGE),
        (PAGE, 0),
        (PAGE + 1, PAGE),
        (PAGE, 1),
        (usize::MAX, PAGE),
    ] {
        let error = mover.allocate(bytes, piece).unwrap_err();
        assert!(matches!(error, PagingError::NotAPiece { .. }), "{error}");
    }
}

#[cfg(target_pointer_width = "64")]
#[test]
fn a_file_beyond_the_largest_size_is_an_error() {
    use lion_core::Momentum32;
    use lion_paging::{Limits, Pager};
    let mover = HostMover::in_folder(&std::env::temp_dir()).unwrap();
    let limits = Limits::new(1 << 20, None, PAGE).unwrap();
    let pager = std::sync::Arc::new(Pager::new(mover, limits));
    let error = pager.allocate(&Momentum32, (1 << 62) + (1 << 20));
    assert!(matches!(error, Err(PagingError::TooLarge { .. })));
    let error = pager.allocate(&Momentum32, 1 << 60).unwrap_err();
    assert!(
        matches!(&error, PagingError::NoRoom { bytes, .. } if *bytes >= 1 << 62),
        "{error:?}"
    );
    // The file is unchanged.
    pager.allocate(&Momentum32, 1 << 10).unwrap();
}
