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

    /// Returns the kernel for a task.
    pub(crate) fn kernel(&self, task: Task) -> KernelName {
        let (bits, param, grad) = (self.bits.get(), self.param.name(), self.grad.name());
        let pair = || format!("{param}_{grad}");
        let (module, task, options) = match task {
            // The 32-bit kernel reads the flags: by its count of instructions, memory bounds it on current GPUs.
            Task::Step if self.options && self.bits == Bits::Eight => (pair(), "lion", "_options"),
            Task::Step => (pair(), "lion", ""),
            Task::Norm => (pair(), "norm", ""),
            Task::Survey => (grad.to_owned(), "survey", ""),
            Task::Squares => {
                let name = format!("squares_{grad}");
                let module = grad.to_owned();
                return KernelName { module, name };
            }
            Task::Clip => return KernelName::in_totals("limit"),
            Task::Total => return KernelName::in_totals("total"),
        };
        let name = format!("{task}{bits}_{module}{options}");
        KernelName { module, name }
    }
}

/// The name of a kernel, and of the module that contains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelName {
    /// The formats of the parameter and the gradient, the format of the gradient, or `totals`.
    pub(crate) module: String,
    pub(crate) name: String,
}

impl KernelName {
    fn in_totals(name: &str) -> Self {
        KernelName {
            module: "totals".to_owned(),
            name: name.to_owned(),
        }
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
        let names = |kind: Kind, task| {
            let KernelName { module, name } = kind.kernel(task);
            format!("{module}: {name}")
        };
        let step = names(kind, Task::Step);
        assert_eq!(step, "f16_bf16: lion8_f16_bf16_options");
        assert_eq!(names(kind, Task::Norm), "f16_bf16: norm8_f16_bf16");
        assert_eq!(names(kind, Task::Survey), "bf16: survey8_bf16");
        assert_eq!(names(kind, Task::Squares), "bf16: squares_bf16");
        assert_eq!(names(kind, Task::Clip), "totals: limit");
        assert_eq!(names(kind, Task::Total), "totals: total");
        let plain = Kind {
            options: false,
            is_clipped: false,
            ..kind
        };
        assert_eq!(names(plain, Task::Step), "f16_bf16: lion8_f16_bf16");
        let wide = Kind {
            bits: Bits::ThirtyTwo,
            ..kind
        };
        assert_eq!(names(wide, Task::Step), "f16_bf16: lion32_f16_bf16");
        assert!(Task::Clip.applies_to(&kind) && !Task::Clip.applies_to(&plain));
    }
}
