//! Device memory that a step borrows from its owner.

use crate::CudaError;
use crate::driver::Session;
use cust::memory::DeviceSlice as CustSlice;
use lion_core::{DeviceMemory, DeviceSlice, DeviceSliceMut, Dtype};
use std::sync::Arc;

/// Elements in device memory, borrowed from their owner.
///
/// # Safety
/// `len` elements of the type are at `address` until the steps that use them are complete on the device.
#[derive(Debug)]
pub(crate) struct BorrowedMemory {
    pub(crate) address: u64,
    len: usize,
    dtype: Dtype,
    /// The session of a [`DeviceArray`](crate::DeviceArray). `None` for memory of the caller.
    session: Option<Arc<Session>>,
}

impl BorrowedMemory {
    /// Returns a part of an allocation of a session.
    ///
    /// # Safety
    /// See the type.
    pub(super) unsafe fn of_session(
        session: &Arc<Session>,
        address: u64,
        len: usize,
        dtype: Dtype,
    ) -> Self {
        BorrowedMemory {
            address,
            len,
            dtype,
            session: Some(Arc::clone(session)),
        }
    }

    /// Returns whether the memory was allocated in this session, or `None` if only the driver knows.
    pub(crate) fn belongs_to(&self, session: &Arc<Session>) -> Option<bool> {
        let owner = self.session.as_ref()?;
        Some(Arc::ptr_eq(owner, session))
    }
}

impl DeviceMemory for BorrowedMemory {
    fn len(&self) -> usize {
        self.len
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }
}

/// Returns the elements at a device address, to read.
///
/// The address is in memory of the backend's device in the backend's context, in managed memory, or in pinned
/// host memory. A step asks the driver who owns the memory. It refuses memory of another device or another
/// context ([`CudaError::WrongDevice`], [`CudaError::WrongContext`]), even if peer access is enabled, and
/// addresses that the driver does not know ([`CudaError::UnknownAddress`]).
///
/// ```
/// use lion_core::{Dtype, Storage};
/// use lion_cuda::device_slice;
/// // SAFETY: there are no elements.
/// let grad = Storage::from(unsafe { device_slice(0, 0, Dtype::F32) });
/// assert!(grad.is_empty() && grad.device().is_some());
/// ```
///
/// # Safety
/// `len` elements of the type are at the address, aligned to the size of an element. From the call of each step
/// that uses them until the step is complete on the device:
/// - they are not freed, neither immediately nor by a free that is queued on another stream;
/// - only work that is ordered with the backend's stream writes them.
///
/// A step is complete on the device when a later call of
/// [`Optimizer::synchronize`](lion_core::Optimizer::synchronize) has returned, or when an event has completed
/// that was recorded by [`Cuda::record`](crate::Cuda::record) after the step. A step that returns an error is
/// complete when it returns.
pub unsafe fn device_slice<'a>(address: u64, len: usize, dtype: Dtype) -> DeviceSlice<'a> {
    DeviceSlice::new(Arc::new(BorrowedMemory {
        address,
        len,
        dtype,
        session: None,
    }))
}

/// Returns the elements at a device address, to change.
///
/// ```
/// use lion_core::{Dtype, StorageMut};
/// use lion_cuda::device_slice_mut;
/// // SAFETY: there are no elements.
/// let weight = StorageMut::from(unsafe { device_slice_mut(0, 0, Dtype::Bf16) });
/// assert_eq!(weight.dtype(), Dtype::Bf16);
/// ```
///
/// # Safety
/// As for [`device_slice`]. In addition, only work that is ordered with the backend's stream reads the elements.
pub unsafe fn device_slice_mut<'a>(address: u64, len: usize, dtype: Dtype) -> DeviceSliceMut<'a> {
    DeviceSliceMut::new(Box::new(BorrowedMemory {
        address,
        len,
        dtype,
        session: None,
    }))
}

