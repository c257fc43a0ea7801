//! What a rank checks before a step, and what all ranks agree on.

use crate::agree::{agree, hash_of};
use crate::arrays::{Array, Arrays};
use crate::sharded::{Param, Sharded};
use crate::{Error, Handle};
use lion::backend::Operand;
use lion::tensor::{GradRef, MemoryOrder, ParamMut, SliceMut, Update};
use lion::{Dtype, Lion, MissingGradient, StepArgs};

/// The updates of a step that this rank has checked.
pub(crate) struct Checked<'a> {
    pub(crate) arrays: Arrays<'a>,
    pub(crate) without_gradient: Vec<Handle>,
}

impl Sharded {
    /// Checks the arguments and the arrays of this rank.
    pub(crate) fn check<'a>(
        &mut self,
        args: &StepArgs,
        updates: impl Iterator<Item = (Handle, ParamMut<'a>, Option<GradRef<'a>>)>,
    ) -> Result<Checked<'a>, Error> {
        let mut given: Vec<Option<(ParamMut<'a>, Option<GradRef<'a>>)>> = Vec::new();
        given.resize_with(self.params.len(), || None);
        for (handle, param, grad) in updates {
            let Param {
                name, len, dtype, ..
            } = self.param(handle)?;
            if given[handle.0].is_some() {
                let parameter = name.clone();
                return Err(lion::Error::RepeatedParameter { parameter }.into());
            }
            check_array(
                name,
                Operand::Parameter,
                param.data.len(),
                *len,
                &param.order,
            )?;
            if param.data.dtype() != *dtype {
                return Err(lion::Error::WrongDtype {
                    parameter: name.clone(),
                    given: param.data.dtype(),
                    wanted: *dtype,
                }
                .into());
            }
            let mut on_host = param.data.host().is_some();
            if let Some(grad) = &grad {
                check_array(name, Operand::Gradient, grad.data.len(), *len, &grad.order)?;
                check_shapes(name, &param, grad)?;
                on_host &= grad.data.host().is_some();
            } else if args.get_missing_gradients() != MissingGradient::Skip {
                let parameter = name.clone();
                return Err(lion::Error::MissingGradient { parameter }.into());
            }
            if !on_host {
                let parameter = name.clone();
                return Err(Error::DeviceMemory { parameter });
            }
            given[handle.0] = Some((param, grad));
        }
        let (mut list, mut without_gradient) = (Vec::new(), Vec::new());
        for (index, &param) in self.by_name().iter().enumerate() {
            match given[param].take() {
                Some((param, Some(grad))) => list.push(Array { index, param, grad }),
                Some((_, None)) => without_gradient.push(Handle(param)),
                None => {}
            }
        }
        let arrays = Arrays::new(list, self.params.len());
        // The optimizer checks the arguments, and the learning rate of each parameter.
        self.lion.non_finite_blocks(*args, [] as [Update<'_>; 0])?;
        let plain = plain_args(args, args.get_grad_scale());
        self.step_wholes(&arrays, |lion, updates| {
            lion.non_finite_blocks(plain, updates).map(drop)
        })?;
        Ok(Checked {
            arrays,
            without_gradient,
        })
    }

    /// Passes an update of each parameter of length 0 to a function.
    fn step_wholes(
        &mut self,
        arrays: &Arrays<'_>,
        step: impl FnOnce(&mut Lion, Vec<Update<'static>>) -> Result<(), lion::Error>,
    ) -> Result<(), Error> {
        let updates = {
            let by_name = self.by_name();
            let params = arrays.list().iter();
            let params = params.map(|array| &self.params[by_name[array.index]]);
            params
                .map(|param| empty_update(param.whole, param.dtype))
                .collect()
        };
        Ok(step(&mut self.lion, updates)?)
    }

    /// Checks that all ranks make this step.
    pub(crate) fn agree_on_step(
        &self,
        args: &StepArgs,
        checked: &Checked<'_>,
    ) -> Result<(), Error> {
        let by_name = self.by_name();
        let mut updates: Vec<(usize, Option<Dtype>)> = Vec::new();
        for array in checked.arrays.list() {
            updates.push((by_name[array.index], Some(array.grad.data.dtype())));
        }
        updates.extend(
            checked
                .without_gradient
                .iter()
                .map(|handle| (handle.0, None)),
        );
        let mut items = vec![self.call_item("step", args)];
        for &(param, grad) in &updates {
            items.push(self.param_item(param, hash_of(grad))?);
        }
        let described = |i: usize| {
            let Some(i) = i.checked_sub(1) else {
                return self.call_fields("step", args);
            };
            let (param, grad) = updates[i];
            let grad = grad.map_or("missing".to_owned(), |dtype| dtype.to_string());
            let mut fields = vec![("the gradient", grad)];
            fields.extend(self.param_fields(param));
            fields
        };
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|&i| items[i].name);
        let sorted: Vec<_> = order.iter().map(|&i| items[i]).collect();
        agree(&self.comm, Ok(&sorted), |i| described(order[i]))
    }
}

/// Returns arguments with the learning rate of `args` and a factor of the gradients.
pub(crate) fn plain_args(args: &StepArgs, scale: f64) -> StepArgs {
    let plain = StepArgs::new().grad_scale(scale);
    match args.get_lr() {
        Some(lr) => plain.lr(lr),
        None => plain,
    }
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
