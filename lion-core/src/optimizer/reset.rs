//! A momentum set to zero, as a whole or in part.

use super::restore::refill;
use crate::{BLOCK, Error, Handle, Optimizer, StateRequest};
use std::ops::Range;

impl Optimizer {
    /// Sets the momentum of the elements in `range` to zero, as it is before the first step: for rows of
    /// a parameter that the trainer has initialized anew.
    ///
    /// Elements are counted in the order in which they lie in memory. The range consists of whole blocks
    /// of 256 elements: it begins at a multiple of 256, and ends at one or at the end of the parameter.
    /// A damaged state ([`Error::Damaged`]) is whole again when all of it is reset. The step count, the seed and the hyper-parameters stay. On a device the call waits for the steps
    /// that are queued.
    ///
    /// ```
    /// use lion_core::{Error, Handle, Optimizer};
    /// # fn example(mut optimizer: Optimizer, embedding: Handle) -> Result<(), Error> {
    /// let width = 512; // elements per row: two blocks
    /// let row = 17;
    /// optimizer.reset(embedding, row * width..(row + 1) * width)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::UnknownHandle`]; [`Error::NotWholeBlocks`]; [`Error::Backend`] where the backend fails
    /// before it changes anything; [`Error::PartlyReset`] where it fails later: then each block of the range
    /// either has a momentum of zero or the one it had.
    pub fn reset(&mut self, handle: Handle, range: Range<usize>) -> Result<(), Error> {
        let index = self.index(handle)?;
        let entry = &self.params[index];
        let ends = range.end.is_multiple_of(BLOCK) || range.end == entry.len;
        let inside = range.start <= range.end && range.end <= entry.len;
        if !(inside && ends && range.start.is_multiple_of(BLOCK)) {
            return Err(Error::NotWholeBlocks {
                parameter: entry.name(),
                given: range,
                elements: entry.len,
            });
        }
        if range.is_empty() {
            return Ok(());
        }
        let request = StateRequest::new(&entry.name, entry.state.layout().bits(), 1);
        let blank = self.allocate(&request);
        let blank = blank.map_err(|source| entry.backend_error(source))?;
        let entry = &mut self.params[index];
        let whole = range.len() == entry.len;
        refill(&*blank, &mut *entry.state, range.clone()).map_err(|source| Error::PartlyReset {
            parameter: entry.name(),
            range,
            source: Box::new(source),
        })?;
        if whole {
            // Nothing is left of what a failed load had written.
            entry.damaged = false;
        }
        Ok(())
    }
}
