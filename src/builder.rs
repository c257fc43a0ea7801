//! The builder of an optimizer.

use crate::{Device, Lion};
use lion_core::{
    Backend, BackendError, Error, Group, LionArgs, OnNonFinite, Optimizer, Overrides, PagingError,
};
use lion_paging::Paging;
use std::fmt;

/// Returns whether a group contains the parameter of a name.
type Contains = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// Builds a [`Lion`]: sets its hyper-parameters, its device, and what it does about non-finite gradients.
///
/// The defaults are those of bitsandbytes: `lr` 1e-4, `betas` (0.9, 0.99), `weight_decay` 0, `optim_bits`
/// 32, `min_8bit_size` 4096, `is_paged` false.
///
/// ```
/// let lion = lion::Lion::builder().lr(3e-4).betas((0.95, 0.98)).optim_bits(8).build()?;
/// assert_eq!(lion.parameters().len(), 0);
///
/// let error = lion::Lion::builder().lr(-1.0).build().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "the optimizer's defaults: lr is -1, wanted 0 or more, and finite in f32"
/// );
/// # Ok::<(), lion::Error>(())
/// ```
pub struct LionBuilder {
    defaults: Overrides,
    groups: Vec<(Group, Contains)>,
    on_non_finite: OnNonFinite,
    device: Option<Device>,
    backend: Option<Box<dyn Backend>>,
    paging: Option<Paging>,
}

impl LionBuilder {
    pub(crate) fn new(defaults: Overrides) -> Self {
        LionBuilder {
            defaults,
            groups: Vec::new(),
            on_non_finite: OnNonFinite::default(),
            device: None,
            backend: None,
            paging: None,
        }
    }

    /// Sets the hyper-parameters that bitsandbytes passes in its argument `args`; see [`LionArgs`].
    #[must_use]
    pub fn args(self, args: LionArgs) -> Self {
        self.set(|d| d.args(args))
    }

    /// Sets every hyper-parameter that `overrides` sets, and keeps the others.
    ///
    /// ```
    /// use lion::{Lion8bit, Overrides};
    /// let shared = Overrides::new().lr(3e-4).weight_decay(0.1);
    /// let lion = Lion8bit::builder().overrides(shared).build()?;
    /// assert_eq!((lion.lr(), lion.defaults().optim_bits), (3e-4, Some(8)));
    /// # Ok::<(), lion::Error>(())
    /// ```
    #[must_use]
    pub fn overrides(self, overrides: Overrides) -> Self {
        self.set(|d| overrides.or(d))
    }

    /// Adds a group of parameters, which use the hyper-parameters that `overrides` sets, and otherwise the defaults.
    ///
    /// A parameter joins the group when it is registered, if `contains` returns `true` for its name. It joins the first
    /// group that contains it, in the order of the calls, unless its specification [names one](lion_core::ParamSpec::group).
    /// [`Lion::add_group`] adds a group whose parameters are named one by one.
    ///
    /// ```
    /// use lion::{Dtype, Lion, Overrides, ParamSpec};
    /// let no_decay = Overrides::new().weight_decay(0.0);
    /// let mut lion = Lion::builder()
    ///     .weight_decay(0.1)
    ///     .group("no_decay", no_decay, |name| name.ends_with("bias"))
    ///     .build()?;
    /// let weight = lion.register(ParamSpec::new("layer.weight", 64, Dtype::F32))?;
    /// let bias = lion.register(ParamSpec::new("layer.bias", 8, Dtype::F32))?;
    /// assert_eq!(lion.info(weight)?.hyper.weight_decay, 0.1);
    /// assert_eq!(lion.info(bias)?.hyper.weight_decay, 0.0);
    /// # Ok::<(), lion::Error>(())
    /// ```
    #[must_use]
    pub fn group(
        mut self,
        name: impl Into<String>,
        overrides: Overrides,
        contains: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        let group = Group::new(name, overrides);
        self.groups.push((group, Box::new(contains)));
        self
    }

