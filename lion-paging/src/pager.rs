//! The pager: all paged states of a backend, and the lock around their records.

use crate::process::Process;
use crate::{Access, Action, Limits, PageMover, Pass, Piece, Pieces, Policy, ScheduleRun};
use lion_core::{MemoryLimit, Moved, PagedState, PagingError, PagingTotals, StateLayout};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// All paged states of a backend, kept within a budget.
///
/// One pass runs at a time. A step of another optimizer on the same backend waits for it, so a thread
/// that has begun a pass must not wait for a task that begins another one: that is a deadlock. If one thread
/// begins a second pass during its first one, it gets [`PagingError::Nested`].
///
/// A pager can only be used in the process that created it. In a child created by `fork`, calls that need its
/// pages return [`PagingError::OtherProcess`], and a drop leaves the pages of the parent unchanged.
///
/// The documentation of the [crate](crate) has an example.
#[derive(Debug)]
pub struct Pager<D: PageMover> {
    pub(crate) mover: D,
    limits: Limits,
    inner: Mutex<Inner<D>>,
    pub(crate) changed: Condvar,
    pub(crate) exclusive: Mutex<()>,
    pub(crate) process: Process,
}

#[derive(Debug)]
pub(crate) struct Inner<D: PageMover> {
    pub(crate) policy: Policy,
    /// By the number of the piece.
    pub(crate) pieces: Vec<Option<Entry<D>>>,
    states: Vec<Option<PagedState>>,
    /// The eviction that was queued last. They are done in order.
    pub(crate) evicted: Option<D::Ticket>,
    /// The plan of the pass that is running.
    pub(crate) run: Option<Run>,
    /// The thread that has begun the pass.
    pub(crate) owner: Option<ThreadId>,
    /// States that were dropped during the pass: their pieces, and their indices in `states`.
    pub(crate) dropped: Vec<(Vec<Piece>, usize)>,
    /// Whether the last counted pass was a step. The next one starts the counts at zero.
    closed: bool,
}

/// A piece and its memory.
#[derive(Debug)]
pub(crate) struct Entry<D: PageMover> {
    pub(crate) region: D::Region,
    pub(crate) part: Range<usize>,
    state: usize,
    /// Whether a fetch of the piece was queued, and no eviction since.
    pub(crate) fetched: bool,
    /// Whether the last fetch of the piece has failed after it was queued.
    pub(crate) failed: bool,
    /// Whether the piece was changed before an eviction that could not be queued.
    pub(crate) unwritten: bool,
    /// The last fetch of the piece.
    pub(crate) ticket: Option<D::Ticket>,
    /// The number of accesses that the cursor has passed, minus those that are released.
    pub(crate) pending: isize,
}

/// A plan that is running.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) actions: Vec<Action>,
    pub(crate) cursor: usize,
    /// The pieces, by position.
    pub(crate) pieces: Vec<Piece>,
    /// By position: the cursor must have reached this action before the piece is fetched.
    pub(crate) ready: Vec<usize>,
    /// The next position to acquire.
    pub(crate) next: usize,
    /// By position: whether it was acquired and not released.
    pub(crate) held: Vec<bool>,
    pub(crate) counted: bool,
    pub(crate) error: Option<PagingError>,
}

impl<D: PageMover> Pager<D> {
    /// Returns a pager without states.
    pub fn new(mover: D, limits: Limits) -> Self {
        Pager {
            mover,
            limits,
            inner: Mutex::new(Inner {
                policy: Policy::new(limits),
                pieces: Vec::new(),
                states: Vec::new(),
                evicted: None,
                run: None,
                owner: None,
                dropped: Vec::new(),
                closed: true,
            }),
            changed: Condvar::new(),
            exclusive: Mutex::new(()),
            process: Process::current(),
        }
    }

    /// Returns the page mover.
    pub fn mover(&self) -> &D {
        &self.mover
    }

    /// Returns the limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the pages of a state of `len` elements, and their memory. All bytes are 0, and no piece is resident.
    ///
    /// # Errors
    /// [`PagingError::Empty`], [`PagingError::TooLarge`], [`PagingError::OtherProcess`], and the errors of
    /// [`PageMover::allocate`].
    pub fn allocate(
        self: &Arc<Self>,
        layout: &'static dyn StateLayout,
        len: usize,
    ) -> Result<(StatePages<D>, D::Memory), PagingError> {
        self.process.check()?;
        if len == 0 {
            return Err(PagingError::Empty);
        }
        let pieces = Pieces::new(layout, len, self.limits.piece(), self.mover.page())?
            .of_multiples(self.mover.elements())?;
        let (region, memory) = self.mover.allocate(pieces.total(), pieces.stride())?;
        let mut inner = self.inner();
        let mut ids = Vec::with_capacity(pieces.count());
        for index in 0..pieces.count() {
            match inner.policy.add(pieces.bytes(index).len()) {
                Ok(piece) => ids.push(piece),
                Err(error) => {
                    inner.policy.remove(&ids);
                    return Err(error);
                }
            }
        }
        let free = inner.states.iter().position(Option::is_none);
        let state = free.unwrap_or(inner.states.len());
        let paged = PagedState::of(pieces.total());
        match free {
            Some(state) => inner.states[state] = Some(paged),
            None => inner.states.push(Some(paged)),
        }
        for (index, &piece) in ids.iter().enumerate() {
            if inner.pieces.len() <= piece.index {
                inner.pieces.resize_with(piece.index + 1, || None);
            }
            let part = pieces.bytes(index);
            inner.pieces[piece.index] = Some(Entry {
                region: region.clone(),
                part,
                state,
                fetched: false,
                failed: false,
                unwritten: false,
                ticket: None,
                pending: 0,
            });
        }
        drop(inner);
        let pages = StatePages {
            pager: Arc::clone(self),
            state,
            pieces,
            ids,
        };
        Ok((pages, memory))
    }

