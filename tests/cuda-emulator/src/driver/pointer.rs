//! `cuPointerGetAttributes`: attributes of an address.

use super::state::State;
use super::status::{Outcome, Status};
use super::{Handle, handle, in_context};
use crate::machine::Kind;
use std::ffi::c_void;

/// Values of `CUpointer_attribute`.
const CONTEXT: u32 = 1;
const MEMORY_TYPE: u32 = 2;
const IS_MANAGED: u32 = 8;
const DEVICE_ORDINAL: u32 = 9;

/// Values of `CUmemorytype`, and 0 for memory unknown to the driver.
const UNKNOWN: u32 = 0;
const HOST: u32 = 1;
const DEVICE: u32 = 2;

/// The attributes of one address. An address unknown to the driver has CUDA's defaults.
struct Attributes {
    context: u64,
    memory_type: u32,
    is_managed: u32,
    ordinal: i32,
}

impl State {
    /// Searches the device of the context first, because two devices may use the same addresses.
    fn pointer(&mut self, context: u64, address: u64) -> Outcome<Attributes> {
        let own = self.context(context)?.device;
        let devices = std::iter::once(own).chain((0..self.devices.len()).filter(|at| *at != own));
        for device in devices {
            let Some(around) = self.devices[device].memory.find(address) else {
                continue;
            };
            let owned = self.allocations.get(&(device, around.start));
            return Ok(Attributes {
                // Memory from a pool belongs to no context.
                context: owned
                    .filter(|owned| !owned.stream_ordered)
                    .map_or(0, |owned| owned.context),
                memory_type: if around.kind == Kind::Pinned {
                    HOST
                } else {
                    DEVICE
                },
                is_managed: u32::from(around.kind == Kind::Managed),
                ordinal: device as i32,
            });
        }
        Ok(Attributes {
            context: 0,
            memory_type: UNKNOWN,
            is_managed: 0,
            ordinal: -2,
        })
    }
}

/// As on a real driver, an unknown address is not an error. The supported attributes are the context, the type of memory, whether
/// it is managed, and the ordinal of the device.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuPointerGetAttributes(
    count: u32,
    attributes: *const u32,
    values: *mut *mut c_void,
    address: u64,
) -> u32 {
    in_context(|state, context| {
        if count == 0 || attributes.is_null() || values.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        let answers = state.pointer(context, address)?;
        for index in 0..count as usize {
            // SAFETY: not null; the caller's contract: both have `count` elements.
            let (attribute, to) = unsafe { (*attributes.add(index), *values.add(index)) };
            if to.is_null() {
                return Err(Status::INVALID_VALUE);
            }
            // SAFETY: not null; the caller's contract: each pointer has the type of its attribute.
            unsafe {
                match attribute {
                    CONTEXT => to.cast::<Handle>().write(handle(answers.context)),
                    MEMORY_TYPE => to.cast::<u32>().write(answers.memory_type),
                    IS_MANAGED => to.cast::<u32>().write(answers.is_managed),
                    DEVICE_ORDINAL => to.cast::<i32>().write(answers.ordinal),
                    _ => return Err(Status::INVALID_VALUE),
                }
            }
        }
        Ok(())
    })
}
