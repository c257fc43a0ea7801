//! The state that an optimizer keeps per parameter: planes of numbers.

use crate::{BackendError, Bits, MemoryOrder, PagedState, Shard};
use std::any::Any;
use std::fmt;
use std::ops::Range;

/// Type of the numbers of a state plane.
///
/// ```
/// use lion_core::PlaneType;
/// assert_eq!((PlaneType::U8.bytes(), PlaneType::F32.bytes()), (1, 4));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlaneType {
    /// One byte.
    U8,
    /// IEEE-754 binary32; little-endian when read or written as bytes.
    F32,
}

impl PlaneType {
    /// Returns the bytes per number.
    pub const fn bytes(self) -> usize {
        match self {
            PlaneType::U8 => 1,
            PlaneType::F32 => 4,
        }
    }
}

/// A plane of a state: a vector with one number per group of `elements` elements of the parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlaneSpec {
    /// Its name: `momentum`, `codes` or `absmax`.
    pub name: &'static str,
    /// Type of its numbers.
    pub plane_type: PlaneType,
    /// Elements of the parameter per number, at least 1.
    pub elements: usize,
}

impl PlaneSpec {
    /// Returns a plane with one number per `elements` elements of the parameter.
    ///
    /// ```
    /// use lion_core::{PlaneSpec, PlaneType};
    /// let absmax = PlaneSpec::new("absmax", PlaneType::F32, 256);
    /// assert_eq!((absmax.len(1000), absmax.bytes(1000)), (4, 16));
    /// ```
    pub const fn new(name: &'static str, plane_type: PlaneType, elements: usize) -> Self {
        PlaneSpec {
            name,
            plane_type,
            elements,
        }
    }

    /// Returns the length of the plane for a parameter of `n` elements: `ceil(n / elements)`, or 0
    /// if `elements` is 0.
    pub const fn len(&self, n: usize) -> usize {
        if self.elements == 0 {
            return 0;
        }
        n.div_ceil(self.elements)
    }

    /// Returns the bytes of the plane for a parameter of `n` elements. Saturates at `usize::MAX`.
    pub const fn bytes(&self, n: usize) -> usize {
        self.len(n).saturating_mul(self.plane_type.bytes())
    }
}

/// The layout of a state: its planes.
///
/// ```
/// use lion_core::{Bits, Momentum32, StateLayout};
/// assert_eq!((Momentum32.name(), Momentum32.bits()), ("momentum32", Bits::ThirtyTwo));
/// assert_eq!(Momentum32.planes()[0].name, "momentum");
/// ```
pub trait StateLayout: fmt::Debug + Send + Sync {
    /// Returns the name of the layout.
    fn name(&self) -> &'static str;

    /// Returns the width of the state.
    fn bits(&self) -> Bits;

    /// Returns the planes, in a fixed order.
    fn planes(&self) -> &'static [PlaneSpec];

    /// Returns the bytes of the state of a parameter of `n` elements. Saturates at `usize::MAX`.
    ///
    /// ```
    /// use lion_core::{Momentum32, StateLayout};
    /// assert_eq!(Momentum32.bytes(10), 40);
    /// assert_eq!(Momentum32.bytes(usize::MAX / 2), usize::MAX);
    /// ```
    fn bytes(&self, n: usize) -> usize {
        let planes = self.planes().iter().map(|plane| plane.bytes(n));
        planes.fold(0, usize::saturating_add)
    }

