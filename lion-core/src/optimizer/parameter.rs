//! One registered parameter, and the checks of what is given for it.

use crate::philox::PhiloxKey;
use crate::tensor::shapes_differ;
use crate::update::StepConstants;
use crate::{
    BackendError, Bits, Dtype, Error, GradRef, Handle, Hyper, MemoryOrder, Operand, Overrides,
    ParamMut, PlaneSpec, State, StateRecord, StepArgs, Storage, StorageMut, TensorStep,
};
use std::fmt;
use std::sync::Arc;

/// Steps that a record may have done: no run comes near, and counting on from here does not overflow.
const MAX_STEPS: u64 = 1 << 62;

pub(crate) struct Parameter {
    pub(crate) name: Arc<str>,
    pub(crate) handle: Handle,
    pub(crate) len: usize,
    pub(crate) dtype: Dtype,
    pub(crate) group: Option<usize>,
    pub(crate) overrides: Overrides,
    /// Defaults, group and overrides merged; `seed` is the parameter's own.
    pub(crate) hyper: Hyper,
    pub(crate) steps: u64,
    pub(crate) state: Box<dyn State>,
    /// Whether the state is as it was allocated. If it is not, it has a layout, unless it was loaded or
    /// imported from a record of no steps.
    pub(crate) fresh: bool,
    /// Whether a load or import has overwritten the state in part and not gone through.
    pub(crate) damaged: bool,
    /// The number of the last step that named this parameter.
    pub(crate) stamp: u64,
    /// Whether the state was made to be paged.
    pub(crate) paged: bool,
    /// The order in memory of its first step, which the state has ever after.
    pub(crate) order: Option<MemoryOrder>,
}

/// One line, without the numbers of the state.
impl fmt::Debug for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, len, dtype, steps) = (&self.name, self.len, self.dtype, self.steps);
        let bits = self.state.layout().bits();
        let paged = if self.paged { ", paged" } else { "" };
        write!(
            f,
            "`{name}`: {len} {dtype}, state of {bits}{paged}, {steps} steps"
        )
    }
}

/// An update that has passed all checks of its parameter.
pub(crate) struct Checked<'a> {
    pub(crate) param: StorageMut<'a>,
    pub(crate) grad: Storage<'a>,
    pub(crate) lr: f64,
}

impl Parameter {
    pub(crate) fn name(&self) -> String {
        self.name.to_string()
    }

    pub(crate) fn backend_error(&self, source: BackendError) -> Error {
        Error::Backend {
            parameter: Some(self.name()),
            source,
        }
    }

    /// Checks an update, and gives back the learning rate of this step. What is checked stays where it is: a
    /// step of a thousand small tensors would spend its time on moving it.
    pub(crate) fn check(
        &self,
        args: &StepArgs,
        param: &ParamMut<'_>,
        grad: &GradRef<'_>,
    ) -> Result<f64, Error> {
        self.check_array(Operand::Parameter, &param.order, param.data.len())?;
        self.check_array(Operand::Gradient, &grad.order, grad.data.len())?;
        if param.data.dtype() != self.dtype {
            return Err(Error::WrongDtype {
                parameter: self.name(),
                given: param.data.dtype(),
                wanted: self.dtype,
            });
        }
        if shapes_differ(&grad.shape, &param.shape) {
            let shape = |shape: &Option<Box<[usize]>>| shape.clone().unwrap_or_default().into_vec();
            return Err(Error::ShapeMismatch {
                parameter: self.name(),
                given: shape(&grad.shape),
                wanted: shape(&param.shape),
            });
        }
        match &self.order {
            Some(earlier) => self.check_layout(Operand::Parameter, &param.order, earlier)?,
            None => self.check_order(&param.order)?,
        }
        self.check_layout(Operand::Gradient, &grad.order, &param.order)?;
        if self.steps >= MAX_STEPS {
            return Err(Error::TooManySteps {
                parameter: self.name(),
                most: MAX_STEPS,
            });
        }
        args.lr_for(&self.hyper, &self.name)
    }

    pub(crate) fn check_array(
        &self,
        operand: Operand,
        layout: &MemoryOrder,
        given: usize,
    ) -> Result<(), Error> {
        if let MemoryOrder::Strided(gaps) = layout {
            return Err(Error::NotContiguous {
                parameter: self.name(),
                operand,
                shape: gaps.shape.clone(),
                strides: gaps.strides.clone(),
            });
        }
        if given != self.len {
            return Err(Error::WrongLength {
                parameter: self.name(),
                operand,
                given,
                wanted: self.len,
            });
        }
        Ok(())
    }

