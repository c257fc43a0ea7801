//! The optimizer, and the entry points of its builder under the names of bitsandbytes.

use crate::LionBuilder;
use lion_core::norm::ShardNorm;
use lion_core::{
    Backend, Error, GradNorm, Group, Handle, IntoGrad, IntoUpdate, OnNonFinite, Optimizer,
    OptimizerConfig, Overrides, PagingReport, ParamInfo, ParamRecord, ParamSpec, Restore,
    SkippedBlocks, State, StateRecord, StepArgs, StepReport,
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
    /// The save that a thread writes.
    #[cfg(feature = "checkpoint")]
    pub(crate) background: lion_checkpoint::Background,
}

impl Lion {
    pub(crate) fn new(inner: Optimizer) -> Self {
        Lion {
            inner,
            #[cfg(feature = "checkpoint")]
            background: lion_checkpoint::Background::default(),
        }
    }

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

    /// Returns the global L2 norm of the gradients; see [`Optimizer::grad_norm`]. Gradients of `None` are
    /// ignored. [`StepArgs::max_grad_norm`] has an example.
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

    /// Returns the norm of each parameter of a step, as far as it is in this process. Nothing changes. The step
    /// of a shard needs the norm of the whole tensor if `max_unorm` is set; [`Optimizer::shard_norms`] has an
    /// example.
    ///
    /// # Errors
    /// The errors of [`Optimizer::shard_norms`].
    pub fn shard_norms<'a, I>(
        &mut self,
        args: StepArgs,
        updates: I,
    ) -> Result<Vec<(Handle, ShardNorm)>, Error>
    where
        I: IntoIterator<Item: IntoUpdate<'a>>,
    {
        let updates = updates.into_iter().map(IntoUpdate::into_update);
        self.inner.shard_norms(args, updates)
    }

    /// Returns the parameters with blocks that a step would skip, because their new momentum is not finite. Nothing
    /// changes. [`Optimizer::non_finite_blocks`] has an example.
    ///
    /// # Errors
    /// The errors of [`Optimizer::non_finite_blocks`].
    pub fn non_finite_blocks<'a, I>(
        &mut self,
        args: StepArgs,
        updates: I,
    ) -> Result<Vec<SkippedBlocks>, Error>
    where
        I: IntoIterator<Item: IntoUpdate<'a>>,
    {
        let updates = updates.into_iter().map(IntoUpdate::into_update);
        self.inner.non_finite_blocks(args, updates)
    }

    /// Returns an independent copy with the same parameters, settings and states, on the same backend.
    /// Handles are valid for both. `Lion` does not implement [`Clone`] because the copy fails if the states
    /// cannot be allocated. [`Optimizer::try_clone`] has an example.
    ///
    /// # Errors
    /// [`Error::Backend`] if a state cannot be read or allocated; [`Error::Damaged`].
    pub fn try_clone(&self) -> Result<Lion, Error> {
        let inner = self.inner.try_clone()?;
        Ok(Lion::new(inner))
    }
}