    /// Converts a range of bytes of a plane into a range of numbers, for a parameter of `n`
    /// elements. [`State::read`] and [`State::write`] call this first to check their arguments.
    ///
    /// ```
    /// use lion_core::{Momentum32, StateLayout};
    /// assert_eq!(Momentum32.part(10, 0, 8, 12)?, 2..5);
    /// let error = Momentum32.part(10, 0, 36, 8).unwrap_err();
    /// assert_eq!(
    ///     error.to_string(),
    ///     "bytes 36 to 44 of plane 0 of `momentum32`, wanted whole numbers within its 40 bytes"
    /// );
    /// # Ok::<(), lion_core::BackendError>(())
    /// ```
    ///
    /// # Errors
    /// [`BackendError::WrongPart`] if there is no such plane, or if the range ends beyond the plane
    /// or does not consist of whole numbers.
    fn part(
        &self,
        n: usize,
        plane: usize,
        offset: usize,
        bytes: usize,
    ) -> Result<Range<usize>, BackendError> {
        let (size, number) = self.planes().get(plane).map_or((0, 1), |spec| {
            (PlaneSpec::bytes(spec, n), spec.plane_type.bytes())
        });
        let fits = plane < self.planes().len() && offset <= size && bytes <= size - offset;
        if fits && offset.is_multiple_of(number) && bytes.is_multiple_of(number) {
            return Ok(offset / number..(offset + bytes) / number);
        }
        Err(BackendError::WrongPart {
            layout: self.name(),
            plane,
            offset,
            bytes,
            size,
        })
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

/// The state of one parameter, stored by the backend that allocated it.
///
/// A backend downcasts a state to its own type through [`Any`]. Other code reads and writes ranges
/// of planes as little-endian bytes, so that a state of any size can be copied through a small
/// buffer.
pub trait State: Any + fmt::Debug + Send + Sync {
    /// Returns the layout.
    fn layout(&self) -> &'static dyn StateLayout;

    /// Returns the number of elements of the parameter.
    fn len(&self) -> usize;

    /// Returns whether the parameter has no elements.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the bytes of a plane from byte `offset` on into `into`, after all queued steps.
    ///
    /// # Errors
    /// [`BackendError::WrongPart`] as for [`StateLayout::part`], and errors of the backend.
    fn read(&self, plane: usize, offset: usize, into: &mut [u8]) -> Result<(), BackendError>;

    /// Replaces the bytes of a plane from byte `offset` on with `from`, after all queued steps.
    ///
    /// # Errors
    /// [`BackendError::WrongPart`] as for [`StateLayout::part`], and errors of the backend.
    fn write(&mut self, plane: usize, offset: usize, from: &[u8]) -> Result<(), BackendError>;

    /// Returns the residency of the state, or `None` if it is not paged.
    fn paged(&self) -> Option<PagedState> {
        None
    }

    /// Returns a copy of all planes.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`], and the errors of [`read`](State::read).
    fn export(&self) -> Result<Planes, BackendError> {
        Ok(match self.layout().bits() {
            Bits::ThirtyTwo => Planes::Momentum32 {
                momentum: read_floats(self, 0)?,
            },
            Bits::Eight => {
                let mut codes = with_room(self.len())?;
                codes.resize(self.len(), 0);
                self.read(0, 0, &mut codes)?;
                let absmax = read_floats(self, 1)?;
                Planes::Blockwise8 { codes, absmax }
            }
        })
    }

    /// Replaces all planes.
    ///
    /// # Errors
    /// [`BackendError::WrongPlanes`] if `planes` have a different width, and
    /// [`BackendError::WrongPart`] if they have different lengths: in both cases nothing is
    /// written. Otherwise the errors of [`write`](State::write), after which some of the planes may
    /// be replaced.
    fn import(&mut self, planes: &Planes) -> Result<(), BackendError> {
        if planes.bits() == self.layout().bits() {
            check_planes(self, planes)?;
        }
        match (self.layout().bits(), planes) {
            (Bits::ThirtyTwo, Planes::Momentum32 { momentum }) => write_floats(self, 0, momentum),
            (Bits::Eight, Planes::Blockwise8 { codes, absmax }) => {
                self.write(0, 0, codes)?;
                write_floats(self, 1, absmax)
            }
            (wanted, planes) => Err(BackendError::WrongPlanes {
                given: planes.bits(),
                wanted,
            }),
        }
    }
}

/// Floats per chunk that [`State::export`] and [`State::import`] convert.
const CHUNK: usize = 16 << 10;

fn with_room<T>(len: usize) -> Result<Vec<T>, BackendError> {
    let mut plane = Vec::new();
    match plane.try_reserve_exact(len) {
        Ok(()) => Ok(plane),
        Err(_) => Err(BackendError::OutOfMemory {
            bytes: len.saturating_mul(size_of::<T>()),
        }),
    }
}

/// Checks that `planes`, which have the width of the state, also have its lengths.
fn check_planes<S: State + ?Sized>(state: &S, planes: &Planes) -> Result<(), BackendError> {
    let (layout, n) = (state.layout(), state.len());
    for (plane, (_, given)) in planes.describe().into_iter().enumerate() {
        let spec = layout.planes().get(plane);
        if spec.map(|spec| PlaneSpec::len(spec, n)) != Some(given) {
            return Err(BackendError::WrongPart {
                layout: layout.name(),
                plane,
                offset: 0,
                bytes: spec.map_or(given, |spec| given.saturating_mul(spec.plane_type.bytes())),
                size: spec.map_or(0, |spec| PlaneSpec::bytes(spec, n)),
            });
        }
    }
    Ok(())
}

fn read_floats<S: State + ?Sized>(state: &S, plane: usize) -> Result<Vec<f32>, BackendError> {
    // A layout defined outside this project may have no such plane.
    state.layout().part(state.len(), plane, 0, 0)?;
    let len = PlaneSpec::len(&state.layout().planes()[plane], state.len());
    let mut floats = with_room(len)?;
    let mut bytes = vec![0; 4 * len.min(CHUNK)];
    while floats.len() < len {
        let part = &mut bytes[..4 * (len - floats.len()).min(CHUNK)];
        state.read(plane, 4 * floats.len(), part)?;
        let (words, _) = part.as_chunks::<4>();
        floats.extend(words.iter().map(|&word| f32::from_le_bytes(word)));
    }
    Ok(floats)
}

fn write_floats<S: State + ?Sized>(
    state: &mut S,
    plane: usize,
    floats: &[f32],
) -> Result<(), BackendError> {
    let mut bytes = Vec::with_capacity(4 * floats.len().min(CHUNK));
    for (i, part) in floats.chunks(CHUNK).enumerate() {
        bytes.clear();
        bytes.extend(part.iter().flat_map(|x| x.to_le_bytes()));
        state.write(plane, 4 * CHUNK * i, &bytes)?;
    }
    Ok(())
}

/// The values of a state.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Planes {
    /// The 32-bit state.
    Momentum32 {
        /// One value per element.
        momentum: Vec<f32>,
    },
    /// The blockwise 8-bit state.
    Blockwise8 {
        /// One code per element, an index into the codebook.
        codes: Vec<u8>,
        /// One value per block of 256 elements: the largest magnitude in the block.
        absmax: Vec<f32>,
    },
}

impl Planes {
    /// Returns the width of the state.
    ///
    /// ```
    /// use lion_core::{Bits, Planes};
    /// let planes = Planes::Blockwise8 { codes: vec![0; 300], absmax: vec![0.0; 2] };
    /// assert_eq!(planes.bits(), Bits::Eight);
    /// ```
    pub fn bits(&self) -> Bits {
        match self {
            Planes::Momentum32 { .. } => Bits::ThirtyTwo,
            Planes::Blockwise8 { .. } => Bits::Eight,
        }
    }

