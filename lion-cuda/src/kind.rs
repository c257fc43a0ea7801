//! The kernels by name.

use lion_core::{Bits, Dtype, TensorStep};

/// The properties of a tensor that select its kernels. Tensors of one kind share a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) bits: Bits,
    pub(crate) param: Dtype,
    pub(crate) grad: Dtype,
    /// Whether a flag of the tensor is set. The step then uses a kernel that reads the flags.
    pub(crate) options: bool,
    /// Whether the norm of the update is clipped, which [`Task::Norm`] and [`Task::Clip`] do before the step.
    pub(crate) is_clipped: bool,
}

/// What a kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// The sum of squares of the parameter and the number of nonzero updates, per tile.
    Norm,
    /// The learning rate of each tensor, clipped by the results of [`Norm`](Task::Norm).
    Clip,
    /// The step.
    Step,
    /// The number of blocks that a step would skip.
    Survey,
    /// The sum of squares of the gradient, per tile.
    Squares,
    /// The total of the sums of [`Squares`](Task::Squares), per gradient.
    Total,
}

impl Task {
    /// Returns whether the kernel runs one thread block per tensor. The other kernels run one warp per tile.
    pub(crate) fn is_per_tensor(self) -> bool {
        matches!(self, Task::Clip | Task::Total)
    }

    /// Returns whether a tensor of this kind needs the task.
    pub(crate) fn applies_to(self, kind: &Kind) -> bool {
        kind.is_clipped || !matches!(self, Task::Norm | Task::Clip)
    }
}

impl Kind {
    /// Returns the kind of a tensor that is stepped. `flags` are the flags of its row in the table.
    pub(crate) fn of_step(tensor: &TensorStep<'_>, flags: u32) -> Self {
        Kind {
            options: flags != 0,
            is_clipped: tensor.is_clipped(),
            ..Self::of_survey(tensor)
        }
    }

    /// Returns the kind of a tensor that is surveyed.
    pub(crate) fn of_survey(tensor: &TensorStep<'_>) -> Self {
        Kind {
            bits: tensor.state.layout().bits(),
            param: tensor.param.dtype(),
            grad: tensor.grad.dtype(),
            options: false,
            is_clipped: false,
        }
    }

    /// Returns the kind of a tensor whose norm is computed without a step.
    pub(crate) fn of_norm(tensor: &TensorStep<'_>) -> Self {
        Kind {
            is_clipped: true,
            ..Self::of_survey(tensor)
        }
    }

    /// Returns the kind of a gradient whose squares are summed.
    pub(crate) fn of_gradient(dtype: Dtype) -> Self {
        Kind {
            bits: Bits::ThirtyTwo,
            param: dtype,
            grad: dtype,
            options: false,
            is_clipped: false,
        }
    }

    /// Returns the name of the kernel for a task.
    pub(crate) fn kernel(&self, task: Task) -> String {
        let (bits, param, grad) = (self.bits.get(), self.param.name(), self.grad.name());
        let (task, options) = match task {
            Task::Step if self.options => ("lion", "_options"),
            Task::Step => ("lion", ""),
            Task::Norm => ("norm", ""),
            Task::Survey => ("survey", ""),
            Task::Squares => return format!("squares_{grad}"),
            Task::Clip => return "limit".to_owned(),
            Task::Total => return "total".to_owned(),
        };
        format!("{task}{bits}_{param}_{grad}{options}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_has_its_kernel() {
        let kind = Kind {
            bits: Bits::Eight,
            param: Dtype::F16,
            grad: Dtype::Bf16,
            options: true,
            is_clipped: true,
        };
        assert_eq!(kind.kernel(Task::Step), "lion8_f16_bf16_options");
        assert_eq!(kind.kernel(Task::Norm), "norm8_f16_bf16");
        assert_eq!(kind.kernel(Task::Survey), "survey8_f16_bf16");
        assert_eq!(kind.kernel(Task::Squares), "squares_bf16");
        assert_eq!(kind.kernel(Task::Clip), "limit");
        assert_eq!(kind.kernel(Task::Total), "total");
        let plain = Kind {
            options: false,
            is_clipped: false,
            ..kind
        };
        assert_eq!(plain.kernel(Task::Step), "lion8_f16_bf16");
        assert!(Task::Clip.applies_to(&kind) && !Task::Clip.applies_to(&plain));
    }
}
