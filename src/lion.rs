//! The optimizer, and the entry points of its builder under the names of bitsandbytes.

use crate::LionBuilder;
use crate::arguments::{IntoGrad, IntoUpdate};
use lion_core::{
    Backend, Error, GradNorm, Group, Handle, Optimizer, OptimizerConfig, Overrides, PagingReport,
    ParamInfo, ParamRecord, ParamSpec, Restore, SkippedBlocks, State, StateRecord, StepArgs,
    StepReport,
};
use std::fmt;
use std::ops::Range;

/// The Lion optimizer, with 8-bit or 32-bit states. A step computes, for each element:
///
/// ```text
/// c  = beta1 * m + (1 - beta1) * g
/// p' = p * (1 - lr * weight_decay) - lr * sign(c)        sign(0) = 0
/// m' = beta2 * m + (1 - beta2) * g
/// ```
///
/// Here `p` is the parameter, `g` is the gradient times `grad_scale`, and `m` is the momentum, which is 0
/// before the first step. The arithmetic is in `f32`. The algorithm is that of Chen et al., "Symbolic
/// Discovery of Optimization Algorithms", arXiv:2302.06675. The hyper-parameters and their defaults are
/// those of `bitsandbytes.optim.Lion`.
///
/// ```
/// use lion::{Dtype, Lion, ParamSpec, StepArgs};
/// let mut lion = Lion::builder().build()?;
/// let w = lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
/// let (mut weight, grad) = (vec![1.0f32; 4], vec![2.0f32, -2.0, 0.0, 1e-9]);
///
/// // A schedule sets the learning rate of each step. The gradients are divided by a loss scale.
/// for t in 1..=2 {
///     let args = StepArgs::new().lr(0.25 / f64::from(t)).grad_scale(1.0 / 128.0);
///     lion.step_with(args, [(w, &mut weight, &grad)])?;
/// }
/// assert_eq!(weight, [0.625, 1.375, 1.0, 0.625]);
/// assert_eq!(lion.info(w)?.steps, 2);
/// # Ok::<(), lion::Error>(())
/// ```
pub struct Lion {
    pub(crate) inner: Optimizer,
}

impl Lion {
    /// Returns a builder with the defaults of bitsandbytes.
    pub fn builder() -> LionBuilder {
        LionBuilder::new(Overrides::new())
    }

