//! `cuInit`, the driver's version, and the properties of a device.

use super::config::Config;
use super::state::State;
use super::status::{Outcome, Status, code};
use super::{STATE, call, complain, put};
use std::ffi::c_char;
use std::sync::PoisonError;

const NAME: &[u8] = b"Emulated CUDA device (not a GPU)";
/// The name of a device of a driver that does not identify itself as an emulator.
const ANONYMOUS_NAME: &[u8] = b"Anonymous CUDA device";

/// Maximum threads per block.
pub(super) const MAX_THREADS: u32 = 1024;
pub(super) const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
pub(super) const MAX_GRID: [u32; 3] = [0x7fff_ffff, 65_535, 65_535];
/// Maximum shared memory per block, without and with opt-in, as on compute capability 9.0.
pub(super) const MAX_SHARED: u32 = 48 << 10;
pub(super) const MAX_SHARED_OPT_IN: u32 = 227 << 10;
/// Shared memory per multiprocessor.
pub(super) const SHARED: u32 = 228 << 10;
pub(super) const RESERVED_SHARED: u32 = 1 << 10;
pub(super) const THREADS: u32 = 2048;
/// Registers per block, and per multiprocessor.
pub(super) const REGISTERS: u32 = 64 << 10;
pub(super) const BLOCKS: u32 = 32;
pub(super) const WARP: u32 = 32;

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: u32) -> u32 {
    let initialize = || {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let config = Config::get().map_err(|error| {
            complain(error);
            Status::INVALID_VALUE
        })?;
        if config.devices == 0 {
            return Err(Status::NO_DEVICE);
        }
        STATE
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(|| State::new(config));
        Ok(())
    };
    if super::IN_HOST_FUNCTION.get() {
        return Status::NOT_PERMITTED.0;
    }
    code(initialize())
}

/// Can be called before `cuInit`.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut i32) -> u32 {
    let given = Config::get().map_or(0, |config| config.driver_version as i32);
    // SAFETY: the caller's contract.
    code(unsafe { put(version, given) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut i32, ordinal: i32) -> u32 {
    call(|state| {
        state.device(ordinal)?;
        // SAFETY: the caller's contract.
        unsafe { put(device, ordinal) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut i32) -> u32 {
    call(|state| {
        // SAFETY: the caller's contract.
        unsafe { put(count, state.devices.len() as i32) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, bytes: i32, device: i32) -> u32 {
    call(|state| {
        state.device(device)?;
        let room = usize::try_from(bytes).unwrap_or(0);
        if name.is_null() || room == 0 {
            return Err(Status::INVALID_VALUE);
        }
        // Truncates the name to the buffer, and always writes a NUL.
        let own = if state.config.anonymous {
            ANONYMOUS_NAME
        } else {
            NAME
        };
        let given = own.len().min(room - 1);
        // SAFETY: the caller's contract: `name` has `bytes` bytes, and `given + 1` is at most that.
        unsafe {
            std::ptr::copy_nonoverlapping(own.as_ptr(), name.cast(), given);
            name.add(given).write(0);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: i32) -> u32 {
    call(|state| {
        state.device(device)?;
        let mut given = *b"emulated CUDA \0\0";
        given[14..].copy_from_slice(&(device as u16).to_be_bytes());
        // SAFETY: the caller's contract.
        unsafe { put(uuid, given) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) -> u32 {
    call(|state| {
        let total = state.device(device)?.1.memory.capacity() as usize;
        // SAFETY: the caller's contract.
        unsafe { put(bytes, total) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut i32, attribute: u32, device: i32) -> u32 {
    call(|state| {
        state.device(device)?;
        let given = attribute_of(state.config, attribute, device)?;
        // SAFETY: the caller's contract.
        unsafe { put(value, given) }
    })
}

/// Returns a `CUdevice_attribute`. Attributes of unsupported features (textures, ECC, the bus, the clock) are 0.
fn attribute_of(config: &Config, attribute: u32, device: i32) -> Outcome<i32> {
    let value = match attribute {
        1 => MAX_THREADS,
        2..=4 => MAX_BLOCK[attribute as usize - 2],
        5..=7 => MAX_GRID[attribute as usize - 5],
        8 => MAX_SHARED,
        9 => 64 << 10, // constant memory
        10 => WARP,
        11 => i32::MAX as u32, // pitch
        12 | 82 => REGISTERS,  // per block, per multiprocessor
        14 => 512,             // alignment of textures
        15 | 31 | 40 => 1,     // concurrent copies and kernels, concurrent kernels, copy engines
        16 => config.multiprocessors,
        19 => 1,             // maps host memory
        33 => device as u32, // PCI bus
        39 => THREADS,
        41 => 1, // unified addressing
        75 => config.capability.major,
        76 => config.capability.minor,
        78 => 1, // stream priorities
        81 => SHARED,
        83 => 1, // managed memory
        89 => u32::from(config.concurrent_managed),
        97 => MAX_SHARED_OPT_IN,
        106 => BLOCKS,
        111 => RESERVED_SHARED,
        115 => 1, // memory pools: cuMemAllocAsync
        0 | 120.. => return Err(Status::INVALID_VALUE),
        _ => 0,
    };
    Ok(value as i32)
}
