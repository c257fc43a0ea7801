//! The devices of the driver.

use super::check::refused;
use super::driver;
use crate::CudaError;
use cust::device::{Device, DeviceAttribute};

/// The oldest CUDA version whose driver has all functions that this crate calls.
const DRIVER: (u32, u32) = (11, 0);

/// A CUDA device that has not been opened. [`devices`] returns them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The ordinal, counted from 0.
    pub ordinal: u32,
    /// The name. The name of an emulated device says that it is emulated.
    pub name: String,
    /// The compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of device memory.
    pub memory: usize,
}

/// Returns the devices of the driver, in the order of ordinals.
///
/// ```
/// match lion_cuda::devices() {
///     Ok(devices) => {
///         for device in devices {
///             println!("{}: {}, {} bytes", device.ordinal, device.name, device.memory);
///         }
///     }
///     Err(error) => println!("no CUDA device: {error}"),
/// }
/// ```
///
/// # Errors
/// [`CudaError::NoDriver`], [`CudaError::OtherProcess`], [`CudaError::DriverTooOld`], [`CudaError::NoDevice`],
/// [`CudaError::Call`].
pub fn devices() -> Result<Vec<DeviceInfo>, CudaError> {
    (0..count()?)
        .map(|ordinal| Ok(describe(ordinal)?.1))
        .collect()
}

/// Checks the driver, and returns the number of its devices, which is at least 1.
pub(crate) fn count() -> Result<u32, CudaError> {
    driver()?;
    let version = cust::CudaApiVersion::get().map_err(|e| refused("cuDriverGetVersion", e))?;
    let given = (version.major() as u32, version.minor() as u32);
    if given < DRIVER {
        return Err(CudaError::DriverTooOld {
            given,
            wanted: DRIVER,
        });
    }
    cust::init(cust::CudaFlags::empty()).map_err(|e| refused("cuInit", e))?;
    match Device::num_devices().map_err(|e| refused("cuDeviceGetCount", e))? {
        0 => Err(CudaError::NoDevice),
        count => Ok(count),
    }
}

/// Returns a device and its properties.
pub(super) fn describe(ordinal: u32) -> Result<(Device, DeviceInfo), CudaError> {
    let device = Device::get_device(ordinal).map_err(|e| refused("cuDeviceGet", e))?;
    let attribute = |attribute| {
        let value = device.get_attribute(attribute);
        value.map_err(|e| refused("cuDeviceGetAttribute", e))
    };
    let info = DeviceInfo {
        ordinal,
        name: device.name().map_err(|e| refused("cuDeviceGetName", e))?,
        capability: (
            attribute(DeviceAttribute::ComputeCapabilityMajor)? as u32,
            attribute(DeviceAttribute::ComputeCapabilityMinor)? as u32,
        ),
        memory: device
            .total_memory()
            .map_err(|e| refused("cuDeviceTotalMem", e))?,
    };
    Ok((device, info))
}
