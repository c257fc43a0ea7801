//! The step of all ranks: check, agree, sum, step, send.

use crate::agree::{agree, hash_of, on_all, refuse};
use crate::arrays::{Array, Arrays, Part};
use crate::exchange::{Exchange, Pass};
use crate::norms::{of_whole, squares_of};
use crate::sharded::{Param, Reduction, Sharded, Shares, part_name};
use crate::{Error, Handle, StepReport};
use lion::arithmetic::in_default_mode;
use lion::arithmetic::norm::UpdateNorm;
use lion::backend::{GradNorm, Operand, SkippedBlocks};
use lion::tensor::{GradRef, IntoGrad, IntoParam, MemoryOrder, ParamMut, SliceMut, Update};
use lion::{Dtype, Lion, MissingGradient, OnNonFinite, StepArgs};
use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

impl Sharded {
    /// Steps some or all parameters, in any order. All ranks make this call, with the same parameters. Each passes its
    /// whole parameters, which are the same on all ranks, and its own gradients. [`Sharded`] has an example.
    ///
    /// # Errors
    /// The errors of [`step_with`](Sharded::step_with).
    pub fn step<'a, P, G>(
        &mut self,
        updates: impl IntoIterator<Item = (Handle, P, G)>,
    ) -> Result<StepReport, Error>
    where
        P: IntoParam<'a>,
        G: IntoGrad<'a>,
    {
        self.step_with(StepArgs::new(), updates)
    }

    /// Does what [`step`](Sharded::step) does, with arguments for this step.
    ///
    /// [`StepArgs::max_grad_norm`] clips by the norm of the summed gradients of all ranks, times the magnitude of
    /// `grad_scale` (and divided by the number of ranks under [`Reduction::Mean`]).
    ///
    /// Updates of different types are passed as [`ParamMut`] and [`GradRef`].
    ///
    /// # Errors
    /// - [`Error::Lion`] with the errors of [`Lion::step`] before it begins; [`Error::UnknownHandle`],
    ///   [`Error::DeviceMemory`]; [`Error::OtherRank`], [`Error::Disagreement`].
    /// - [`Error::NonFinite`], only under [`OnNonFinite::RejectStep`]. A gradient of one rank that is not finite rejects
    ///   the step of all.
    /// - [`Error::Partly`] if a rank fails after the step has begun.
    pub fn step_with<'a, P, G>(
        &mut self,
        args: StepArgs,
        updates: impl IntoIterator<Item = (Handle, P, G)>,
    ) -> Result<StepReport, Error>
    where
        P: IntoParam<'a>,
        G: IntoGrad<'a>,
    {
        self.allocate()?;
        let updates = updates.into_iter();
        let updates =
            updates.map(|(handle, param, grad)| (handle, param.into_param(), grad.into_grad()));
        let mut checked = match self.check(&args, updates) {
            Ok(checked) => checked,
            Err(error) => return Err(refuse(&self.comm, error)),
        };
        self.agree_on_step(&args, &checked)?;
        // In another rounding mode the sums would differ.
        in_default_mode(|| self.run(&args, &mut checked))
    }
}

/// The updates of a step that this rank has checked.
struct Checked<'a> {
    arrays: Arrays<'a>,
    without_gradient: Vec<Handle>,
}

impl Sharded {
    fn shares(&self) -> Result<&Shares, Error> {
        self.shares.as_ref().ok_or(Error::UnknownHandle {
            index: 0,
            registered: 0,
        })
    }

