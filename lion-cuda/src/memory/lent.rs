//! Memory of a device that others own and lend to a step.

use crate::CudaError;
use crate::driver::Session;
use cust::memory::DeviceSlice as CustSlice;
use lion_core::{DeviceMemory, DeviceSlice, DeviceSliceMut, Dtype};
use std::sync::Arc;

/// Elements in a device's memory that somebody lends.
///
/// # Safety
/// `len` elements of the type lie at `address` until the steps that are given this are done on the device.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) address: u64,
    len: usize,
    dtype: Dtype,
    /// Whose it is, where that is known: others may be of another device, and none is ordered with it.
    session: Option<Arc<Session>>,
}

impl Lent {
    /// Part of memory that is allocated in a session.
    ///
    /// # Safety
    /// See the type.
    pub(crate) unsafe fn of(
        session: &Arc<Session>,
        address: u64,
        len: usize,
        dtype: Dtype,
    ) -> Self {
        Lent {
            address,
            len,
            dtype,
            session: Some(Arc::clone(session)),
        }
    }

    /// Whether work of this session may use it; `None` where that has to be asked of the driver.
    pub(crate) fn is_for(&self, session: &Arc<Session>) -> Option<bool> {
        let owner = self.session.as_ref()?;
        Some(Arc::ptr_eq(owner, session))
    }
}

impl DeviceMemory for Lent {
    fn len(&self) -> usize {
        self.len
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }
}

/// Elements at an address of the device, to read.
///
/// The address may be one of the backend's device in the backend's context, of managed memory, or of
/// pinned host memory. A step asks the driver whose memory it is, and refuses memory of another device or
/// of another context ([`CudaError::WrongDevice`], [`CudaError::WrongContext`]), even where peer access is
/// enabled, and addresses that the driver does not know ([`CudaError::UnknownAddress`]).
///
/// # Safety
/// `len` elements of the type lie there, aligned to one element. From the call of each step that is given
/// them until that step is done on the device:
/// - nobody frees them, neither at once nor by a free that is queued on another stream;
/// - only work that is ordered with the backend's stream writes them.
///
/// A step is done on the device when [`Optimizer::synchronize`](lion_core::Optimizer::synchronize) has
/// returned after it, or when an event that [`Cuda::record`](crate::Cuda::record) recorded after it has
/// come. A step that returns an error is done: it has waited for what it had queued.
pub unsafe fn device_slice<'a>(address: u64, len: usize, dtype: Dtype) -> DeviceSlice<'a> {
    DeviceSlice::new(Arc::new(Lent {
        address,
        len,
        dtype,
        session: None,
    }))
}

/// Elements at an address of the device, to change.
///
/// # Safety
/// As [`device_slice`], and only work that is ordered with the backend's stream reads them.
pub unsafe fn device_slice_mut<'a>(address: u64, len: usize, dtype: Dtype) -> DeviceSliceMut<'a> {
    DeviceSliceMut::new(Box::new(Lent {
        address,
        len,
        dtype,
        session: None,
    }))
}

/// A buffer of cust's, to read.
///
/// # Safety
/// The borrow ends when the step returns, and the step may go on after that. Until it is done on the device
/// (see [`device_slice`]), the buffer is neither dropped nor given to
/// [`drop_async`](cust::memory::DeviceBuffer::drop_async), and only work that is ordered with the backend's
/// stream writes it.
///
/// ```compile_fail,E0133
/// let lend: fn(&cust::memory::DeviceBuffer<f32>) = |buffer| {
///     lion_cuda::lend(buffer); // the buffer may be gone before the step is done
/// };
/// ```
pub unsafe fn lend(buffer: &CustSlice<f32>) -> DeviceSlice<'_> {
    // SAFETY: the buffer has as many elements; the rest as the caller promises.
    unsafe { device_slice(buffer.as_device_ptr().as_raw(), buffer.len(), Dtype::F32) }
}

/// A buffer of cust's, to change.
///
/// # Safety
/// As [`lend`], and only work that is ordered with the backend's stream reads it.
pub unsafe fn lend_mut(buffer: &mut CustSlice<f32>) -> DeviceSliceMut<'_> {
    // SAFETY: as in `lend`.
    unsafe { device_slice_mut(buffer.as_device_ptr().as_raw(), buffer.len(), Dtype::F32) }
}

/// A buffer of cust's that holds the bits of `f16` or `bf16`, to read.
///
/// # Safety
/// As [`lend`].
///
/// # Errors
/// [`CudaError::NotSixteenBits`].
pub unsafe fn lend_bits(
    buffer: &CustSlice<u16>,
    dtype: Dtype,
) -> Result<DeviceSlice<'_>, CudaError> {
    sixteen_bits(dtype)?;
    // SAFETY: as in `lend`.
    Ok(unsafe { device_slice(buffer.as_device_ptr().as_raw(), buffer.len(), dtype) })
}

/// A buffer of cust's that holds the bits of `f16` or `bf16`, to change.
///
/// # Safety
/// As [`lend_mut`].
///
/// # Errors
/// [`CudaError::NotSixteenBits`].
pub unsafe fn lend_bits_mut(
    buffer: &mut CustSlice<u16>,
    dtype: Dtype,
) -> Result<DeviceSliceMut<'_>, CudaError> {
    sixteen_bits(dtype)?;
    // SAFETY: as in `lend`.
    Ok(unsafe { device_slice_mut(buffer.as_device_ptr().as_raw(), buffer.len(), dtype) })
}

fn sixteen_bits(dtype: Dtype) -> Result<(), CudaError> {
    if dtype.bytes() == 2 {
        Ok(())
    } else {
        Err(CudaError::NotSixteenBits { given: dtype })
    }
}
