//! The kernels, one file per instruction set, and the choice between them.

/// Evaluates an expression with the slices of parameter and gradient, for each pair of element types.
macro_rules! for_each_pair {
    ($enum:ident, $param:expr, $grad:expr, |$p:ident, $g:ident| $call:expr) => {
        match ($param, $grad) {
            ($enum::F32($p), Slice::F32($g)) => $call,
            ($enum::F32($p), Slice::F16($g)) => $call,
            ($enum::F32($p), Slice::Bf16($g)) => $call,
            ($enum::F16($p), Slice::F32($g)) => $call,
            ($enum::F16($p), Slice::F16($g)) => $call,
            ($enum::F16($p), Slice::Bf16($g)) => $call,
            ($enum::Bf16($p), Slice::F32($g)) => $call,
            ($enum::Bf16($p), Slice::F16($g)) => $call,
            ($enum::Bf16($p), Slice::Bf16($g)) => $call,
            _ => unreachable!("there is no other element type"),
        }
    };
}

/// Evaluates an expression with the slices of a `bf16` parameter and of its gradient, for each type of gradient.
#[cfg(target_arch = "x86_64")]
macro_rules! for_each_bf16 {
    ($enum:ident, $param:expr, $grad:expr, |$p:ident, $g:ident| $call:expr) => {
        match ($param, $grad) {
            ($enum::Bf16($p), Slice::F32($g)) => $call,
            ($enum::Bf16($p), Slice::F16($g)) => $call,
            ($enum::Bf16($p), Slice::Bf16($g)) => $call,
            _ => unreachable!("the parameter is bf16"),
        }
    };
}

mod block;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod bytes;
#[cfg(test)]
mod faulty;
#[cfg(feature = "bench-internals")]
mod roofline;
mod scalar;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[macro_use]
mod macros;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod generic;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use crate::job::{Job, StateMut, View};
#[cfg(target_arch = "x86_64")]
use lion_core::SliceMut;
use lion_core::{BackendError, Slice, SumSquares};
use std::env;
use std::fmt;
use std::str::FromStr;

/// The environment variable that selects an instruction set by its name.
const VARIABLE: &str = "LION_CPU_ISA";

/// An instruction set that has kernels.
///
/// ```
/// use lion_cpu::{Cpu, Isa};
/// let isa: Isa = "scalar".parse()?;
/// assert_eq!((isa, isa.name()), (Isa::Scalar, "scalar"));
/// let available = Isa::ALL.iter().filter(|&&isa| Cpu::with_isa(isa).is_ok());
/// assert!(available.count() >= 1);
/// # Ok::<(), lion_core::BackendError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain loops, compiled for the baseline of the target. Available on every CPU.
    Scalar,
    /// NEON, with 4 lanes. Every 64-bit Arm CPU has it.
    Neon,
    /// AVX2 and F16C, with 8 lanes.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, with 16 lanes.
    Avx512,
    /// AVX-512 with VBMI, which looks up codewords per byte in registers.
    Avx512Vbmi,
    /// AVX-512 with VBMI and BF16, which rounds parameters to `bf16` in one instruction.
    Avx512Bf16,
}

impl Isa {
    /// All instruction sets. Those of one architecture are in order of speed: the fastest is last.
    pub const ALL: &[Isa] = &[
        Isa::Scalar,
        Isa::Neon,
        Isa::Avx2,
        Isa::Avx512,
        Isa::Avx512Vbmi,
        Isa::Avx512Bf16,
    ];

    /// Returns the name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vbmi => "avx512vbmi",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = BackendError;

    fn from_str(name: &str) -> Result<Self, BackendError> {
        let found = Isa::ALL.iter().copied().find(|isa| isa.name() == name);
        found.ok_or_else(|| {
            let names: Vec<_> = Isa::ALL.iter().map(|isa| isa.name()).collect();
            BackendError::Unavailable {
                backend: name.to_owned(),
                reason: format!(
                    "no such instruction set, wanted one of {}",
                    names.join(", ")
                ),
            }
        })
    }
}

/// A kernel that this CPU can run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kernel {
    Scalar(scalar::Kernel),
    #[cfg(test)]
    Faulty(faulty::Faulty),
    /// The memory traffic of a step without its arithmetic.
    #[cfg(feature = "bench-internals")]
    Roofline(roofline::Roofline),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86_64::avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(x86_64::avx512::Avx512<{ x86_64::avx512::BASE }>),
    #[cfg(target_arch = "x86_64")]
    Avx512Vbmi(x86_64::avx512::Avx512<{ x86_64::avx512::VBMI }>),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(x86_64::avx512::Avx512<{ x86_64::avx512::BF16 }>),
}

