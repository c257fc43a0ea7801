//! A kernel that panics, for tests.

use crate::arch::scalar;
use crate::job::{Job, View};
use lion_core::{Slice, SumSquares};

/// The scalar kernel, which panics at one element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faulty {
    pub(crate) element: u64,
}

impl Faulty {
    pub(crate) fn step(self, job: Job<'_>) -> u64 {
        let elements = job.first..job.first + job.len() as u64;
        assert!(!elements.contains(&self.element), "a fault of the kernel");
        scalar::Kernel.step(job)
    }

    pub(crate) fn norm(self, view: View<'_>, block: usize) -> (f64, u64) {
        scalar::norm(view, block)
    }

    pub(crate) fn squares(self, gradient: Slice<'_>) -> SumSquares {
        scalar::squares(gradient)
    }

    pub(crate) fn is_finite(self, view: View<'_>, block: usize) -> bool {
        scalar::is_finite(view, block)
    }

    pub(crate) fn quantize(self, m: &[f32], draws: Option<&[u16]>, codes: &mut [u8]) -> f32 {
        scalar::Kernel.quantize(m, draws, codes)
    }

    pub(crate) fn dequantize(self, codes: &[u8], absmax: f32, m: &mut [f32]) {
        scalar::Kernel.dequantize(codes, absmax, m);
    }
}
