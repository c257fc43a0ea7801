//! Arrays in a device's memory, for trainers that bring no memory of their own.

use super::{Buffer, Lent, bytes_of, bytes_of_mut};
use crate::CudaError;
use crate::driver::Session;
use lion_core::{DeviceSlice, DeviceSliceMut, Dtype, Slice, SliceMut};
use std::ops::Range;
use std::sync::Arc;

/// Elements in a device's memory, which the backend that made them steps there. Made by
/// [`Cuda::array`](crate::Cuda::array), freed when dropped.
#[derive(Debug)]
pub struct DeviceArray {
    buffer: Buffer,
    len: usize,
    dtype: Dtype,
}

impl DeviceArray {
    pub(crate) fn new(session: &Arc<Session>, from: Slice<'_>) -> Result<Self, CudaError> {
        let bytes = bytes_of(&from);
        let buffer = Buffer::new(session, bytes.len())?;
        buffer.write(0, bytes)?;
        Ok(DeviceArray {
            buffer,
            len: from.len(),
            dtype: from.dtype(),
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Some of the elements, to step by.
    ///
    /// # Panics
    /// If the range is not in the array, as a slice does.
    pub fn slice(&self, range: Range<usize>) -> DeviceSlice<'_> {
        DeviceSlice::new(Arc::new(self.part(range)))
    }

    /// Some of the elements, to be stepped.
    ///
    /// # Panics
    /// If the range is not in the array, as a slice does.
    pub fn slice_mut(&mut self, range: Range<usize>) -> DeviceSliceMut<'_> {
        DeviceSliceMut::new(Box::new(self.part(range)))
    }

    /// Waits for queued steps and copies all elements to the host.
    ///
    /// # Errors
    /// [`CudaError::WrongArray`] where length or type differ; [`CudaError::EarlierWork`],
    /// [`CudaError::Call`].
    pub fn read(&self, mut to: SliceMut<'_>) -> Result<(), CudaError> {
        self.check(to.len(), to.dtype())?;
        self.buffer.read(0, bytes_of_mut(&mut to))
    }

    /// Replaces all elements by the host's, after queued steps.
    ///
    /// # Errors
    /// As [`read`](DeviceArray::read).
    pub fn write(&mut self, from: Slice<'_>) -> Result<(), CudaError> {
        self.check(from.len(), from.dtype())?;
        self.buffer.write(0, bytes_of(&from))
    }

    /// Queues a copy of all elements of another array, after what is queued for either.
    ///
    /// # Errors
    /// As [`read`](DeviceArray::read).
    pub fn copy_from(&mut self, from: &DeviceArray) -> Result<(), CudaError> {
        self.check(from.len, from.dtype)?;
        self.buffer.copy_from(&from.buffer)
    }

    fn part(&self, range: Range<usize>) -> Lent {
        let (start, end, len) = (range.start, range.end, self.len);
        assert!(
            start <= end && end <= len,
            "range {start}..{end} of {len} elements"
        );
        let address = self.buffer.address() + (start * self.dtype.bytes()) as u64;
        // SAFETY: the elements lie there, and a slice borrows them as long as it lasts. Only work on the
        // session's stream uses them (a backend of another session refuses the slice), and the buffer waits
        // for that stream before it is freed.
        unsafe { Lent::of(self.buffer.session(), address, end - start, self.dtype) }
    }

    fn check(&self, len: usize, dtype: Dtype) -> Result<(), CudaError> {
        if (len, dtype) == (self.len, self.dtype) {
            return Ok(());
        }
        Err(CudaError::WrongArray {
            given: (len, dtype),
            wanted: (self.len, self.dtype),
        })
    }
}