    /// Returns the number of elements of the parameter.
    pub(crate) fn len(&self) -> usize {
        match self {
            Planes::Momentum32 { momentum } => momentum.len(),
            Planes::Blockwise8 { codes, .. } => codes.len(),
        }
    }

    /// Returns the name and the length of each plane.
    pub(crate) fn describe(&self) -> Vec<(&'static str, usize)> {
        match self {
            Planes::Momentum32 { momentum } => vec![("momentum", momentum.len())],
            Planes::Blockwise8 { codes, absmax } => {
                vec![("codes", codes.len()), ("absmax", absmax.len())]
            }
        }
    }
}

/// The state and step count of one parameter, from which another optimizer can continue.
///
/// With the features `bincode` and `serde`, a trainer can store it in its own checkpoint; see the
/// [crate's documentation](crate#records-in-a-file-of-the-trainer).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StateRecord {
    /// Number of steps. The next step derives its draws from `steps + 1`.
    pub steps: u64,
    /// Seed of the parameter's stochastic rounding.
    pub seed: u64,
    /// The memory order of the values; `None` before the first step.
    pub order: Option<MemoryOrder>,
    /// The position in the whole tensor, if the parameter is a shard.
    pub shard: Shard,
    /// The values of the state.
    pub planes: Planes,
}

