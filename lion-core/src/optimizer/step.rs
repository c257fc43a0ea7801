//! The step of the optimizer: check everything, then change everything.

use super::parameter::Parameter;
use crate::backend::Checked;
use crate::{
    BLOCK, Backend, BackendError, Error, MemoryOrder, MissingGradient, OnNonFinite, Optimizer,
    SkippedBlocks, State, StepArgs, StepReport, Update,
};
use lion_float_mode::in_default_mode;
use std::sync::Arc;

impl Optimizer {
    /// Steps some or all parameters, in any order.
    ///
    /// The updates may come from any iterator. Everything is checked before anything changes.
    ///
    /// Hyper-parameters come from the narrowest scope that sets them: defaults < group < parameter <
    /// `args`. So [`StepArgs::lr`] replaces every other learning rate; multipliers still apply.
    ///
    /// # Errors
    /// [`Error::InvalidHyper`], [`Error::UnknownHandle`], [`Error::RepeatedParameter`],
    /// [`Error::MissingGradient`], [`Error::WrongLength`], [`Error::WrongDtype`],
    /// [`Error::NotContiguous`], [`Error::ShapeMismatch`], [`Error::OrderMismatch`],
    /// [`Error::TooManySteps`]; under [`OnNonFinite::RejectStep`] also [`Error::NonFinite`]; [`Error::Backend`], after which parameters
    /// and states may have changed where [`BackendError::has_begun`] returns `true`; [`Error::Damaged`]
    /// while any parameter of this optimizer is.
    pub fn step<'a>(
        &mut self,
        args: StepArgs,
        updates: impl IntoIterator<Item = Update<'a>>,
    ) -> Result<StepReport, Error> {
        // A thread that rounds otherwise would compute other constants.
        in_default_mode(|| self.step_in_default_mode(args, updates))
    }

    fn step_in_default_mode<'a>(
        &mut self,
        args: StepArgs,
        updates: impl IntoIterator<Item = Update<'a>>,
    ) -> Result<StepReport, Error> {
        args.check()?;
        if self.suspect {
            self.suspect = self.params.iter().any(|entry| entry.damaged);
            if self.suspect {
                return Err(self.damaged(None));
            }
        }
        let updates = updates.into_iter();
        let expected = updates.size_hint().0.min(self.params.len());
        let mut report = StepReport::default();
        report.updated.reserve(expected);
        let mut checked = Vec::with_capacity(expected);
        // Of parameters that are stepped for the first time.
        let mut layouts = Vec::new();
        self.stamp += 1;
        for update in updates {
            let handle = update.handle;
            let index = self.index(handle)?;
            let entry = &mut self.params[index];
            if std::mem::replace(&mut entry.stamp, self.stamp) == self.stamp {
                return Err(Error::RepeatedParameter {
                    parameter: entry.name(),
                });
            }
            let Update { param, grad, .. } = update;
            let Some(grad) = grad else {
                if args.get_missing_gradients() == MissingGradient::Skip {
                    report.without_gradient.push(handle);
                    continue;
                }
                return Err(Error::MissingGradient {
                    parameter: entry.name(),
                });
            };
            let lr = entry.check(&args, &param, &grad)?;
            let (layout, param, grad) = (param.order, param.data, grad.data);
            if entry.order.is_none() {
                layouts.push((index, layout));
            }
            checked.push((index, Checked { param, grad, lr }));
            report.updated.push(handle);
            report.elements = report.elements.saturating_add(entry.len as u64);
        }

        let grad_scale = self.clip(&args, &checked, &mut report)?;
        (report.skipped, report.pending) = self.step_checked(grad_scale, checked, layouts)?;
        for &handle in &report.updated {
            let index = self.index(handle)?;
            self.params[index].steps += 1;
        }
        Ok(report)
    }

    /// Waits until all steps are done on the device, and returns the parameters in which steps that
    /// were [`pending`](StepReport::pending) have skipped blocks, since they were last asked for.
    ///
    /// On the CPU a step is done when it returns, and its report tells all.
    ///
    /// # Errors
    /// [`Error::Backend`]: what a queued step has met.
    pub fn synchronize(&mut self) -> Result<Vec<SkippedBlocks>, Error> {
        let states = self.params.iter_mut().map(|entry| &mut *entry.state);
        let mut states: Vec<&mut (dyn State + 'static)> = states.collect();
        let counts = self.backend.synchronize(&mut states)?;
        let counts = one_each(&*self.backend, counts, self.params.len())?;
        let counts = counts.into_iter().enumerate();
        let blocks: Vec<(usize, u64)> = counts.filter(|&(_, blocks)| blocks > 0).collect();
        Ok(self.name_skipped(&blocks))
    }

    /// Hands parameters to the backend and returns those with skipped blocks, and whether some are not
    /// known yet. Once the step has begun, states are no longer fresh, and have the layouts given for
    /// them.
    fn step_checked(
        &mut self,
        grad_scale: f64,
        checked: Vec<(usize, Checked<'_>)>,
        layouts: Vec<(usize, MemoryOrder)>,
    ) -> Result<(Vec<SkippedBlocks>, bool), Error> {
        let mut indices = Vec::with_capacity(checked.len());
        let mut tensors = Vec::with_capacity(checked.len());
        let entries = entries_of(&mut self.params, &checked);
        for (entry, (index, update)) in entries.into_iter().zip(checked) {
            if let Some(entry) = entry {
                tensors.push(entry.tensor_step(grad_scale, update));
                indices.push(index);
            }
        }
        if self.on_non_finite == OnNonFinite::RejectStep {
            let counted = self.backend.count_non_finite(&mut tensors);
            let counted =
                counted.and_then(|counts| one_each(&*self.backend, counts, indices.len()));
            let counts = counted.map_err(BackendError::not_begun)?;
            if counts.iter().any(|&count| count > 0) {
                drop(tensors);
                let parameters = self.name_skipped(&nonzero(&indices, counts));
                return Err(Error::NonFinite { parameters });
            }
        }
        let stepped = self.backend.step(&mut tensors);
        let stepped =
            stepped.and_then(|outcomes| one_each(&*self.backend, outcomes, indices.len()));
        drop(tensors);
        if stepped.as_ref().err().is_none_or(BackendError::has_begun) {
            for &index in &indices {
                self.params[index].fresh = false;
            }
            for (index, layout) in layouts {
                self.params[index].order = Some(layout);
            }
        }
        let outcomes = stepped?;
        let pending = outcomes.iter().any(|outcome| outcome.pending);
        let counts = outcomes.iter().map(|outcome| outcome.skipped_blocks);
        Ok((self.name_skipped(&nonzero(&indices, counts)), pending))
    }

    pub(crate) fn name_skipped(&self, skipped: &[(usize, u64)]) -> Vec<SkippedBlocks> {
        let name = |&(index, skipped): &(usize, u64)| {
            let entry = &self.params[index];
            SkippedBlocks {
                parameter: Arc::clone(&entry.name),
                skipped,
                blocks: entry.len.div_ceil(BLOCK) as u64,
            }
        };
        skipped.iter().map(name).collect()
    }
}

/// Refuses results of a backend that are not one per input.
pub(super) fn one_each<T>(
    backend: &dyn Backend,
    results: Vec<T>,
    wanted: usize,
) -> Result<Vec<T>, BackendError> {
    if results.len() == wanted {
        return Ok(results);
    }
    Err(BackendError::WrongCount {
        backend: backend.name().to_owned(),
        given: results.len(),
        wanted,
    })
}

/// Pairs indices of parameters with counts of blocks, and leaves out the zeros.
fn nonzero(indices: &[usize], counts: impl IntoIterator<Item = u64>) -> Vec<(usize, u64)> {
    let pairs = indices.iter().copied().zip(counts);
    pairs.filter(|&(_, count)| count > 0).collect()
}

/// The entries of updates, in the order of the updates, in time that depends on their number alone. No
/// two are of the same parameter.
fn entries_of<'e>(
    params: &'e mut [Parameter],
    updates: &[(usize, Checked<'_>)],
) -> Vec<Option<&'e mut Parameter>> {
    let mut order: Vec<usize> = (0..updates.len()).collect();
    order.sort_unstable_by_key(|&position| updates[position].0);
    let mut entries = Vec::new();
    entries.resize_with(updates.len(), || None);
    let (mut rest, mut passed) = (params.iter_mut(), 0);
    for position in order {
        let index = updates[position].0;
        entries[position] = rest.nth(index - passed);
        passed = index + 1;
    }
    entries
}
