//! What an optimizer remembers of a parameter: planes of numbers, and who holds them.

use crate::{BackendError, Bits, Layout};
use std::any::Any;
use std::fmt;

/// Type of the numbers of a state plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaneType {
    /// One byte.
    U8,
    /// IEEE-754 binary32, little-endian where it is read or written as bytes.
    F32,
}

impl PlaneType {
    /// Bytes a number.
    pub const fn bytes(self) -> usize {
        match self {
            PlaneType::U8 => 1,
            PlaneType::F32 => 4,
        }
    }
}

/// One plane of a state: a vector of numbers, each for one or more elements of the parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneSpec {
    /// The field's name for it: `momentum`, `codes`, `absmax`.
    pub name: &'static str,
    /// Type of its numbers.
    pub plane_type: PlaneType,
    /// Elements of the parameter that share one number.
    pub elements: usize,
}

impl PlaneSpec {
    /// Numbers in the plane of a parameter of `n` elements: `ceil(n / elements)`.
    pub const fn len(&self, n: usize) -> usize {
        n.div_ceil(self.elements)
    }

    /// Bytes of the plane of a parameter of `n` elements.
    pub const fn bytes(&self, n: usize) -> usize {
        self.len(n) * self.plane_type.bytes()
    }
}

/// A kind of state: which planes it has.
pub trait StateLayout: fmt::Debug + Send + Sync {
    /// Name of the layout.
    fn name(&self) -> &'static str;

    /// Width of the state.
    fn bits(&self) -> Bits;

    /// The planes, in a fixed order.
    fn planes(&self) -> &'static [PlaneSpec];

    /// Bytes of the state of a parameter of `n` elements.
    fn bytes(&self, n: usize) -> usize {
        self.planes().iter().map(|plane| plane.bytes(n)).sum()
    }
}

/// The 32-bit state: `momentum: f32[n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Momentum32;

impl StateLayout for Momentum32 {
    fn name(&self) -> &'static str {
        "momentum32"
    }

    fn bits(&self) -> Bits {
        Bits::ThirtyTwo
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        &[PlaneSpec {
            name: "momentum",
            plane_type: PlaneType::F32,
            elements: 1,
        }]
    }
}

/// The state of one parameter, held by the backend that allocated it.
///
/// A backend finds its own type again through [`Any`]; everyone else reads and writes planes.
pub trait State: Any + fmt::Debug + Send + Sync {
    /// Which planes it has.
    fn layout(&self) -> &'static dyn StateLayout;

    /// A copy of all planes.
    ///
    /// # Errors
    /// What the backend meets while it copies.
    fn export(&self) -> Result<Planes, BackendError>;

    /// Replaces all planes.
    ///
    /// The optimizer has checked that `planes` has this state's layout and lengths.
    ///
    /// # Errors
    /// What the backend meets while it copies.
    fn import(&mut self, planes: &Planes) -> Result<(), BackendError>;
}

/// The numbers of a state.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Planes {
    /// The 32-bit state.
    Momentum32 {
        /// One number an element.
        momentum: Vec<f32>,
    },
    /// The blockwise 8-bit state.
    Blockwise8 {
        /// One code an element, an index into the codebook.
        codes: Vec<u8>,
        /// One number a block of 256 elements: the largest magnitude in it.
        absmax: Vec<f32>,
    },
}

impl Planes {
    /// Width of this state.
    pub fn bits(&self) -> Bits {
        match self {
            Planes::Momentum32 { .. } => Bits::ThirtyTwo,
            Planes::Blockwise8 { .. } => Bits::Eight,
        }
    }

    /// Name, length and, for floats, whether all numbers are finite, for each plane.
    pub(crate) fn describe(&self) -> Vec<(&'static str, usize, bool)> {
        let finite = |x: &[f32]| x.iter().all(|x| x.is_finite());
        match self {
            Planes::Momentum32 { momentum } => {
                vec![("momentum", momentum.len(), finite(momentum))]
            }
            Planes::Blockwise8 { codes, absmax } => vec![
                ("codes", codes.len(), true),
                (
                    "absmax",
                    absmax.len(),
                    finite(absmax) && absmax.iter().all(|&a| a >= 0.0),
                ),
            ],
        }
    }
}

/// What a run needs to go on with one parameter where another left off.
#[derive(Clone, Debug, PartialEq)]
pub struct StateRecord {
    /// Steps done. The next one draws its random words with `steps + 1`.
    pub steps: u64,
    /// Seed of the parameter's stochastic rounding.
    pub seed: u64,
    /// The order in memory that the numbers belong to; `None` before the first step.
    pub layout: Option<Layout>,
    /// The numbers.
    pub planes: Planes,
}
