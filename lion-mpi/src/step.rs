//! The step of all ranks: check, agree, sum, step, send.

use crate::agree::{on_all, refuse, with_sources};
use crate::arguments::empty_update;
use crate::arrays::{Arrays, Part};
use crate::check::{Checked, plain_args};
use crate::exchange::{Exchange, Pass};
use crate::norms::{of_whole, squares_of};
use crate::sharded::{Param, Sharded, Shares};
use crate::{Error, StepReport};
use lion::arithmetic::in_default_mode;
use lion::arithmetic::norm::UpdateNorm;
use lion::backend::{GradNorm, SkippedBlocks};
use lion::checkpoint::shard_name;
use lion::tensor::{GradRef, IntoGrad, IntoParam, Update};
use lion::{Handle, Lion, OnNonFinite, StepArgs};
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
    /// `grad_scale` (and divided by the number of ranks under [`Reduction::Mean`](crate::Reduction::Mean)).
    ///
    /// Updates of different types are passed as [`ParamMut`](lion::tensor::ParamMut) and [`GradRef`](lion::tensor::GradRef).
    ///
    /// # Errors
    /// - [`Error::Lion`] with the errors of [`Lion::step`] before it begins; [`Error::NotAParameter`],
    ///   [`Error::DeviceMemory`]; [`Error::OtherRank`], [`Error::Disagreement`].
    /// - [`Error::NonFinite`], only under [`OnNonFinite::RejectStep`]. A gradient of one rank that is not finite rejects
    ///   the step of all.
    /// - [`Error::Partly`] if a rank fails after the step has begun, and [`Error::Damaged`] from then on.
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
        self.check_whole()?;
        let updates = updates.into_iter();
        let updates =
            updates.map(|(handle, param, grad)| (handle, param.into_param(), grad.into_grad()));
        let mut checked = match self.check(&args, updates) {
            Ok(checked) => checked,
            Err(error) => return Err(refuse(&self.comm, error)),
        };
        self.agree_on_step(&args, &checked)?;
        // In another rounding mode the sums would differ.
        let stepped = in_default_mode(|| self.run(&args, &mut checked));
        self.damaged = matches!(stepped, Err(Error::Partly { .. }));
        stepped
    }
}

impl Sharded {
    /// Runs a step on which all ranks agree.
    fn run(&mut self, args: &StepArgs, checked: &mut Checked<'_>) -> Result<StepReport, Error> {
        let scale = self.scale(args);
        // `step_with` has allocated them.
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
        let without_gradient = checked.without_gradient.iter();
        let mut report = StepReport {
            without_gradient: without_gradient
                .map(|&param| self.params[param].whole)
                .collect(),
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
                let name = shard_name(&self.whole(part.index).name, part.range.start);
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
                message: with_sources(&error),
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
