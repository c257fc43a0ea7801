//! The builder of an optimizer: hyper-parameters, device, and what to do about non-finite gradients.

use crate::{Device, Lion};
use lion_core::{
    Backend, BackendError, Error, LionArgs, OnNonFinite, Optimizer, Overrides, PagingError,
};
use lion_paging::Paging;

/// Builds a [`Lion`].
///
/// What is not set has the default of bitsandbytes: `lr` 1e-4, `betas` (0.9, 0.99), `weight_decay` 0,
/// `optim_bits` 32, `min_8bit_size` 4096, `is_paged` false.
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
#[derive(Debug)]
pub struct LionBuilder {
    defaults: Overrides,
    on_non_finite: OnNonFinite,
    device: Option<Device>,
    backend: Option<Box<dyn Backend>>,
    paging: Option<Paging>,
}

impl LionBuilder {
    pub(crate) fn new(defaults: Overrides) -> Self {
        LionBuilder {
            defaults,
            on_non_finite: OnNonFinite::default(),
            device: None,
            backend: None,
            paging: None,
        }
    }

    /// Learning rate: finite, 0 or more. Lion wants a third to a tenth of AdamW's.
    #[must_use]
    pub fn lr(self, lr: f64) -> Self {
        self.set(|d| d.lr(lr))
    }

    /// `(beta1, beta2)`, each in `[0, 1)` after rounding to `f32`: `beta1` of `c = beta1 * m +
    /// (1 - beta1) * g`, whose sign is the direction of the step, and `beta2` of the new momentum
    /// `beta2 * m + (1 - beta2) * g`.
    #[must_use]
    pub fn betas(self, betas: (f64, f64)) -> Self {
        self.set(|d| d.betas(betas))
    }

    /// Bits of state per element, 8 or 32.
    #[must_use]
    pub fn optim_bits(self, bits: u32) -> Self {
        self.set(|d| d.optim_bits(bits))
    }

    /// Sets what bitsandbytes passes as `args`.
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

    /// Whether states are paged, of parameters of at least `min_paged_size` elements.
    /// [`paging`](LionBuilder::paging) sets how.
    #[must_use]
    pub fn is_paged(self, is_paged: bool) -> Self {
        self.set(|d| d.is_paged(is_paged))
    }

    /// Decoupled weight decay, multiplied by the learning rate: finite, 0 or more.
    #[must_use]
    pub fn weight_decay(self, weight_decay: f64) -> Self {
        self.set(|d| d.weight_decay(weight_decay))
    }

    /// Parameters with fewer elements keep a 32-bit state.
    #[must_use]
    pub fn min_8bit_size(self, elements: usize) -> Self {
        self.set(|d| d.min_8bit_size(elements))
    }

    /// Parameters with fewer elements have a state that is not paged; 100,000 unless set.
    #[must_use]
    pub fn min_paged_size(self, elements: usize) -> Self {
        self.set(|d| d.min_paged_size(elements))
    }

    /// How paged states are paged. Which states are is said by `is_paged`, of the optimizer, of a group or
    /// of a parameter.
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

    /// Limits the norm of the update to this many norms of the parameter: finite, 0 (no limit) or more.
    #[must_use]
    pub fn max_unorm(self, max_unorm: f64) -> Self {
        self.set(|d| d.max_unorm(max_unorm))
    }

    /// Elements whose gradient is exactly 0 keep parameter and momentum.
    #[must_use]
    pub fn skip_zeros(self, skip_zeros: bool) -> Self {
        self.set(|d| d.skip_zeros(skip_zeros))
    }

    /// Rounds `bf16` parameters stochastically, so that steps below their resolution are not lost.
    /// `f32` parameters are not rounded, so it has no effect on them. An optimizer with this set
    /// refuses `f16` parameters ([`Error::StochasticParam`]), unless their group or their own
    /// overrides unset it.
    #[must_use]
    pub fn stochastic_param(self, stochastic_param: bool) -> Self {
        self.set(|d| d.stochastic_param(stochastic_param))
    }

    /// Chooses 8-bit codes stochastically, so that small changes of a momentum are not lost. It has no
    /// effect on 32-bit states, those of small parameters included.
    ///
    /// The expected value of a code is the number itself, except near the negative end of a block: the
    /// codebook has 1.0 and not -1.0, so a block's negative maximum becomes -0.993 times its magnitude
    /// in each step, as it does without this option. Under a constant gradient of +1 the momentum tends
    /// to 1, under one of -1 to -0.585 (`beta2` 0.99).
    #[must_use]
    pub fn stochastic_state(self, stochastic_state: bool) -> Self {
        self.set(|d| d.stochastic_state(stochastic_state))
    }

    /// Seed of stochastic rounding. Each parameter draws from a seed of its own, made of this and its name.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        self.set(|d| d.seed(seed))
    }

    /// What a step does where a new momentum is not finite.
    #[must_use]
    pub fn on_non_finite(mut self, on_non_finite: OnNonFinite) -> Self {
        self.on_non_finite = on_non_finite;
        self
    }

    /// Where the optimizer runs. The default is [`Device::auto`]. It excludes
    /// [`backend`](LionBuilder::backend).
    #[must_use]
    pub fn device(mut self, device: Device) -> Self {
        self.device = Some(device);
        self
    }

    /// A backend of one's own, or a [`Cpu`](crate::cpu::Cpu) with a chosen kernel or pool.
    ///
    /// It takes the place of a [`device`](LionBuilder::device), and pages if it was made to, for example
    /// by [`Cpu::paging`](crate::cpu::Cpu::paging): [`build`](LionBuilder::build) returns an error if
    /// [`device`](LionBuilder::device) or [`paging`](LionBuilder::paging) is set as well.
    #[must_use]
    pub fn backend(mut self, backend: impl Backend + 'static) -> Self {
        self.backend = Some(Box::new(backend));
        self
    }

    /// The optimizer, without parameters yet.
    ///
    /// # Errors
    /// [`Error::InvalidHyper`] where a hyper-parameter is outside its range;
    /// [`Error::ConflictingOptions`] where a backend is set beside a device or paging;
    /// [`Error::Backend`] where the device cannot be used, or states are to be paged and cannot: with a
    /// [`PagingError`](crate::paging::PagingError).
    pub fn build(self) -> Result<Lion, Error> {
        let conflict = |second, reason| Error::ConflictingOptions {
            first: "backend",
            second,
            reason,
        };
        if self.backend.is_some() && self.device.is_some() {
            let reason = "a backend takes the place of a device";
            return Err(conflict("device", reason));
        }
        if self.backend.is_some() && self.paging.is_some() {
            let reason = "a backend that is given does its own paging, if it was made to";
            return Err(conflict("paging", reason));
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
        let inner = Optimizer::new(backend, self.defaults, self.on_non_finite)?;
        Ok(Lion { inner })
    }

    fn set(mut self, change: impl FnOnce(Overrides) -> Overrides) -> Self {
        self.defaults = change(self.defaults);
        self
    }
}
