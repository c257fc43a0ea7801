//! A plan that is carried out while threads use what it brings.
//!
//! The plan is a list of actions, and a cursor goes down it: fetches and evictions are queued as it
//! passes them. It stops at an eviction whose piece is still in use, and goes on when that use is over. So
//! fetches come in the order of the plan, each after the evictions that make room for it, and whoever
//! waits for a piece waits for uses that began before it and wait for nothing themselves.

use crate::pager::{Core, Pager, Run};
use crate::{Access, Action, PageMover, Pass, Piece};
use lion_core::{PagedState, PagingError};
use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Waits that are shorter are those of a lock, and not counted.
const SHORT: Duration = Duration::from_micros(20);

/// A walk over the uses of a plan, by any number of threads.
///
/// Positions are acquired in rising order, each once, and released in any order. A thread that holds one and
/// wants another uses [`try_acquire`](ScheduleRun::try_acquire): where the second is fetched only after the first is
/// released, [`acquire`](ScheduleRun::acquire) would wait for ever, as for a mutex that the thread itself has locked.
///
/// A walk that is dropped before its end leaves its uses out. A state that is dropped during a walk is freed
/// at its end.
#[derive(Debug)]
pub struct ScheduleRun<'p, D: PageMover> {
    pager: &'p Pager<D>,
    _turn: MutexGuard<'p, ()>,
}

impl<'p, D: PageMover> ScheduleRun<'p, D> {
    pub(crate) fn new(
        pager: &'p Pager<D>,
        uses: &[Access],
        visit: Pass,
    ) -> Result<Self, PagingError> {
        pager.process.check()?;
        let this = std::thread::current().id();
        if pager.core().walker == Some(this) {
            return Err(PagingError::Nested);
        }
        let turn = pager.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut core = pager.core();
        let actions = core.policy.plan(uses, visit)?;
        core.open(visit);
        core.walker = Some(this);
        let mut fetched: HashMap<Piece, usize> = HashMap::new();
        let mut ready = vec![0; uses.len()];
        for (i, action) in actions.iter().enumerate() {
            match *action {
                Action::Fetch { piece, .. } => {
                    fetched.insert(piece, i + 1);
                }
                Action::Access(position) => {
                    ready[position] = fetched.get(&uses[position].piece).copied().unwrap_or(0);
                }
                Action::Evict { .. } => {}
            }
        }
        core.run = Some(Run {
            actions,
            cursor: 0,
            uses: uses.iter().map(|used| used.piece).collect(),
            ready,
            next: 0,
            held: vec![false; uses.len()],
            counted: visit != Pass::Aside,
            error: None,
        });
        advance(&pager.mover, &mut core, false);
        drop(core);
        Ok(ScheduleRun { pager, _turn: turn })
    }

    /// Waits until the piece of a position is resident, and holds it until it is
    /// [`release`](ScheduleRun::release)d. On a device, what is queued next waits. A position that is held may be
    /// acquired again, and is released once.
    ///
    /// # Errors
    /// [`PagingError::OutOfOrder`], [`PagingError::Transfer`], [`PagingError::Device`],
    /// [`PagingError::OtherProcess`].
    pub fn acquire(&self, position: usize) -> Result<(), PagingError> {
        self.pager.process.check()?;
        let mut core = self.pager.core();
        let run = run(&mut core)?;
        run.check_order(position)?;
        run.hold(position);
        drop(core);
        self.wait(position)
    }

