//! The owner of the memory at an address.

use super::check::check;
use crate::CudaError;
use cust::sys::{self, CUcontext, CUpointer_attribute};
use std::ffi::c_void;

/// The owner of the memory at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// All devices can access the memory at this address: it is managed memory or pinned host memory.
    All,
    /// One device.
    Device {
        ordinal: i32,
        /// Null if the memory does not belong to a context, such as memory of a memory pool.
        context: CUcontext,
    },
    /// The memory was neither allocated by the driver nor registered with it.
    Unknown,
}

/// Asks the driver who owns the memory at an address, in the current context. Returns `None` if the driver does
/// not support that.
pub(super) fn owner(address: u64) -> Result<Option<Owner>, CudaError> {
    const INVALID_VALUE: u32 = 1;
    const INVALID_CONTEXT: u32 = 201;
    const HOST: u32 = 1;
    const DEVICE: u32 = 2;
    let mut attributes = [
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED,
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        CUpointer_attribute::CU_POINTER_ATTRIBUTE_CONTEXT,
    ];
    let (mut kind, mut managed, mut ordinal) = (0u32, 0u32, -1i32);
    let mut context: CUcontext = std::ptr::null_mut();
    let mut values: [*mut c_void; 4] = [
        (&raw mut kind).cast(),
        (&raw mut managed).cast(),
        (&raw mut ordinal).cast(),
        (&raw mut context).cast(),
    ];
    // SAFETY: each value has the type of its attribute and is on the stack. "Is managed" is a boolean of one
    // byte or an integer of four. The driver does not access the address.
    let result = unsafe {
        sys::cuPointerGetAttributes(
            attributes.len() as u32,
            attributes.as_mut_ptr(),
            values.as_mut_ptr(),
            address,
        )
    };
    match result as u32 {
        // For an unknown address, drivers return an error or leave all values 0.
        INVALID_VALUE | INVALID_CONTEXT => return Ok(Some(Owner::Unknown)),
        super::NOT_SUPPORTED => return Ok(None),
        _ => check("cuPointerGetAttributes", result)?,
    }
    Ok(Some(match kind {
        _ if managed != 0 => Owner::All,
        HOST => Owner::All,
        DEVICE => Owner::Device { ordinal, context },
        _ => Owner::Unknown,
    }))
}
