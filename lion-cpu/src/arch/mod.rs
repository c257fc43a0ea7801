//! The kernels, one file an instruction set, and the choice between them.

mod scalar;

use crate::job::{Job, View};
use lion_core::BackendError;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// An instruction set that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// What the compiler makes of plain loops for the target's baseline. On every CPU.
    Scalar,
}

impl Isa {
    /// All instruction sets, the fastest last.
    pub const ALL: &[Isa] = &[Isa::Scalar];

    /// Its name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
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
        found.ok_or_else(|| BackendError::Unavailable {
            backend: name.to_owned(),
            reason: format!(
                "there is no such instruction set, wanted one of {}",
                Isa::ALL
                    .iter()
                    .map(|isa| isa.name())
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        })
    }
}

/// A kernel that this CPU can run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kernel {
    Scalar(scalar::Kernel),
}

impl Kernel {
    pub(crate) fn new(isa: Isa) -> Result<Self, BackendError> {
        match isa {
            Isa::Scalar => Ok(Kernel::Scalar(scalar::Kernel)),
        }
    }

    pub(crate) fn fastest() -> Self {
        Kernel::Scalar(scalar::Kernel)
    }

    pub(crate) fn isa(self) -> Isa {
        match self {
            Kernel::Scalar(_) => Isa::Scalar,
        }
    }

    /// Steps a run of blocks and returns how many it skipped.
    pub(crate) fn step(self, job: Job<'_>) -> u64 {
        match self {
            Kernel::Scalar(kernel) => kernel.step(job),
        }
    }

    /// Sum of the squares of the parameter, and number of elements that move.
    pub(crate) fn norm(self, view: View<'_>, blocks: Range<usize>) -> (f64, u64) {
        match self {
            Kernel::Scalar(kernel) => kernel.norm(view, blocks),
        }
    }

    /// Number of blocks with a new momentum that is not finite.
    pub(crate) fn count_non_finite(self, view: View<'_>, blocks: Range<usize>) -> u64 {
        match self {
            Kernel::Scalar(kernel) => kernel.count_non_finite(view, blocks),
        }
    }
}

/// Calls a function generic over the types of parameter and gradient with the slices themselves.
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
        }
    };
}
use for_each_pair;