    /// Sets how states are paged: the budget, and where the states are stored. Which states are paged is
    /// set by `is_paged` in the defaults, a group or the overrides of a parameter.
    ///
    /// ```
    /// use lion::{Device, Dtype, PagedLion8bit, Paging, ParamSpec};
    /// # let folder = tempfile::tempdir()?;
    /// let paging = Paging::in_folder(folder.path()).budget(1 << 20);
    /// let mut lion = PagedLion8bit::builder().paging(paging).device(Device::Cpu).build()?;
    /// let w = lion.register(ParamSpec::new("w", 4_000_000, Dtype::F32))?;
    /// assert!(lion.info(w)?.paged);
    /// # #[cfg(target_os = "linux")]
    /// assert!(lion.paging().is_some_and(|report| report.totals.resident <= 1 << 20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn paging(mut self, paging: Paging) -> Self {
        self.paging = Some(paging);
        self
    }

    /// Sets what a step does about a new momentum that is not finite; see [`OnNonFinite`].
    #[must_use]
    pub fn on_non_finite(mut self, on_non_finite: OnNonFinite) -> Self {
        self.on_non_finite = on_non_finite;
        self
    }

    /// Sets the device that holds the states and runs the steps. The default is [`Device::auto`]. Cannot be
    /// combined with [`backend`](LionBuilder::backend).
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.device = Some(device);
        self
    }

    /// Sets the device, unless a device or a backend is set. It is for crates that take a builder from their user and
    /// have their tensors on one device, which is then a better default than [`Device::auto`].
    ///
    /// ```
    /// use lion::{Device, Lion, cpu::{Cpu, Isa}};
    /// let users = Lion::builder().backend(Cpu::with_isa(Isa::Scalar)?);
    /// let lion = users.device_if_unset(Device::Cpu).build()?;
    /// assert_eq!(lion.backend().name(), "scalar");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn device_if_unset(mut self, device: Device) -> Self {
        if self.backend.is_none() {
            self.device.get_or_insert(device);
        }
        self
    }

    /// Sets the backend: another crate's, or a [`Cpu`](crate::cpu::Cpu) with a chosen instruction set or
    /// thread pool.
    ///
    /// Use this instead of [`device`](LionBuilder::device). To page states, configure the backend itself,
    /// for example with [`Cpu::paging`](crate::cpu::Cpu::paging). If [`device`](LionBuilder::device) or
    /// [`paging`](LionBuilder::paging) is set as well, [`build`](LionBuilder::build) returns an error.
    ///
    /// ```
    /// use lion::{Lion, cpu::{Cpu, Isa}};
    /// let lion = Lion::builder().backend(Cpu::with_isa(Isa::Scalar)?).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn backend(mut self, backend: impl Backend + 'static) -> Self {
        self.backend = Some(Box::new(backend));
        self
    }

    /// Returns the optimizer. It has no parameters yet.
    ///
    /// # Errors
    /// - [`Error::InvalidHyper`] if a hyper-parameter is outside its range
    /// - [`Error::EmptyName`] or [`Error::DuplicateGroup`] for a group without a name, or for two with one name
    /// - [`Error::ConflictingOptions`] if both a backend and a device are set, or a backend and paging
    /// - [`Error::Backend`] if the device cannot be used, or if it cannot page states as configured; in
    ///   the second case its source is a [`PagingError`](crate::paging::PagingError)
    pub fn build(self) -> Result<Lion, Error> {
        let paged = "paging must be configured on the backend itself";
        let conflicts = [
            (
                "device",
                self.device.is_some(),
                "a backend replaces the device",
            ),
            ("paging", self.paging.is_some(), paged),
        ];
        if self.backend.is_some()
            && let Some((second, _, reason)) = conflicts.into_iter().find(|option| option.1)
        {
            let first = "backend";
            return Err(Error::ConflictingOptions {
                first,
                second,
                reason,
            });
        }
        let backend = match self.backend {
            Some(backend) => backend,
            None => self
                .device
                .unwrap_or_default()
                .backend(self.paging.as_ref())?,
        };
        if self.defaults.get_is_paged() && backend.paging_totals().is_none() {
            let backend = backend.name().to_owned();
            return Err(BackendError::from(PagingError::NotSetUp { backend }).into());
        }
        let mut inner = Optimizer::new(backend, self.defaults, self.on_non_finite)?;
        for (group, contains) in self.groups {
            inner.add_group_by_name(&group.name, group.overrides, contains)?;
        }
        Ok(Lion::new(inner))
    }

    fn set(mut self, change: impl FnOnce(Overrides) -> Overrides) -> Self {
        self.defaults = change(self.defaults);
        self
    }
}

