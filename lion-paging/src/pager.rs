//! The pager: all paged states of a backend, and the lock around what is known of them.

use crate::process::Process;
use crate::{Access, Action, Limits, PageMover, Pass, Piece, Pieces, Policy, ScheduleRun};
use lion_core::{MemoryLimit, Moved, PagedState, PagingError, PagingTotals, StateLayout};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// All paged states of a backend, kept within a budget.
///
/// One walk goes on at a time: a step of another optimizer on the same backend waits for it. So a thread that
/// has begun a walk must not wait for a task that begins another one: both would wait for ever. A walk that is begun by the thread that is in the middle of another one is refused.
///
/// A pager belongs to the process that made it. In a child made by `fork` each call that needs its pages
/// returns [`PagingError::OtherProcess`], and what is dropped leaves the pages of the parent as they are.
#[derive(Debug)]
pub struct Pager<D: PageMover> {
    pub(crate) mover: D,
    limits: Limits,
    core: Mutex<Core<D>>,
    pub(crate) changed: Condvar,
    pub(crate) turn: Mutex<()>,
    pub(crate) process: Process,
}

#[derive(Debug)]
pub(crate) struct Core<D: PageMover> {
    pub(crate) policy: Policy,
    /// By the number of the piece.
    pub(crate) pieces: Vec<Option<Entry<D>>>,
    states: Vec<Option<PagedState>>,
    /// The eviction that was queued last. They are done in order.
    pub(crate) evicted: Option<D::Ticket>,
    /// What is left of the walk that goes on.
    pub(crate) run: Option<Run>,
    /// The thread that has begun it.
    pub(crate) walker: Option<ThreadId>,
    /// States that were dropped since it has begun: their pieces and their positions.
    pub(crate) gone: Vec<(Vec<Piece>, usize)>,
    /// Whether the last counted walk was that of a step: the next one counts anew.
    closed: bool,
}

/// A piece and its place.
#[derive(Debug)]
pub(crate) struct Entry<D: PageMover> {
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
    /// The position that is to be acquired next.
    pub(crate) next: usize,
    /// For each use, whether it was acquired and not released.
    pub(crate) held: Vec<bool>,
    pub(crate) counted: bool,
    pub(crate) error: Option<PagingError>,
}

impl<D: PageMover> Pager<D> {
    /// A pager without states.
    pub fn new(mover: D, limits: Limits) -> Self {
        Pager {
            mover,
            limits,
            core: Mutex::new(Core {
                policy: Policy::new(limits),
                pieces: Vec::new(),
                states: Vec::new(),
                evicted: None,
                run: None,
                walker: None,
                gone: Vec::new(),
                closed: true,
            }),
            changed: Condvar::new(),
            turn: Mutex::new(()),
            process: Process::current(),
        }
    }

    /// What moves the pages.
    pub fn mover(&self) -> &D {
        &self.mover
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The pages of a state of `len` elements, all bytes 0 and none resident, and their memory.
    ///
    /// # Errors
    /// [`PagingError::Empty`], [`PagingError::TooLarge`], [`PagingError::OtherProcess`]; else as
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
        let mut core = self.core();
        let mut ids = Vec::with_capacity(pieces.count());
        for index in 0..pieces.count() {
            match core.policy.add(pieces.bytes(index).len()) {
                Ok(piece) => ids.push(piece),
                Err(error) => {
                    core.policy.remove(&ids);
                    return Err(error);
                }
            }
        }
        let free = core.states.iter().position(Option::is_none);
        let state = free.unwrap_or(core.states.len());
        let paged = PagedState::of(pieces.total());
        match free {
            Some(state) => core.states[state] = Some(paged),
            None => core.states.push(Some(paged)),
        }
        for (index, &piece) in ids.iter().enumerate() {
            if core.pieces.len() <= piece.index {
                core.pieces.resize_with(piece.index + 1, || None);
            }
            let part = pieces.bytes(index);
            core.pieces[piece.index] = Some(Entry {
                region: region.clone(),
                part,
                state,
                here: false,
                unwritten: false,
                ticket: None,
                pending: 0,
            });
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

    /// Plans these uses and begins to fetch. Waits for the walk of another thread to end.
    ///
    /// # Errors
    /// [`PagingError::UnknownPiece`], [`PagingError::Nested`], [`PagingError::OtherProcess`].
    pub fn begin(&self, uses: &[Access], visit: Pass) -> Result<ScheduleRun<'_, D>, PagingError> {
        ScheduleRun::new(self, uses, visit)
    }

    /// Limits and sums over all states. In a child made by `fork` there are only the limits.
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
        let core = self.core();
        for state in core.states.iter().flatten() {
            totals.paged += state.bytes;
            totals.resident += state.resident;
            totals.moved.add(state.moved);
        }
        totals
    }

