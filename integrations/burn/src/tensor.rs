//! Checks of tensors, and their elements as slices.

use crate::Error;
use burn_core::backend::flex::FlexTensor;
use burn_core::backend::{DispatchDevice, Flex};
use burn_core::tensor::{
    AllocationProperty, Bytes, DType, DataError, Device, Element, Tensor, TensorData,
};
use lion::Dtype;
use lion::backend::Operand;
use lion::tensor::{Slice, SliceMut};

const FLEX: &str = "that of the backend flex, whose elements are in host memory";

/// Checks that the elements of a tensor are floats in host memory, and returns their type.
pub(crate) fn check<const D: usize>(
    parameter: &str,
    operand: Operand,
    tensor: &Tensor<D>,
) -> Result<Dtype, Error> {
    let unsupported = |what, given, wanted: &str| Error::Unsupported {
        parameter: parameter.to_owned(),
        operand,
        what,
        given,
        wanted: wanted.to_owned(),
    };
    let device = tensor.device();
    if !is_flex(&device) {
        let given = format!("{:?}", device.inner().as_dispatch());
        return Err(unsupported("device", given, FLEX));
    }
    let dtype = tensor.dtype();
    dtype_of(dtype).ok_or_else(|| unsupported("type", format!("{dtype:?}"), "F32, F16 or BF16"))
}

fn is_flex(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => true,
        DispatchDevice::Autodiff(device) => matches!(**device, DispatchDevice::Flex(_)),
        #[allow(unreachable_patterns)] // flex may be the only backend of the build
        _ => false,
    }
}

/// Returns the type in lion, or `None` if lion does not have it.
pub(crate) fn dtype_of(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}

/// Returns the tensor of flex that a tensor is, without autodiff.
pub(crate) fn flex<const D: usize>(
    parameter: &str,
    operand: Operand,
    tensor: Tensor<D>,
) -> Result<FlexTensor, Error> {
    let tensor = tensor.inner().try_into_primitive::<Flex>();
    tensor.map_err(|error| Error::Unsupported {
        parameter: parameter.to_owned(),
        operand,
        what: "device",
        given: format!("another ({error:?})"),
        wanted: FLEX.to_owned(),
    })
}

/// Returns whether [`data`] moves the elements and does not copy them: no other tensor has them, and they are all elements
/// of their memory, in their order.
pub(crate) fn is_movable(tensor: &FlexTensor) -> bool {
    let layout = tensor.layout();
    let bytes = layout.num_elements() * tensor.dtype().size();
    tensor.is_unique()
        && layout.is_contiguous()
        && layout.start_offset() == 0
        && tensor.data_arc().len() == bytes
}

/// Returns the elements of a tensor.
pub(crate) fn data(
    parameter: &str,
    operand: Operand,
    tensor: FlexTensor,
) -> Result<TensorData, Error> {
    if is_movable(&tensor) || tensor.data_arc().property() != AllocationProperty::File {
        return Ok(tensor.into_data());
    }
    // To copy elements, burn reads the file first, and panics if it cannot.
    let bytes = tensor.data_arc();
    let dtype = tensor.dtype();
    let len = bytes.len() / dtype.size();
    let all = TensorData::try_from_bytes(Bytes::clone(&bytes), [len], dtype)
        .map_err(|error| memory(parameter, operand, &error))?;
    slice(parameter, operand, &all)?;
    let layout = tensor.layout().clone();
    Ok(FlexTensor::new(all.into_bytes(), layout, dtype).into_data())
}

/// Returns the elements.
pub(crate) fn slice<'a>(
    parameter: &str,
    operand: Operand,
    data: &'a TensorData,
) -> Result<Slice<'a>, Error> {
    let slice = match data.dtype() {
        DType::F16 => elements(data).map(Slice::F16),
        DType::BF16 => elements(data).map(Slice::Bf16),
        _ => elements(data).map(Slice::F32),
    };
    slice.map_err(|error| memory(parameter, operand, &error))
}

/// Returns the elements of a parameter. They are copied first if their bytes are shared or in a file.
pub(crate) fn slice_mut<'a>(
    parameter: &str,
    data: &'a mut TensorData,
) -> Result<SliceMut<'a>, Error> {
    let slice = match data.dtype() {
        DType::F16 => elements_mut(data).map(SliceMut::F16),
        DType::BF16 => elements_mut(data).map(SliceMut::Bf16),
        _ => elements_mut(data).map(SliceMut::F32),
    };
    slice.map_err(|error| memory(parameter, Operand::Parameter, &error))
}

// The pointer to no elements may have the alignment of a byte, which burn refuses.
fn elements<E: Element>(data: &TensorData) -> Result<&[E], DataError> {
    match data.num_elements() {
        0 => Ok(&[]),
        _ => data.as_slice(),
    }
}

fn elements_mut<E: Element>(data: &mut TensorData) -> Result<&mut [E], DataError> {
    match data.num_elements() {
        0 => Ok(&mut []),
        _ => data.as_mut_slice(),
    }
}

fn memory(parameter: &str, operand: Operand, error: &DataError) -> Error {
    Error::Unsupported {
        parameter: parameter.to_owned(),
        operand,
        what: "memory",
        given: format!("not readable ({error})"),
        wanted: "aligned elements in host memory".to_owned(),
    }
}
