//! Resets of the momentum of a parameter, in whole or in part.

use super::restore::refill;
use crate::{BLOCK, Error, Handle, Optimizer, StateRequest};
use std::ops::Range;

impl Optimizer {
    /// Sets the momentum of the elements in `range` to zero, its value before the first step. Use
    /// it for rows of a parameter that were initialized again.
    ///
    /// Elements are counted in memory order. The range must consist of whole blocks of 256
    /// elements: it begins at a multiple of 256, and ends at a multiple of 256 or at the end of the
    /// parameter. The step count, the seed and the hyper-parameters do not change. On a device, the
    /// call waits for the queued steps. Resetting all of a damaged state ([`Error::Damaged`])
    /// repairs it.
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
    /// - [`Error::UnknownHandle`], [`Error::NotWholeBlocks`].
    /// - [`Error::Backend`] if the backend fails before it changes anything.
    /// - [`Error::PartlyReset`] if it fails later: each block of the range has either a momentum of
    ///   zero or its previous momentum.
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
            // The values that a failed load had written are all overwritten.
            entry.damaged = false;
        }
        Ok(())
    }
}
