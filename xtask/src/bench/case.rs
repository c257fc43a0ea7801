//! Cases of the benchmark: one kernel on one model.

use lion::cpu::{Cpu, Isa};
use lion::{Dtype, Overrides};

/// One kernel on one model.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// Name of the case, if it is not a kernel on a single tensor.
    pub(super) name: Option<&'static str>,
    pub(super) isa: Isa,
    pub(super) bits: u32,
    pub(super) param: Dtype,
    pub(super) grad: Dtype,
    pub(super) threads: usize,
    /// Total number of elements in all tensors.
    pub(super) n: usize,
    pub(super) tensors: usize,
    pub(super) overrides: Overrides,
    /// Whether the gradients are 0 and the momentum is about to become subnormal.
    pub(super) decaying: bool,
}

impl Case {
    /// Returns a case with one `f32` tensor.
    pub(super) fn new(isa: Isa, bits: u32, threads: usize, n: usize) -> Self {
        Case {
            name: None,
            isa,
            bits,
            param: Dtype::F32,
            grad: Dtype::F32,
            threads,
            n,
            tensors: 1,
            overrides: Overrides::new(),
            decaying: false,
        }
    }

    pub(super) fn named(self, name: &'static str) -> Self {
        Case {
            name: Some(name),
            ..self
        }
    }

    pub(super) fn types(self, param: Dtype, grad: Dtype) -> Self {
        Case {
            param,
            grad,
            ..self
        }
    }

    /// Returns the name of the kernel, `lion8` or `lion32`.
    pub(super) fn kernel(&self) -> String {
        format!("lion{}", self.bits)
    }

    /// Returns the bytes moved per element: parameter and state in both directions, the gradient in
    /// one.
    pub(super) fn bytes_per_elem(&self) -> f64 {
        let state = match self.bits {
            8 => 1.0 + 4.0 / lion::tensor::BLOCK as f64,
            _ => 4.0,
        };
        2.0 * self.param.bytes() as f64 + self.grad.bytes() as f64 + 2.0 * state
    }
}

/// Returns the instruction sets of this CPU, the fastest last.
pub(super) fn available() -> Vec<Isa> {
    let there = |isa: &Isa| Cpu::with_isa(*isa).is_ok();
    Isa::ALL.iter().copied().filter(there).collect()
}
