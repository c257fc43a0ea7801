//! Device memory: allocations of this crate, and memory that a step borrows.
//!
#![doc = include_str!("../lifetimes.md")]

mod array;
mod borrowed;
mod buffer;
mod event;
mod host_arrays;
mod mover;
mod paged_allocation;
mod pinned_buffer;
mod transfer_streams;

pub use array::DeviceArray;
pub(crate) use borrowed::BorrowedMemory;
pub use borrowed::{device_slice, device_slice_mut, lend, lend_bits, lend_bits_mut, lend_mut};
pub(crate) use buffer::{Buffer, copy};
pub(crate) use host_arrays::HostArrays;
pub(crate) use mover::DeviceMover;
pub(crate) use paged_allocation::PagedAllocation;

use lion_core::{Slice, SliceMut};

/// Returns the bytes of elements in host memory.
pub(crate) fn bytes_of<'a>(slice: &Slice<'a>) -> &'a [u8] {
    let (start, bytes) = match slice {
        Slice::F32(s) => (s.as_ptr().cast(), size_of_val(*s)),
        Slice::F16(s) => (s.as_ptr().cast(), size_of_val(*s)),
        Slice::Bf16(s) => (s.as_ptr().cast(), size_of_val(*s)),
        _ => unreachable!("there is no other element type"),
    };
    // SAFETY: the slice has this many bytes, which are initialized and borrowed for 'a.
    unsafe { std::slice::from_raw_parts(start, bytes) }
}

/// Returns the bytes of elements in host memory, to change. All bits are valid floats.
pub(crate) fn bytes_of_mut<'a>(slice: &'a mut SliceMut<'_>) -> &'a mut [u8] {
    let (start, bytes) = match slice {
        SliceMut::F32(s) => (s.as_mut_ptr().cast(), size_of_val(*s)),
        SliceMut::F16(s) => (s.as_mut_ptr().cast(), size_of_val(*s)),
        SliceMut::Bf16(s) => (s.as_mut_ptr().cast(), size_of_val(*s)),
        _ => unreachable!("there is no other element type"),
    };
    // SAFETY: the slice has this many bytes, which are initialized and borrowed mutably for 'a.
    unsafe { std::slice::from_raw_parts_mut(start, bytes) }
}
