//! What every kind of optimizer here checks about its parameters and arrays.

use crate::Error;
use lion::backend::Operand;
use lion::tensor::{GradRef, MemoryOrder, ParamMut, Shard, SliceMut, Update};
use lion::{Dtype, Handle, Lion, ParamSpec};

/// Registers a parameter without elements, which has the name, the group, the overrides and the step count of a whole
/// parameter.
///
/// # Errors
/// [`Error::Lion`]; [`Error::Unsupported`] if the specification is that of a shard.
pub(crate) fn register_whole(lion: &mut Lion, spec: &ParamSpec) -> Result<Handle, Error> {
    let handle = lion.register(spec.cut(0..0))?;
    if lion.info(handle)?.shard == Shard::whole(spec.len()) {
        return Ok(handle);
    }
    lion.remove(handle)?;
    Err(Error::Unsupported {
        parameter: Some(spec.name().to_owned()),
        what: "a shard, wanted the whole parameter",
    })
}

/// Checks the arrays of a parameter of `len` elements.
pub(crate) fn check_arrays(
    name: &str,
    len: usize,
    dtype: Dtype,
    param: &ParamMut<'_>,
    grad: Option<&GradRef<'_>>,
) -> Result<(), Error> {
    check_array(
        name,
        Operand::Parameter,
        param.data.len(),
        len,
        &param.order,
    )?;
    if param.data.dtype() != dtype {
        return Err(lion::Error::WrongDtype {
            parameter: name.to_owned(),
            given: param.data.dtype(),
            wanted: dtype,
        }
        .into());
    }
    let mut on_host = param.data.host().is_some();
    if let Some(grad) = grad {
        check_array(name, Operand::Gradient, grad.data.len(), len, &grad.order)?;
        check_shapes(name, param, grad)?;
        on_host &= grad.data.host().is_some();
    }
    if on_host {
        return Ok(());
    }
    let parameter = name.to_owned();
    Err(Error::DeviceMemory { parameter })
}

/// Returns the update of a parameter of length 0.
pub(crate) fn empty_update(handle: lion::Handle, dtype: Dtype) -> Update<'static> {
    let param = match dtype {
        Dtype::F16 => SliceMut::F16(&mut []),
        Dtype::Bf16 => SliceMut::Bf16(&mut []),
        _ => SliceMut::F32(&mut []),
    };
    let grad: &[f32] = &[];
    Update::new(handle, param, Some(grad.into()))
}

/// Checks the length and the memory order of an array.
fn check_array(
    parameter: &str,
    operand: Operand,
    given: usize,
    wanted: usize,
    order: &MemoryOrder,
) -> Result<(), lion::Error> {
    let parameter = parameter.to_owned();
    if given != wanted {
        return Err(lion::Error::WrongLength {
            parameter,
            operand,
            given,
            wanted,
        });
    }
    match order {
        MemoryOrder::RowMajor => Ok(()),
        MemoryOrder::Strided(strides) => Err(lion::Error::NotContiguous {
            parameter,
            operand,
            shape: strides.shape.clone(),
            strides: strides.strides.clone(),
        }),
        given => Err(lion::Error::OrderMismatch {
            parameter,
            operand,
            given: given.clone(),
            wanted: MemoryOrder::RowMajor,
        }),
    }
}

/// Checks that the shapes of two arrays, if both are known, are equal but for axes of length 1.
fn check_shapes(
    parameter: &str,
    param: &ParamMut<'_>,
    grad: &GradRef<'_>,
) -> Result<(), lion::Error> {
    let (Some(wanted), Some(given)) = (&param.shape, &grad.shape) else {
        return Ok(());
    };
    let axes = |shape: &'_ [usize]| {
        shape
            .iter()
            .copied()
            .filter(|&len| len != 1)
            .collect::<Vec<_>>()
    };
    if axes(wanted) == axes(given) {
        return Ok(());
    }
    Err(lion::Error::ShapeMismatch {
        parameter: parameter.to_owned(),
        given: given.to_vec(),
        wanted: wanted.to_vec(),
    })
}
