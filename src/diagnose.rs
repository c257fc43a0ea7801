//! What rounding would lose in a step, per parameter, with advice.

use crate::Lion;
use lion_core::{BackendError, Dtype, Error, IntoUpdate, StepArgs, TensorStep};
use lion_quant::RoundingLosses;
use std::fmt;

/// The share of the elements from which on a finding comes with advice.
const THRESHOLD: f64 = 0.5;

/// What rounding would lose in a step, as [`Lion::diagnose`] returns it.
///
/// It is printed as the [advice](ParamDiagnosis::advice) for all parameters, one sentence per line. If there is none,
/// nothing is printed.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Diagnosis {
    /// The parameters of the step, in the order of the updates. Parameters without a gradient are left out.
    pub parameters: Vec<ParamDiagnosis>,
}

/// What rounding would lose of one parameter in a step.
///
/// Shares are numbers of elements over `elements`, from 0 to 1; those of an empty parameter are 0.
///
/// ```
/// use lion::{Dtype, Lion8bit, ParamSpec};
/// let mut lion = Lion8bit::builder().min_8bit_size(1).build()?;
/// let w = lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
/// // The third momentum is too small for an 8-bit block whose largest momentum is 0.01.
/// let (mut weight, grad) = ([0.5f32; 4], [1.0f32, 0.0, 1e-9, 0.5]);
/// let found = &lion.diagnose([(w, &mut weight, &grad)])?.parameters[0];
/// assert_eq!((found.lost_updates(), found.stuck_momenta(), found.sign_differs()), (0.0, 0.25, 0.25));
/// # Ok::<(), lion::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ParamDiagnosis {
    /// Name of the parameter.
    pub name: String,
    /// Type of the parameter.
    pub dtype: Dtype,
    /// Number of elements.
    pub elements: u64,
    /// The learning rate of the step, after multipliers and clipping by `max_unorm`.
    pub lr: f32,
    /// The numbers of elements, with their definitions.
    pub losses: RoundingLosses,
}

impl ParamDiagnosis {
    fn of(step: &TensorStep<'_>) -> Result<Self, BackendError> {
        Ok(ParamDiagnosis {
            name: step.name.to_owned(),
            dtype: step.param.dtype(),
            elements: step.param.len() as u64,
            lr: step.constants.lr,
            losses: RoundingLosses::of(step)?,
        })
    }

    fn share(&self, count: u64) -> f64 {
        if self.elements == 0 {
            return 0.0;
        }
        count as f64 / self.elements as f64
    }

    /// Returns the share of the elements that the step should move, but whose parameter keeps its bits
    /// ([`RoundingLosses::lost_updates`]).
    pub fn lost_updates(&self) -> f64 {
        self.share(self.losses.lost_updates)
    }

    /// Returns the share of the elements whose 8-bit code cannot follow the momentum
    /// ([`RoundingLosses::stuck_momenta`]).
    pub fn stuck_momenta(&self) -> f64 {
        self.share(self.losses.stuck_momenta)
    }

    /// Returns the share of the elements whose new momentum has another sign after quantization
    /// ([`RoundingLosses::sign_differs`]).
    pub fn sign_differs(&self) -> f64 {
        self.share(self.losses.sign_differs)
    }