/// Lends a buffer of cust to a step, to read.
///
/// ```no_run
/// use lion_cuda::cust::memory::DeviceBuffer;
/// use lion_cuda::{cust, lend, lend_mut};
/// let _context = cust::quick_init()?;
/// let mut weight = DeviceBuffer::from_slice(&[1.0f32; 500])?;
/// let grad = DeviceBuffer::from_slice(&[1.0f32; 500])?;
/// // SAFETY: both buffers are dropped after the stream of the step is synchronized.
/// let (param, grad) = unsafe { (lend_mut(&mut weight), lend(&grad)) };
/// // Pass `param` and `grad` to a step.
/// # drop((param, grad));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Safety
/// The borrow ends when the step returns, but the step may still run on the device. Until it is complete (see
/// [`device_slice`]), the buffer is neither dropped nor passed to
/// [`drop_async`](cust::memory::DeviceBuffer::drop_async), and only work that is ordered with the backend's
/// stream writes it.
///
/// ```compile_fail,E0133
/// let lend: fn(&cust::memory::DeviceBuffer<f32>) = |buffer| {
///     lion_cuda::lend(buffer); // the buffer could be dropped before the step is complete
/// };
/// ```
pub unsafe fn lend(buffer: &CustSlice<f32>) -> DeviceSlice<'_> {
    // SAFETY: the buffer has these elements. The caller guarantees the rest.
    unsafe { device_slice(buffer.as_device_ptr().as_raw(), buffer.len(), Dtype::F32) }
}

/// Lends a buffer of cust to a step, to change. [`lend`] has an example.
///
/// # Safety
/// As for [`lend`]. In addition, only work that is ordered with the backend's stream reads the buffer.
pub unsafe fn lend_mut(buffer: &mut CustSlice<f32>) -> DeviceSliceMut<'_> {
    // SAFETY: the buffer has these elements. The caller guarantees the rest.
    unsafe { device_slice_mut(buffer.as_device_ptr().as_raw(), buffer.len(), Dtype::F32) }
}

/// Lends a buffer of cust that contains the bits of `f16` or `bf16` elements to a step, to read.
///
/// ```no_run
/// use lion_core::Dtype;
/// use lion_cuda::cust::memory::DeviceBuffer;
/// use lion_cuda::{cust, lend_bits, lend_bits_mut};
/// let _context = cust::quick_init()?;
/// // The bits of 1.0 in bf16.
/// let mut weight = DeviceBuffer::from_slice(&[0x3f80u16; 500])?;
/// let grad = DeviceBuffer::from_slice(&[0x3f80u16; 500])?;
/// // SAFETY: both buffers are dropped after the stream of the step is synchronized.
/// let param = unsafe { lend_bits_mut(&mut weight, Dtype::Bf16) }?;
/// // SAFETY: as above.
/// let grad = unsafe { lend_bits(&grad, Dtype::Bf16) }?;
/// # drop((param, grad));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Safety
/// As for [`lend`].
///
/// # Errors
/// [`CudaError::NotSixteenBits`] if elements of `dtype` do not have 16 bits.
pub unsafe fn lend_bits(
    buffer: &CustSlice<u16>,
    dtype: Dtype,
) -> Result<DeviceSlice<'_>, CudaError> {
    check_sixteen_bits(dtype)?;
    // SAFETY: the buffer has these elements. The caller guarantees the rest.
    Ok(unsafe { device_slice(buffer.as_device_ptr().as_raw(), buffer.len(), dtype) })
}

/// Lends a buffer of cust that contains the bits of `f16` or `bf16` elements to a step, to change. [`lend_bits`]
/// has an example.
///
/// # Safety
/// As for [`lend_mut`].
///
/// # Errors
/// [`CudaError::NotSixteenBits`] if elements of `dtype` do not have 16 bits.
pub unsafe fn lend_bits_mut(
    buffer: &mut CustSlice<u16>,
    dtype: Dtype,
) -> Result<DeviceSliceMut<'_>, CudaError> {
    check_sixteen_bits(dtype)?;
    // SAFETY: the buffer has these elements. The caller guarantees the rest.
    Ok(unsafe { device_slice_mut(buffer.as_device_ptr().as_raw(), buffer.len(), dtype) })
}

fn check_sixteen_bits(dtype: Dtype) -> Result<(), CudaError> {
    if dtype.bytes() == 2 {
        Ok(())
    } else {
        Err(CudaError::NotSixteenBits { given: dtype })
    }
}
