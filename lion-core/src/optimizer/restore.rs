//! Restores an optimizer from records: checks all of them, then writes states in parts, then
//! commits.

use super::configure::resolve;
use crate::{
    BackendError, Dtype, Error, Group, Handle, Hyper, MemoryOrder, OnNonFinite, Optimizer,
    Overrides, PlaneSpec, Scope, State, StateRequest,
};
use std::collections::HashSet;
use std::mem::take;
use std::ops::Range;

/// The settings of an optimizer that are not specific to one parameter.
///
/// ```
/// use lion_core::{Group, OptimizerConfig, Overrides};
/// let norms = Group::new("norms", Overrides::new().weight_decay(0.0));
/// let config = OptimizerConfig::new(Overrides::new().lr(1e-4), vec![norms]);
/// assert_eq!(config.groups[0].name, "norms");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct OptimizerConfig {
    /// The defaults that are set.
    pub defaults: Overrides,
    /// The groups.
    pub groups: Vec<Group>,
    /// What a step does if a new momentum is not finite. A restore with `None` keeps the optimizer's own.
    pub on_non_finite: Option<OnNonFinite>,
}

impl OptimizerConfig {
    /// Returns a configuration with these defaults and groups, which does not set `on_non_finite`.
    pub fn new(defaults: Overrides, groups: Vec<Group>) -> Self {
        OptimizerConfig {
            defaults,
            groups,
            on_non_finite: None,
        }
    }

    /// Sets what a step does if a new momentum is not finite.
    #[must_use]
    pub fn on_non_finite(mut self, on_non_finite: OnNonFinite) -> Self {
        self.on_non_finite = Some(on_non_finite);
        self
    }

    /// Checks every value that is set, and that the groups have names that differ.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.defaults.check(|| Scope::Defaults)?;
        let mut names = HashSet::new();
        for group in &self.groups {
            group.check()?;
            if !names.insert(group.name.as_str()) {
                return Err(Error::DuplicateGroup {
                    group: group.name.clone(),
                });
            }
        }
        Ok(())
    }
}

/// The settings and progress of one parameter, without the values of its state. [`Restore`] has an example.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ParamRecord {
    /// The parameter.
    pub handle: Handle,
    /// Index of its group in [`OptimizerConfig::groups`].
    ///
    /// With settings, `None` removes the parameter from its group, except that a parameter stays in
    /// a group that the settings do not contain. Without settings, the parameter stays in its
    /// group.
    pub group: Option<usize>,
    /// The overrides of the parameter. Without settings, its current overrides are kept except for
    /// the seed.
    pub overrides: Overrides,
    /// Number of steps.
    pub steps: u64,
    /// Seed of the parameter's stochastic rounding.
    pub seed: u64,
    /// The memory order of the state; `None` before the first step.
    pub order: Option<MemoryOrder>,
}

impl ParamRecord {
    /// Returns the record of a parameter before its first step, in no group and without overrides.
    pub fn new(handle: Handle) -> Self {
        ParamRecord {
            handle,
            group: None,
            overrides: Overrides::new(),
            steps: 0,
            seed: 0,
            order: None,
        }
    }
}

/// A restore that has been checked but not committed.
///
/// [`Optimizer::restore`] begins it, [`state`](Restore::state) returns the states to write, and
/// [`commit`](Restore::commit) completes it. If the values turn out to be invalid, call
/// [`abandon`](Restore::abandon) or drop the restore: states that had not been stepped or loaded
/// before are reset to their initial values. States that had been stepped or loaded before, and
/// were returned by [`state`](Restore::state), are then damaged: the optimizer does not step until
/// they are loaded or imported again ([`Error::Damaged`]).
///
/// ```
/// # use lion_core::*;
/// # fn example(mut optimizer: Optimizer, w: Handle) -> Result<(), Error> {
/// let mut record = ParamRecord::new(w);
/// (record.steps, record.seed) = (17, 4);
/// record.order = Some(MemoryOrder::RowMajor);
/// let mut restore = optimizer.restore(None, vec![record])?;
/// restore.state(0).write(0, 0, &1.5f32.to_le_bytes())?;
/// restore.commit();
/// assert_eq!(optimizer.info(w)?.steps, 17);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Restore<'a> {
    optimizer: &'a mut Optimizer,
    settings: Option<OptimizerConfig>,
    /// The settings of each parameter of the optimizer after the restore.
    resolved: Vec<Resolved>,
    /// The parameter of each record, and the condition of its state.
    targets: Vec<Target>,
    records: Vec<ParamRecord>,
}

/// The settings of one parameter after a restore.
#[derive(Debug)]
struct Resolved {
    /// Index of its group in the settings.
    group: Option<usize>,
    overrides: Overrides,
    hyper: Hyper,
}

/// The state of one record.
#[derive(Clone, Copy, Debug)]
struct Target {
    /// Index of the parameter.
    index: usize,
    /// Whether the state was fresh.
    fresh: bool,
    /// Whether the state was returned for writing.
    written: bool,
}

