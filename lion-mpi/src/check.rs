//! What a rank checks before a step, and what all ranks agree on.

use crate::Error;
use crate::agree::{agree, hash_of};
use crate::arguments::{check_arrays, empty_update};
use crate::arrays::{Array, Arrays};
use crate::sharded::{Param, Reduction, Sharded};
use lion::arithmetic::in_default_mode;
use lion::tensor::{GradRef, ParamMut, Update};
use lion::{Dtype, Handle, MissingGradient, StepArgs};
use mpi::traits::Communicator;

/// The updates of a step that this rank has checked.
pub(crate) struct Checked<'a> {
    pub(crate) arrays: Arrays<'a>,
    /// The indices of parameters, in the order of their names.
    pub(crate) without_gradient: Vec<usize>,
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
            let index = self.index(handle)?;
            let Param {
                name, len, dtype, ..
            } = &self.params[index];
            if given[index].is_some() {
                let parameter = name.clone();
                return Err(lion::Error::RepeatedParameter { parameter }.into());
            }
            check_arrays(name, *len, *dtype, &param, grad.as_ref())?;
            if grad.is_none() && args.get_missing_gradients() != MissingGradient::Skip {
                let parameter = name.clone();
                return Err(lion::Error::MissingGradient { parameter }.into());
            }
            given[index] = Some((param, grad));
        }
        let (mut list, mut without_gradient) = (Vec::new(), Vec::new());
        for (index, &param) in self.by_name().iter().enumerate() {
            match given[param].take() {
                Some((param, Some(grad))) => list.push(Array { index, param, grad }),
                Some((_, None)) => without_gradient.push(param),
                None => {}
            }
        }
        let arrays = Arrays::new(list, self.params.len());
        // The optimizer checks the arguments, and the learning rate of each parameter.
        self.lion.non_finite_blocks(*args, [] as [Update<'_>; 0])?;
        let plain = plain_args(args, in_default_mode(|| self.scale(args)));
        let updates = self.empty_updates(&arrays);
        self.lion.non_finite_blocks(plain, updates)?;
        Ok(Checked {
            arrays,
            without_gradient,
        })
    }

    /// Returns the factor of the summed gradients.
    pub(crate) fn scale(&self, args: &StepArgs) -> f64 {
        match self.reduction {
            Reduction::Sum => args.get_grad_scale(),
            Reduction::Mean => args.get_grad_scale() / f64::from(self.comm.size()),
        }
    }

    /// Returns an update without elements for each parameter of the step.
    fn empty_updates(&self, arrays: &Arrays<'_>) -> Vec<Update<'static>> {
        let by_name = self.by_name();
        let params = arrays.list().iter();
        let params = params.map(|array| &self.params[by_name[array.index]]);
        params
            .map(|param| empty_update(param.whole, param.dtype))
            .collect()
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
        updates.extend(checked.without_gradient.iter().map(|&param| (param, None)));
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
