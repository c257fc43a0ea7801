//! Memory of a device that others own and lend to a step.

use crate::CudaError;
use crate::driver::Session;
use cust::memory::DeviceSlice as CustSlice;
use lion_core::{DeviceMemory, DeviceSlice, DeviceSliceMut, Dtype};
use std::sync::Arc;

/// Elements in a device's memory that somebody lends.
///
/// # Safety
/// `len` elements of the type lie at `address`, for as long as the loan lasts.
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

    /// Whether work of this session may use it, as far as is known.
    pub(crate) fn is_for(&self, session: &Arc<Session>) -> bool {
        let owner = self.session.as_ref();
        owner.is_none_or(|owner| Arc::ptr_eq(owner, session))
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
/// # Safety
/// `len` elements of the type lie there, aligned to one element, in memory that the backend's device can
/// reach. Until the steps that are given them are done on the device, nobody frees them, and
/// only work ordered with the backend's stream writes them.
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
/// As [`device_slice`], and only work ordered with the backend's stream reads them.
pub unsafe fn device_slice_mut<'a>(address: u64, len: usize, dtype: Dtype) -> DeviceSliceMut<'a> {
    DeviceSliceMut::new(Box::new(Lent {
        address,
        len,
        dtype,
        session: None,
    }))
}

/// A buffer of cust's, to read.
pub fn lend(buffer: &CustSlice<f32>) -> DeviceSlice<'_> {
    // SAFETY: the buffer has as many elements and is borrowed as long; its memory is freed by a call
    // that waits for the device.
    unsafe { device_slice(buffer.as_device_ptr().as_raw(), buffer.len(), Dtype::F32) }
}

/// A buffer of cust's, to change.
pub fn lend_mut(buffer: &mut CustSlice<f32>) -> DeviceSliceMut<'_> {
    // SAFETY: as in `lend`.
    unsafe { device_slice_mut(buffer.as_device_ptr().as_raw(), buffer.len(), Dtype::F32) }
}

/// A buffer of cust's that holds the bits of `f16` or `bf16`, to read.
///
/// # Errors
/// [`CudaError::NotSixteenBits`].
pub fn lend_bits(buffer: &CustSlice<u16>, dtype: Dtype) -> Result<DeviceSlice<'_>, CudaError> {
    sixteen_bits(dtype)?;
    // SAFETY: as in `lend`.
    Ok(unsafe { device_slice(buffer.as_device_ptr().as_raw(), buffer.len(), dtype) })
}

/// A buffer of cust's that holds the bits of `f16` or `bf16`, to change.
///
/// # Errors
/// [`CudaError::NotSixteenBits`].
pub fn lend_bits_mut(
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
