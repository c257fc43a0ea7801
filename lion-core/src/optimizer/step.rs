//! The step of the optimizer: check everything, then change everything.

use super::parameter::Parameter;
use crate::backend::Arrays;
use crate::norm::ShardNorm;
use crate::{
    BLOCK, Backend, BackendError, Error, Handle, MemoryOrder, MissingGradient, OnNonFinite,
    Optimizer, SkippedBlocks, State, StepArgs, StepReport, TensorStep, Update,
};
use lion_float_mode::in_default_mode;
use std::sync::Arc;

/// The checked updates of one step, in the order in which they were given.
pub(super) struct Batch<'a> {
    /// Index of the parameter of each update. No index occurs twice.
    pub(super) indices: Vec<usize>,
    /// The arrays of each update, and the learning rate of its parameter in this step.
    pub(super) arrays: Vec<Arrays<'a>>,
    /// The memory orders of the parameters that are stepped for the first time, by index.
    first_orders: Vec<(usize, MemoryOrder)>,
    pub(super) report: StepReport,
}

impl Optimizer {
    /// Steps some or all parameters, in any order.
    ///
    /// The updates may come from any iterator. Everything is checked before anything changes.
    ///
    /// Hyper-parameters come from the narrowest scope that sets them: defaults < group < parameter <
    /// `args`. So [`StepArgs::lr`] replaces every other learning rate; multipliers still apply.
    ///
    /// ```
    /// # use lion_core::{Error, Handle, Optimizer, StepArgs, Update};
    /// # fn example(mut optimizer: Optimizer, w: Handle) -> Result<(), Error> {
    /// let (mut weight, gradient) = (vec![1.0f32; 4], vec![0.5f32; 4]);
    /// let update = Update::new(w, &mut weight[..], Some(gradient[..].into()));
    /// let report = optimizer.step(StepArgs::new().lr(1e-3), [update])?;
    /// assert_eq!(report.updated, [w]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`Error::InvalidHyper`] if an argument is outside its range.
    /// - [`Error::UnknownHandle`], [`Error::RepeatedParameter`], [`Error::MissingGradient`],
    ///   [`Error::WrongLength`], [`Error::WrongDtype`], [`Error::NotContiguous`],
    ///   [`Error::ShapeMismatch`], [`Error::OrderMismatch`], [`Error::TooManySteps`],
    ///   [`Error::MissingNorm`], [`Error::ShardGradNorm`].
    /// - [`Error::NonFinite`], only under [`OnNonFinite::RejectStep`].
    /// - [`Error::Backend`]. If [`BackendError::has_begun`] returns `true`, parameters and states may
    ///   have changed.
    /// - [`Error::Damaged`] if any parameter of this optimizer is damaged.
    pub fn step<'a>(
        &mut self,
        args: StepArgs,
        updates: impl IntoIterator<Item = Update<'a>>,
    ) -> Result<StepReport, Error> {
        // In another rounding mode, the constants of the step would differ.
        in_default_mode(|| {
            let mut batch = self.check(&args, updates)?;
            self.check_shards(&args, &batch, true)?;
            let grad_scale = self.clip(&args, &mut batch)?;
            self.run(grad_scale, batch)
        })
    }

    /// Returns the norm of each parameter of a step, as far as it is in this process, with its handle. Nothing
    /// changes. The arguments are those of the step.
    ///
    /// [`max_unorm`](crate::Hyper::max_unorm) clips a step by the norm of the whole tensor. A process that steps
    /// a shard does not know it. So the processes exchange the norms of their shards first:
    ///
    /// ```
    /// use lion::arithmetic::norm::UpdateNorm;
    /// use lion::{Dtype, Lion, ParamSpec, StepArgs, update};
    ///
    /// let mut lions = Vec::new(); // those of two processes
    /// for (offset, len) in [(0, 256), (256, 100)] {
    ///     let mut lion = Lion::builder().max_unorm(0.1).build()?;
    ///     let w = lion.register(ParamSpec::new("w", len, Dtype::F32).shard(offset, 356))?;
    ///     lions.push((lion, w, vec![1.0f32; len], vec![0.5f32; len]));
    /// }
    /// let mut norms = Vec::new();
    /// for (lion, w, weight, grad) in &mut lions {
    ///     let updates = [update(*w, weight, &*grad)];
    ///     norms.extend(lion.shard_norms(StepArgs::new(), updates)?.into_iter().map(|(_, norm)| norm));
    /// }
    /// // Each process receives the norms of the others.
    /// let whole = UpdateNorm::of_shards(&norms)?;
    /// assert_eq!((whole.squares, whole.nonzero_updates), (356.0, 356));
    /// for (lion, w, weight, grad) in &mut lions {
    ///     lion.step([update(*w, weight, &*grad).with_norm(whole)])?;
    /// }
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`step`](Optimizer::step) before it begins, other than [`Error::NonFinite`] and
    /// [`Error::MissingNorm`]; [`Error::Backend`] with [`BackendError::ShardNormUnsupported`].
    pub fn shard_norms<'a>(
        &mut self,
        args: StepArgs,
        updates: impl IntoIterator<Item = Update<'a>>,
    ) -> Result<Vec<(Handle, ShardNorm)>, Error> {
        in_default_mode(|| {
            let mut batch = self.check(&args, updates)?;
            self.check_shards(&args, &batch, false)?;
            let grad_scale = self.clip(&args, &mut batch)?;
            let (count, handles) = (batch.indices.len(), batch.report.updated);
            let mut tensors = tensors(&mut self.params, &batch.indices, grad_scale, batch.arrays);
            let norms = self.backend.shard_norms(&mut tensors);
            let norms = norms.and_then(|norms| one_each(&*self.backend, norms, count));
            let norms = norms.map_err(BackendError::not_begun)?;
            Ok(handles.into_iter().zip(norms).collect())
        })
    }

    /// Returns the parameters with blocks that a step with these arguments would skip, because their new momentum
    /// is not finite. Nothing changes.
    ///
    /// Processes that step [shards](crate::Shard) under [`OnNonFinite::RejectStep`] call it before each step, and
    /// step only if none of them has such a block.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec, StepArgs};
    /// let mut lion = Lion::builder().build()?;
    /// let w = lion.register(ParamSpec::new("w", 512, Dtype::F32))?;
    /// let (mut weight, mut grad) = (vec![1.0f32; 512], vec![0.5f32; 512]);
    /// grad[300] = f32::NAN;
    /// let found = lion.non_finite_blocks(StepArgs::new(), [(w, &mut weight, &grad)])?;
    /// assert_eq!(found[0].to_string(), "`w` (1 of 2 blocks)");
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`step`](Optimizer::step) before it begins, other than [`Error::NonFinite`] and
    /// [`Error::MissingNorm`].
    pub fn non_finite_blocks<'a>(
        &mut self,
        args: StepArgs,
        updates: impl IntoIterator<Item = Update<'a>>,
    ) -> Result<Vec<SkippedBlocks>, Error> {
        in_default_mode(|| {
            let mut batch = self.check(&args, updates)?;
            self.check_shards(&args, &batch, false)?;
            let grad_scale = self.clip(&args, &mut batch)?;
            let count = batch.indices.len();
            let mut tensors = tensors(&mut self.params, &batch.indices, grad_scale, batch.arrays);
            let counts = self.backend.count_non_finite(&mut tensors);
            let counts = counts.and_then(|counts| one_each(&*self.backend, counts, count));
            let counts = counts.map_err(BackendError::not_begun)?;
            drop(tensors);
            Ok(self.name_skipped(&nonzero(&batch.indices, counts)))
        })
    }

    /// Calls `read` with the tensors of a step with these arguments, as a backend would receive them, and returns
    /// its result. Nothing changes, and the call does not count as a step. Learning rates are already clipped by
    /// [`max_unorm`](crate::Hyper::max_unorm), and gradients by [`StepArgs::max_grad_norm`].
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec, StepArgs, update};
    /// let mut lion = Lion::builder().lr(0.5).build()?;
    /// let w = lion.register(ParamSpec::new("w", 2, Dtype::F32))?;
    /// let (mut weight, grad) = ([1.0f32; 2], [1.0f32; 2]);
    /// let updates = [update(w, &mut weight, &grad)];
    /// let lr = lion.as_mut().dry_step(StepArgs::new(), updates, |tensors| Ok(tensors[0].constants.lr))?;
    /// assert_eq!((lr, lion.info(w)?.steps), (0.5, 0));
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`step`](Optimizer::step) before it begins, other than [`Error::NonFinite`] of new momenta; the
    /// errors of [`Backend::shard_norms`] if `max_unorm` clips a parameter; the errors of `read`.
    pub fn dry_step<'a, T>(
        &mut self,
        args: StepArgs,
        updates: impl IntoIterator<Item = Update<'a>>,
        read: impl FnOnce(&[TensorStep<'_>]) -> Result<T, BackendError>,
    ) -> Result<T, Error> {
        in_default_mode(|| {
            let mut batch = self.check(&args, updates)?;
            self.check_shards(&args, &batch, true)?;
            let grad_scale = self.clip(&args, &mut batch)?;
            let count = batch.indices.len();
            let mut tensors = tensors(&mut self.params, &batch.indices, grad_scale, batch.arrays);
            if tensors.iter().any(TensorStep::is_clipped) {
                let norms = self.backend.shard_norms(&mut tensors);
                let norms = norms.and_then(|norms| one_each(&*self.backend, norms, count));
                let norms = norms.map_err(BackendError::not_begun)?;
                for (tensor, norm) in tensors.iter_mut().zip(norms) {
                    tensor.clip(norm.total());
                }
            }
            Ok(read(&tensors).map_err(BackendError::not_begun)?)
        })
    }

    /// Checks that no step of a shard uses a norm of this process alone. If `norms` is set, a clipped shard must come
    /// with the norm of the whole tensor.
    fn check_shards(&self, args: &StepArgs, batch: &Batch<'_>, norms: bool) -> Result<(), Error> {
        for (&index, arrays) in batch.indices.iter().zip(&batch.arrays) {
            let entry = &self.params[index];
            let shard = entry.shard;
            if shard.is_whole(entry.len) {
                continue;
            }
            if args.get_max_grad_norm().is_some() {
                let parameter = entry.name();
                return Err(Error::ShardGradNorm { parameter, shard });
            }
            if norms && entry.hyper.max_unorm > 0.0 && arrays.norm.is_none() {
                let parameter = entry.name();
                return Err(Error::MissingNorm { parameter, shard });
            }
        }
        Ok(())
    }

    /// Checks the arguments and all updates of a step.
    fn check<'a>(
        &mut self,
        args: &StepArgs,
        updates: impl IntoIterator<Item = Update<'a>>,
    ) -> Result<Batch<'a>, Error> {
        args.check()?;
        if self.suspect {
            self.suspect = self.params.iter().any(|entry| entry.damaged);
            if self.suspect {
                return Err(self.damaged(None));
            }
        }
        let updates = updates.into_iter();
        let expected = updates.size_hint().0.min(self.params.len());
        let mut batch = Batch {
            indices: Vec::with_capacity(expected),
            arrays: Vec::with_capacity(expected),
            first_orders: Vec::new(),
            report: StepReport::default(),
        };
        batch.report.updated.reserve(expected);
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
            let Update {
                param, grad, norm, ..
            } = update;
            let Some(grad) = grad else {
                if args.get_missing_gradients() == MissingGradient::Skip {
                    batch.report.without_gradient.push(handle);
                    continue;
                }
                return Err(Error::MissingGradient {
                    parameter: entry.name(),
                });
            };
            let lr = entry.check(args, &param, &grad)?;
            if entry.order.is_none() {
                batch.first_orders.push((index, param.order));
            }
            batch.indices.push(index);
            batch.arrays.push(Arrays {
                param: param.data,
                grad: grad.data,
                lr,
                norm,
            });
            let report = &mut batch.report;
            report.updated.push(handle);
            report.elements = report.elements.saturating_add(entry.len as u64);
        }
        Ok(batch)
    }

    /// Runs a checked step on the backend. Unless it fails before it begins, the states of the step
    /// are no longer fresh, and states that had no memory order get one.
    fn run(&mut self, grad_scale: f64, batch: Batch<'_>) -> Result<StepReport, Error> {
        let Batch {
            indices,
            arrays,
            first_orders,
            mut report,
        } = batch;
        let mut tensors = tensors(&mut self.params, &indices, grad_scale, arrays);
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
            for (index, order) in first_orders {
                self.params[index].order = Some(order);
            }
        }
        let outcomes = stepped?;
        for &index in &indices {
            self.params[index].steps += 1;
        }
        report.pending = outcomes.iter().any(|outcome| outcome.pending);
        let counts = outcomes.iter().map(|outcome| outcome.skipped_blocks);
        report.skipped = self.name_skipped(&nonzero(&indices, counts));
        Ok(report)
    }

    /// Waits until all queued steps are done. Returns the parameters with blocks that
    /// [`pending`](StepReport::pending) steps have skipped since the last call.
    ///
    /// On the CPU a step is done when it returns, and its report is complete.
    ///
    /// ```
    /// # use lion_core::{Error, Optimizer};
    /// # fn example(mut optimizer: Optimizer) -> Result<(), Error> {
    /// for skipped in optimizer.synchronize()? {
    ///     println!("{skipped}"); // such as: `layer.weight` (1 of 32 blocks)
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Backend`] if a queued step has failed.
    pub fn synchronize(&mut self) -> Result<Vec<SkippedBlocks>, Error> {
        let states = self.params.iter_mut().map(|entry| &mut *entry.state);
        let mut states: Vec<&mut (dyn State + 'static)> = states.collect();
        let counts = self.backend.synchronize(&mut states)?;
        let counts = one_each(&*self.backend, counts, self.params.len())?;
        let counts = counts.into_iter().enumerate();
        let blocks: Vec<(usize, u64)> = counts.filter(|&(_, blocks)| blocks > 0).collect();
        Ok(self.name_skipped(&blocks))
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

/// Checks that a backend has returned one result per input.
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

/// Pairs indices of parameters with counts of blocks, without the counts of zero.
fn nonzero(indices: &[usize], counts: impl IntoIterator<Item = u64>) -> Vec<(usize, u64)> {
    let pairs = indices.iter().copied().zip(counts);
    pairs.filter(|&(_, count)| count > 0).collect()
}

/// Returns the steps of the parameters at these distinct indices, in the order of the indices.
fn tensors<'a>(
    params: &'a mut [Parameter],
    indices: &[usize],
    grad_scale: f64,
    arrays: Vec<Arrays<'a>>,
) -> Vec<TensorStep<'a>> {
    let mut tensors = Vec::with_capacity(indices.len());
    for (entry, arrays) in entries_of(params, indices).into_iter().zip(arrays) {
        if let Some(entry) = entry {
            tensors.push(entry.tensor_step(grad_scale, arrays));
        }
    }
    tensors
}

/// Returns the parameters at these distinct indices, in the order of the indices. The time depends on
/// the number of indices, not on the number of parameters.
fn entries_of<'e>(
    params: &'e mut [Parameter],
    indices: &[usize],
) -> Vec<Option<&'e mut Parameter>> {
    let mut order: Vec<usize> = (0..indices.len()).collect();
    order.sort_unstable_by_key(|&position| indices[position]);
    let mut entries = Vec::new();
    entries.resize_with(indices.len(), || None);
    let (mut rest, mut passed) = (params.iter_mut(), 0);
    for position in order {
        let index = indices[position];
        entries[position] = rest.nth(index - passed);
        passed = index + 1;
    }
    entries
}
