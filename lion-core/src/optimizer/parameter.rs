//! One registered parameter, and the checks of what is given for it.

use crate::backend::Checked;
use crate::tensor::Expected;
use crate::{
    BackendError, Dtype, Error, GradRef, Handle, Hyper, MemoryOrder, Overrides, ParamMut,
    PlaneSpec, State, StateRecord, StepArgs, TensorStep,
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
        self.expected().check(param, grad)?;
        if self.steps >= MAX_STEPS {
            return Err(Error::TooManySteps {
                parameter: self.name(),
                most: MAX_STEPS,
            });
        }
        args.lr_for(&self.hyper, &self.name)
    }

    /// What the arrays that are given for this parameter have to be.
    pub(crate) fn expected(&self) -> Expected<'_> {
        Expected {
            name: &self.name,
            len: self.len,
            dtype: self.dtype,
            order: self.order.as_ref(),
        }
    }

    #[inline]
    pub(crate) fn tensor_step<'a>(
        &'a mut self,
        grad_scale: f64,
        checked: Checked<'a>,
    ) -> TensorStep<'a> {
        let (hyper, step) = (&self.hyper, self.steps + 1);
        TensorStep::of(
            &self.name,
            checked,
            &mut *self.state,
            hyper,
            grad_scale,
            step,
        )
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