impl Optimizer {
    /// Begins to restore parameters from records.
    ///
    /// If `settings` is given, it replaces the defaults, the groups, `on_non_finite` if it is set, and the group
    /// and overrides of each parameter that has a record. Groups that only this optimizer has are kept, with their
    /// parameters.
    ///
    /// A state keeps its width, and whether it is paged. If the settings differ from that, the
    /// parameter gets overrides of `optim_bits` and `min_8bit_size`, or of `is_paged` and
    /// `min_paged_size`, that match its state. `stochastic_param` is unset for `f16` parameters,
    /// which do not support it.
    ///
    /// # Errors
    /// - [`Error::UnknownHandle`], [`Error::RepeatedParameter`], [`Error::InvalidHyper`],
    ///   [`Error::EmptyName`], [`Error::DuplicateGroup`].
    /// - [`Error::UnknownGroup`] if the index of a group is out of bounds.
    /// - [`Error::StateMismatch`] if a step count or memory order cannot be the result of any run.
    pub fn restore(
        &mut self,
        settings: Option<OptimizerConfig>,
        records: Vec<ParamRecord>,
    ) -> Result<Restore<'_>, Error> {
        // The groups of the settings come first, followed by the groups that only this optimizer
        // has.
        let given = settings.as_ref().map_or(0, |s| s.groups.len());
        let settings = settings.map(|s| self.merge(s)).transpose()?;
        let mut of_param: Vec<Option<usize>> = vec![None; self.params.len()];
        let mut targets = Vec::with_capacity(records.len());
        for (i, record) in records.iter().enumerate() {
            let index = self.index(record.handle)?;
            let entry = &self.params[index];
            if of_param[index].replace(i).is_some() {
                return Err(Error::RepeatedParameter {
                    parameter: entry.name(),
                });
            }
            record.overrides.check(|| Scope::Parameter(entry.name()))?;
            entry.check_progress(record.steps, record.order.as_ref())?;
            targets.push(Target {
                index,
                fresh: entry.fresh,
                written: false,
            });
        }
        let defaults = settings.as_ref().map_or(&self.defaults, |s| &s.defaults);
        let groups = settings.as_ref().map_or(&self.groups, |s| &s.groups);
        let mut resolved = Vec::with_capacity(self.params.len());
        for (entry, record) in self.params.iter().zip(of_param) {
            let record = record.map(|i| &records[i]);
            // Index of the current group of the parameter in the settings.
            let kept = || {
                let name = &self.groups[entry.group?].name;
                groups.iter().position(|group| group.name == *name)
            };
            let group = match (record, &settings) {
                (_, None) => entry.group,
                (None, Some(_)) => kept(),
                // Groups after those of the settings are groups that only this optimizer has.
                (Some(record), Some(_)) => record.group.or(kept().filter(|&group| group >= given)),
            };
            let group_overrides = match group.map(|group| groups.get(group).ok_or(group)) {
                None => None,
                Some(Ok(group)) => Some(&group.overrides),
                Some(Err(group)) => {
                    return Err(Error::UnknownGroup {
                        group: format!("#{group} of parameter `{}`", entry.name),
                    });
                }
            };
            let mut overrides = match (record, &settings) {
                (Some(record), Some(_)) => record.overrides.paged_as(&entry.overrides),
                _ => entry.overrides,
            };
            let mut hyper = resolve(defaults, group_overrides, &entry.name, overrides);
            if hyper.paged_for(entry.shard.whole_len) != entry.paged {
                let own = (entry.hyper.is_paged, entry.hyper.min_paged_size);
                (hyper.is_paged, hyper.min_paged_size) = own;
                overrides = overrides.is_paged(own.0).min_paged_size(own.1);
            }
            if hyper.bits_for(entry.shard.whole_len) != entry.state.layout().bits() {
                let own = (entry.hyper.optim_bits, entry.hyper.min_8bit_size);
                (hyper.optim_bits, hyper.min_8bit_size) = own;
                overrides = overrides.optim_bits(own.0.get()).min_8bit_size(own.1);
            }
            if hyper.stochastic_param && entry.dtype == Dtype::F16 {
                // The option had no effect on such a parameter in the run that was saved.
                hyper.stochastic_param = false;
                overrides = overrides.stochastic_param(false);
            }
            if let Some(record) = record
                && hyper.seed != record.seed
            {
                hyper.seed = record.seed;
                overrides = overrides.seed(record.seed);
            }
            hyper.check(&entry.name, entry.dtype)?;
            entry.check_state(&hyper)?;
            resolved.push(Resolved {
                group,
                overrides,
                hyper,
            });
        }
        Ok(Restore {
            optimizer: self,
            settings,
            resolved,
            targets,
            records,
        })
    }

    /// Checks settings, and appends the groups that only this optimizer has.
    fn merge(&self, mut settings: OptimizerConfig) -> Result<OptimizerConfig, Error> {
        settings.defaults = settings.defaults.paged_as(&self.defaults);
        for group in &mut settings.groups {
            let own = self.groups.iter().find(|own| own.name == group.name);
            let paging = own.map(|own| own.overrides).unwrap_or_default();
            group.overrides = group.overrides.paged_as(&paging);
        }
        settings.check()?;
        let names: HashSet<&str> = settings.groups.iter().map(|g| g.name.as_str()).collect();
        let kept = self.groups.iter();
        let kept: Vec<Group> = kept
            .filter(|group| !names.contains(group.name.as_str()))
            .cloned()
            .collect();
        settings.groups.extend(kept);
        Ok(settings)
    }
}

