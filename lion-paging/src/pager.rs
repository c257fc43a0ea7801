//! The pager: all paged states of a backend, and the lock around what is known of them.

use crate::{Action, Driver, Limits, Piece, Pieces, Policy, Use, Visit, Walk};
use lion_core::{Moved, PagedState, PagingError, PagingTotals, StateLayout};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// All paged states of a backend, kept within a budget.
///
/// A forked child of the process that made the pager may drop it and what it has allocated, and nothing
/// else: every other call there returns [`PagingError::OtherProcess`].
///
/// One walk goes on at a time: a step of another optimizer on the same backend waits for it. So a thread that
/// has begun a walk must not run, or wait for, a task that begins another one: both would wait for ever.
#[derive(Debug)]
pub struct Pager<D: Driver> {
    pub(crate) driver: D,
    limits: Limits,
    core: Mutex<Core<D>>,
    pub(crate) changed: Condvar,
    pub(crate) turn: Mutex<()>,
}

#[derive(Debug)]
pub(crate) struct Core<D: Driver> {
    pub(crate) policy: Policy,
    /// By the number of the piece.
    pub(crate) pieces: Vec<Option<Entry<D>>>,
    states: Vec<Option<PagedState>>,
    /// The eviction that was queued last. They are done in order.
    pub(crate) evicted: Option<D::Ticket>,
    /// What is left of the walk that goes on.
    pub(crate) run: Option<Run>,
    /// Whether the last counted walk was that of a step: the next one counts anew.
    closed: bool,
}

/// A piece and its place.
#[derive(Debug)]
pub(crate) struct Entry<D: Driver> {
    pub(crate) region: D::Region,
    pub(crate) part: Range<usize>,
    state: usize,
    /// Whether a fetch of it was queued, and no eviction since.
    pub(crate) here: bool,
    /// Whether it was changed before an eviction that could not be queued.
    pub(crate) unwritten: bool,
    /// Its last fetch.
    pub(crate) ticket: Option<D::Ticket>,
    /// Uses that the plan has passed, less those that are over.
    pub(crate) pending: isize,
}

/// A plan that is being carried out.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) actions: Vec<Action>,
    pub(crate) cursor: usize,
    pub(crate) uses: Vec<Piece>,
    /// For each use, how many actions are queued when its piece is fetched.
    pub(crate) ready: Vec<usize>,
    pub(crate) counted: bool,
    pub(crate) error: Option<PagingError>,
}

impl<D: Driver> Pager<D> {
    /// A pager without states.
    pub fn new(driver: D, limits: Limits) -> Self {
        Pager {
            driver,
            limits,
            core: Mutex::new(Core {
                policy: Policy::new(limits),
                pieces: Vec::new(),
                states: Vec::new(),
                evicted: None,
                run: None,
                closed: true,
            }),
            changed: Condvar::new(),
            turn: Mutex::new(()),
        }
    }

    /// What moves the pages.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The pages of a state of `len` elements, all bytes 0 and none resident, and their memory.
    ///
    /// # Errors
    /// [`PagingError::TooLarge`], [`PagingError::OtherProcess`]; as [`Driver::allocate`].
    pub fn allocate(
        self: &Arc<Self>,
        layout: &'static dyn StateLayout,
        len: usize,
    ) -> Result<(StatePages<D>, D::Memory), PagingError> {
        self.driver.check_process()?;
        let pieces = Pieces::new(layout, len, self.limits.piece(), self.driver.page())
            .of_multiples(self.driver.elements());
        let total = pieces
            .checked_total()
            .ok_or(PagingError::TooLarge { elements: len })?;
        let (region, memory) = self.driver.allocate(total, pieces.stride())?;
        let mut core = self.core();
        let free = core.states.iter().position(Option::is_none);
        let state = free.unwrap_or(core.states.len());
        let paged = PagedState::of(total);
        match free {
            Some(state) => core.states[state] = Some(paged),
            None => core.states.push(Some(paged)),
        }
        let mut ids = Vec::with_capacity(pieces.count());
        for index in 0..pieces.count() {
            let part = pieces.bytes(index);
            let piece = core.policy.add(part.len());
            if core.pieces.len() <= piece.0 {
                core.pieces.resize_with(piece.0 + 1, || None);
            }
            core.pieces[piece.0] = Some(Entry {
                region: region.clone(),
                part,
                state,
                here: false,
                unwritten: false,
                ticket: None,
                pending: 0,
            });
            ids.push(piece);
        }
        drop(core);
        let pages = StatePages {
            pager: Arc::clone(self),
            state,
            pieces,
            ids,
        };
        Ok((pages, memory))
    }

