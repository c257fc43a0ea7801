//! One registered parameter, and the checks of its arguments.

use crate::backend::{Arrays, MAX_STEPS, Mismatch, check_progress};
use crate::tensor::Expected;
use crate::{
    BackendError, Dtype, Error, GradRef, Handle, Hyper, MemoryOrder, Overrides, ParamMut,
    PlaneSpec, Shard, State, StateRecord, StepArgs, TensorStep,
};
use std::fmt;
use std::sync::Arc;

pub(crate) struct Parameter {
    pub(crate) name: Arc<str>,
    pub(crate) handle: Handle,
    pub(crate) len: usize,
    pub(crate) dtype: Dtype,
    /// The position in the whole tensor.
    pub(crate) shard: Shard,
    pub(crate) group: Option<usize>,
    pub(crate) overrides: Overrides,
    /// The merged defaults, group and overrides. `seed` is the seed derived for this parameter.
    pub(crate) hyper: Hyper,
    pub(crate) steps: u64,
    pub(crate) state: Box<dyn State>,
    /// Whether the state has not been stepped, loaded or imported since it was allocated. If it has, it
    /// has a memory order, unless the record had a step count of 0.
    pub(crate) fresh: bool,
    /// Whether a failed load or import has partly overwritten the state.
    pub(crate) damaged: bool,
    /// The stamp of the last step that contained this parameter.
    pub(crate) stamp: u64,
    /// Whether the state was allocated as paged.
    pub(crate) paged: bool,
    /// The memory order of the state, set by the first step.
    pub(crate) order: Option<MemoryOrder>,
}

/// Prints one line, without the values of the state.
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

    /// Checks an update, and returns the learning rate of this step. The arrays are borrowed, because a
    /// step of a thousand small tensors would spend much of its time on moving them.
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

    /// Returns the requirements on the arrays of this parameter.
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
        arrays: Arrays<'a>,
    ) -> TensorStep<'a> {
        let (state, shard, step) = (&mut *self.state, self.shard, self.steps + 1);
        TensorStep::of(
            &self.name,
            shard,
            arrays,
            state,
            &self.hyper,
            grad_scale,
            step,
        )
    }

    /// Returns the state for writing, and marks it as damaged. The caller unmarks it after it has written
    /// all of it.
    pub(crate) fn begin_write(&mut self) -> &mut dyn State {
        self.fresh = false;
        self.damaged = true;
        &mut *self.state
    }

    fn state_mismatch(&self, mismatch: Mismatch) -> Error {
        let Mismatch {
            part,
            given,
            wanted,
        } = mismatch;
        Error::StateMismatch {
            parameter: self.name(),
            plane: part,
            given,
            wanted,
        }
    }

    /// Checks that hyper-parameters agree with the existing state: its width, and whether it is paged.
    pub(crate) fn check_state(&self, hyper: &Hyper) -> Result<(), Error> {
        let (given, wanted) = (
            hyper.bits_for(self.shard.whole_len),
            self.state.layout().bits(),
        );
        if given != wanted {
            return Err(Error::BitsFixed {
                parameter: self.name(),
                given,
                wanted,
            });
        }
        let (given, wanted) = (hyper.paged_for(self.shard.whole_len), self.paged);
        if given != wanted {
            return Err(Error::PagingFixed {
                parameter: self.name(),
                given,
                wanted,
            });
        }
        Ok(())
    }

    /// Checks a step count, and that a memory order is one of this number of elements.
    pub(crate) fn check_progress(
        &self,
        steps: u64,
        order: Option<&MemoryOrder>,
    ) -> Result<(), Error> {
        check_progress(steps, order, self.len).map_err(|e| self.state_mismatch(e))
    }

    /// Checks that a record fits this state.
    pub(crate) fn check_record(&self, record: &StateRecord) -> Result<(), Error> {
        self.fits(record).map_err(|e| self.state_mismatch(e))
    }

    fn fits(&self, record: &StateRecord) -> Result<(), Mismatch> {
        check_progress(record.steps, record.order.as_ref(), self.len)?;
        let layout = self.state.layout();
        let (given, wanted) = (record.planes.bits(), layout.bits());
        if given != wanted {
            return Err(Mismatch::new("bits", given, wanted));
        }
        for ((name, given), plane) in record.planes.describe().into_iter().zip(layout.planes()) {
            let wanted = PlaneSpec::len(plane, self.len);
            if given != wanted {
                let [given, wanted] = [given, wanted].map(|n| format!("{n} numbers"));
                return Err(Mismatch::new(name, given, wanted));
            }
        }
        record.planes.check_values()?;
        if record.shard != self.shard {
            return Err(Mismatch::new("shard", record.shard, self.shard));
        }
        Ok(())
    }
}