    /// Checks the order of a first step, which the state keeps.
    fn check_order(&self, layout: &MemoryOrder) -> Result<(), Error> {
        match layout {
            MemoryOrder::Permuted(axes) if !layout.is_order_of(self.len) => {
                Err(Error::NotContiguous {
                    parameter: self.name(),
                    operand: Operand::Parameter,
                    shape: axes.iter().map(|&(len, _)| len).collect(),
                    strides: axes.iter().map(|&(_, stride)| stride).collect(),
                })
            }
            _ => Ok(()),
        }
    }

    fn check_layout(
        &self,
        operand: Operand,
        given: &MemoryOrder,
        wanted: &MemoryOrder,
    ) -> Result<(), Error> {
        if given == wanted {
            return Ok(());
        }
        Err(Error::OrderMismatch {
            parameter: self.name(),
            operand,
            given: given.clone(),
            wanted: wanted.clone(),
        })
    }

    #[inline]
    pub(crate) fn tensor_step<'a>(
        &'a mut self,
        grad_scale: f64,
        checked: Checked<'a>,
    ) -> TensorStep<'a> {
        let Checked { param, grad, lr } = checked;
        let hyper = &self.hyper;
        let words = PhiloxKey {
            seed: hyper.seed,
            step: self.steps + 1,
        };
        let eight = self.state.layout().bits() == Bits::Eight;
        TensorStep {
            name: &self.name,
            param,
            grad,
            bits: hyper.bits_for(self.len),
            coefficients: StepConstants::new(hyper, lr, grad_scale),
            lr,
            max_unorm: hyper.max_unorm,
            words,
            stochastic_param: hyper.stochastic_param && self.dtype == Dtype::Bf16,
            stochastic_state: hyper.stochastic_state && eight,
            skipped_blocks: 0,
            pending: false,
            state: &mut *self.state,
        }
    }

    /// The state, to be overwritten. Until all of it is, it is damaged.
    pub(crate) fn begin_write(&mut self) -> &mut dyn State {
        self.fresh = false;
        self.damaged = true;
        &mut *self.state
    }

    fn state_mismatch(&self, plane: &'static str, given: String, wanted: String) -> Error {
        Error::StateMismatch {
            parameter: self.name(),
            plane,
            given,
            wanted,
        }
    }

    /// Checks that hyper-parameters ask for the state that there is: its width, and whether it is paged.
    pub(crate) fn check_state(&self, hyper: &Hyper) -> Result<(), Error> {
        let (given, wanted) = (hyper.bits_for(self.len), self.state.layout().bits());
        if given != wanted {
            return Err(Error::BitsFixed {
                parameter: self.name(),
                given,
                wanted,
            });
        }
        let (given, wanted) = (hyper.paged_for(self.len), self.paged);
        if given != wanted {
            return Err(Error::PagingFixed {
                parameter: self.name(),
                given,
                wanted,
            });
        }
        Ok(())
    }

    /// Checks a count of steps, and an order of as many elements as there are.
    pub(crate) fn check_progress(
        &self,
        steps: u64,
        order: Option<&MemoryOrder>,
    ) -> Result<(), Error> {
        if steps > MAX_STEPS {
            let wanted = format!("{MAX_STEPS} at most");
            return Err(self.state_mismatch("steps", steps.to_string(), wanted));
        }
        if order.is_none_or(|order| order.is_order_of(self.len)) {
            return Ok(());
        }
        let wanted = format!("an order of {} elements without gaps", self.len);
        Err(self.state_mismatch("order", format!("{order:?}"), wanted))
    }

    /// Checks that a record could have come from this state.
    pub(crate) fn check_record(&self, record: &StateRecord) -> Result<(), Error> {
        let mismatch = |plane, given, wanted| Err(self.state_mismatch(plane, given, wanted));
        self.check_progress(record.steps, record.order.as_ref())?;
        let layout = self.state.layout();
        let (given, wanted) = (record.planes.bits(), layout.bits());
        if given != wanted {
            return mismatch("bits", given.to_string(), wanted.to_string());
        }
        for ((name, given, valid), plane) in record.planes.describe().iter().zip(layout.planes()) {
            let wanted = PlaneSpec::len(plane, self.len);
            if *given != wanted {
                let [given, wanted] = [given, &wanted].map(|n| format!("{n} numbers"));
                return mismatch(name, given, wanted);
            }
            if !valid {
                let wanted = "finite numbers, and none below 0 in absmax";
                return mismatch(name, "others".to_owned(), wanted.to_owned());
            }
        }
        Ok(())
    }
}
