//! The optimizer: named parameters, groups and overrides. `step.rs` implements the step.

mod configure;
mod copy;
mod grad_norm;
mod parameter;
mod report;
mod reset;
mod restore;
mod spec;
mod step;

pub use grad_norm::{GradNorm, Gradient, SumSquares};
pub use report::{ParamInfo, SkippedBlocks, StepReport};
pub use restore::{OptimizerConfig, ParamRecord, Restore};
pub use spec::{Group, Handle, ParamSpec};

use configure::hash;
use parameter::Parameter;

use crate::{
    Backend, BackendError, Error, OnNonFinite, Overrides, PagingReport, ParamPaging, Scope, State,
    StateRecord, StateRequest,
};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// The Lion optimizer, on any backend.
///
/// An optimizer identifies parameters by name and owns their states. The caller owns the parameters
/// and gradients, and lends them to each step. Optimizers are independent of each other.
///
/// ```
/// use lion_core::{Backend, Dtype, Error, OnNonFinite, Optimizer, Overrides, ParamSpec};
/// # fn example(backend: Box<dyn Backend>) -> Result<(), Error> {
/// let defaults = Overrides::new().lr(1e-4).weight_decay(0.1);
/// let mut optimizer = Optimizer::new(backend, defaults, OnNonFinite::SkipBlock)?;
/// optimizer.add_group("norms", Overrides::new().weight_decay(0.0))?;
/// let spec = ParamSpec::new("ln_f", 768, Dtype::F32).group("norms");
/// let ln_f = optimizer.register(spec)?;
/// assert_eq!(optimizer.handle("ln_f")?, ln_f);
/// assert_eq!(optimizer.info(ln_f)?.hyper.weight_decay, 0.0);
/// assert_eq!(optimizer.state_bytes(), 4 * 768);
/// # Ok(())
/// # }
/// ```
pub struct Optimizer {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) on_non_finite: OnNonFinite,
    pub(crate) defaults: Overrides,
    pub(crate) groups: Vec<Group>,
    /// The groups that choose their parameters, in the order in which they were added. A group is never removed.
    choices: Vec<Choice>,
    /// In order of registration, which is also the order of the serial numbers of their handles.
    pub(crate) params: Vec<Parameter>,
    /// Number of steps that were begun or refused. A parameter with this stamp is in the current
    /// step.
    pub(crate) stamp: u64,
    /// Whether a parameter may be damaged. It may remain `true` after all of them are repaired.
    pub(crate) suspect: bool,
    pub(crate) by_name: HashMap<Arc<str>, Handle>,
    /// Number of parameters that were ever registered.
    pub(crate) registered: u64,
}

/// A group that chooses its parameters by their names.
#[derive(Clone)]
struct Choice {
    group: String,
    contains: Arc<dyn Fn(&str) -> bool + Send + Sync>,
}

impl Optimizer {
    /// Returns an optimizer without parameters. Hyper-parameters that `defaults` does not set have
    /// the values of [`Hyper::default`](crate::Hyper::default).
    ///
    /// # Errors
    /// [`Error::InvalidHyper`] if a default is outside its range.
    pub fn new(
        backend: Box<dyn Backend>,
        defaults: Overrides,
        on_non_finite: OnNonFinite,
    ) -> Result<Self, Error> {
        defaults.check(|| Scope::Defaults)?;
        Ok(Optimizer {
            backend: backend.into(),
            on_non_finite,
            defaults,
            groups: Vec::new(),
            choices: Vec::new(),
            params: Vec::new(),
            stamp: 0,
            suspect: false,
            by_name: HashMap::new(),
            registered: 0,
        })
    }

    /// Returns the backend, which stores the states and runs the steps.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Returns the defaults that are set.
    pub fn defaults(&self) -> &Overrides {
        &self.defaults
    }

    /// Returns the groups, in the order in which they were added.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Returns what a step does if a new momentum is not finite.
    pub fn on_non_finite(&self) -> OnNonFinite {
        self.on_non_finite
    }

