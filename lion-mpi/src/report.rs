//! What a step of all ranks did.

use lion::Handle;

/// What a step did. It is the same on all ranks, except for [`bytes_sent`](StepReport::bytes_sent) and for the handles, which
/// depend on the order of registration.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// The parameters without a gradient that were not updated, under
    /// [`MissingGradient::Skip`](lion::MissingGradient::Skip), in the order of their names.
    pub without_gradient: Vec<Handle>,
    /// The number of elements of the updated parameters.
    pub elements: u64,
    /// The parameters with blocks that were not updated because a new momentum in the block is not finite, and the
    /// number of these blocks over all ranks, in the order of the names.
    pub skipped: Vec<(String, u64)>,
    /// The norm of the summed gradients before clipping, if [`StepArgs::max_grad_norm`](lion::StepArgs::max_grad_norm)
    /// is set.
    pub grad_norm: Option<f64>,
    /// The parameters with blocks whose summed gradients are not finite, if
    /// [`StepArgs::max_grad_norm`](lion::StepArgs::max_grad_norm) is set, and the number of these blocks. They are
    /// excluded from [`grad_norm`](StepReport::grad_norm) and skipped by the step.
    pub non_finite_gradients: Vec<(String, u64)>,
    /// The number of bytes of gradients and parameters that this rank has sent to others.
    pub bytes_sent: u64,
}

impl StepReport {
    /// Returns the number of skipped blocks of all parameters.
    pub fn skipped_blocks(&self) -> u64 {
        self.skipped.iter().map(|(_, blocks)| blocks).sum()
    }
}
