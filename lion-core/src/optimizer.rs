//! The optimizer: parameters by name, groups and overrides. Its step is in `step.rs`.

use crate::entry::Entry;
use crate::{
    Backend, BackendError, Dtype, Error, Hyper, OnNonFinite, Overrides, PagingReport, ParamInfo,
    ParamPaging, Scope, State, StateRecord, StateRequest,
};
use lion_float_mode::in_default_mode;
use std::collections::HashMap;
use std::sync::Arc;

/// A registered parameter: what a step names it by. Cheap to copy, valid for the optimizer that
/// gave it out, until the parameter is [removed](Optimizer::remove).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    /// How many parameters the optimizer had when this one was registered. Its position is this one or,
    /// where parameters before it have been removed, a lower one.
    registered_at: usize,
    /// How many parameters had ever been registered. No two parameters of an optimizer share it.
    serial: u64,
    /// Hash of the name, so that a handle of another optimizer is noticed, unless it stands for a
    /// parameter of the same name.
    tag: u64,
}

/// A parameter to register: its stable name, its length and type, and what is special about it.
///
/// ```
/// use lion_core::{Dtype, Overrides, ParamSpec};
/// let embedding = ParamSpec::new("tok_emb", 50_257 * 768, Dtype::Bf16)
///     .group("embeddings")
///     .overrides(Overrides::new().optim_bits(32).lr_multiplier(0.5));
/// assert_eq!(embedding.name(), "tok_emb");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    name: String,
    len: usize,
    dtype: Dtype,
    group: Option<String>,
    overrides: Overrides,
}

impl ParamSpec {
    /// A parameter of `len` elements with the optimizer's defaults.
    pub fn new(name: impl Into<String>, len: usize, dtype: Dtype) -> Self {
        ParamSpec {
            name: name.into(),
            len,
            dtype,
            group: None,
            overrides: Overrides::new(),
        }
    }

    /// Puts it into a group, which must exist when it is registered.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Hyper-parameters of this parameter alone.
    #[must_use]
    pub fn overrides(mut self, overrides: Overrides) -> Self {
        self.overrides = overrides;
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Parameters with hyper-parameters of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// What is set for it.
    pub overrides: Overrides,
}

/// The Lion optimizer over any backend.
///
/// It knows parameters by the name their trainer gave them and owns their states; the parameters
/// and gradients themselves stay with the trainer and are lent to each step. Two optimizers share
/// nothing.
#[derive(Debug)]
pub struct Optimizer {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) on_non_finite: OnNonFinite,
    pub(crate) defaults: Overrides,
    pub(crate) groups: Vec<Group>,
    /// In the order of registration, which is that of the serial numbers in their handles.
    pub(crate) params: Vec<Entry>,
    /// Number of steps begun or refused. An entry that has it as its stamp is in the current step.
    pub(crate) stamp: u64,
    /// Whether a parameter may be damaged. It may stay `true` after all have been mended.
    pub(crate) suspect: bool,
    by_name: HashMap<Arc<str>, Handle>,
    /// Parameters that have ever been registered.
    registered: u64,
}

impl Optimizer {
    /// An optimizer without parameters. What `defaults` leaves open is as in [`Hyper::default`].
    ///
    /// # Errors
    /// [`Error::InvalidHyper`] where a default is outside its range.
    pub fn new(
        backend: Box<dyn Backend>,
        defaults: Overrides,
        on_non_finite: OnNonFinite,
    ) -> Result<Self, Error> {
        defaults.check(|| Scope::Defaults)?;
        Ok(Optimizer {
            backend,
            on_non_finite,
            defaults,
            groups: Vec::new(),
            params: Vec::new(),
            stamp: 0,
            suspect: false,
            by_name: HashMap::new(),
            registered: 0,
        })
    }

    /// The backend that holds the states and runs the steps.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// The defaults that are set.
    pub fn defaults(&self) -> &Overrides {
        &self.defaults
    }

