//! The optimizers that people hold.

use crate::builder::Built;
use crate::{IntoGrad, IntoUpdate, LionBuilder};
use lion_core::{Error, GradNorm, Handle, Optimizer, Overrides, StepArgs, StepReport};
use std::ops::{Deref, DerefMut};

/// The Lion optimizer with a state of 8 or 32 bits, chosen by `optim_bits`.
///
/// ```text
/// c  = beta1 * m + (1 - beta1) * g
/// p' = p * (1 - lr * weight_decay) - lr * sign(c)        sign(0) = 0
/// m' = beta2 * m + (1 - beta2) * g
/// ```
///
/// `p` parameter, `g` gradient times `grad_scale`, `m` momentum, 0 before the first step; all of them
/// element-wise, in `f32`. Chen et al., "Symbolic Discovery of Optimization Algorithms",
/// arXiv:2302.06675; parameters and defaults as `bitsandbytes.optim.Lion`.
///
/// Registration, groups, overrides and introspection are the methods of [`Optimizer`].
///
/// ```
/// use lion::{Dtype, Lion, ParamSpec, StepArgs};
/// let mut lion = Lion::builder().build()?;
/// let w = lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
/// let (mut weight, grad) = (vec![1.0f32; 4], vec![2.0f32, -2.0, 0.0, 1e-9]);
///
/// // A schedule sets the learning rate of each step; a loss scale is divided out on the way.
/// for t in 1..=2 {
///     let args = StepArgs::new().lr(0.25 / f64::from(t)).grad_scale(1.0 / 128.0);
///     lion.step_with(args, [(w, &mut weight, &grad)])?;
/// }
/// assert_eq!(weight, [0.625, 1.375, 1.0, 0.625]);
/// assert_eq!(lion.info(w)?.steps, 2);
/// # Ok::<(), lion::Error>(())
/// ```
#[derive(Debug)]
pub struct Lion {
    pub(crate) inner: Optimizer,
}

impl Lion {
    /// A builder with the defaults of bitsandbytes.
    pub fn builder() -> LionBuilder<Lion> {
        LionBuilder::with_defaults(Overrides::new())
    }

    /// Steps some or all parameters, in any order.
    ///
    /// An update is a handle, the parameter to change and the gradient to change it by, as slices,
    /// vectors or `ndarray` arrays; where parameters are of different kinds, [`update`](crate::update)
    /// makes them one. Everything is checked before anything changes. The report tells of blocks left as
    /// they were: a trainer that does not look at it does not notice gradients that are not finite.
    ///
    /// # Errors
    /// As [`Optimizer::step`].
    pub fn step<'a, I>(&mut self, updates: I) -> Result<StepReport, Error>
    where
        I: IntoIterator<Item: IntoUpdate<'a>>,
    {
        self.step_with(StepArgs::new(), updates)
    }

    /// As [`step`](Lion::step), with a learning rate or a factor of the gradients for this step.
    ///
    /// # Errors
    /// As [`Optimizer::step`].
    pub fn step_with<'a, I>(&mut self, args: StepArgs, updates: I) -> Result<StepReport, Error>
    where
        I: IntoIterator<Item: IntoUpdate<'a>>,
    {
        let updates = updates.into_iter().map(IntoUpdate::into_update);
        self.inner.step(args, updates)
    }

    /// The norm of gradients taken together, as [`Optimizer::grad_norm`]. A gradient of `None` counts for
    /// nothing.
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
    /// // A step that clips by it, in one call.
    /// let args = StepArgs::new().max_grad_norm(1.0);
    /// let updates = [(a, &mut pa[..], &ga), (b, &mut pb[..], &gb)];
    /// assert_eq!(lion.step_with(args, updates)?.grad_norm, Some(5.0));
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Optimizer::grad_norm`].
    pub fn grad_norm<'a, I, G>(&self, gradients: I) -> Result<GradNorm, Error>
    where
        I: IntoIterator<Item = (Handle, G)>,
        G: IntoGrad<'a>,
    {
        let gradients = gradients.into_iter();
        let gradients = gradients.filter_map(|(handle, grad)| Some((handle, grad.into_grad()?)));
        self.inner.grad_norm(gradients)
    }
}

impl Built for Lion {
    fn of(lion: Lion) -> Self {
        lion
    }
}

impl Deref for Lion {
    type Target = Optimizer;

    fn deref(&self) -> &Optimizer {
        &self.inner
    }
}

impl DerefMut for Lion {
    fn deref_mut(&mut self) -> &mut Optimizer {
        &mut self.inner
    }
}

macro_rules! variants {
    ($($(#[$doc:meta])* $name:ident, |$overrides:ident| $defaults:expr;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            pub struct $name(Lion);

            impl $name {
                /// A builder with the defaults of bitsandbytes.
                pub fn builder() -> LionBuilder<$name> {
                    let $overrides = Overrides::new();
                    LionBuilder::with_defaults($defaults)
                }
            }

            impl Built for $name {
                fn of(lion: Lion) -> Self {
                    $name(lion)
                }
            }

            impl From<$name> for Lion {
                fn from(lion: $name) -> Self {
                    lion.0
                }
            }

            impl Deref for $name {
                type Target = Lion;

                fn deref(&self) -> &Lion {
                    &self.0
                }
            }

            impl DerefMut for $name {
                fn deref_mut(&mut self) -> &mut Lion {
                    &mut self.0
                }
            }
        )*
    };
}

variants! {
    /// [`Lion`] with an 8-bit state: 1.016 bytes an element, as `bitsandbytes.optim.Lion8bit`.
    ///
    /// Parameters with fewer than `min_8bit_size` elements keep a 32-bit state, and so does each one
    /// that an override says so for.
    Lion8bit, |d| d.optim_bits(8);

    /// [`Lion`] with a 32-bit state: 4 bytes an element, as `bitsandbytes.optim.Lion32bit`.
    Lion32bit, |d| d.optim_bits(32);

    /// [`Lion`] with a paged state, as `bitsandbytes.optim.PagedLion`: no more than a budget of it is in
    /// fast memory at a time.
    ///
    /// [`LionBuilder::paging`] says how large the budget is and where the rest goes. Parameters with fewer
    /// than `min_paged_size` elements, and those that an override says so for, keep a state that is not
    /// paged. The numbers are those of [`Lion`], bit for bit.
    PagedLion, |d| d.is_paged(true);

    /// [`PagedLion`] with an 8-bit state, as `bitsandbytes.optim.PagedLion8bit`.
    PagedLion8bit, |d| d.is_paged(true).optim_bits(8);

    /// [`PagedLion`] with a 32-bit state, as `bitsandbytes.optim.PagedLion32bit`.
    PagedLion32bit, |d| d.is_paged(true).optim_bits(32);
}