    /// Checks the arguments and the arrays of this rank.
    fn check<'a>(
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
        let shares = self.shares()?;
        let (mut list, mut without_gradient) = (Vec::new(), Vec::new());
        for (index, &param) in shares.by_name.iter().enumerate() {
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
            let by_name = &self.shares()?.by_name;
            let params = arrays.list().iter();
            let params = params.map(|array| &self.params[by_name[array.index]]);
            params
                .map(|param| empty_update(param.whole, param.dtype))
                .collect()
        };
        Ok(step(&mut self.lion, updates)?)
    }

    /// Checks that all ranks make this step.
    fn agree_on_step(&self, args: &StepArgs, checked: &Checked<'_>) -> Result<(), Error> {
        let by_name = &self.shares()?.by_name;
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

    /// Runs a step on which all ranks agree.
    fn run(&mut self, args: &StepArgs, checked: &mut Checked<'_>) -> Result<StepReport, Error> {
        let mut scale = args.get_grad_scale();
        if self.reduction == Reduction::Mean {
            scale /= f64::from(self.comm.size());
        }
        let Some(shares) = &self.shares else {
            return Ok(StepReport::default());
        };
        let mut step = Step {
            lion: &mut self.lion,
            comm: &self.comm,
            params: &self.params,
            shares,
            args: plain_args(args, scale),
            norms: vec![None; self.params.len()],
            skipped: vec![0; self.params.len()],
            failed: None,
        };
        let mut report = StepReport {
            without_gradient: std::mem::take(&mut checked.without_gradient),
            ..StepReport::default()
        };
        let arrays = &mut checked.arrays;
        let mut exchange = Exchange::new(&self.comm, &shares.division);
        let clipped = step.clipped(arrays)?;
        let rejects = step.lion.on_non_finite() == OnNonFinite::RejectStep;
        let mut kept = None;
        if rejects || !clipped.is_empty() || args.get_max_grad_norm().is_some() {
            let mut sums = Vec::new();
            exchange.run(Pass::Sum, arrays, |_, _, bucket, _| {
                sums.push(bucket.to_vec())
            });
            let parts = (0..sums.len()).map(|bucket| exchange.parts(bucket, arrays));
            let mut all = Kept {
                parts: parts.collect(),
                sums,
            };
            if let Some(max_norm) = args.get_max_grad_norm() {
                let scale = step.clip_by_grad_norm(&all, arrays, scale, max_norm, &mut report)?;
                step.args = plain_args(args, scale);
            }
            if rejects {
                step.reject(&mut all, arrays)?;
            }
            if !clipped.is_empty() {
                step.find_norms(&mut all, arrays, &clipped)?;
            }
            kept = Some(all.sums);
        }
        let pass = match &kept {
            None => Pass::SumAndSend,
            Some(_) => Pass::Send,
        };
        exchange.run(pass, arrays, |bucket, parts, sums, arrays| {
            let sums = kept.as_ref().map_or(sums, |kept| &kept[bucket]);
            step.step_bucket(bucket, parts, sums, arrays);
        });
        step.count(arrays);
        step.finish(arrays, &mut report)?;
        report.bytes_sent = exchange.sent;
        Ok(report)
    }
}

/// The sums of all buckets of this rank.
struct Kept {
    parts: Vec<Vec<Part>>,
    sums: Vec<Vec<f32>>,
}

/// A step of this rank.
struct Step<'s> {
    lion: &'s mut Lion,
    comm: &'s SimpleCommunicator,
    params: &'s [Param],
    shares: &'s Shares,
    /// The arguments, with the final factor of the gradients.
    args: StepArgs,
    /// The norms of the parameters that are clipped by `max_unorm`.
    norms: Vec<Option<UpdateNorm>>,
    /// The number of skipped blocks of each parameter.
    skipped: Vec<u64>,
    /// The first error after the step has begun.
    failed: Option<lion::Error>,
}