    /// The groups, in the order they were added.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Adds a group of parameters with hyper-parameters of its own.
    ///
    /// # Errors
    /// [`Error::EmptyName`], [`Error::DuplicateGroup`], [`Error::InvalidHyper`].
    pub fn add_group(&mut self, name: &str, overrides: Overrides) -> Result<(), Error> {
        if name.is_empty() {
            return Err(Error::EmptyName);
        }
        if self.find_group(name).is_ok() {
            return Err(Error::DuplicateGroup {
                group: name.to_owned(),
            });
        }
        overrides.check(|| Scope::Group(name.to_owned()))?;
        self.groups.push(Group {
            name: name.to_owned(),
            overrides,
        });
        Ok(())
    }

    /// Registers a parameter and allocates its state: 8 bits if its hyper-parameters ask for it and
    /// it has at least `min_8bit_size` elements, else 32; paged if they ask for it and it has at least
    /// `min_paged_size`.
    ///
    /// # Errors
    /// [`Error::EmptyName`], [`Error::DuplicateParameter`], [`Error::UnknownGroup`];
    /// [`Error::InvalidHyper`], also where `lr * lr_multiplier` or `1 - lr * weight_decay` is beyond
    /// `f32`; [`Error::StochasticParam`]; and [`Error::Backend`] where the state cannot be allocated, or
    /// the backend returns one of another length or width ([`BackendError::WrongState`]).
    pub fn register(&mut self, spec: ParamSpec) -> Result<Handle, Error> {
        let ParamSpec {
            name,
            len,
            dtype,
            group,
            overrides,
        } = spec;
        if name.is_empty() {
            return Err(Error::EmptyName);
        }
        if self.by_name.contains_key(name.as_str()) {
            return Err(Error::DuplicateParameter { parameter: name });
        }
        let group = group.map(|group| self.find_group(&group)).transpose()?;
        overrides.check(|| Scope::Parameter(name.clone()))?;
        let hyper = self.resolve(&name, group, overrides);
        hyper.check(&name, dtype)?;
        let paged = hyper.paged_for(len);
        let request = StateRequest::new(&name, hyper.bits_for(len), len).paged(paged);
        let state = self.allocate(&request).map_err(|source| Error::Backend {
            // This one names it itself.
            parameter: (!matches!(source, BackendError::WrongState { .. })).then(|| name.clone()),
            source,
        })?;
        let name: Arc<str> = name.into();
        let handle = Handle {
            registered_at: self.params.len(),
            serial: self.registered,
            tag: hash(&name),
        };
        self.registered += 1;
        self.by_name.insert(Arc::clone(&name), handle);
        self.params.push(Entry {
            name,
            handle,
            len,
            dtype,
            group,
            overrides,
            hyper,
            steps: 0,
            state,
            fresh: true,
            damaged: false,
            stamp: 0,
            paged,
            layout: None,
        });
        Ok(handle)
    }