    /// Bytes of all states that are in fast memory, as the mover finds them, not as the plan has it.
    ///
    /// # Errors
    /// [`PagingError::OtherProcess`]; else as [`PageMover::resident`].
    pub fn measure(&self) -> Result<usize, PagingError> {
        self.process.check()?;
        let mut regions: Vec<(D::Region, Range<usize>)> = Vec::new();
        for entry in self.core().pieces.iter().flatten() {
            regions.push((entry.region.clone(), entry.part.clone()));
        }
        let bytes = regions
            .into_iter()
            .map(|(region, part)| self.mover.resident(&region, part));
        bytes.sum()
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Core<D>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: PageMover> Core<D> {
    pub(crate) fn entry(&mut self, piece: Piece) -> Option<&mut Entry<D>> {
        self.pieces.get_mut(piece.index)?.as_mut()
    }

    /// Prepares the counters for a walk.
    pub(crate) fn open(&mut self, visit: Pass) {
        if visit != Pass::Aside && self.closed {
            for state in self.states.iter_mut().flatten() {
                state.moved = Moved::default();
            }
        }
        match visit {
            Pass::Step => self.closed = true,
            Pass::Survey => self.closed = false,
            Pass::Aside => {}
        }
    }

    /// Notes that a piece has begun to come (or go), in its state's numbers.
    pub(crate) fn count(&mut self, piece: Piece, count: impl FnOnce(&mut PagedState, usize)) {
        if let Some(Some(entry)) = self.pieces.get(piece.index)
            && let Some(Some(state)) = self.states.get_mut(entry.state)
        {
            count(state, entry.part.len());
        }
    }

    /// Forgets states that have been dropped, unless a walk goes on: what its plan is of stays until its end.
    pub(crate) fn forget_gone(&mut self) {
        if self.run.is_some() {
            return;
        }
        for (pieces, state) in std::mem::take(&mut self.gone) {
            self.policy.remove(&pieces);
            for piece in pieces {
                self.pieces[piece.index] = None;
            }
            self.states[state] = None;
        }
    }
}

/// The pages of one state. Dropped, they are forgotten, and freed with their memory.
#[derive(Debug)]
pub struct StatePages<D: PageMover> {
    pager: Arc<Pager<D>>,
    state: usize,
    pieces: Pieces,
    ids: Vec<Piece>,
}

impl<D: PageMover> StatePages<D> {
    /// How the state is cut.
    pub fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// A piece by its index, for a [`Access`]. `None` where there is no such piece.
    pub fn piece(&self, index: usize) -> Option<Piece> {
        self.ids.get(index).copied()
    }

    /// All pieces, in order.
    pub(crate) fn list(&self) -> impl Iterator<Item = Piece> {
        self.ids.iter().copied()
    }

    /// The pager that they belong to.
    pub fn pager(&self) -> &Arc<Pager<D>> {
        &self.pager
    }

    /// Where they are. In a child made by `fork` that is not known, and nothing is resident.
    pub fn paged(&self) -> PagedState {
        if !self.pager.process.is_current() {
            return PagedState::of(self.pieces.total());
        }
        self.pager.core().states[self.state].unwrap_or_default()
    }
}

impl<D: PageMover> Drop for StatePages<D> {
    fn drop(&mut self) {
        if !self.pager.process.is_current() {
            // Another thread of the parent may have held the lock.
            return;
        }
        let ids = std::mem::take(&mut self.ids);
        let mut core = self.pager.core();
        core.gone.push((ids, self.state));
        core.forget_gone();
    }
}
