//! What a rank can check alone, and what all ranks must agree on.

use super::{Param, Tensor, Voting};
use crate::Error;
use crate::agree::Field;
use crate::arguments::{check_arrays, empty_update};
use lion::backend::Hyper;
use lion::tensor::{GradRef, IntoUpdate, ParamMut, Slice, SliceMut, Storage, StorageMut};
use lion::{Handle, MissingGradient, Overrides, StepArgs};

impl Voting {
    /// Checks everything that this rank can check alone. Returns the parameters sorted by name. Nothing changes, except that
    /// pieces follow their parameter's hyper-parameters.
    pub(super) fn check<'a, I>(
        &mut self,
        args: &StepArgs,
        updates: I,
    ) -> Result<Vec<Tensor<'a>>, Error>
    where
        I: IntoIterator<Item: IntoUpdate<'a>>,
    {
        if args.get_max_grad_norm().is_some() {
            return Err(Error::Unsupported {
                parameter: None,
                what: "max_grad_norm, wanted a grad_scale that clips the gradients of this rank",
            });
        }
        let mut tensors = Vec::new();
        let mut empty = Vec::new();
        for update in updates {
            let update = update.into_update();
            let (index, param) = self.param(update.handle)?;
            let arrays = match update.grad {
                Some(grad) => Some(host_arrays(param, update.param, grad)?),
                None if args.get_missing_gradients() == MissingGradient::Skip => None,
                None => {
                    let parameter = param.name.clone();
                    return Err(lion::Error::MissingGradient { parameter }.into());
                }
            };
            empty.push(empty_update(param.handle, param.dtype));
            let info = self.lion.info(param.handle)?;
            check_hyper(&param.name, &info.hyper)?;
            let mut hyper = info.hyper;
            hyper.lr = args.get_lr().unwrap_or(hyper.lr);
            let step = info.steps + 1;
            tensors.push(Tensor {
                param: index,
                hyper,
                step,
                arrays,
            });
        }
        // Checks the arguments, the learning rates, and that no parameter is given twice.
        self.lion.non_finite_blocks(*args, empty)?;
        for tensor in &tensors {
            let param = &self.params[tensor.param];
            let info = self.lion.info(param.handle)?;
            let overrides = overrides_of_pieces(&info.overrides, &info.hyper);
            for piece in &param.pieces {
                if self.lion.info(piece.handle)?.overrides != overrides {
                    self.lion.set_overrides(piece.handle, overrides)?;
                }
            }
        }
        tensors.sort_by(|a, b| self.params[a.param].name.cmp(&self.params[b.param].name));
        Ok(tensors)
    }

    fn param(&self, handle: Handle) -> Result<(usize, &Param), Error> {
        let index = self.by_handle.get(&handle);
        let found = index.and_then(|&index| Some((index, self.params.get(index)?)));
        found.ok_or_else(|| match self.lion.info(handle) {
            Err(error) => error.into(),
            Ok(_) => Error::NotAParameter,
        })
    }

    pub(super) fn fields_of_call(&self, args: &StepArgs) -> Vec<Field> {
        let missing = format!("{:?}", args.get_missing_gradients());
        let non_finite = format!("{:?}", self.lion.on_non_finite());
        vec![
            ("the rule for missing gradients", missing),
            ("the rule for non-finite momenta", non_finite),
        ]
    }

    /// Returns what must be the same on all ranks, so that they compute the same parameter.
    pub(super) fn fields(&self, tensor: &Tensor<'_>) -> Vec<Field> {
        let (param, hyper) = (&self.params[tensor.param], &tensor.hyper);
        let gradient = if tensor.arrays.is_some() {
            "given"
        } else {
            "missing"
        };
        vec![
            ("the number of elements", param.len.to_string()),
            ("the element type", param.dtype.to_string()),
            ("the gradient", gradient.to_owned()),
            ("the number of this step", tensor.step.to_string()),
            ("lr", hyper.lr.to_string()),
            ("lr_multiplier", hyper.lr_multiplier.to_string()),
            ("beta1", hyper.beta1.to_string()),
            ("beta2", hyper.beta2.to_string()),
            ("weight_decay", hyper.weight_decay.to_string()),
            ("skip_zeros", hyper.skip_zeros.to_string()),
            ("stochastic_param", hyper.stochastic_param.to_string()),
            ("the seed", hyper.seed.to_string()),
        ]
    }
}

/// Returns the overrides of the pieces of a parameter, which make Lion return its direction; see
/// [`START`](crate::votes::START). The momentum has the settings of the parameter, and its seed, which would else be derived
/// from the name of the piece.
pub(super) fn overrides_of_pieces(overrides: &Overrides, hyper: &Hyper) -> Overrides {
    // The multipliers of all scopes together are divided out, so that the learning rate is 1 in f32.
    let direction = Overrides::new()
        .lr(1.0 / hyper.lr_multiplier)
        .weight_decay(0.5);
    direction
        .stochastic_param(false)
        .seed(hyper.seed)
        .or(*overrides)
}

pub(super) fn check_hyper(name: &str, hyper: &Hyper) -> Result<(), Error> {
    let what = if hyper.max_unorm > 0.0 {
        "max_unorm, wanted 0"
    } else if hyper.lr_multiplier as f32 == 0.0 || !(1.0 / hyper.lr_multiplier as f32).is_finite() {
        "an lr_multiplier whose inverse is not finite in f32"
    } else {
        return Ok(());
    };
    let parameter = Some(name.to_owned());
    Err(Error::Unsupported { parameter, what })
}

/// Checks the arrays of a parameter, and returns their elements.
fn host_arrays<'a>(
    param: &Param,
    given: ParamMut<'a>,
    grad: GradRef<'a>,
) -> Result<(SliceMut<'a>, Slice<'a>), Error> {
    check_arrays(&param.name, param.len, param.dtype, &given, Some(&grad))?;
    match (given.data, grad.data) {
        (StorageMut::Host(given), Storage::Host(grad)) => Ok((given, grad)),
        _ => Err(Error::DeviceMemory {
            parameter: param.name.clone(),
        }),
    }
}