/// Lists the settings. Of a group it has the name and the overrides.
impl fmt::Debug for LionBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<&Group> = self.groups.iter().map(|(group, _)| group).collect();
        f.debug_struct("LionBuilder")
            .field("defaults", &self.defaults)
            .field("groups", &groups)
            .field("on_non_finite", &self.on_non_finite)
            .field("device", &self.device)
            .field("backend", &self.backend)
            .field("paging", &self.paging)
            .finish()
    }
}

/// Implements the setters of hyper-parameters, which forward to those of [`Overrides`].
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        impl LionBuilder {
            $($(#[$doc])* #[must_use] pub fn $name(self, $name: $kind) -> Self {
                self.set(|d| d.$name($name))
            })*
        }
    };
}

setters! {
    /// Sets the learning rate: finite, 0 or more. Good values for Lion are 3 to 10 times smaller than those
    /// for AdamW.
    lr: f64,

    /// Sets `(beta1, beta2)`, each in `[0, 1)` after rounding to `f32`.
    ///
    /// The direction of a step is the sign of `beta1 * m + (1 - beta1) * g`. The new momentum is
    /// `beta2 * m + (1 - beta2) * g`.
    betas: (f64, f64),

    /// Sets the number of bits of state per element, 8 or 32.
    optim_bits: u32,

    /// If set, pages the states of parameters with at least `min_paged_size` elements.
    /// [`paging`](LionBuilder::paging) sets the budget and where the states are stored.
    is_paged: bool,

    /// Sets the decoupled weight decay: finite, 0 or more. A step multiplies the parameter by
    /// `1 - lr * weight_decay`.
    weight_decay: f64,

    /// Sets the minimum number of elements of a parameter with an 8-bit state. Smaller parameters get a
    /// 32-bit state. The default is 4,096.
    min_8bit_size: usize,

    /// Sets the minimum number of elements of a parameter with a paged state. The states of smaller
    /// parameters are not paged. The default is 100,000.
    min_paged_size: usize,

    /// If greater than 0, clips the norm of the update to `max_unorm` times the norm of the parameter. The
    /// value must be finite and at least 0. The default is 0.
    max_unorm: f64,

    /// If set, leaves the parameter and the momentum of an element unchanged if its gradient is exactly 0.
    skip_zeros: bool,

    /// If set, rounds `bf16` parameters stochastically, so that updates smaller than their resolution are
    /// not lost.
    ///
    /// It has no effect on `f32` parameters, which are not rounded. Registering an `f16` parameter returns
    /// [`Error::StochasticParam`], unless the overrides of its group or of the parameter unset this.
    stochastic_param: bool,

    /// If set, rounds 8-bit states stochastically, so that small changes of the momentum are not lost. It
    /// has no effect on 32-bit states. [`Overrides::stochastic_state`] describes its bias near the negative
    /// end of a block.
    stochastic_state: bool,

    /// Sets the seed of stochastic rounding. The seed of each parameter is derived from this seed and the
    /// name of the parameter.
    seed: u64,
}