    /// Plans these accesses and starts to fetch. Waits for the pass of another thread to end.
    ///
    /// # Errors
    /// [`PagingError::UnknownPiece`], [`PagingError::Nested`], [`PagingError::OtherProcess`].
    pub fn begin(
        &self,
        accesses: &[Access],
        pass: Pass,
    ) -> Result<ScheduleRun<'_, D>, PagingError> {
        ScheduleRun::new(self, accesses, pass)
    }

    /// Returns the limits, and sums over all states. In a child created by `fork`, the sums are 0.
    pub fn totals(&self) -> PagingTotals {
        let mut totals = PagingTotals::default();
        totals.mover = self.mover.name();
        (totals.budget, totals.window) = (self.limits.budget(), self.limits.window());
        let exceeded = |limit: &MemoryLimit| limit.bytes < totals.budget as u64;
        totals.exceeds = self.mover.memory_limit().filter(exceeded);
        if !self.process.is_current() {
            // Another thread of the parent may have held the lock.
            return totals;
        }
        let inner = self.inner();
        for state in inner.states.iter().flatten() {
            totals.paged += state.bytes;
            totals.resident += state.resident;
            totals.moved.add(state.moved);
        }
        totals
    }

    /// Returns the bytes of all states that are in fast memory, as measured by the mover.
    ///
    /// # Errors
    /// [`PagingError::OtherProcess`], and the errors of [`PageMover::resident`].
    pub fn measure(&self) -> Result<usize, PagingError> {
        self.process.check()?;
        let mut regions: Vec<(D::Region, Range<usize>)> = Vec::new();
        for entry in self.inner().pieces.iter().flatten() {
            regions.push((entry.region.clone(), entry.part.clone()));
        }
        let bytes = regions
            .into_iter()
            .map(|(region, part)| self.mover.resident(&region, part));
        bytes.sum()
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner<D>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: PageMover> Inner<D> {
    pub(crate) fn entry(&mut self, piece: Piece) -> Option<&mut Entry<D>> {
        self.pieces.get_mut(piece.index)?.as_mut()
    }

    /// Prepares the counters for a pass.
    pub(crate) fn open(&mut self, pass: Pass) {
        if pass != Pass::Uncounted && self.closed {
            for state in self.states.iter_mut().flatten() {
                state.moved = Moved::default();
            }
        }
        match pass {
            Pass::Step => self.closed = true,
            Pass::Survey => self.closed = false,
            Pass::Uncounted => {}
        }
    }

    /// Changes the counts of the state of a piece. `count` is given the bytes of the piece.
    pub(crate) fn count(&mut self, piece: Piece, count: impl FnOnce(&mut PagedState, usize)) {
        if let Some(Some(entry)) = self.pieces.get(piece.index)
            && let Some(Some(state)) = self.states.get_mut(entry.state)
        {
            count(state, entry.part.len());
        }
    }

    /// Removes the states that have been dropped, unless a pass is running: its plan may refer to them.
    pub(crate) fn forget_dropped(&mut self) {
        if self.run.is_some() {
            return;
        }
        for (pieces, state) in std::mem::take(&mut self.dropped) {
            self.policy.remove(&pieces);
            for piece in pieces {
                self.pieces[piece.index] = None;
            }
            self.states[state] = None;
        }
    }
}

/// The pages of one state. They are freed when this and their memory are dropped.
///
/// [`Pager::allocate`] returns them. The documentation of the [crate](crate) has an example.
#[derive(Debug)]
pub struct StatePages<D: PageMover> {
    pager: Arc<Pager<D>>,
    state: usize,
    pieces: Pieces,
    ids: Vec<Piece>,
}

impl<D: PageMover> StatePages<D> {
    /// Returns the division of the state into pieces.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// Returns a piece by its index, for an [`Access`], or `None` if there is no such piece.
    pub fn piece(&self, index: usize) -> Option<Piece> {
        self.ids.get(index).copied()
    }

    /// Returns all pieces, in order.
    pub(crate) fn list(&self) -> impl Iterator<Item = Piece> {
        self.ids.iter().copied()
    }

    /// Returns the pager that they belong to.
    pub fn pager(&self) -> &Arc<Pager<D>> {
        &self.pager
    }

    /// Returns how much is resident. In a child created by `fork`, that is nothing.
    pub fn paged(&self) -> PagedState {
        if !self.pager.process.is_current() {
            return PagedState::of(self.pieces.total());
        }
        self.pager.inner().states[self.state].unwrap_or_default()
    }
}

impl<D: PageMover> Drop for StatePages<D> {
    fn drop(&mut self) {
        if !self.pager.process.is_current() {
            // Another thread of the parent may have held the lock.
            return;
        }
        let ids = std::mem::take(&mut self.ids);
        let mut inner = self.pager.inner();
        inner.dropped.push((ids, self.state));
        inner.forget_dropped();
    }
}