/// Calls a method on the kernel of each variant.
macro_rules! dispatch {
    ($kernel:expr, $name:ident($($argument:expr),*)) => {
        match $kernel {
            Kernel::Scalar(kernel) => kernel.$name($($argument),*),
            #[cfg(test)]
            Kernel::Faulty(kernel) => kernel.$name($($argument),*),
            #[cfg(feature = "bench-internals")]
            Kernel::Roofline(roofline) => roofline.$name($($argument),*),
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon(kernel) => kernel.$name($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(kernel) => kernel.$name($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512(kernel) => kernel.$name($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Vbmi(kernel) => kernel.$name($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Bf16(kernel) => kernel.vbmi().$name($($argument),*),
        }
    };
}

impl Kernel {
    /// Returns the kernel of an instruction set, if this CPU has it.
    pub(crate) fn new(isa: Isa) -> Result<Self, BackendError> {
        Self::find(isa).ok_or_else(|| BackendError::Unavailable {
            backend: isa.name().to_owned(),
            reason: "this CPU does not have the instruction set".to_owned(),
        })
    }

    fn find(isa: Isa) -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if isa == Isa::Neon {
            return neon::Neon::new().map(Kernel::Neon);
        }
        #[cfg(target_arch = "x86_64")]
        match isa {
            Isa::Scalar | Isa::Neon => {}
            Isa::Avx2 => return x86_64::avx2::Avx2::new().map(Kernel::Avx2),
            Isa::Avx512 => return x86_64::avx512::Avx512::new().map(Kernel::Avx512),
            Isa::Avx512Vbmi => return x86_64::avx512::Avx512::new().map(Kernel::Avx512Vbmi),
            Isa::Avx512Bf16 => return x86_64::avx512::Avx512::new().map(Kernel::Avx512Bf16),
        }
        (isa == Isa::Scalar).then_some(Kernel::Scalar(scalar::Kernel))
    }

    /// Returns the kernel that `LION_CPU_ISA` names, or the fastest one.
    pub(crate) fn choose() -> Result<Self, BackendError> {
        match env::var(VARIABLE) {
            Ok(name) => Self::new(name.parse()?),
            Err(env::VarError::NotPresent) => {
                let found = Isa::ALL.iter().rev().find_map(|&isa| Self::find(isa));
                Ok(found.unwrap_or(Kernel::Scalar(scalar::Kernel)))
            }
            Err(error) => Err(BackendError::Unavailable {
                backend: VARIABLE.to_owned(),
                reason: error.to_string(),
            }),
        }
    }

    /// Returns a kernel that panics at an element.
    #[cfg(test)]
    pub(crate) fn faulty(element: u64) -> Self {
        Kernel::Faulty(faulty::Faulty { element })
    }

    /// Returns the kernel with the memory traffic of a step and without its arithmetic.
    #[cfg(feature = "bench-internals")]
    pub(crate) fn roofline(ahead: usize, fine: bool) -> Self {
        Kernel::Roofline(roofline::Roofline::new(ahead, fine))
    }

    /// Returns the name for reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kernel::Scalar(_) => Isa::Scalar.name(),
            #[cfg(test)]
            Kernel::Faulty(_) => "faulty",
            #[cfg(feature = "bench-internals")]
            Kernel::Roofline(_) => "roofline",
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon(_) => Isa::Neon.name(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2(_) => Isa::Avx2.name(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512(_) => Isa::Avx512.name(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Vbmi(_) => Isa::Avx512Vbmi.name(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512Bf16(_) => Isa::Avx512Bf16.name(),
        }
    }

    /// Steps a run of blocks. Returns the number of blocks that were skipped.
    pub(crate) fn step(self, job: Job<'_>) -> u64 {
        // The only method in which this kernel differs from `Avx512<VBMI>`.
        #[cfg(target_arch = "x86_64")]
        if let (Kernel::Avx512Bf16(kernel), SliceMut::Bf16(_)) = (self, &job.param) {
            return kernel.step_bf16(job);
        }
        dispatch!(self, step(job))
    }

    /// Returns the sum of the squares of one block of the parameter, and the number of elements whose update
    /// is not zero.
    pub(crate) fn norm(self, view: View<'_>, block: usize) -> (f64, u64) {
        dispatch!(self, norm(view, block))
    }

    /// Returns the sum of the squares of at most [`PART_BLOCKS`](crate::squares::PART_BLOCKS) blocks of a gradient.
    pub(crate) fn squares(self, gradient: Slice<'_>) -> SumSquares {
        dispatch!(self, squares(gradient))
    }

    /// Returns whether all new momenta of one block are finite.
    pub(crate) fn is_finite(self, view: View<'_>, block: usize) -> bool {
        dispatch!(self, is_finite(view, block))
    }

    /// Returns 1 as the count of a block with a new momentum that is not finite, and 0 otherwise.
    pub(crate) fn count(self, view: View<'_>, block: usize) -> (f64, u64) {
        (0.0, u64::from(!self.is_finite(view, block)))
    }

    /// Quantizes at most one block of finite numbers and returns its absmax.
    pub(crate) fn quantize(self, m: &[f32], draws: Option<&[u16]>, codes: &mut [u8]) -> f32 {
        dispatch!(self, quantize(m, draws, codes))
    }

    /// Dequantizes at most one block.
    pub(crate) fn dequantize(self, codes: &[u8], absmax: f32, m: &mut [f32]) {
        dispatch!(self, dequantize(codes, absmax, m))
    }
}

/// Prefetches the start of a run that will be stepped next.
pub(crate) fn prefetch(job: &Job<'_>) {
    let (param, grad) = (job.param.as_slice(), job.grad);
    for_each_pair!(Slice, param, grad, |p, g| {
        prefetch_slice(p);
        prefetch_slice(g);
    });
    match &job.state {
        StateMut::Momentum32(m) => prefetch_slice(m),
        StateMut::Blockwise8(codes, absmax) => {
            prefetch_slice(codes);
            prefetch_slice(&absmax[..absmax.len().min(1)]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn prefetch_slice<T>(slice: &[T]) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

    /// The number of elements that are prefetched per array.
    const HEAD: usize = 576;

    for line in slice[..slice.len().min(HEAD)].chunks(64 / size_of::<T>()) {
        // SAFETY: a prefetch has no visible effect, and any address is valid.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch_slice<T>(_: &[T]) {}
