//! What the driver knows about an address.

use super::session::check;
use crate::CudaError;
use cust::sys::{self, CUcontext, CUpointer_attribute};
use std::ffi::c_void;

/// Whose the memory at an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Managed memory, or pinned memory of the host: every device can use it, at the same address.
    All,
    /// Memory of one device.
    Device {
        ordinal: i32,
        /// Null where the memory belongs to no single context, as that of a memory pool.
        context: CUcontext,
    },
    /// The driver did not allocate it and it is not registered with the driver.
    Unknown,
}

/// Asks the driver about an address, in the current context. Returns `None` where the driver cannot be
/// asked.
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
    let mut places: [*mut c_void; 4] = [
        (&raw mut kind).cast(),
        (&raw mut managed).cast(),
        (&raw mut ordinal).cast(),
        (&raw mut context).cast(),
    ];
    // SAFETY: each attribute has a place of its type on the stack; "is managed" is a bool of one byte or a
    // number of four. The address is not accessed.
    let result = unsafe {
        sys::cuPointerGetAttributes(
            attributes.len() as u32,
            attributes.as_mut_ptr(),
            places.as_mut_ptr(),
            address,
        )
    };
    match result as u32 {
        // A driver either leaves the values 0 for an address that it does not know, or says that it is
        // no valid one.
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
