//! Arrays in device memory.

use super::{BorrowedMemory, Buffer, bytes_of, bytes_of_mut};
use crate::CudaError;
use crate::driver::Session;
use lion_core::{DeviceSlice, DeviceSliceMut, Dtype, Slice, SliceMut};
use std::ops::Range;
use std::sync::Arc;

/// An array in device memory, for trainers that do not allocate device memory themselves.
///
/// [`Cuda::array`](crate::Cuda::array) creates it. The backend that created it can step it. It is freed when it
/// is dropped.
///
/// ```no_run
/// use lion_core::Dtype;
/// use lion_cuda::Cuda;
/// let cuda = Cuda::new(0)?;
/// let ones = cuda.array(&[1.0f32; 600][..])?;
/// let mut weight = cuda.array(&[0.0f32; 600][..])?;
/// assert_eq!((weight.len(), weight.dtype()), (600, Dtype::F32));
///
/// weight.copy_from(&ones)?;
/// let mut values = [0.0f32; 600];
/// weight.read((&mut values[..]).into())?;
/// assert_eq!(values, [1.0; 600]);
///
/// weight.write((&[2.0f32; 600][..]).into())?;
/// let (param, grad) = (weight.slice_mut(0..300), ones.slice(0..300));
/// // Pass `param` and `grad` to a step.
/// # drop((param, grad));
/// # Ok::<(), lion_cuda::CudaError>(())
/// ```
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

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Returns a range of the elements, as the gradient of a step.
    ///
    /// # Panics
    /// If the range is out of bounds, as for a slice.
    pub fn slice(&self, range: Range<usize>) -> DeviceSlice<'_> {
        DeviceSlice::new(Arc::new(self.part(range)))
    }

    /// Returns a range of the elements, as the parameter of a step.
    ///
    /// # Panics
    /// If the range is out of bounds, as for a slice.
    pub fn slice_mut(&mut self, range: Range<usize>) -> DeviceSliceMut<'_> {
        DeviceSliceMut::new(Box::new(self.part(range)))
    }

    /// Copies all elements to the host, after all queued steps.
    ///
    /// # Errors
    /// [`CudaError::WrongArray`] if the length or the type differs. [`CudaError::Capturing`],
    /// [`CudaError::EarlierWork`], [`CudaError::Call`].
    pub fn read(&self, mut to: SliceMut<'_>) -> Result<(), CudaError> {
        self.check(to.len(), to.dtype())?;
        self.buffer.read(0, bytes_of_mut(&mut to))
    }

    /// Replaces all elements by those of a host array, after all queued steps.
    ///
    /// # Errors
    /// The errors of [`read`](DeviceArray::read).
    pub fn write(&mut self, from: Slice<'_>) -> Result<(), CudaError> {
        self.check(from.len(), from.dtype())?;
        self.buffer.write(0, bytes_of(&from))
    }

    /// Queues a copy of all elements of another array. The copy is ordered after all work that is queued for
    /// either array.
    ///
    /// # Errors
    /// The errors of [`read`](DeviceArray::read).
    pub fn copy_from(&mut self, from: &DeviceArray) -> Result<(), CudaError> {
        self.check(from.len, from.dtype)?;
        self.buffer.copy_from(&from.buffer)
    }

    fn part(&self, range: Range<usize>) -> BorrowedMemory {
        let (start, end, len) = (range.start, range.end, self.len);
        assert!(
            start <= end && end <= len,
            "range {start}..{end} of an array of {len} elements"
        );
        let address = self.buffer.address() + (start * self.dtype.bytes()) as u64;
        let (session, dtype) = (self.buffer.session(), self.dtype);
        // SAFETY: the elements are at this address, and the slice borrows them. Only work on the session's
        // stream uses them, because backends of other sessions refuse the slice. The buffer waits for that
        // stream before it is freed.
        unsafe { BorrowedMemory::of_session(session, address, end - start, dtype) }
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