    /// Returns one sentence per finding: for each of the three shares that is 0.5 or more, and if a block would be
    /// skipped. A sentence names the parameter, the share, and what to change.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec, bf16};
    /// let mut lion = Lion::builder().lr(1e-5).build()?;
    /// let w = lion.register(ParamSpec::new("w", 256, Dtype::Bf16))?;
    /// let (mut weight, grad) = (vec![bf16::ONE; 256], vec![1.0f32; 256]);
    /// let diagnosis = lion.diagnose([(w, &mut weight, &grad)])?;
    /// assert_eq!(
    ///     diagnosis.parameters[0].advice(),
    ///     ["`w`: 100.0 % of the elements do not move at lr 1e-5, because bf16 rounds the update away: \
    ///       turn on stochastic_param"]
    /// );
    /// # Ok::<(), lion::Error>(())
    /// ```
    pub fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        let ParamDiagnosis {
            name, dtype, lr, ..
        } = self;
        let percent = |share: f64| format!("`{name}`: {:.1} %", 100.0 * share);
        if self.lost_updates() >= THRESHOLD {
            let change = match dtype {
                Dtype::Bf16 => "turn on stochastic_param",
                Dtype::F16 => {
                    "use a larger lr or f32 parameters; stochastic_param is only for bf16"
                }
                _ => "use a larger lr",
            };
            advice.push(format!(
                "{} of the elements do not move at lr {lr:e}, because {dtype} rounds the update away: {change}",
                percent(self.lost_updates())
            ));
        }
        if self.stuck_momenta() >= THRESHOLD {
            advice.push(format!(
                "{} of the momenta keep their 8-bit code although they should change, at lr {lr:e}: \
                 turn on stochastic_state",
                percent(self.stuck_momenta())
            ));
        }
        if self.sign_differs() >= THRESHOLD {
            advice.push(format!(
                "{} of the new momenta are not 0 and are rounded to 0 in 8 bits, at lr {lr:e}: \
                 turn on stochastic_state or set optim_bits to 32",
                percent(self.sign_differs())
            ));
        }
        if self.losses.skipped_blocks > 0 {
            advice.push(format!(
                "`{name}`: {} of {} blocks would be skipped, because their new momentum is not finite: \
                 check the gradient and grad_scale",
                self.losses.skipped_blocks,
                self.elements.div_ceil(lion_core::BLOCK as u64)
            ));
        }
        advice
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = self.parameters.iter().flat_map(ParamDiagnosis::advice);
        for (line, sentence) in advice.enumerate() {
            let separator = if line == 0 { "" } else { "\n" };
            write!(f, "{separator}{sentence}")?;
        }
        Ok(())
    }
}

impl Lion {
    /// Counts what rounding would lose in a step with these updates: updates that a `bf16` or `f16` parameter is
    /// too coarse for, and changes of the momentum that an 8-bit code is too coarse for. Nothing changes, and the
    /// call is not counted as a step.
    ///
    /// A training that loses most of them stands still without an error. Call it now and then, for example once per
    /// epoch, with the arguments of the next step. It runs on the calling thread and reads states in parts, so paged
    /// states and states on a GPU work. Parameters and gradients must be in host memory.
    ///
    /// ```
    /// use lion::{Dtype, Lion, Overrides, ParamSpec, bf16};
    /// let mut lion = Lion::builder().lr(1e-5).build()?;
    /// let w = lion.register(ParamSpec::new("w", 256, Dtype::Bf16))?;
    /// let (mut weight, grad) = (vec![bf16::ONE; 256], vec![1.0f32; 256]);
    /// let diagnosis = lion.diagnose([(w, &mut weight, &grad)])?;
    /// assert_eq!(diagnosis.parameters[0].lost_updates(), 1.0);
    /// assert!(diagnosis.to_string().ends_with("turn on stochastic_param"));
    ///
    /// lion.configure(Overrides::new().stochastic_param(true))?;
    /// assert_eq!(lion.diagnose([(w, &mut weight, &grad)])?.to_string(), "");
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`Optimizer::dry_step`](crate::backend::Optimizer::dry_step); [`Error::Backend`] with
    /// [`BackendError::WrongDevice`](crate::backend::BackendError::WrongDevice) if an array is in device memory.
    pub fn diagnose<'a, I>(&mut self, updates: I) -> Result<Diagnosis, Error>
    where
        I: IntoIterator<Item: IntoUpdate<'a>>,
    {
        self.diagnose_with(StepArgs::new(), updates)
    }

    /// Does what [`diagnose`](Lion::diagnose) does, with the arguments of [`step_with`](Lion::step_with).
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec, StepArgs, f16};
    /// let mut lion = Lion::builder().build()?;
    /// let w = lion.register(ParamSpec::new("w", 4, Dtype::F16))?;
    /// let (mut weight, grad) = (vec![f16::ONE; 4], vec![1.0f32; 4]);
    /// let diagnosis = lion.diagnose_with(StepArgs::new().lr(1e-6), [(w, &mut weight, &grad)])?;
    /// assert_eq!(diagnosis.parameters[0].losses.lost_updates, 4);
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`diagnose`](Lion::diagnose).
    pub fn diagnose_with<'a, I>(&mut self, args: StepArgs, updates: I) -> Result<Diagnosis, Error>
    where
        I: IntoIterator<Item: IntoUpdate<'a>>,
    {
        let updates = updates.into_iter().map(IntoUpdate::into_update);
        self.inner.dry_step(args, updates, |tensors| {
            let parameters = tensors.iter().map(ParamDiagnosis::of);
            parameters
                .collect::<Result<_, _>>()
                .map(|parameters| Diagnosis { parameters })
        })
    }
}