    /// Waits until the piece of a position is resident, or its use is over, and does not hold it: for a
    /// thread that goes on with [`try_acquire`](ScheduleRun::try_acquire) while others do so, too.
    ///
    /// # Errors
    /// As [`acquire`](ScheduleRun::acquire).
    pub fn wait(&self, position: usize) -> Result<(), PagingError> {
        self.pager.process.check()?;
        let start = Instant::now();
        let mut waited = Duration::ZERO;
        let mut core = self.pager.core();
        let at_most = run(&mut core)?.next;
        if position > at_most || position >= run(&mut core)?.uses.len() {
            return Err(PagingError::OutOfOrder {
                position,
                next: at_most,
            });
        }
        while !run(&mut core)?.is_queued(position)? {
            let changed = self.pager.changed.wait(core);
            core = changed.unwrap_or_else(PoisonError::into_inner);
            waited = start.elapsed();
        }
        let Some((piece, ticket)) = ticket(&mut core, position) else {
            return Ok(());
        };
        drop(core);
        if let Some(ticket) = ticket {
            waited += self.pager.mover.wait(&ticket)?;
        }
        if waited > SHORT {
            let mut core = self.pager.core();
            if core.run.as_ref().is_some_and(|run| run.counted) {
                core.count(piece, |state, _| {
                    state.moved.waits += 1;
                    state.moved.waited += waited;
                });
            }
        }
        Ok(())
    }

    /// As [`acquire`](ScheduleRun::acquire), and false where that would wait.
    ///
    /// # Errors
    /// As [`acquire`](ScheduleRun::acquire).
    pub fn try_acquire(&self, position: usize) -> Result<bool, PagingError> {
        let mut core = self.pager.core();
        let this = run(&mut core)?;
        this.check_order(position)?;
        if !this.is_queued(position)? {
            return Ok(false);
        }
        if let Some((_, Some(ticket))) = ticket(&mut core, position) {
            drop(core);
            if !self.pager.mover.is_done(&ticket) {
                return Ok(false);
            }
            self.pager.mover.wait(&ticket)?;
            core = self.pager.core();
        }
        run(&mut core)?.hold(position);
        Ok(true)
    }

    /// The use at a position is over: it has returned, or, on a device, it is queued. Nothing is done where
    /// the position is not held.
    pub fn release(&self, position: usize) {
        let mut core = self.pager.core();
        let Some(run) = &mut core.run else {
            return;
        };
        match run.held.get_mut(position) {
            Some(held) if *held => *held = false,
            _ => return,
        }
        let piece = run.uses[position];
        if let Some(entry) = core.entry(piece) {
            entry.pending -= 1;
        }
        advance(&self.pager.mover, &mut core, false);
        drop(core);
        self.pager.changed.notify_all();
    }

