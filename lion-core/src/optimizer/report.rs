//! Reports of steps and parameters.

use crate::{Bits, Dtype, Handle, Hyper, MemoryOrder, Overrides, Shard};
use std::fmt;
use std::sync::Arc;

/// The result of a step.
///
/// ```
/// use lion::{Dtype, Lion, ParamSpec};
/// let mut lion = Lion::builder().build()?;
/// let w = lion.register(ParamSpec::new("w", 512, Dtype::F32))?;
/// let (mut weight, mut grad) = (vec![1.0f32; 512], vec![0.5f32; 512]);
/// grad[300] = f32::NAN;
/// let report = lion.step([(w, &mut weight, &grad)])?;
/// assert_eq!((report.elements, report.skipped_blocks()), (512, 1));
/// assert_eq!(report.skipped[0].to_string(), "`w` (1 of 2 blocks)");
/// # Ok::<(), lion::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// The parameters of this step, in the order in which they were given.
    pub updated: Vec<Handle>,
    /// Parameters without a gradient that were not updated, under
    /// [`MissingGradient::Skip`](crate::MissingGradient::Skip).
    pub without_gradient: Vec<Handle>,
    /// Total number of elements of the updated parameters.
    pub elements: u64,
    /// Parameters with blocks that were not updated because a new momentum in the block is not
    /// finite. Parameters themselves are not tested: see [`OnNonFinite`](crate::OnNonFinite).
    pub skipped: Vec<SkippedBlocks>,
    /// Whether the step is queued on a device, so that its skipped blocks are not yet known.
    /// [`Optimizer::synchronize`](crate::Optimizer::synchronize) waits for the step and returns
    /// them.
    pub pending: bool,
    /// The norm of the gradients before clipping, if
    /// [`StepArgs::max_grad_norm`](crate::StepArgs::max_grad_norm) is set.
    pub grad_norm: Option<f64>,
    /// Parameters with blocks whose gradients are not finite. These blocks are excluded from
    /// [`grad_norm`](StepReport::grad_norm) and skipped by the step. The step also skips blocks
    /// whose gradient is finite but whose new momentum is not.
    pub non_finite_gradients: Vec<SkippedBlocks>,
}

impl StepReport {
    /// Returns the number of skipped blocks of all parameters.
    pub fn skipped_blocks(&self) -> u64 {
        let counts = self.skipped.iter().map(|s| s.skipped);
        counts.fold(0, u64::saturating_add)
    }
}

/// The number of blocks of one parameter whose new momentum is not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SkippedBlocks {
    /// Name of the parameter.
    pub parameter: Arc<str>,
    /// Blocks that were not updated.
    pub skipped: u64,
    /// Blocks of 256 elements in the parameter.
    pub blocks: u64,
}

impl fmt::Display for SkippedBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, skipped, blocks) = (&self.parameter, self.skipped, self.blocks);
        write!(f, "`{name}` ({skipped} of {blocks} blocks)")
    }
}

/// The properties of one parameter of an optimizer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ParamInfo<'a> {
    /// The handle of the parameter.
    pub handle: Handle,
    /// Its name.
    pub name: &'a str,
    /// Number of elements.
    pub len: usize,
    /// Element type.
    pub dtype: Dtype,
    /// Its position in the whole tensor, if it is a shard. Otherwise its offset is 0, and its `whole_len` is
    /// [`len`](ParamInfo::len).
    pub shard: Shard,
    /// Name of its group, if it is in one.
    pub group: Option<&'a str>,
    /// Width of its state.
    pub bits: Bits,
    /// Name of the state's layout.
    pub layout: &'static str,
    /// Bytes of its state.
    pub state_bytes: usize,
    /// Whether its state is paged.
    pub paged: bool,
    /// Whether a failed load or import has partly overwritten its state; see
    /// [`Error::Damaged`](crate::Error::Damaged).
    pub damaged: bool,
    /// Number of steps.
    pub steps: u64,
    /// The memory order of the state; `None` before the first step.
    pub order: Option<&'a MemoryOrder>,
    /// Hyper-parameters after the defaults, the group and the overrides are merged. `seed` is the
    /// seed derived for this parameter.
    pub hyper: Hyper,
    /// The overrides of this parameter.
    pub overrides: Overrides,
}