    /// Plans these uses and begins to fetch.
    ///
    /// # Errors
    /// [`PagingError::UnknownPiece`], [`PagingError::OtherProcess`].
    pub fn begin(&self, uses: &[Use], visit: Visit) -> Result<Walk<'_, D>, PagingError> {
        self.driver.check_process()?;
        Walk::new(self, uses, visit)
    }

    /// Limits and sums over all states. In a forked child all sums are 0.
    pub fn totals(&self) -> PagingTotals {
        let mut totals = PagingTotals::default();
        totals.driver = self.driver.name();
        (totals.budget, totals.window) = (self.limits.budget(), self.limits.window());
        let limit = self.driver.memory_limit();
        totals.exceeds = limit.filter(|limit| totals.budget as u64 > limit.bytes);
        if self.driver.check_process().is_err() {
            return totals;
        }
        let core = self.core();
        for state in core.states.iter().flatten() {
            totals.paged += state.bytes;
            totals.resident += state.resident;
            totals.moved.add(state.moved);
        }
        totals
    }

    /// Bytes of all states that are in fast memory, as the driver finds them, not as the plan has it.
    ///
    /// # Errors
    /// [`PagingError::OtherProcess`]; as [`Driver::resident`].
    pub fn measure(&self) -> Result<usize, PagingError> {
        self.driver.check_process()?;
        let mut regions: Vec<(D::Region, Range<usize>)> = Vec::new();
        for entry in self.core().pieces.iter().flatten() {
            regions.push((entry.region.clone(), entry.part.clone()));
        }
        let bytes = regions
            .into_iter()
            .map(|(region, part)| self.driver.resident(&region, part));
        bytes.sum()
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Core<D>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Driver> Core<D> {
    pub(crate) fn entry(&mut self, piece: Piece) -> Option<&mut Entry<D>> {
        self.pieces.get_mut(piece.0)?.as_mut()
    }

    /// Prepares the counters for a walk.
    pub(crate) fn open(&mut self, visit: Visit) {
        if visit != Visit::Aside && self.closed {
            for state in self.states.iter_mut().flatten() {
                state.moved = Moved::default();
            }
        }
        match visit {
            Visit::Step => self.closed = true,
            Visit::Survey => self.closed = false,
            Visit::Aside => {}
        }
    }

    /// Notes that a piece has begun to come (or go), in its state's numbers.
    pub(crate) fn count(&mut self, piece: Piece, count: impl FnOnce(&mut PagedState, usize)) {
        if let Some(entry) = &self.pieces[piece.0]
            && let Some(state) = &mut self.states[entry.state]
        {
            count(state, entry.part.len());
        }
    }
}

/// The pages of one state. Dropped, they are forgotten, and freed with their memory.
#[derive(Debug)]
pub struct StatePages<D: Driver> {
    pager: Arc<Pager<D>>,
    state: usize,
    pieces: Pieces,
    ids: Vec<Piece>,
}

impl<D: Driver> StatePages<D> {
    /// How the state is cut.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// A piece by its index, for a [`Use`].
    ///
    /// # Panics
    /// If there is no such piece.
    pub fn piece(&self, index: usize) -> Piece {
        self.ids[index]
    }

    /// The pager that they belong to.
    pub fn pager(&self) -> &Arc<Pager<D>> {
        &self.pager
    }

    /// Where they are. In a forked child nothing is known of them.
    pub fn paged(&self) -> PagedState {
        if self.pager.driver.check_process().is_err() {
            return PagedState::of(self.pieces.total());
        }
        self.pager.core().states[self.state].unwrap_or_default()
    }
}

impl<D: Driver> Drop for StatePages<D> {
    fn drop(&mut self) {
        if self.pager.driver.check_process().is_err() {
            // In a forked child the lock may be held by a thread that it does not have.
            return;
        }
        let mut core = self.pager.core();
        core.policy.remove_all(&self.ids);
        for &piece in &self.ids {
            core.pieces[piece.0] = None;
        }
        core.states[self.state] = None;
    }
}