    /// Adds a group, whose parameters share hyper-parameters. A parameter joins it when it is registered.
    ///
    /// ```
    /// use lion::{Dtype, Lion, Overrides, ParamSpec};
    /// let mut lion = Lion::builder().weight_decay(0.1).build()?;
    /// lion.add_group("no_decay", Overrides::new().weight_decay(0.0))?;
    /// let b = lion.register(ParamSpec::new("bias", 16, Dtype::F32).group("no_decay"))?;
    /// assert_eq!(lion.info(b)?.hyper.weight_decay, 0.0);
    /// # Ok::<(), lion::Error>(())
    /// ```
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

    /// Adds a group that parameters join by name. A parameter that is registered later, and whose specification has no
    /// group, joins the first such group whose function `contains` returns `true` for its name.
    ///
    /// ```
    /// # use lion_core::{Dtype, Error, Optimizer, Overrides, ParamSpec};
    /// # fn example(mut optimizer: Optimizer) -> Result<(), Error> {
    /// let no_decay = Overrides::new().weight_decay(0.0);
    /// optimizer.add_group_by_name("no_decay", no_decay, |name| name.ends_with("bias"))?;
    /// let bias = optimizer.register(ParamSpec::new("layer.bias", 16, Dtype::F32))?;
    /// assert_eq!(optimizer.info(bias)?.group, Some("no_decay"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`add_group`](Optimizer::add_group).
    pub fn add_group_by_name(
        &mut self,
        name: &str,
        overrides: Overrides,
        contains: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Result<(), Error> {
        self.add_group(name, overrides)?;
        self.choices.push(Choice {
            group: name.to_owned(),
            contains: Arc::new(contains),
        });
        Ok(())
    }

    /// Registers a parameter and allocates its state. If its specification has no group, it joins one of those that
    /// choose their parameters [by name](Optimizer::add_group_by_name), if any contains it.
    ///
    /// The state has 8 bits per element if `optim_bits` is 8 and the parameter has at least
    /// `min_8bit_size` elements, otherwise 32. It is paged if `is_paged` is set and the parameter
    /// has at least `min_paged_size` elements. For a shard, the elements of the whole tensor count.
    ///
    /// # Errors
    /// - [`Error::EmptyName`], [`Error::DuplicateParameter`], [`Error::UnknownGroup`].
    /// - [`Error::InvalidHyper`], also if `lr * lr_multiplier` or `1 - lr * weight_decay` overflows
    ///   `f32`.
    /// - [`Error::StochasticParam`], [`Error::InvalidShard`].
    /// - [`Error::Backend`] if the state cannot be allocated, or if the backend returns a state of
    ///   a different length or width ([`BackendError::WrongState`]).
    pub fn register(&mut self, spec: ParamSpec) -> Result<Handle, Error> {
        let ParamSpec {
            name,
            len,
            dtype,
            shard,
            group,
            overrides,
        } = spec;
        if name.is_empty() {
            return Err(Error::EmptyName);
        }
        if self.by_name.contains_key(name.as_str()) {
            return Err(Error::DuplicateParameter { parameter: name });
        }
        if !shard.is_shard_of(len) {
            return Err(Error::InvalidShard {
                parameter: name,
                elements: len,
                shard,
            });
        }
        let group = group.or_else(|| {
            let choice = self.choices.iter().find(|choice| (choice.contains)(&name));
            choice.map(|choice| choice.group.clone())
        });
        let group = group.map(|group| self.find_group(&group)).transpose()?;
        overrides.check(|| Scope::Parameter(name.clone()))?;
        let hyper = self.resolve(&name, group, overrides);
        hyper.check(&name, dtype)?;
        let paged = hyper.paged_for(shard.whole_len);
        let request = StateRequest::new(&name, hyper.bits_for(shard.whole_len), len)
            .paged(paged)
            .shard(shard);
        let state = self.allocate(&request).map_err(|source| Error::Backend {
            // This error already names the parameter.
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
        self.params.push(Parameter {
            name,
            handle,
            len,
            dtype,
            shard,
            group,
            overrides,
            hyper,
            steps: 0,
            state,
            fresh: true,
            damaged: false,
            stamp: 0,
            paged,
            order: None,
        });
        Ok(handle)
    }

    /// Returns the handle of the parameter with this name.
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

    /// Removes a parameter and frees its state. The handles and the order of the other parameters
    /// do not change. The group of the parameter is kept, even if it is now empty.
    ///
    /// The handle becomes invalid, and stays invalid if a new parameter is registered under the
    /// same name. On a device, blocks of this parameter that queued steps have skipped are only
    /// reported if [`synchronize`](Optimizer::synchronize) is called before the removal.
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

    /// Returns the properties of a parameter.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`].
    pub fn info(&self, handle: Handle) -> Result<ParamInfo<'_>, Error> {
        Ok(self.info_at(self.index(handle)?))
    }

    /// Returns an iterator over the properties of all parameters, in order of registration.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec};
    /// let mut lion = Lion::builder().build()?;
    /// lion.register(ParamSpec::new("a", 4, Dtype::F32))?;
    /// lion.register(ParamSpec::new("b", 2, Dtype::F16))?;
    /// let names: Vec<&str> = lion.parameters().map(|info| info.name).collect();
    /// assert_eq!((names, lion.state_bytes()), (vec!["a", "b"], 6 * 4));
    /// # Ok::<(), lion::Error>(())
    /// ```
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = ParamInfo<'_>> {
        (0..self.params.len()).map(|index| self.info_at(index))
    }

    /// Returns the bytes of all states.
    pub fn state_bytes(&self) -> usize {
        let bytes = self.parameters().map(|info| info.state_bytes);
        bytes.fold(0, usize::saturating_add)
    }

    /// Returns the state of a parameter, for reading it in parts.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec};
    /// let mut lion = Lion::builder().build()?;
    /// let w = lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
    /// let mut momentum = [1; 16];
    /// lion.state(w)?.read(0, 0, &mut momentum)?; // plane 0, from byte 0 on
    /// assert_eq!(momentum, [0; 16]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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

    /// Returns the residency of the paged states and the bytes that the last step has moved, or
    /// `None` if paging is not configured on the backend.
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

    /// Returns a copy of the state, the step count, the seed and the memory order of a parameter. Another
    /// optimizer can continue from it with [`import_state`](Optimizer::import_state).
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec};
    /// let mut lion = Lion::builder().build()?;
    /// let w = lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
    /// lion.step([(w, &mut [0.0f32; 4], &[1.0f32; 4])])?;
    /// let record = lion.export_state(w)?;
    ///
    /// let mut other = Lion::builder().build()?;
    /// let v = other.register(ParamSpec::new("v", 4, Dtype::F32))?;
    /// other.import_state(v, &record)?;
    /// assert_eq!(other.info(v)?.steps, 1);
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownHandle`], [`Error::Damaged`], [`Error::Backend`].
    pub fn export_state(&self, handle: Handle) -> Result<StateRecord, Error> {
        let state = self.state(handle)?;
        let entry = &self.params[self.index(handle)?];
        Ok(StateRecord {
            steps: entry.steps,
            seed: entry.hyper.seed,
            order: entry.order.clone(),
            shard: entry.shard,
            planes: state.export().map_err(|e| entry.backend_error(e))?,
        })
    }

    /// Replaces the state, step count and memory order of a parameter by those of a record.
    ///
    /// The parameter also gets the seed of the record. If that seed differs, it is set as an
    /// override of the parameter, so that the seed of the defaults no longer affects it. To keep
    /// the current seed, copy it into the record first:
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
    /// - [`Error::UnknownHandle`].
    /// - [`Error::StateMismatch`] if the record has a different width, different lengths, or values
    ///   that no step can produce.
    /// - [`Error::Backend`] if the state cannot be written and had not been stepped or loaded
    ///   before; it is reset to its initial value. Also if the state belongs to another process;
    ///   then nothing has changed.
    /// - [`Error::Damaged`] if the state cannot be written and had been stepped or loaded before.
    pub fn import_state(&mut self, handle: Handle, record: &StateRecord) -> Result<(), Error> {
        let index = self.index(handle)?;
        let entry = &mut self.params[index];
        entry.check_record(record)?;
        let (fresh, damaged) = (entry.fresh, entry.damaged);
        self.suspect = true;
        if let Err(source) = entry.begin_write().import(&record.planes) {
            if source.is_of_another_process() {
                let entry = &mut self.params[index];
                (entry.fresh, entry.damaged) = (fresh, damaged);
                return Err(entry.backend_error(source));
            }
            // A fresh state can be restored by writing its initial value again.
            if fresh && self.make_fresh(index).is_ok() {
                return Err(self.params[index].backend_error(source));
            }
            return Err(self.damaged(Some(source)));
        }
        entry.damaged = false;
        entry.steps = record.steps;
        entry.order.clone_from(&record.order);
        if entry.hyper.seed != record.seed {
            entry.overrides = entry.overrides.seed(record.seed);
            entry.hyper.seed = record.seed;
        }
        Ok(())
    }

    /// Returns the error that names all damaged parameters.
    pub(crate) fn damaged(&self, source: Option<BackendError>) -> Error {
        let damaged = self.params.iter().filter(|entry| entry.damaged);
        Error::Damaged {
            parameters: damaged.map(Parameter::name).collect(),
            source: source.map(Box::new),
        }
    }

    /// Allocates a state, and checks that its length and width are those of the request.
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
            shard: entry.shard,
            group: entry.group.map(|group| self.groups[group].name.as_str()),
            bits: layout.bits(),
            layout: layout.name(),
            state_bytes: layout.bytes(entry.len),
            paged: entry.paged,
            damaged: entry.damaged,
            steps: entry.steps,
            order: entry.order.as_ref(),
            hyper: entry.hyper,
            overrides: entry.overrides,
        }
    }

    /// Returns the index of a parameter.
    pub(crate) fn index(&self, handle: Handle) -> Result<usize, Error> {
        let serial = |entry: &Parameter| entry.handle.serial;
        let at = handle.registered_at;
        let found = match self.params.get(at).map(serial) {
            Some(found) if found == handle.serial => Some(at),
            // Each removal has moved the parameters after it down by one.
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

    pub(super) fn find_group(&self, name: &str) -> Result<usize, Error> {
        let found = self.groups.iter().position(|group| group.name == name);
        found.ok_or_else(|| Error::UnknownGroup {
            group: name.to_owned(),
        })
    }
}

/// Lists the settings and the parameters, without the values of their states.
///
/// ```
/// use lion::{Device, Dtype, Lion8bit, ParamSpec};
/// let mut lion = Lion8bit::builder().lr(0.1).device(Device::Cpu).build()?;
/// lion.register(ParamSpec::new("w", 8192, Dtype::Bf16))?;
/// let text = format!("{lion:?}");
/// assert!(text.contains("defaults: Overrides { lr: 0.1, optim_bits: 8 }"), "{text}");
/// assert!(text.contains("[`w`: 8192 bf16, state of 8 bits, 0 steps]"), "{text}");
/// # Ok::<(), lion::Error>(())
/// ```
impl fmt::Debug for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lion")
            .field("backend", &self.backend.name())
            .field("on_non_finite", &self.on_non_finite)
            .field("defaults", &self.defaults)
            .field("groups", &self.groups)
            .field("parameters", &Listed(&self.params))
            .field("state_bytes", &self.state_bytes())
            .finish()
    }
}

/// The first parameters of a list, and how many there are besides.
struct Listed<'a>(&'a [Parameter]);

impl fmt::Debug for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 20;
        let mut list = f.debug_list();
        list.entries(self.0.iter().take(MOST));
        match self.0.len().checked_sub(MOST) {
            Some(more @ 1..) => list.entry(&format_args!("and {more} more")).finish(),
            _ => list.finish(),
        }
    }
}

impl AsRef<Optimizer> for Optimizer {
    fn as_ref(&self) -> &Optimizer {
        self
    }
}

impl AsMut<Optimizer> for Optimizer {
    fn as_mut(&mut self) -> &mut Optimizer {
        self
    }
}