/// Implements methods of [`Lion`] that call the method of [`Optimizer`] with the same name.
macro_rules! forward {
    ($($(#[$doc:meta])* fn $name:ident($self:ident: $receiver:ty $(, $arg:ident: $kind:ty)*) $(-> $returns:ty)?;)*) => {
        impl Lion {
            $($(#[$doc])* pub fn $name($self: $receiver $(, $arg: $kind)*) $(-> $returns)? {
                $self.inner.$name($($arg),*)
            })*
        }
    };
}

forward! {
    /// Registers a parameter and allocates its state. If its specification has no group, it joins the first group that
    /// contains it [by name](LionBuilder::group), if there is one.
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
    fn register(self: &mut Self, spec: ParamSpec) -> Result<Handle, Error>;

    /// Removes a parameter and frees its state. The other parameters keep their handles and their order.
    /// The handle stays invalid, even if the name is registered again. [`Optimizer::remove`] has an example.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`].
    fn remove(self: &mut Self, handle: Handle) -> Result<(), Error>;

    /// Sets the momentum of the elements in `range` to zero, for example after the trainer has
    /// re-initialized rows of a parameter. The step count, the seed and the hyper-parameters are kept. On a
    /// GPU the call waits for queued steps. [`Optimizer::reset`] has an example.
    ///
    /// The range is in memory order and must consist of whole blocks of 256 elements: it must start at a
    /// multiple of 256, and end at a multiple of 256 or at the end of the parameter.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`], [`Error::NotWholeBlocks`], [`Error::Backend`], [`Error::PartlyReset`].
    fn reset(self: &mut Self, handle: Handle, range: Range<usize>) -> Result<(), Error>;

    /// Waits until all queued steps are done. Returns the blocks that [`pending`](StepReport::pending) steps
    /// have skipped since the last call, per parameter. On the CPU no step is pending.
    ///
    /// # Errors
    /// [`Error::Backend`] if a queued step has failed.
    fn synchronize(self: &mut Self) -> Result<Vec<SkippedBlocks>, Error>;

    /// Returns the learning rate of the defaults, as [`set_lr`](Lion::set_lr) sets it.
    fn lr(self: &Self) -> f64;

    /// Returns the learning rate that a step uses for one parameter: the `lr` of the narrowest scope that
    /// sets one (parameter, group or defaults), times the multipliers.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`].
    fn lr_of(self: &Self, handle: Handle) -> Result<f64, Error>;

    /// Sets the learning rate of the defaults. It applies to all parameters for which neither the group nor
    /// the overrides set `lr`. To set the learning rate of all parameters for one step, use
    /// [`StepArgs::lr`].
    ///
    /// ```
    /// let mut lion = lion::Lion::builder().build()?;
    /// assert_eq!(lion.lr(), 1e-4);
    /// lion.set_lr(3e-5)?;
    /// assert_eq!(lion.lr(), 3e-5);
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidHyper`].
    fn set_lr(self: &mut Self, lr: f64) -> Result<(), Error>;

    /// Returns the defaults. Hyper-parameters that are not set have the values of
    /// [`Hyper::default`](crate::backend::Hyper).
    fn defaults(self: &Self) -> &Overrides;

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
    fn configure(self: &mut Self, changes: Overrides) -> Result<(), Error>;

    /// Sets the overrides of a group that are set in `changes`, and keeps the others.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`], and the errors of [`configure`](Lion::configure).
    fn configure_group(self: &mut Self, group: &str, changes: Overrides) -> Result<(), Error>;

    /// Sets the overrides of one parameter that are set in `changes`, and keeps the others.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`], and the errors of [`configure`](Lion::configure).
    fn configure_parameter(self: &mut Self, handle: Handle, changes: Overrides) -> Result<(), Error>;

    /// Replaces the defaults. Hyper-parameters that `defaults` does not set get the values of
    /// [`Hyper::default`](crate::backend::Hyper).
    ///
    /// # Errors
    /// The errors of [`configure`](Lion::configure).
    fn set_defaults(self: &mut Self, defaults: Overrides) -> Result<(), Error>;

    /// Replaces the overrides of a group. Hyper-parameters that `overrides` does not set are taken from the
    /// defaults.
    ///
    /// # Errors
    /// The errors of [`configure_group`](Lion::configure_group).
    fn set_group_overrides(self: &mut Self, group: &str, overrides: Overrides) -> Result<(), Error>;

    /// Replaces the overrides of one parameter. Hyper-parameters that `overrides` does not set are taken from
    /// its group and the defaults. [`Optimizer::set_overrides`] has an example.
    ///
    /// # Errors
    /// The errors of [`configure_parameter`](Lion::configure_parameter).
    fn set_overrides(self: &mut Self, handle: Handle, overrides: Overrides) -> Result<(), Error>;

    /// Adds a group, whose parameters share hyper-parameters. A parameter joins it when it is registered.
    /// [`Optimizer::add_group`] has an example.
    ///
    /// # Errors
    /// [`Error::EmptyName`], [`Error::DuplicateGroup`], [`Error::InvalidHyper`].
    fn add_group(self: &mut Self, name: &str, overrides: Overrides) -> Result<(), Error>;

    /// Adds a group that parameters join by name, when they are registered later. [`LionBuilder::group`] adds it before
    /// any is, and has an example.
    ///
    /// # Errors
    /// Those of [`add_group`](Lion::add_group).
    fn add_group_by_name(
        self: &mut Self,
        name: &str,
        overrides: Overrides,
        contains: impl Fn(&str) -> bool + Send + Sync + 'static
    ) -> Result<(), Error>;

    /// Returns the groups, in the order in which they were added.
    fn groups(self: &Self) -> &[Group];

    /// Returns what a step does if a new momentum is not finite.
    fn on_non_finite(self: &Self) -> OnNonFinite;

    /// Returns the handle of the parameter with this name.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`].
    fn handle(self: &Self, name: &str) -> Result<Handle, Error>;

    /// Returns information about one parameter, such as its resolved hyper-parameters, its step count and
    /// the size of its state.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`].
    fn info(self: &Self, handle: Handle) -> Result<ParamInfo<'_>, Error>;

    /// Returns an iterator over the information about all parameters, in the order of registration.
    fn parameters(self: &Self) -> impl ExactSizeIterator<Item = ParamInfo<'_>>;

    /// Returns the total size of all states in bytes.
    fn state_bytes(self: &Self) -> usize;

    /// Returns the state of a parameter, which can be read in parts. [`Optimizer::state`] has an example.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`], [`Error::Damaged`].
    fn state(self: &Self, handle: Handle) -> Result<&dyn State, Error>;

    /// Returns how many bytes of the paged states are resident and what the last step moved. Returns `None`
    /// if the backend does not page. [`LionBuilder::paging`] has an example.
    fn paging(self: &Self) -> Option<PagingReport>;

    /// Returns the backend that holds the states and runs the steps.
    fn backend(self: &Self) -> &dyn Backend;

    /// Returns a copy of the state, the step count and the seed of a parameter. Another optimizer can
    /// continue from it with [`import_state`](Lion::import_state). [`Optimizer::export_state`] has an example.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`], [`Error::Damaged`], [`Error::Backend`].
    fn export_state(self: &Self, handle: Handle) -> Result<StateRecord, Error>;

    /// Sets the state, the step count and the seed of a parameter to those of a record.
    /// [`Optimizer::import_state`] describes what happens to the seed.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`], [`Error::StateMismatch`], [`Error::Backend`], [`Error::Damaged`].
    fn import_state(self: &mut Self, handle: Handle, record: &StateRecord) -> Result<(), Error>;

    /// Begins to restore settings and parameters, for file formats other than that of this crate. The
    /// caller writes the states through the returned [`Restore`], which has an example, and then commits it.
    ///
    /// # Errors
    /// The errors of [`Optimizer::restore`].
    fn restore(self: &mut Self, settings: Option<OptimizerConfig>, records: Vec<ParamRecord>) -> Result<Restore<'_>, Error>;
}

/// Lists the settings and the parameters, without the values of their states.
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
