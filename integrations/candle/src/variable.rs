//! A variable under its name, and the checks of tensors.

use crate::Error;
use candle_core::{CpuStorage, DType, Device, Storage, Tensor, Var};
use lion::backend::Operand;
use lion::tensor::{GradRef, Slice};
use lion::{Dtype, Handle};
use std::ops::{Deref, Range};

/// A variable that the optimizer steps. Its type, device and layout have been checked; candle never changes them.
#[derive(Debug)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) var: Var,
    pub(crate) handle: Handle,
    /// Its elements in its storage.
    pub(crate) range: Range<usize>,
}

/// What [`check`] has found out about a tensor.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) dtype: Dtype,
    pub(crate) range: Range<usize>,
    pub(crate) storage: usize,
}

/// Checks that a tensor can be stepped in place, or read as a gradient.
pub(crate) fn check(name: &str, operand: Operand, tensor: &Tensor) -> Result<Checked, Error> {
    let unsupported = |what, given, wanted: &str| Error::Unsupported {
        variable: name.to_owned(),
        operand,
        what,
        given,
        wanted: wanted.to_owned(),
    };
    let dtype = match tensor.dtype() {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::Bf16,
        other => {
            return Err(unsupported(
                "type",
                format!("{other:?}"),
                "F32, F16 or BF16",
            ));
        }
    };
    if !matches!(tensor.device(), Device::Cpu) {
        let given = format!("{:?}", tensor.device().location());
        return Err(unsupported("device", given, "the CPU"));
    }
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        let given = format!("strided ({:?} by {:?})", layout.dims(), layout.stride());
        return Err(unsupported("layout", given, "contiguous"));
    };
    Ok(Checked {
        dtype,
        range: start..end,
        storage: address(&storage),
    })
}

/// Returns a number that is the same for two tensors exactly if they share their storage.
pub(crate) fn address(storage: &impl Deref<Target = Storage>) -> usize {
    std::ptr::from_ref(storage.deref()).addr()
}

/// Returns elements of a storage, or `None` if it is not one of floats in host memory, or shorter.
pub(crate) fn elements(storage: &Storage, range: Range<usize>) -> Option<GradRef<'_>> {
    let Storage::Cpu(storage) = storage else {
        return None;
    };
    let slice = match storage {
        CpuStorage::F32(all) => Slice::F32(all.get(range)?),
        CpuStorage::F16(all) => Slice::F16(all.get(range)?),
        CpuStorage::BF16(all) => Slice::Bf16(all.get(range)?),
        _ => return None,
    };
    Some(slice.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_strided_tensor_is_refused() {
        // candle has no function that makes such a variable, but does not promise that it never will.
        let matrix = Tensor::new(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &Device::Cpu).unwrap();
        let error = check("w", Operand::Parameter, &matrix.t().unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "variable `w`: its layout is strided ([3, 2] by [1, 3]), wanted contiguous"
        );
        let row = matrix.narrow(0, 1, 1).unwrap();
        let checked = check("w", Operand::Parameter, &row).unwrap();
        assert_eq!(checked.range, 3..6);
    }
}
