//! What a step did, and what an optimizer holds.

use crate::{Bits, Dtype, Handle, Hyper, MemoryOrder, Overrides, SkippedBlocks};

/// What a step did.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// The parameters of this step, in the order they were given.
    pub updated: Vec<Handle>,
    /// Those that were given without a gradient and left as they were, under
    /// [`MissingGradient::Skip`](crate::MissingGradient::Skip).
    pub without_gradient: Vec<Handle>,
    /// Their elements in total.
    pub elements: u64,
    /// Those with blocks left as they were, because a new momentum in the block is not finite.
    /// Parameters are not tested: see [`OnNonFinite`](crate::OnNonFinite).
    pub skipped: Vec<SkippedBlocks>,
    /// Whether the step is queued on a device and what it skips not known yet:
    /// [`Optimizer::synchronize`](crate::Optimizer::synchronize) waits for it and tells.
    pub pending: bool,
    /// The norm of the gradients before they were clipped, where
    /// [`StepArgs::max_grad_norm`](crate::StepArgs::max_grad_norm) is given.
    pub grad_norm: Option<f64>,
    /// The gradients of which blocks are not finite and were left out of
    /// [`grad_norm`](StepReport::grad_norm). The step has skipped these blocks, and others where the new
    /// momentum is not finite though the gradient is.
    pub non_finite_gradients: Vec<SkippedBlocks>,
}

impl StepReport {
    /// Blocks left as they were, over all parameters.
    pub fn skipped_blocks(&self) -> u64 {
        let counts = self.skipped.iter().map(|s| s.skipped);
        counts.fold(0, u64::saturating_add)
    }
}

/// What an optimizer holds of one parameter.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ParamInfo<'a> {
    /// The parameter.
    pub handle: Handle,
    /// Its name.
    pub name: &'a str,
    /// Its elements.
    pub len: usize,
    /// Their type.
    pub dtype: Dtype,
    /// Its group, if it is in one.
    pub group: Option<&'a str>,
    /// Width of its state.
    pub bits: Bits,
    /// Name of the state's layout.
    pub layout: &'static str,
    /// Bytes of its state.
    pub state_bytes: usize,
    /// Whether its state is paged.
    pub paged: bool,
    /// Whether a failed load or import has partly overwritten its state:
    /// [`Error::Damaged`](crate::Error::Damaged).
    pub damaged: bool,
    /// Steps done.
    pub steps: u64,
    /// The order in memory that the state belongs to; `None` before the first step.
    pub order: Option<&'a MemoryOrder>,
    /// Hyper-parameters after defaults, group and overrides are merged. `seed` is the parameter's own.
    pub hyper: Hyper,
    /// What is set for this parameter alone.
    pub overrides: Overrides,
}