impl Restore<'_> {
    /// Returns whether no state with a record has been stepped or loaded before, so that
    /// [`abandon`](Restore::abandon) can undo all writes.
    pub fn is_fresh(&self) -> bool {
        self.targets.iter().all(|target| target.fresh)
    }

    /// Returns the state of the parameter of a record, for writing. `record` is the index of the
    /// record.
    ///
    /// # Panics
    /// If there is no such record.
    pub fn state(&mut self, record: usize) -> &mut dyn State {
        let target = &mut self.targets[record];
        target.written = true;
        self.optimizer.suspect = true;
        self.optimizer.params[target.index].begin_write()
    }

    /// Completes the restore, after the states are written.
    pub fn commit(mut self) {
        // The drop has nothing to undo.
        let targets = take(&mut self.targets);
        let optimizer = &mut *self.optimizer;
        if let Some(settings) = self.settings.take() {
            optimizer.defaults = settings.defaults;
            optimizer.groups = settings.groups;
            if let Some(on_non_finite) = settings.on_non_finite {
                optimizer.on_non_finite = on_non_finite;
            }
        }
        for (entry, resolved) in optimizer.params.iter_mut().zip(take(&mut self.resolved)) {
            entry.group = resolved.group;
            entry.overrides = resolved.overrides;
            entry.hyper = resolved.hyper;
        }
        for (target, record) in targets.into_iter().zip(take(&mut self.records)) {
            let entry = &mut optimizer.params[target.index];
            if target.written {
                entry.damaged = false;
            }
            entry.steps = record.steps;
            entry.order = record.order;
        }
    }

    /// Cancels the restore: states that were fresh are fresh again. Dropping the restore does the
    /// same.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the parameters whose states were returned by
    /// [`state`](Restore::state) and could not be restored: those that were not fresh, and those to
    /// which the initial value could not be written.
    pub fn abandon(mut self) -> Result<(), Error> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), Error> {
        let (mut parameters, mut source) = (Vec::new(), None);
        for target in take(&mut self.targets) {
            if !target.written {
                continue;
            }
            let undone = target
                .fresh
                .then(|| self.optimizer.make_fresh(target.index));
            if let Some(Ok(())) = undone {
                continue;
            }
            source = source.or(undone.and_then(Result::err));
            parameters.push(self.optimizer.params[target.index].name());
        }
        if parameters.is_empty() {
            return Ok(());
        }
        let source = source.map(Box::new);
        Err(Error::Damaged { parameters, source })
    }
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        // States that cannot be undone are marked as damaged, and the next step reports them.
        let _ = self.undo();
    }
}

impl Optimizer {
    /// Resets a state to its initial value.
    pub(crate) fn make_fresh(&mut self, index: usize) -> Result<(), BackendError> {
        let entry = &self.params[index];
        let bits = entry.state.layout().bits();
        let request = StateRequest::new(&entry.name, bits, entry.len.min(1));
        let blank = self.allocate(&request)?;
        let entry = &mut self.params[index];
        let all = 0..entry.len;
        refill(&*blank, &mut *entry.state, all)?;
        (entry.fresh, entry.damaged) = (true, false);
        Ok(())
    }
}

/// Overwrites a range of whole blocks with the values of a fresh state of one element, which are
/// the same for any length.
pub(crate) fn refill(
    blank: &dyn State,
    state: &mut dyn State,
    range: Range<usize>,
) -> Result<(), BackendError> {
    const PART: usize = 64 << 10;
    // The last plane is written first. In an 8-bit state it is the absmax, and the momentum of a
    // block whose absmax is 0 is 0 for any codes. So if a later write fails, every
    // momentum is the old one or 0.
    for (plane, spec) in state.layout().planes().iter().enumerate().rev() {
        let start = PlaneSpec::bytes(spec, range.start);
        let end = PlaneSpec::bytes(spec, range.end);
        let mut number = vec![0; spec.plane_type.bytes().min(end - start)];
        blank.read(plane, 0, &mut number)?;
        let part = number.repeat(PART / spec.plane_type.bytes());
        for offset in (start..end).step_by(PART) {
            state.write(plane, offset, &part[..PART.min(end - offset)])?;
        }
    }
    Ok(())
}