impl Step<'_> {
    fn whole(&self, index: usize) -> &Param {
        &self.params[self.shares.by_name[index]]
    }

    /// Returns the indices of the parameters of the step that are clipped by `max_unorm`.
    fn clipped(&self, arrays: &Arrays<'_>) -> Result<Vec<usize>, Error> {
        let mut clipped = Vec::new();
        for array in arrays.list() {
            let info = self.lion.info(self.whole(array.index).whole)?;
            if info.hyper.max_unorm > 0.0 {
                clipped.push(array.index);
            }
        }
        Ok(clipped)
    }

    /// Returns the updates of the parts of a bucket.
    fn updates<'u>(
        &self,
        bucket: usize,
        parts: &'u [Part],
        sums: &'u [f32],
        arrays: &'u mut Arrays<'_>,
    ) -> Vec<Update<'u>> {
        let handles = &self.shares.buckets[bucket];
        let updates = arrays.parts_mut(parts).filter_map(|(part, param)| {
            let at = handles.binary_search_by_key(&part.index, |(index, _)| *index);
            let grad = GradRef::from(&sums[part.sums.clone()]);
            let update = Update::new(handles[at.ok()?].1, param, Some(grad));
            Some(match self.norms[part.index] {
                Some(norm) => update.with_norm(norm),
                None => update,
            })
        });
        updates.collect()
    }

    /// Computes the norm of the summed gradients of all ranks, and returns the factor of the gradients.
    fn clip_by_grad_norm(
        &mut self,
        kept: &Kept,
        arrays: &Arrays<'_>,
        scale: f64,
        max_norm: f64,
        report: &mut StepReport,
    ) -> Result<f64, Error> {
        let mut own = Vec::new();
        for (parts, sums) in kept.parts.iter().zip(&kept.sums) {
            for part in parts {
                let norm = squares_of(part, sums, self.whole(part.index).len);
                own.push((part.index, norm));
            }
        }
        let norms = of_whole(self.comm, &own, &self.lens())?;
        let mut total = 0.0;
        for array in arrays.list() {
            let norm = &norms[array.index];
            total += norm.squares;
            if norm.nonzero_updates > 0 {
                let name = self.whole(array.index).name.clone();
                report
                    .non_finite_gradients
                    .push((name, norm.nonzero_updates));
            }
        }
        if !report.non_finite_gradients.is_empty()
            && self.lion.on_non_finite() == OnNonFinite::RejectStep
        {
            let parameters = std::mem::take(&mut report.non_finite_gradients);
            return Err(Error::NonFinite { parameters });
        }
        let mut norm = GradNorm::default();
        norm.norm = total.sqrt() * scale.abs();
        report.grad_norm = Some(norm.norm);
        let scale = scale * norm.clip_factor(max_norm);
        // Checks the range of the product, which is the same on all ranks.
        let args = StepArgs::new().grad_scale(scale);
        self.lion.non_finite_blocks(args, [] as [Update<'_>; 0])?;
        Ok(scale)
    }

    fn lens(&self) -> Vec<usize> {
        let by_name = self.shares.by_name.iter();
        by_name.map(|&param| self.params[param].len).collect()
    }

    /// Returns an error on all ranks if a block of any rank has a new momentum that is not finite.
    fn reject(&mut self, kept: &mut Kept, arrays: &mut Arrays<'_>) -> Result<(), Error> {
        let mut counts = vec![0; self.params.len()];
        let mut count = || {
            for (bucket, (parts, sums)) in kept.parts.iter().zip(&kept.sums).enumerate() {
                let updates = self.updates(bucket, parts, sums, arrays);
                let found = self.lion.non_finite_blocks(self.args, updates)?;
                self.add_counts(parts, &found, &mut counts);
            }
            Ok(())
        };
        let counted = count();
        on_all(self.comm, counted)?;
        let parameters = self.total(&counts);
        match parameters.is_empty() {
            true => Ok(()),
            false => Err(Error::NonFinite { parameters }),
        }
    }

    /// Computes the norms of the parameters that are clipped by `max_unorm`.
    fn find_norms(
        &mut self,
        kept: &mut Kept,
        arrays: &mut Arrays<'_>,
        clipped: &[usize],
    ) -> Result<(), Error> {
        let mut own = Vec::new();
        let mut find = || {
            for (bucket, (parts, sums)) in kept.parts.iter().zip(&kept.sums).enumerate() {
                let mut parts = parts.clone();
                parts.retain(|part| clipped.binary_search(&part.index).is_ok());
                let updates = self.updates(bucket, &parts, sums, arrays);
                let norms = self.lion.shard_norms(self.args, updates)?;
                let norms = norms.into_iter().map(|(_, norm)| norm);
                own.extend(parts.iter().map(|part| part.index).zip(norms));
            }
            Ok(())
        };
        let found = find();
        on_all(self.comm, found)?;
        let norms = of_whole(self.comm, &own, &self.lens())?;
        for &index in clipped {
            self.norms[index] = Some(norms[index]);
        }
        Ok(())
    }

    /// Steps the parts of a bucket. After an error, the rest of the step only exchanges messages, for which the other
    /// ranks wait.
    fn step_bucket(
        &mut self,
        bucket: usize,
        parts: &[Part],
        sums: &[f32],
        arrays: &mut Arrays<'_>,
    ) {
        if self.failed.is_some() {
            return;
        }
        let updates = self.updates(bucket, parts, sums, arrays);
        match self.lion.step_with(self.args, updates) {
            Ok(report) => {
                let mut skipped = std::mem::take(&mut self.skipped);
                self.add_counts(parts, &report.skipped, &mut skipped);
                self.skipped = skipped;
            }
            Err(error) => self.failed = Some(error),
        }
    }

    /// Counts the step for each parameter as a whole.
    fn count(&mut self, arrays: &Arrays<'_>) {
        if self.failed.is_some() {
            return;
        }
        let updates = arrays.list().iter().map(|array| {
            let param = self.whole(array.index);
            let update = empty_update(param.whole, param.dtype);
            update.with_norm(UpdateNorm::default())
        });
        let updates: Vec<_> = updates.collect();
        self.failed = self.lion.step_with(self.args, updates).err();
    }

    /// Adds the blocks of parts to those of their parameters.
    fn add_counts(&self, parts: &[Part], found: &[SkippedBlocks], counts: &mut [u64]) {
        for skipped in found {
            let named = |part: &&Part| {
                let name = part_name(&self.whole(part.index).name, part.range.start);
                *name == *skipped.parameter
            };
            if let Some(part) = parts.iter().find(named) {
                counts[part.index] += skipped.skipped;
            }
        }
    }

    /// Returns the sums over all ranks of numbers of blocks, with the names of their parameters.
    fn total(&self, counts: &[u64]) -> Vec<(String, u64)> {
        let mut totals = vec![0; counts.len()];
        if !counts.is_empty() {
            let sum = SystemOperation::sum();
            self.comm.all_reduce_into(counts, &mut totals[..], sum);
        }
        let totals = totals.into_iter().enumerate();
        let found = totals.filter(|&(_, blocks)| blocks > 0);
        let named = found.map(|(index, blocks)| (self.whole(index).name.clone(), blocks));
        named.collect()
    }

    /// Checks that all ranks have stepped, and adds up what they report.
    fn finish(&mut self, arrays: &Arrays<'_>, report: &mut StepReport) -> Result<(), Error> {
        let result = match self.failed.take() {
            None => Ok(()),
            Some(error) => Err(Error::Partly {
                rank: self.comm.rank() as usize,
                message: error.to_string(),
            }),
        };
        match on_all(self.comm, result) {
            Err(Error::OtherRank { rank, message }) => {
                return Err(Error::Partly { rank, message });
            }
            result => result?,
        }
        report.skipped = self.total(&self.skipped);
        let lens = arrays
            .list()
            .iter()
            .map(|array| array.param.data.len() as u64);
        report.elements = lens.fold(0, u64::saturating_add);
        Ok(())
    }
}

/// Returns arguments with the learning rate of `args` and a factor of the gradients.
fn plain_args(args: &StepArgs, scale: f64) -> StepArgs {
    let plain = StepArgs::new().grad_scale(scale);
    match args.get_lr() {
        Some(lr) => plain.lr(lr),
        None => plain,
    }
}

/// Returns the update of a parameter of length 0.
fn empty_update(handle: lion::Handle, dtype: Dtype) -> Update<'static> {
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
