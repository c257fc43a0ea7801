//! Residency: acquires a part of a state before its use, and releases it after.

use crate::{PageMover, ScheduleRun};
use lion_core::PagingError;
use std::fmt;

/// The position of an access in the order of a pass. `None` if the memory is always resident.
pub type Position = Option<usize>;

/// Makes parts of states resident before they are used, and releases them after.
///
/// A backend acquires each [piece](crate::StepPiece) of a pass before it uses its memory, and releases it after. All
/// methods return at once, without an effect, for a position that is `None`. So a backend steps a state
/// that is paged and one that is not in the same way.
///
/// [`ScheduleRun`] is the residency of a pass with paged states, and [`AlwaysResident`] of one without.
/// [`StepOrder::begin`](crate::StepOrder::begin) returns the one that is needed.
///
/// ```
/// use lion_paging::{AlwaysResident, Residency};
/// let residency: &dyn Residency = &AlwaysResident;
/// residency.acquire(None)?;
/// // The memory may be used here.
/// residency.release(None);
/// # Ok::<(), lion_paging::PagingError>(())
/// ```
pub trait Residency: fmt::Debug + Sync {
    /// Waits until the memory of a position is resident, and holds it until it is
    /// [released](Residency::release).
    ///
    /// # Errors
    /// As [`ScheduleRun::acquire`].
    fn acquire(&self, position: Position) -> Result<(), PagingError>;

    /// Holds the memory of a position if it is resident. Returns `false` if it is not resident yet.
    ///
    /// # Errors
    /// As [`ScheduleRun::try_acquire`].
    fn try_acquire(&self, position: Position) -> Result<bool, PagingError>;

    /// Waits until the memory of a position is resident or its access is over, and does not hold it.
    ///
    /// # Errors
    /// As [`ScheduleRun::wait`].
    fn wait(&self, position: Position) -> Result<(), PagingError>;

    /// Ends the access at a position. It has no effect on a position that is not held.
    fn release(&self, position: Position);

    /// Ends the pass, after all of its accesses.
    ///
    /// # Errors
    /// As [`ScheduleRun::finish`].
    fn finish(self: Box<Self>) -> Result<(), PagingError>;
}

/// The residency of a pass without paged states.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlwaysResident;

impl Residency for AlwaysResident {
    fn acquire(&self, _: Position) -> Result<(), PagingError> {
        Ok(())
    }

    fn try_acquire(&self, _: Position) -> Result<bool, PagingError> {
        Ok(true)
    }

    fn wait(&self, _: Position) -> Result<(), PagingError> {
        Ok(())
    }

    fn release(&self, _: Position) {}

    fn finish(self: Box<Self>) -> Result<(), PagingError> {
        Ok(())
    }
}

impl<D: PageMover> Residency for ScheduleRun<'_, D> {
    fn acquire(&self, position: Position) -> Result<(), PagingError> {
        position.map_or(Ok(()), |position| ScheduleRun::acquire(self, position))
    }

    fn try_acquire(&self, position: Position) -> Result<bool, PagingError> {
        position.map_or(Ok(true), |position| {
            ScheduleRun::try_acquire(self, position)
        })
    }

    fn wait(&self, position: Position) -> Result<(), PagingError> {
        position.map_or(Ok(()), |position| ScheduleRun::wait(self, position))
    }

    fn release(&self, position: Position) {
        if let Some(position) = position {
            ScheduleRun::release(self, position);
        }
    }

    fn finish(self: Box<Self>) -> Result<(), PagingError> {
        ScheduleRun::finish(*self)
    }
}