impl StateRecord {
    /// Returns the record of a parameter after `steps` steps, with the seed 0. The memory order is
    /// row-major, or `None` if `steps` is 0. The parameter is a whole tensor.
    ///
    /// ```
    /// use lion_core::{MemoryOrder, Planes, StateRecord};
    /// let planes = Planes::Momentum32 { momentum: vec![0.5; 4] };
    /// let record = StateRecord::new(3, planes).seed(7);
    /// assert_eq!((record.steps, record.order), (3, Some(MemoryOrder::RowMajor)));
    /// ```
    pub fn new(steps: u64, planes: Planes) -> Self {
        StateRecord {
            steps,
            seed: 0,
            order: (steps > 0).then_some(MemoryOrder::RowMajor),
            shard: Shard::whole(planes.len()),
            planes,
        }
    }

    /// Sets the position in the whole tensor, for the state of a shard.
    #[must_use]
    pub fn shard(mut self, shard: Shard) -> Self {
        self.shard = shard;
        self
    }

    /// Sets the seed of the parameter's stochastic rounding.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the memory order of the values.
    #[must_use]
    pub fn order(mut self, order: Option<MemoryOrder>) -> Self {
        self.order = order;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layout that no backend of this project uses.
    #[derive(Debug)]
    struct Odd;

    impl StateLayout for Odd {
        fn name(&self) -> &'static str {
            "odd"
        }

        fn bits(&self) -> Bits {
            Bits::Eight
        }

        fn planes(&self) -> &'static [PlaneSpec] {
            &[PlaneSpec {
                name: "nothing",
                plane_type: PlaneType::F32,
                elements: 0,
            }]
        }
    }

    #[test]
    fn sizes_that_no_memory_holds_do_not_wrap() {
        let spec = Odd.planes()[0];
        assert_eq!((PlaneSpec::len(&spec, 9), spec.bytes(9)), (0, 0));
        assert_eq!(Odd.bytes(usize::MAX), 0);
        assert_eq!(Momentum32.bytes(usize::MAX), usize::MAX);
        for (layout, n) in [
            (&Momentum32 as &dyn StateLayout, 10),
            (&Momentum32, usize::MAX),
            (&Odd, usize::MAX),
        ] {
            for (plane, offset, bytes) in [
                (0, usize::MAX, usize::MAX),
                (0, usize::MAX - 3, 4),
                (0, 2, 4),
                (usize::MAX, 0, 0),
            ] {
                let error = layout.part(n, plane, offset, bytes).unwrap_err();
                assert!(matches!(error, BackendError::WrongPart { .. }));
                assert!(!error.to_string().is_empty());
            }
        }
        assert_eq!(Momentum32.part(usize::MAX / 4, 0, 4, 4).ok(), Some(1..2));
    }

    /// Stores the planes of a layout for 300 elements.
    #[derive(Debug)]
    struct Held(&'static dyn StateLayout, Vec<u8>);

    impl State for Held {
        fn layout(&self) -> &'static dyn StateLayout {
            self.0
        }

        fn len(&self) -> usize {
            300
        }

        fn read(&self, plane: usize, offset: usize, into: &mut [u8]) -> Result<(), BackendError> {
            self.0.part(300, plane, offset, into.len())?;
            into.fill(0);
            Ok(())
        }

        fn write(&mut self, plane: usize, offset: usize, from: &[u8]) -> Result<(), BackendError> {
            self.0.part(300, plane, offset, from.len())?;
            self.1.extend(from);
            Ok(())
        }
    }

    #[test]
    fn planes_of_other_lengths_are_refused_before_anything_is_written() {
        let mut state = Held(&Momentum32, Vec::new());
        for n in [0, 299, 301] {
            let momentum = vec![0.0; n];
            let error = state.import(&Planes::Momentum32 { momentum }).unwrap_err();
            assert!(matches!(error, BackendError::WrongPart { .. }), "{error}");
            assert_eq!(state.1, []);
        }
        let mut state = Held(&Odd, Vec::new());
        let (codes, absmax) = (vec![0; 300], vec![0.0; 2]);
        let planes = Planes::Blockwise8 { codes, absmax };
        for error in [state.import(&planes).err(), state.export().err()] {
            assert!(matches!(error, Some(BackendError::WrongPart { .. })));
        }
        assert_eq!(state.1, []);
    }
}
