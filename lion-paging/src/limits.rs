//! How much fast memory states may take, and in what portions they move.

use lion_core::PagingError;

/// The window where none is asked for: a quarter of the budget, and no more than this.
const LARGEST_WINDOW: usize = 64 << 20;

/// Pieces that fit the window, where pages are small enough: some are read, some written, one is stepped.
const PIECES_IN_WINDOW: usize = 4;

/// Bytes of a piece at most: a disk is near its full speed with a few transfers of this size.
const LARGEST_PIECE: usize = 4 << 20;

/// The large pages of systems and devices. Pieces are multiples of it where two of them fit the window.
const LARGE_PAGE: usize = 2 << 20;

/// A budget of fast memory, and its part through which all that does not stay resident is streamed.
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
    /// A budget and, if one is asked for, a window, in bytes, of memory that moves in multiples of
    /// `page`. Both are rounded down to whole pages.
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
            // Two pages, where the budget has them: one is stepped while the other moves.
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

    /// The same, with pages as large as its pieces: for memory that is given out in equal parts.
    ///
    /// # Errors
    /// [`PagingError::BudgetTooSmall`], [`PagingError::BadWindow`].
    pub fn of_equal_pieces(self) -> Result<Self, PagingError> {
        Limits::new(self.budget, Some(self.window), self.piece)
    }

    /// Bytes of paged state that may be resident.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// Bytes of the budget that are streamed through. The rest holds what stays.
    pub fn window(&self) -> usize {
        self.window
    }

    /// Bytes that move at once, at most.
    pub fn piece(&self) -> usize {
        self.piece
    }

    /// Bytes that a steady step of a state of `state` bytes moves, in and out, at most:
    /// `2 * (state - budget + window)`, or 0 where the state fits the budget. Where gradients are looked at
    /// before a step (`OnNonFinite::RejectStep`), or the norm of a tensor larger than the window
    /// (`max_unorm`), what is streamed is read once more, and in the unified memory of a CUDA device moved
    /// back once more.
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