    /// The handle of a parameter by its name.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn handle(&self, name: &str) -> Result<Handle, Error> {
        match self.by_name.get(name) {
            Some(&handle) => Ok(handle),
            None => Err(Error::UnknownParameter {
                parameter: name.to_owned(),
            }),
        }
    }

    /// Removes a parameter and frees its state. The other parameters keep their handles and their order,
    /// and its group stays.
    ///
    /// The handle is invalid from now on, also where a new parameter is registered by the same name. On a
    /// device, blocks that queued steps have skipped in this parameter are reported by a
    /// [`synchronize`](Optimizer::synchronize) before the removal, and by none after it.
    ///
    /// ```
    /// # use lion_core::{Dtype, Error, Optimizer, ParamSpec};
    /// # fn example(mut optimizer: Optimizer) -> Result<(), Error> {
    /// let adapter = optimizer.register(ParamSpec::new("adapter", 4096, Dtype::F32))?;
    /// optimizer.remove(adapter)?;
    /// assert!(matches!(optimizer.info(adapter), Err(Error::UnknownHandle { .. })));
    /// let again = optimizer.register(ParamSpec::new("adapter", 8192, Dtype::F32))?;
    /// assert_ne!(adapter, again);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownHandle`].
    pub fn remove(&mut self, handle: Handle) -> Result<(), Error> {
        let entry = self.params.remove(self.index(handle)?);
        self.by_name.remove(&entry.name);
        Ok(())
    }

    /// Sets the learning rate of the defaults: that of all parameters whose `lr` neither their group nor an
    /// override of their own sets. Where one does, it wins, also where it came from a file that was loaded;
    /// [`StepArgs::lr`](crate::StepArgs::lr) reaches every parameter.
    ///
    /// # Errors
    /// [`Error::InvalidHyper`].
    pub fn set_lr(&mut self, lr: f64) -> Result<(), Error> {
        self.configure(Overrides::new().lr(lr))
    }

    /// Changes the defaults that are set in `changes`, and leaves the others.
    ///
    /// # Errors
    /// [`Error::InvalidHyper`], also where the `lr * lr_multiplier` or `1 - lr * weight_decay` of a
    /// parameter would be beyond `f32`; [`Error::StochasticParam`]; [`Error::BitsFixed`] or
    /// [`Error::PagingFixed`] where the width of an existing state, or whether it is paged, would have
    /// to change.
    pub fn configure(&mut self, changes: Overrides) -> Result<(), Error> {
        self.set_defaults(changes.or(self.defaults))
    }

    /// Changes the hyper-parameters of a group that are set in `changes`, and leaves the others.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`]; else as [`configure`](Optimizer::configure).
    pub fn configure_group(&mut self, group: &str, changes: Overrides) -> Result<(), Error> {
        let index = self.find_group(group)?;
        self.set_group_overrides(group, changes.or(self.groups[index].overrides))
    }

    /// Changes the hyper-parameters of one parameter that are set in `changes`, and leaves the others.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`]; else as [`configure`](Optimizer::configure).
    pub fn configure_parameter(&mut self, handle: Handle, changes: Overrides) -> Result<(), Error> {
        let index = self.index(handle)?;
        self.set_overrides(handle, changes.or(self.params[index].overrides))
    }

    /// Replaces the defaults. What `defaults` leaves open is as in [`Hyper::default`] again.
    ///
    /// # Errors
    /// As [`configure`](Optimizer::configure).
    pub fn set_defaults(&mut self, defaults: Overrides) -> Result<(), Error> {
        defaults.check(|| Scope::Defaults)?;
        let before = std::mem::replace(&mut self.defaults, defaults);
        self.refresh().inspect_err(|_| self.defaults = before)
    }

    /// Replaces what is set for a group. What `overrides` leaves open comes from the defaults again.
    ///
    /// # Errors
    /// As [`configure_group`](Optimizer::configure_group).
    pub fn set_group_overrides(&mut self, group: &str, overrides: Overrides) -> Result<(), Error> {
        let index = self.find_group(group)?;
        overrides.check(|| Scope::Group(group.to_owned()))?;
        let before = std::mem::replace(&mut self.groups[index].overrides, overrides);
        self.refresh()
            .inspect_err(|_| self.groups[index].overrides = before)
    }

    /// Replaces what is set for one parameter. What `overrides` leaves open comes from its group and
    /// the defaults again.
    ///
    /// ```
    /// # use lion_core::*;
    /// # fn example(mut optimizer: Optimizer, w: Handle) -> Result<(), Error> {
    /// optimizer.configure_parameter(w, Overrides::new().lr(5.0).weight_decay(0.1))?;
    ///
    /// let mut overrides = optimizer.info(w)?.overrides;
    /// overrides.lr = None; // the learning rate is that of the group or the defaults again
    /// optimizer.set_overrides(w, overrides)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`configure_parameter`](Optimizer::configure_parameter).
    pub fn set_overrides(&mut self, handle: Handle, overrides: Overrides) -> Result<(), Error> {
        let index = self.index(handle)?;
        overrides.check(|| Scope::Parameter(self.params[index].name.to_string()))?;
        let before = std::mem::replace(&mut self.params[index].overrides, overrides);
        self.refresh()
            .inspect_err(|_| self.params[index].overrides = before)
    }

    /// What is held of one parameter.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`].
    pub fn info(&self, handle: Handle) -> Result<ParamInfo<'_>, Error> {
        Ok(self.info_at(self.index(handle)?))
    }

    /// What is held of each parameter, in the order of registration.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = ParamInfo<'_>> {
        (0..self.params.len()).map(|index| self.info_at(index))
    }

    /// Bytes of state in total.
    pub fn state_bytes(&self) -> usize {
        let bytes = self.parameters().map(|info| info.state_bytes);
        bytes.fold(0, usize::saturating_add)
    }

    /// The state of a parameter, to be read in parts.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`], [`Error::Damaged`].
    pub fn state(&self, handle: Handle) -> Result<&dyn State, Error> {
        let entry = &self.params[self.index(handle)?];
        if entry.damaged {
            return Err(self.damaged(None));
        }
        Ok(&*entry.state)
    }

    /// Where paged states are and what the last step has moved of them; `None` where the backend was not
    /// told how to page.
    pub fn paging(&self) -> Option<PagingReport> {
        let totals = self.backend.paging_totals()?;
        let parameters = self.params.iter().map(|entry| ParamPaging {
            parameter: entry.name(),
            state_bytes: entry.state.layout().bytes(entry.len),
            paged: entry.state.paged(),
        });
        Some(PagingReport {
            totals,
            parameters: parameters.collect(),
        })
    }

    /// A copy of what a run needs to go on with this parameter elsewhere.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`], [`Error::Damaged`], [`Error::Backend`].
    pub fn export_state(&self, handle: Handle) -> Result<StateRecord, Error> {
        let state = self.state(handle)?;
        let entry = &self.params[self.index(handle)?];
        Ok(StateRecord {
            steps: entry.steps,
            seed: entry.hyper.seed,
            layout: entry.layout.clone(),
            planes: state.export().map_err(|e| entry.backend_error(e))?,
        })
    }

    /// Puts a parameter where a record left off.
    ///
    /// The seed of the parameter becomes that of the record. Where it is another one, it is set for the
    /// parameter alone, and a seed of the defaults no longer reaches it. To keep the parameter's own
    /// seed, put it into the record first:
    ///
    /// ```
    /// # use lion_core::*;
    /// # fn example(mut optimizer: Optimizer, w: Handle, mut record: StateRecord) -> Result<(), Error> {
    /// record.seed = optimizer.info(w)?.hyper.seed;
    /// optimizer.import_state(w, &record)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownHandle`]; [`Error::StateMismatch`] where the record has other bits, other
    /// lengths, or numbers that no step leaves behind. [`Error::Backend`] where the state cannot be
    /// written and was as it was allocated: it is so again. [`Error::Damaged`] where a state that had
    /// been stepped or loaded cannot be written.
    pub fn import_state(&mut self, handle: Handle, record: &StateRecord) -> Result<(), Error> {
        let index = self.index(handle)?;
        let entry = &mut self.params[index];
        entry.check_record(record)?;
        let fresh = entry.fresh;
        self.suspect = true;
        if let Err(source) = entry.begin_write().import(&record.planes) {
            // Undone where it can be.
            if fresh && self.make_fresh(index).is_ok() {
                return Err(self.params[index].backend_error(source));
            }
            return Err(self.damaged(Some(source)));
        }
        entry.damaged = false;
        entry.steps = record.steps;
        entry.layout.clone_from(&record.layout);
        if entry.hyper.seed != record.seed {
            entry.overrides = entry.overrides.seed(record.seed);
            entry.hyper.seed = record.seed;
        }
        Ok(())
    }

    /// Names all damaged parameters.
    pub(crate) fn damaged(&self, source: Option<BackendError>) -> Error {
        let damaged = self.params.iter().filter(|entry| entry.damaged);
        Error::Damaged {
            parameters: damaged.map(Entry::name).collect(),
            source: source.map(Box::new),
        }
    }

    /// Allocates a state and checks that it is the one that was asked for.
    pub(crate) fn allocate(
        &self,
        request: &StateRequest<'_>,
    ) -> Result<Box<dyn State>, BackendError> {
        let state = self.backend.allocate(request)?;
        let (given_len, given_bits) = (state.len(), state.layout().bits());
        if (given_len, given_bits) == (request.len, request.bits) {
            return Ok(state);
        }
        Err(BackendError::WrongState {
            backend: self.backend.name().into(),
            parameter: request.name.into(),
            given_len,
            wanted_len: request.len,
            given_bits,
            wanted_bits: request.bits,
        })
    }

    fn info_at(&self, index: usize) -> ParamInfo<'_> {
        let entry = &self.params[index];
        let layout = entry.state.layout();
        ParamInfo {
            handle: entry.handle,
            name: &entry.name,
            len: entry.len,
            dtype: entry.dtype,
            group: entry.group.map(|group| self.groups[group].name.as_str()),
            bits: layout.bits(),
            layout: layout.name(),
            state_bytes: layout.bytes(entry.len),
            paged: entry.paged,
            damaged: entry.damaged,
            steps: entry.steps,
            order: entry.layout.as_ref(),
            hyper: entry.hyper,
            overrides: entry.overrides,
        }
    }

    /// The position of a parameter.
    pub(crate) fn index(&self, handle: Handle) -> Result<usize, Error> {
        let serial = |entry: &Entry| entry.handle.serial;
        let at = handle.registered_at;
        let found = match self.params.get(at).map(serial) {
            Some(found) if found == handle.serial => Some(at),
            // Each removal has moved the parameters behind it by one.
            _ => {
                let before = &self.params[..at.min(self.params.len())];
                before.binary_search_by_key(&handle.serial, serial).ok()
            }
        };
        match found {
            Some(index) if self.params[index].handle == handle => Ok(index),
            _ => Err(Error::UnknownHandle {
                index: at,
                registered: self.params.len(),
                removed: found.is_none() && handle.serial < self.registered,
            }),
        }
    }

    fn find_group(&self, name: &str) -> Result<usize, Error> {
        let found = self.groups.iter().position(|group| group.name == name);
        found.ok_or_else(|| Error::UnknownGroup {
            group: name.to_owned(),
        })
    }

    fn resolve(&self, name: &str, group: Option<usize>, overrides: Overrides) -> Hyper {
        let group = group.map(|group| &self.groups[group].overrides);
        resolve(&self.defaults, group, name, overrides)
    }

    /// Resolves every parameter anew, or none if a state would have to be made anew.
    fn refresh(&mut self) -> Result<(), Error> {
        let resolve = |entry: &Entry| self.resolve(&entry.name, entry.group, entry.overrides);
        let hypers: Vec<Hyper> = self.params.iter().map(resolve).collect();
        for (entry, hyper) in self.params.iter().zip(&hypers) {
            hyper.check(&entry.name, entry.dtype)?;
            entry.check_state(hyper)?;
        }
        for (entry, hyper) in self.params.iter_mut().zip(hypers) {
            entry.hyper = hyper;
        }
        Ok(())
    }
}

