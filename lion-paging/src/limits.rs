//! Limits of paging: the budget of fast memory, and the size of the pieces that are moved.

use lion_core::PagingError;

/// Upper bound of the default window, which is a quarter of the budget.
const LARGEST_WINDOW: usize = 64 << 20;

/// Number of pieces in the window, if pages are small enough: some are read, some written, one is
/// used.
const PIECES_IN_WINDOW: usize = 4;

/// Upper bound of the bytes of a piece. A few transfers of this size run a disk near its full
/// speed.
const LARGEST_PIECE: usize = 4 << 20;

/// Bytes of a large page on hosts and devices. If two large pages fit the window, pieces are
/// multiples of it.
const LARGE_PAGE: usize = 2 << 20;

/// A budget of fast memory. One part of it, the window, is used to stream pieces that do not stay
/// resident.
///
/// ```
/// use lion_paging::Limits;
/// let limits = Limits::new(256 << 20, None, 4096)?;
/// assert_eq!((limits.budget(), limits.window(), limits.piece()), (256 << 20, 64 << 20, 4 << 20));
///
/// let error = Limits::new(1000, None, 4096).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "the budget of paged states is 1000 bytes, wanted at least one page of 4096 bytes"
/// );
/// # Ok::<(), lion_paging::PagingError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    budget: usize,
    window: usize,
    piece: usize,
}

impl Limits {
    /// Returns the limits for a budget and an optional window, in bytes. Memory is moved in
    /// multiples of `page`. Budget and window are rounded down to whole pages.
    ///
    /// # Errors
    /// [`PagingError::BudgetTooSmall`], [`PagingError::BadWindow`].
    pub fn new(budget: usize, window: Option<usize>, page: usize) -> Result<Self, PagingError> {
        let page = page.max(1);
        let whole = |bytes: usize| bytes / page * page;
        if budget < page {
            return Err(PagingError::BudgetTooSmall {
                given: budget,
                wanted: page,
            });
        }
        let window = match window {
            Some(window) if window < page || window > budget => {
                return Err(PagingError::BadWindow {
                    given: window,
                    smallest: page,
                    largest: budget,
                });
            }
            Some(window) => whole(window),
            // At least two pages if the budget allows: one is used while the other is moved.
            None => whole((budget / 4).min(LARGEST_WINDOW))
                .max(page.saturating_mul(2))
                .min(whole(budget)),
        };
        let piece = (window / PIECES_IN_WINDOW).min(LARGEST_PIECE);
        let piece = if window >= 2 * LARGE_PAGE {
            piece.max(LARGE_PAGE) / LARGE_PAGE * LARGE_PAGE
        } else {
            piece
        };
        Ok(Limits {
            budget: whole(budget),
            window,
            piece: whole(piece).max(page),
        })
    }

    /// Returns the same limits with pages as large as the pieces, for memory that is allocated in
    /// equal parts.
    ///
    /// # Errors
    /// [`PagingError::BudgetTooSmall`], [`PagingError::BadWindow`].
    pub fn of_equal_pieces(self) -> Result<Self, PagingError> {
        Limits::new(self.budget, Some(self.window), self.piece)
    }

    /// Returns the bytes of paged state that may be resident.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Returns the bytes of the budget that states are streamed through. The rest holds the pieces
    /// that stay.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Returns the upper bound of the bytes of a piece, the unit that is moved.
    pub fn piece(&self) -> usize {
        self.piece
    }

    /// Returns an upper bound of the bytes that a step moves, in and out, after the first steps,
    /// for states of `state` bytes in total: `2 * (state - budget + window)`, or 0 if the states
    /// fit the budget.
    ///
    /// If gradients are checked before the step (`OnNonFinite::RejectStep`), or if the norm of a
    /// tensor larger than the window is needed (`max_unorm`), the streamed pieces are read once
    /// more. In the unified memory of a CUDA device they are also written back once more.
    pub fn steady_bytes(&self, state: usize) -> usize {
        if state <= self.budget {
            0
        } else {
            (state - self.budget)
                .saturating_add(self.window)
                .saturating_mul(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_page_is_enough() {
        let limits = Limits::new(4096, None, 4096).unwrap();
        assert_eq!(
            (limits.budget, limits.window, limits.piece),
            (4096, 4096, 4096)
        );
        let limits = Limits::new(3 * 4096 + 5, None, 4096).unwrap();
        assert_eq!(
            (limits.budget, limits.window, limits.piece),
            (3 * 4096, 2 * 4096, 4096)
        );
    }

    #[test]
    fn the_largest_numbers_do_not_wrap() {
        const MAX: usize = usize::MAX;
        let limits = Limits::new(MAX, None, MAX).unwrap();
        assert_eq!((limits.budget, limits.piece), (MAX, MAX));
        let limits = Limits::new(MAX, Some(MAX), 4096).unwrap();
        assert_eq!(limits.window, MAX - 4095);
        let limits = Limits::new(4096, None, 4096).unwrap();
        assert_eq!(limits.steady_bytes(MAX), MAX);
    }

    #[test]
    fn a_window_lies_between_a_page_and_the_budget() {
        for window in [0, 4095, 8193] {
            let error = Limits::new(8192, Some(window), 4096).unwrap_err();
            assert!(matches!(error, PagingError::BadWindow { .. }), "{error}");
        }
        assert_eq!(Limits::new(8192, Some(8192), 4096).unwrap().window, 8192);
    }
}
