//! Residency of the pages of managed memory: on the host or on the device.
//!
//! A page is created on the host. A prefetch moves it. A kernel that accesses a page on the host causes a page fault, which
//! moves the page to the device. If the device has no room for a page, the page stays on the host, and each access to it is a
//! fault. Copies and memsets by the driver access a page without moving it.

use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Bytes per page.
pub(super) const PAGE: u64 = 64 << 10;

/// The counters of all managed memory of a device.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// Bytes available to pages on the device, and the current and peak bytes of resident pages.
    room: AtomicU64,
    resident: AtomicU64,
    peak: AtomicU64,
    faults: AtomicU64,
    fault_bytes: AtomicU64,
    fetched: AtomicU64,
    evicted: AtomicU64,
}

/// The pages of one allocation.
#[derive(Debug)]
pub(crate) struct Pages {
    on_device: Box<[AtomicBool]>,
    bytes: u64,
    moves: Arc<Moves>,
}

impl Moves {
    /// Sets the bytes that other memory leaves available on the device.
    pub(super) fn set_room(&self, bytes: u64) {
        self.room.store(bytes, Relaxed);
    }

    /// Returns the bytes that are resident on the device.
    pub(crate) fn resident(&self) -> u64 {
        self.resident.load(Relaxed)
    }

    /// Returns the counters of all devices as JSON.
    pub(crate) fn report<'a>(all: impl IntoIterator<Item = &'a Moves>) -> Value {
        let mut sums = [0; 6];
        for moves in all {
            let counts = [
                &moves.faults,
                &moves.fault_bytes,
                &moves.fetched,
                &moves.evicted,
                &moves.resident,
                &moves.peak,
            ];
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count.load(Relaxed);
            }
        }
        json!({
            "page": PAGE,
            "faults": sums[0],
            "fault_bytes": sums[1],
            "fetched_bytes": sums[2],
            "evicted_bytes": sums[3],
            "resident_bytes": sums[4],
            "peak_bytes": sums[5],
        })
    }

    /// Resets the counters. Pages on the device stay there.
    pub(crate) fn restart(&self) {
        for count in [
            &self.faults,
            &self.fault_bytes,
            &self.fetched,
            &self.evicted,
        ] {
            count.store(0, Relaxed);
        }
        self.peak.store(self.resident(), Relaxed);
    }

    /// Allocates bytes on the device if enough are free.
    fn take(&self, bytes: u64) -> bool {
        let room = self.room.load(Relaxed);
        let taken = self.resident.fetch_update(Relaxed, Relaxed, |resident| {
            Some(resident + bytes).filter(|&resident| resident <= room)
        });
        if let Ok(before) = taken {
            self.peak.fetch_max(before + bytes, Relaxed);
        }
        taken.is_ok()
    }
}

impl Pages {
    pub(super) fn new(bytes: u64, moves: &Arc<Moves>) -> Self {
        let pages = bytes.div_ceil(PAGE);
        Pages {
            on_device: (0..pages).map(|_| AtomicBool::new(false)).collect(),
            bytes,
            moves: Arc::clone(moves),
        }
    }

    fn page_bytes(&self, page: u64) -> u64 {
        (self.bytes - page * PAGE).min(PAGE)
    }

    /// Records that a kernel accesses a byte of the allocation.
    pub(super) fn touch(&self, offset: u64) {
        let page = offset / PAGE;
        let on_device = &self.on_device[page as usize];
        if on_device.load(Relaxed) || on_device.swap(true, Relaxed) {
            return;
        }
        self.moves.faults.fetch_add(1, Relaxed);
        let bytes = self.page_bytes(page);
        if self.moves.take(bytes) {
            self.moves.fault_bytes.fetch_add(bytes, Relaxed);
        } else {
            on_device.store(false, Relaxed);
        }
    }

    /// Moves the pages of a range to the host, or to the device as far as there is room.
    pub(super) fn prefetch(&self, offset: u64, bytes: u64, to_device: bool) {
        let moves = &self.moves;
        for page in offset / PAGE..(offset + bytes).div_ceil(PAGE) {
            let on_device = &self.on_device[page as usize];
            let bytes = self.page_bytes(page);
            match (on_device.load(Relaxed), to_device) {
                (false, true) if moves.take(bytes) => {
                    moves.fetched.fetch_add(bytes, Relaxed);
                    on_device.store(true, Relaxed);
                }
                (true, false) => {
                    moves.resident.fetch_sub(bytes, Relaxed);
                    moves.evicted.fetch_add(bytes, Relaxed);
                    on_device.store(false, Relaxed);
                }
                _ => {}
            }
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for page in 0..self.on_device.len() as u64 {
            if self.on_device[page as usize].load(Relaxed) {
                self.moves
                    .resident
                    .fetch_sub(self.page_bytes(page), Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_fault_migrates_a_page_unless_the_device_is_full() {
        let moves = Arc::new(Moves::default());
        moves.set_room(2 * PAGE);
        let pages = Pages::new(3 * PAGE + 10, &moves);
        let faults = || moves.faults.load(Relaxed);
        pages.touch(0);
        pages.touch(PAGE - 1);
        assert_eq!((faults(), moves.resident()), (1, PAGE));
        pages.prefetch(PAGE, PAGE + 1, true);
        // There is room for only one of the two pages.
        assert_eq!((faults(), moves.resident()), (1, 2 * PAGE));
        pages.touch(2 * PAGE);
        pages.touch(2 * PAGE);
        assert_eq!((faults(), moves.resident()), (3, 2 * PAGE));
        pages.prefetch(0, PAGE, false);
        pages.touch(3 * PAGE + 9);
        // The last page has ten bytes.
        assert_eq!((faults(), moves.resident()), (4, PAGE + 10));
        let report = Moves::report([&*moves]);
        assert_eq!(report["peak_bytes"], 2 * PAGE);
        assert_eq!(report["fault_bytes"], PAGE + 10);
        assert_eq!(
            (&report["fetched_bytes"], &report["evicted_bytes"]),
            (&json!(PAGE), &json!(PAGE))
        );
        drop(pages);
        assert_eq!(moves.resident(), 0);
    }
}