/// Hyper-parameters of one parameter: defaults < group < overrides.
pub(crate) fn resolve(
    defaults: &Overrides,
    group: Option<&Overrides>,
    name: &str,
    overrides: Overrides,
) -> Hyper {
    // The multipliers are multiplied in the mode of a step.
    in_default_mode(|| {
        let mut hyper = defaults.resolve(Hyper::default());
        if let Some(group) = group {
            hyper = group.resolve(hyper);
        }
        // A seed shared by many parameters would round all of them with the same words.
        hyper.seed = mix(hyper.seed ^ hash(name));
        overrides.resolve(hyper)
    })
}

/// FNV-1a, 64 bits.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, byte| {
        (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// The finalizer of SplitMix64: every bit of the result depends on every bit of `x`.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed that is not the same for ever makes a resumed run another run.
    #[test]
    fn seeds_from_names_do_not_change() {
        // FNV-1a's published test values.
        assert_eq!(hash(""), 0xCBF2_9CE4_8422_2325);
        assert_eq!(hash("a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!(hash("foobar"), 0x8594_4171_F739_67E8);
        // The first output of SplitMix64 from the seed 0 finalizes its increment.
        assert_eq!(mix(0x9E37_79B9_7F4A_7C15), 0xE220_A839_7B1D_CDAF);
    }
}