    /// Updates some or all parameters, in any order.
    ///
    /// Each update consists of a handle, a parameter and its gradient. Parameters and gradients are slices,
    /// vectors or `ndarray` arrays. If their types differ between updates, convert each with
    /// [`update`](crate::update).
    ///
    /// All arguments are checked before anything changes. The report lists the blocks that were skipped
    /// because their new momentum was not finite. A trainer should check it; otherwise gradients that are
    /// not finite go unnoticed.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec};
    /// let mut lion = Lion::builder().lr(0.25).build()?;
    /// let w = lion.register(ParamSpec::new("w", 3, Dtype::F32))?;
    /// let (mut weight, grad) = (vec![1.0f32; 3], vec![0.5f32, 0.0, -8.0]);
    /// let report = lion.step([(w, &mut weight, &grad)])?;
    /// assert_eq!(weight, [0.75, 1.0, 1.25]);
    /// assert_eq!(report.skipped_blocks(), 0);
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`Optimizer::step`].
    pub fn step<'a, I>(&mut self, updates: I) -> Result<StepReport, Error>
    where
        I: IntoIterator<Item: IntoUpdate<'a>>,
    {
        self.step_with(StepArgs::new(), updates)
    }

    /// Does what [`step`](Lion::step) does, with arguments for this step, such as the learning rate or the
    /// scale of the gradients. The documentation of [`Lion`] has an example.
    ///
    /// # Errors
    /// The errors of [`Optimizer::step`].
    pub fn step_with<'a, I>(&mut self, args: StepArgs, updates: I) -> Result<StepReport, Error>
    where
        I: IntoIterator<Item: IntoUpdate<'a>>,
    {
        let updates = updates.into_iter().map(IntoUpdate::into_update);
        self.inner.step(args, updates)
    }

    /// Returns the global L2 norm of the gradients, as [`Optimizer::grad_norm`]. Gradients of `None` are
    /// ignored.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec, StepArgs};
    /// let mut lion = Lion::builder().build()?;
    /// let a = lion.register(ParamSpec::new("a", 2, Dtype::F32))?;
    /// let b = lion.register(ParamSpec::new("b", 1, Dtype::F32))?;
    /// let (mut pa, mut pb) = ([1.0f32; 2], [1.0f32; 1]);
    /// let (ga, gb) = (vec![3.0f32, 0.0], vec![4.0f32]);
    ///
    /// let norm = lion.grad_norm([(a, &ga), (b, &gb)])?;
    /// assert_eq!((norm.norm, norm.clip_factor(1.0)), (5.0, 0.2));
    ///
    /// // Computes the norm, clips the gradients and steps, in one call.
    /// let args = StepArgs::new().max_grad_norm(1.0);
    /// let updates = [(a, &mut pa[..], &ga), (b, &mut pb[..], &gb)];
    /// assert_eq!(lion.step_with(args, updates)?.grad_norm, Some(5.0));
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`Optimizer::grad_norm`].
    pub fn grad_norm<'a, I, G>(&self, gradients: I) -> Result<GradNorm, Error>
    where
        I: IntoIterator<Item = (Handle, G)>,
        G: IntoGrad<'a>,
    {
        let gradients = gradients.into_iter();
        let gradients = gradients.filter_map(|(handle, grad)| Some((handle, grad.into_grad()?)));
        self.inner.grad_norm(gradients)
    }

    /// Registers a parameter and allocates its state.
    ///
    /// The state has 8 bits per element if the hyper-parameters ask for it and the parameter has at least
    /// `min_8bit_size` elements, and 32 otherwise. It is paged if the hyper-parameters ask for it and the
    /// parameter has at least `min_paged_size` elements.
    ///
    /// ```
    /// use lion::{Dtype, Lion8bit, ParamSpec};
    /// let mut lion = Lion8bit::builder().build()?;
    /// let w = lion.register(ParamSpec::new("weight", 8192, Dtype::Bf16))?;
    /// assert_eq!(lion.info(w)?.state_bytes, 8192 + 32 * 4); // a code per element, an absmax per block
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::EmptyName`], [`Error::DuplicateParameter`], [`Error::UnknownGroup`];
    /// [`Error::InvalidHyper`], also where `lr * lr_multiplier` or `1 - lr * weight_decay` exceeds the
    /// range of `f32`; [`Error::StochasticParam`]; [`Error::Backend`] if the state cannot be allocated.
    pub fn register(&mut self, spec: ParamSpec) -> Result<Handle, Error> {
        self.inner.register(spec)
    }

    /// Removes a parameter and frees its state. The other parameters keep their handles and their order,
    /// and its group is kept.
    ///
    /// The handle is invalid from then on, even if a new parameter is registered under the same name.
    ///
    /// ```
    /// use lion::{Dtype, Error, Lion, ParamSpec};
    /// let mut lion = Lion::builder().build()?;
    /// let adapter = lion.register(ParamSpec::new("adapter", 4096, Dtype::F32))?;
    /// lion.remove(adapter)?;
    /// assert!(matches!(lion.info(adapter), Err(Error::UnknownHandle { .. })));
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownHandle`].
    pub fn remove(&mut self, handle: Handle) -> Result<(), Error> {
        self.inner.remove(handle)
    }

    /// Sets the momentum of the elements in `range` to zero, for example after the trainer has
    /// re-initialized rows of a parameter. The step count, the seed and the hyper-parameters are kept.
    ///
    /// The range is in memory order and must consist of whole blocks of 256 elements: it must start at a
    /// multiple of 256, and end at a multiple of 256 or at the end of the parameter. On a GPU the call waits
    /// for queued steps.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec};
    /// let mut lion = Lion::builder().build()?;
    /// let width = 512; // elements per row: two blocks
    /// let embedding = lion.register(ParamSpec::new("embedding", 100 * width, Dtype::F32))?;
    /// lion.reset(embedding, 17 * width..18 * width)?;
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownHandle`]; [`Error::NotWholeBlocks`]; [`Error::Backend`] if the backend fails before
    /// it changes anything; [`Error::PartlyReset`] if it fails later.
    pub fn reset(&mut self, handle: Handle, range: Range<usize>) -> Result<(), Error> {
        self.inner.reset(handle, range)
    }

    /// Waits until all queued steps are done. Returns the blocks that [`pending`](StepReport::pending) steps
    /// have skipped since the last call, per parameter.
    ///
    /// On the CPU no step is pending: a step is done when it returns, and its report is complete.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec};
    /// let mut lion = Lion::builder().build()?;
    /// let w = lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
    /// lion.step([(w, &mut [0.0f32; 4], &[1.0f32; 4])])?;
    /// assert!(lion.synchronize()?.is_empty());
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Backend`] if a queued step has failed.
    pub fn synchronize(&mut self) -> Result<Vec<SkippedBlocks>, Error> {
        self.inner.synchronize()
    }

    /// Returns the learning rate of the defaults, as [`set_lr`](Lion::set_lr) sets it.
    ///
    /// ```
    /// let mut lion = lion::Lion::builder().build()?;
    /// assert_eq!(lion.lr(), 1e-4);
    /// lion.set_lr(3e-5)?;
    /// assert_eq!(lion.lr(), 3e-5);
    /// # Ok::<(), lion::Error>(())
    /// ```
    pub fn lr(&self) -> f64 {
        self.inner.lr()
    }

    /// Returns the learning rate that a step uses for one parameter: the `lr` of the narrowest scope that
    /// sets one (parameter, group or defaults), times the multipliers.
    ///
    /// ```
    /// use lion::{Dtype, Lion, Overrides, ParamSpec};
    /// let mut lion = Lion::builder().lr(1e-3).build()?;
    /// lion.add_group("head", Overrides::new().lr_multiplier(0.5))?;
    /// let w = lion.register(ParamSpec::new("w", 16, Dtype::F32).group("head"))?;
    /// assert_eq!(lion.lr_of(w)?, 5e-4);
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownHandle`].
    pub fn lr_of(&self, handle: Handle) -> Result<f64, Error> {
        self.inner.lr_of(handle)
    }

    /// Sets the learning rate of the defaults. It applies to all parameters for which neither the group nor
    /// the overrides set `lr`. To set the learning rate of all parameters for one step, use
    /// [`StepArgs::lr`].
    ///
    /// # Errors
    /// [`Error::InvalidHyper`].
    pub fn set_lr(&mut self, lr: f64) -> Result<(), Error> {
        self.inner.set_lr(lr)
    }

    /// Returns the defaults. Hyper-parameters that are not set have the values of
    /// [`Hyper::default`](crate::backend::Hyper).
    pub fn defaults(&self) -> &Overrides {
        self.inner.defaults()
    }

    /// Sets the defaults that are set in `changes`, and keeps the others.
    ///
    /// ```
    /// use lion::{Lion, Overrides};
    /// let mut lion = Lion::builder().lr(0.1).build()?;
    /// lion.configure(Overrides::new().weight_decay(0.5))?;
    /// assert_eq!((lion.defaults().lr, lion.defaults().weight_decay), (Some(0.1), Some(0.5)));
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidHyper`], also if `lr * lr_multiplier` or `1 - lr * weight_decay` of a parameter
    /// would exceed the range of `f32`; [`Error::StochasticParam`]; [`Error::BitsFixed`] if an existing
    /// state would need another width; [`Error::PagingFixed`] if an existing state would have to become
    /// paged, or stop being paged.
    pub fn configure(&mut self, changes: Overrides) -> Result<(), Error> {
        self.inner.configure(changes)
    }

    /// Sets the overrides of a group that are set in `changes`, and keeps the others.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`], and the errors of [`configure`](Lion::configure).
    pub fn configure_group(&mut self, group: &str, changes: Overrides) -> Result<(), Error> {
        self.inner.configure_group(group, changes)
    }

    /// Sets the overrides of one parameter that are set in `changes`, and keeps the others.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`], and the errors of [`configure`](Lion::configure).
    pub fn configure_parameter(&mut self, handle: Handle, changes: Overrides) -> Result<(), Error> {
        self.inner.configure_parameter(handle, changes)
    }

    /// Replaces the defaults. Hyper-parameters that `defaults` does not set return to the values of
    /// [`Hyper::default`](crate::backend::Hyper). [`set_overrides`](Lion::set_overrides) has an example.
    ///
    /// # Errors
    /// The errors of [`configure`](Lion::configure).
    pub fn set_defaults(&mut self, defaults: Overrides) -> Result<(), Error> {
        self.inner.set_defaults(defaults)
    }

    /// Replaces the overrides of a group. Hyper-parameters that `overrides` does not set are those of the
    /// defaults afterwards.
    ///
    /// # Errors
    /// The errors of [`configure_group`](Lion::configure_group).
    pub fn set_group_overrides(&mut self, group: &str, overrides: Overrides) -> Result<(), Error> {
        self.inner.set_group_overrides(group, overrides)
    }

    /// Replaces the overrides of one parameter. Hyper-parameters that `overrides` does not set are those of
    /// its group and of the defaults afterwards.
    ///
    /// ```
    /// use lion::{Dtype, Lion, Overrides, ParamSpec};
    /// let mut lion = Lion::builder().lr(0.1).build()?;
    /// let w = lion.register(ParamSpec::new("w", 4, Dtype::F32).overrides(Overrides::new().lr(5.0)))?;
    /// let mut overrides = lion.info(w)?.overrides;
    /// overrides.lr = None;
    /// lion.set_overrides(w, overrides)?;
    /// assert_eq!(lion.lr_of(w)?, 0.1);
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`configure_parameter`](Lion::configure_parameter).
    pub fn set_overrides(&mut self, handle: Handle, overrides: Overrides) -> Result<(), Error> {
        self.inner.set_overrides(handle, overrides)
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
        self.inner.add_group(name, overrides)
    }

    /// Returns the groups, in the order in which they were added.
    pub fn groups(&self) -> &[Group] {
        self.inner.groups()
    }

    /// Returns the handle of the parameter with this name.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec};
    /// let mut lion = Lion::builder().build()?;
    /// let w = lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
    /// assert_eq!(lion.handle("w")?, w);
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    pub fn handle(&self, name: &str) -> Result<Handle, Error> {
        self.inner.handle(name)
    }

    /// Returns information about one parameter, such as its resolved hyper-parameters, its step count and
    /// the size of its state.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`].
    pub fn info(&self, handle: Handle) -> Result<ParamInfo<'_>, Error> {
        self.inner.info(handle)
    }

    /// Returns an iterator over the information about all parameters, in the order of registration.
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
        self.inner.parameters()
    }

    /// Returns the total size of all states in bytes.
    pub fn state_bytes(&self) -> usize {
        self.inner.state_bytes()
    }

    /// Returns the state of a parameter, which can be read in parts.
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
        self.inner.state(handle)
    }

    /// Returns how many bytes of the paged states are resident and what the last step moved. Returns `None`
    /// if the backend does not page. [`LionBuilder::paging`] has an example.
    pub fn paging(&self) -> Option<PagingReport> {
        self.inner.paging()
    }

    /// Returns the backend that holds the states and runs the steps.
    pub fn backend(&self) -> &dyn Backend {
        self.inner.backend()
    }

    /// Returns a copy of the state, the step count and the seed of a parameter. Another optimizer can
    /// continue from it with [`import_state`](Lion::import_state).
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
        self.inner.export_state(handle)
    }

    /// Sets the state, the step count and the seed of a parameter to those of a record.
    ///
    /// If the seed of the record differs, it becomes an override of the parameter. To keep the current
    /// seed, set the seed of the record to it first. [`export_state`](Lion::export_state) has an example.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`]; [`Error::StateMismatch`] if the width or length of the record differs, or
    /// if it holds numbers that no step produces; [`Error::Backend`] if the state cannot be written and is
    /// unchanged; [`Error::Damaged`] if it is partly written.
    pub fn import_state(&mut self, handle: Handle, record: &StateRecord) -> Result<(), Error> {
        self.inner.import_state(handle, record)
    }

    /// Starts to restore settings and parameters, for file formats other than that of this crate. The
    /// caller writes the states through the returned [`Restore`] and then commits it.
    ///
    /// # Errors
    /// The errors of [`Optimizer::restore`].
    pub fn restore(
        &mut self,
        settings: Option<OptimizerConfig>,
        records: Vec<ParamRecord>,
    ) -> Result<Restore<'_>, Error> {
        self.inner.restore(settings, records)
    }

    /// Returns an independent copy with the same parameters, settings and states, on the same backend.
    /// Handles are valid for both. `Lion` does not implement [`Clone`] because the copy fails if the states
    /// cannot be allocated.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec};
    /// let mut lion = Lion::builder().build()?;
    /// let w = lion.register(ParamSpec::new("w", 1, Dtype::F32))?;
    /// let copy = lion.try_clone()?;
    /// lion.step([(w, &mut [0.0f32], &[1.0f32])])?;
    /// assert_eq!((lion.info(w)?.steps, copy.info(w)?.steps), (1, 0));
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Backend`] if a state cannot be read or allocated; [`Error::Damaged`].
    pub fn try_clone(&self) -> Result<Lion, Error> {
        let inner = self.inner.try_clone()?;
        Ok(Lion { inner })
    }
}

/// Lists the settings and the parameters, without the numbers of their states.
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
impl fmt::Debug for Lion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsRef<Optimizer> for Lion {
    fn as_ref(&self) -> &Optimizer {
        &self.inner
    }
}

impl AsMut<Optimizer> for Lion {
    fn as_mut(&mut self) -> &mut Optimizer {
        &mut self.inner
    }
}

macro_rules! presets {
    ($($(#[$doc:meta])* $name:ident, |$overrides:ident| $defaults:expr;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub enum $name {}

            impl $name {
                /// Returns a builder of a [`Lion`] with these defaults.
                pub fn builder() -> LionBuilder {
                    let $overrides = Overrides::new();
                    LionBuilder::new($defaults)
                }
            }
        )*
    };
}

presets! {
    /// Builds a [`Lion`] with 8-bit states, 1.016 bytes per element, as `bitsandbytes.optim.Lion8bit`.
    ///
    /// Parameters with fewer than `min_8bit_size` elements get a 32-bit state, and so do parameters whose
    /// group or overrides set `optim_bits` to 32.
    Lion8bit, |d| d.optim_bits(8);

    /// Builds a [`Lion`] with 32-bit states, 4 bytes per element, as `bitsandbytes.optim.Lion32bit`.
    Lion32bit, |d| d.optim_bits(32);

    /// Builds a [`Lion`] with paged states, as `bitsandbytes.optim.PagedLion`: the paged states in
    /// fast memory never exceed a budget.
    ///
    /// [`LionBuilder::paging`] sets the budget and where the other states are stored. States are not paged
    /// if their parameter has fewer than `min_paged_size` elements, or if its group or overrides unset
    /// `is_paged`. The results are the same, bit for bit, as those of an optimizer that does not page.
    PagedLion, |d| d.is_paged(true);

    /// Builds a [`Lion`] with paged 8-bit states, as `bitsandbytes.optim.PagedLion8bit`.
    PagedLion8bit, |d| d.is_paged(true).optim_bits(8);

    /// Builds a [`Lion`] with paged 32-bit states, as `bitsandbytes.optim.PagedLion32bit`.
    PagedLion32bit, |d| d.is_paged(true).optim_bits(32);
}