    /// Ends the walk, all of whose uses are over. What is evicted goes on behind.
    ///
    /// # Errors
    /// What could not be queued.
    pub fn finish(self) -> Result<(), PagingError> {
        let mut core = self.pager.core();
        advance(&self.pager.mover, &mut core, false);
        match core.run.as_mut().and_then(|run| run.error.take()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl<D: PageMover> Drop for ScheduleRun<'_, D> {
    fn drop(&mut self) {
        if !self.pager.process.is_current() {
            // Another thread of the parent may have held the lock.
            return;
        }
        // What the plan has still to do is done without its uses, so that what it says is resident is.
        let mut core = self.pager.core();
        advance(&self.pager.mover, &mut core, true);
        (core.run, core.walker) = (None, None);
        core.forget_gone();
    }
}

/// The plan that is being carried out.
fn run<D: PageMover>(core: &mut Core<D>) -> Result<&mut Run, PagingError> {
    // Only a mover that has panicked takes it from its walk.
    let lost = || PagingError::Unsupported {
        missing: "the mover panicked in the middle of a walk".to_owned(),
    };
    core.run.as_mut().ok_or_else(lost)
}

impl Run {
    /// Whether a position may be acquired: the next one, or one that is held.
    fn check_order(&self, position: usize) -> Result<(), PagingError> {
        let next = self.next;
        match self.held.get(position) {
            Some(held) if position == next || *held => Ok(()),
            _ => Err(PagingError::OutOfOrder { position, next }),
        }
    }

    fn hold(&mut self, position: usize) {
        if position == self.next {
            self.held[position] = true;
            self.next += 1;
        }
    }

    /// Whether the fetch for a position is queued.
    fn is_queued(&self, position: usize) -> Result<bool, PagingError> {
        match &self.error {
            Some(error) => Err(error.clone()),
            None => Ok(self.cursor >= self.ready[position]),
        }
    }
}

/// The piece of a position and its fetch.
fn ticket<D: PageMover>(core: &mut Core<D>, position: usize) -> Option<(Piece, Option<D::Ticket>)> {
    let piece = *core.run.as_ref()?.uses.get(position)?;
    let ticket = core.entry(piece)?.ticket.clone();
    Some((piece, ticket))
}

/// Queues what comes next in the plan, up to an eviction that has to wait for a use. `end` goes to the
/// plan's end, past uses that will not be.
fn advance<D: PageMover>(mover: &D, core: &mut Core<D>, end: bool) {
    let Some(mut run) = core.run.take() else {
        return;
    };
    while let Some(action) = run.actions.get(run.cursor)
        && (end || run.error.is_none())
    {
        let done = match *action {
            Action::Access(position) => {
                if let Some(entry) = core.entry(run.uses[position]) {
                    entry.pending += 1;
                }
                Ok(())
            }
            Action::Fetch { piece, write, keep } => {
                fetch(mover, core, piece, (write, keep), run.counted)
            }
            Action::Evict { piece, dirty } => {
                let used = |core: &mut Core<D>| core.entry(piece).is_some_and(|e| e.pending > 0);
                if !end && used(core) {
                    break;
                }
                evict(mover, core, piece, dirty, run.counted)
            }
        };
        if let Err(error) = done {
            run.error.get_or_insert(error);
        }
        run.cursor += 1;
    }
    if end {
        for &piece in &run.uses {
            let Some(entry) = core.entry(piece) else {
                continue;
            };
            entry.pending = 0;
            // What could not be fetched is fetched by the next plan.
            if !entry.here {
                core.policy.lost(piece);
            }
        }
    }
    core.run = Some(run);
}

fn fetch<D: PageMover>(
    mover: &D,
    core: &mut Core<D>,
    piece: Piece,
    (write, keep): (bool, bool),
    counted: bool,
) -> Result<(), PagingError> {
    let after = core.evicted.clone();
    let Some(entry) = core.entry(piece) else {
        return Ok(());
    };
    if entry.here {
        // It could not be evicted.
        return Ok(());
    }
    let part = entry.part.clone();
    entry.ticket = Some(mover.fetch(&entry.region, part, write, keep, after.as_ref())?);
    entry.here = true;
    core.count(piece, |state: &mut PagedState, bytes| {
        state.resident += bytes;
        if counted {
            state.moved.fetched += bytes as u64;
        }
    });
    Ok(())
}

fn evict<D: PageMover>(
    mover: &D,
    core: &mut Core<D>,
    piece: Piece,
    dirty: bool,
    counted: bool,
) -> Result<(), PagingError> {
    let Some(entry) = core.entry(piece) else {
        return Ok(());
    };
    if !entry.here {
        // It could not be fetched.
        return Ok(());
    }
    let part = entry.part.clone();
    // The plan takes each eviction for done, also one that failed.
    let dirty = dirty || entry.unwritten;
    let moved = dirty || mover.moves_unchanged(&entry.region);
    entry.unwritten = dirty;
    let ticket = mover.evict(&entry.region, part, dirty, entry.ticket.as_ref())?;
    (entry.here, entry.unwritten, entry.ticket) = (false, false, None);
    core.evicted = Some(ticket);
    core.count(piece, |state: &mut PagedState, bytes| {
        state.resident -= bytes;
        if counted {
            state.moved.evicted += bytes as u64;
            state.moved.written += if moved { bytes as u64 } else { 0 };
        }
    });
    Ok(())
}
