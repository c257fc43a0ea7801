//! The primary context of each device, which is reference-counted.

use super::context::check_flags;
use super::inject::{self, Point};
use super::status::Status;
use super::{Handle, call, handle, put};

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: i32) -> u32 {
    call(|state| {
        inject::fail(Point::Retain)?;
        let (index, device) = state.device(device)?;
        let (primary, flags) = (device.primary, device.primary_flags);
        // SAFETY: the caller's contract.
        unsafe { put(context, handle(primary)) }?;
        device.retained += 1;
        if !state.contexts.contains_key(&primary) {
            state.new_context(primary, index, flags);
        }
        Ok(())
    })
}

/// The last release destroys the context.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: i32) -> u32 {
    call(|state| {
        let (_, device) = state.device(device)?;
        device.retained = device
            .retained
            .checked_sub(1)
            .ok_or(Status::INVALID_CONTEXT)?;
        let (primary, last) = (device.primary, device.retained == 0);
        if last && state.contexts.contains_key(&primary) {
            return state.destroy_context(primary);
        }
        Ok(())
    })
}

/// Destroys the context, even if it is retained. The next retain creates it again, with the same handle.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxReset_v2(device: i32) -> u32 {
    call(|state| {
        let (_, device) = state.device(device)?;
        device.retained = 0;
        let primary = device.primary;
        if state.contexts.contains_key(&primary) {
            return state.destroy_context(primary);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32) -> u32 {
    call(|state| {
        check_flags(flags)?;
        let (_, device) = state.device(device)?;
        device.primary_flags = flags;
        let primary = device.primary;
        if let Some(context) = state.contexts.get_mut(&primary) {
            context.flags = flags;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    device: i32,
    flags: *mut u32,
    active: *mut i32,
) -> u32 {
    call(|state| {
        let (_, device) = state.device(device)?;
        let (primary, given) = (device.primary, device.primary_flags);
        let alive = state.contexts.contains_key(&primary);
        // SAFETY: the caller's contract.
        unsafe {
            put(flags, given)?;
            put(active, i32::from(alive))
        }
    })
}
