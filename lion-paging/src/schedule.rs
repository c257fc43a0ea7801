//! Runs a plan while threads access the pieces that it makes resident.
//!
//! The plan is a list of actions. A cursor moves through it, and queues fetches and evictions as it passes them.
//! It stops at an eviction of a piece that is still held, and continues when the piece is released. So fetches
//! are queued in the order of the plan, each after the evictions that make room for it. A thread that waits
//! for a piece waits only for accesses that began earlier, and those wait for nothing.

use crate::pager::{Inner, Pager, Run};
use crate::{Access, Action, PageMover, Pass, Piece};
use lion_core::{PagedState, PagingError};
use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shorter waits are those of a lock, and are not counted.
const SHORT: Duration = Duration::from_micros(20);

/// The run of a schedule: the accesses of one pass to paged states, from any number of threads.
///
/// Positions are acquired in increasing order, each once, and released in any order. A thread that holds one
/// position and needs another calls [`try_acquire`](ScheduleRun::try_acquire). If the second piece can only be
/// fetched after the first one is released, [`acquire`](ScheduleRun::acquire) would deadlock.
///
/// If a run is dropped before its end, the remaining accesses do not happen. A state that is dropped during a
/// run is freed at the end of the run.
///
/// The documentation of the [crate](crate) has an example.
#[derive(Debug)]
pub struct ScheduleRun<'p, D: PageMover> {
    pager: &'p Pager<D>,
    _exclusive: MutexGuard<'p, ()>,
}

impl<'p, D: PageMover> ScheduleRun<'p, D> {
    pub(crate) fn new(
        pager: &'p Pager<D>,
        accesses: &[Access],
        pass: Pass,
    ) -> Result<Self, PagingError> {
        pager.process.check()?;
        let this = std::thread::current().id();
        if pager.inner().owner == Some(this) {
            return Err(PagingError::Nested);
        }
        let exclusive = pager
            .exclusive
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut inner = pager.inner();
        let actions = inner.policy.plan(accesses, pass)?;
        inner.open(pass);
        inner.owner = Some(this);
        let mut fetched: HashMap<Piece, usize> = HashMap::new();
        let mut ready = vec![0; accesses.len()];
        for (i, action) in actions.iter().enumerate() {
            match *action {
                Action::Fetch { piece, .. } => {
                    fetched.insert(piece, i + 1);
                }
                Action::Access(position) => {
                    ready[position] = fetched.get(&accesses[position].piece).copied().unwrap_or(0);
                }
                Action::Evict { .. } => {}
            }
        }
        inner.run = Some(Run {
            actions,
            cursor: 0,
            pieces: accesses.iter().map(|access| access.piece).collect(),
            ready,
            next: 0,
            held: vec![false; accesses.len()],
            counted: pass != Pass::Uncounted,
            error: None,
        });
        drop(inner);
        // From here on, a drop ends the pass, after a panic of the mover, too.
        let run = ScheduleRun {
            pager,
            _exclusive: exclusive,
        };
        advance(&pager.mover, &mut pager.inner(), false);
        Ok(run)
    }

    /// Waits until the piece of a position is resident, and holds it until it is
    /// [released](ScheduleRun::release). On a device, the work that is queued next waits instead. A position
    /// that is held may be acquired again. It is still released once.
    ///
    /// # Errors
    /// [`PagingError::OutOfOrder`], [`PagingError::Transfer`], [`PagingError::Device`],
    /// [`PagingError::OtherProcess`].
    pub fn acquire(&self, position: usize) -> Result<(), PagingError> {
        self.pager.process.check()?;
        let mut inner = self.pager.inner();
        let run = run(&mut inner)?;
        run.check_order(position)?;
        run.hold(position);
        drop(inner);
        self.wait(position)
    }

    /// Waits until the piece of a position is resident or its access is over, and does not hold it. After it,
    /// a thread calls [`try_acquire`](ScheduleRun::try_acquire) again, as other threads may do at the same time.
    ///
    /// # Errors
    /// The errors of [`acquire`](ScheduleRun::acquire).
    pub fn wait(&self, position: usize) -> Result<(), PagingError> {
        self.pager.process.check()?;
        let start = Instant::now();
        let mut waited = Duration::ZERO;
        let mut inner = self.pager.inner();
        let at_most = run(&mut inner)?.next;
        if position > at_most || position >= run(&mut inner)?.pieces.len() {
            return Err(PagingError::OutOfOrder {
                position,
                next: at_most,
            });
        }
        while !run(&mut inner)?.is_queued(position)? {
            let changed = self.pager.changed.wait(inner);
            inner = changed.unwrap_or_else(PoisonError::into_inner);
            waited = start.elapsed();
        }
        let Some((piece, ticket)) = ticket(&mut inner, position) else {
            return Ok(());
        };
        drop(inner);
        if let Some(ticket) = ticket {
            waited += self.transfer(piece, &ticket)?;
        }
        if waited > SHORT {
            let mut inner = self.pager.inner();
            if inner.run.as_ref().is_some_and(|run| run.counted) {
                inner.count(piece, |state, _| {
                    state.moved.waits += 1;
                    state.moved.waited += waited;
                });
            }
        }
        Ok(())
    }

    /// Acquires a position if its piece is resident. Returns `false` if [`acquire`](ScheduleRun::acquire) would
    /// wait.
    ///
    /// # Errors
    /// The errors of [`acquire`](ScheduleRun::acquire).
    pub fn try_acquire(&self, position: usize) -> Result<bool, PagingError> {
        let mut inner = self.pager.inner();
        let this = run(&mut inner)?;
        this.check_order(position)?;
        if !this.is_queued(position)? {
            return Ok(false);
        }
        if let Some((piece, Some(ticket))) = ticket(&mut inner, position) {
            drop(inner);
            if !self.pager.mover.is_done(&ticket) {
                return Ok(false);
            }
            self.transfer(piece, &ticket)?;
            inner = self.pager.inner();
        }
        run(&mut inner)?.hold(position);
        Ok(true)
    }

    /// Waits for the fetch of a piece. Returns the time waited.
    fn transfer(&self, piece: Piece, ticket: &D::Ticket) -> Result<Duration, PagingError> {
        self.pager.mover.wait(ticket).inspect_err(|_| {
            if self.pager.mover.has_failed(ticket)
                && let Some(entry) = self.pager.inner().entry(piece)
            {
                entry.failed = true;
            }
        })
    }

    /// Ends the access at a position: the work on the piece has returned or, on a device, is queued. Has no effect
    /// if the position is not held.
    pub fn release(&self, position: usize) {
        let mut inner = self.pager.inner();
        let Some(run) = &mut inner.run else {
            return;
        };
        match run.held.get_mut(position) {
            Some(held) if *held => *held = false,
            _ => return,
        }
        let piece = run.pieces[position];
        if let Some(entry) = inner.entry(piece) {
            entry.pending -= 1;
        }
        advance(&self.pager.mover, &mut inner, false);
        drop(inner);
        self.pager.changed.notify_all();
    }

    /// Ends the run, after all accesses. Does not wait for evictions.
    ///
    /// # Errors
    /// The first error of a fetch or an eviction that could not be queued.
    pub fn finish(self) -> Result<(), PagingError> {
        let mut inner = self.pager.inner();
        advance(&self.pager.mover, &mut inner, false);
        match inner.run.as_mut().and_then(|run| run.error.take()) {
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
        // Runs the rest of the plan without its accesses, so that the records of the policy match memory.
        let mut inner = self.pager.inner();
        advance(&self.pager.mover, &mut inner, true);
        (inner.run, inner.owner) = (None, None);
        inner.forget_dropped();
    }
}

/// Returns the plan that is running.
fn run<D: PageMover>(inner: &mut Inner<D>) -> Result<&mut Run, PagingError> {
    // It is missing only if the mover has panicked while `advance` held it.
    let lost = || PagingError::Unsupported {
        missing: "the page mover panicked during a run".to_owned(),
    };
    inner.run.as_mut().ok_or_else(lost)
}

impl Run {
    /// Checks that a position may be acquired: it is the next one, or is held.
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

    /// Returns whether the fetch for a position is queued.
    fn is_queued(&self, position: usize) -> Result<bool, PagingError> {
        match &self.error {
            Some(error) => Err(error.clone()),
            None => Ok(self.cursor >= self.ready[position]),
        }
    }
}

/// Returns the piece of a position and its fetch.
fn ticket<D: PageMover>(
    inner: &mut Inner<D>,
    position: usize,
) -> Option<(Piece, Option<D::Ticket>)> {
    let piece = *inner.run.as_ref()?.pieces.get(position)?;
    let ticket = inner.entry(piece)?.ticket.clone();
    Some((piece, ticket))
}

/// Queues the next actions of the plan, up to an eviction that must wait for a release. If `end` is set,
/// queues all actions that are left, and skips the accesses.
fn advance<D: PageMover>(mover: &D, inner: &mut Inner<D>, end: bool) {
    let Some(mut run) = inner.run.take() else {
        return;
    };
    while let Some(action) = run.actions.get(run.cursor)
        && (end || run.error.is_none())
    {
        let done = match *action {
            Action::Access(position) => {
                if let Some(entry) = inner.entry(run.pieces[position]) {
                    entry.pending += 1;
                }
                Ok(())
            }
            Action::Fetch { piece, write, keep } => {
                fetch(mover, inner, piece, (write, keep), run.counted)
            }
            Action::Evict { piece, dirty } => {
                let is_held =
                    |inner: &mut Inner<D>| inner.entry(piece).is_some_and(|e| e.pending > 0);
                if !end && is_held(inner) {
                    break;
                }
                evict(mover, inner, piece, dirty, run.counted)
            }
        };
        if let Err(error) = done {
            run.error.get_or_insert(error);
        }
        run.cursor += 1;
    }
    if end {
        for &piece in &run.pieces {
            let Some(entry) = inner.entry(piece) else {
                continue;
            };
            entry.pending = 0;
            if std::mem::take(&mut entry.failed) && std::mem::take(&mut entry.fetched) {
                entry.ticket = None;
                inner.count(piece, |state, bytes| state.resident -= bytes);
            }
            // A piece that could not be fetched is fetched by the next plan.
            if inner.entry(piece).is_some_and(|entry| !entry.fetched) {
                inner.policy.lost(piece);
            }
        }
    }
    inner.run = Some(run);
}

fn fetch<D: PageMover>(
    mover: &D,
    inner: &mut Inner<D>,
    piece: Piece,
    (write, keep): (bool, bool),
    counted: bool,
) -> Result<(), PagingError> {
    let after = inner.evicted.clone();
    let Some(entry) = inner.entry(piece) else {
        return Ok(());
    };
    if entry.fetched {
        // It could not be evicted.
        return Ok(());
    }
    let part = entry.part.clone();
    entry.ticket = Some(mover.fetch(&entry.region, part, write, keep, after.as_ref())?);
    (entry.fetched, entry.failed) = (true, false);
    inner.count(piece, |state: &mut PagedState, bytes| {
        state.resident += bytes;
        if counted {
            state.moved.fetched += bytes as u64;
        }
    });
    Ok(())
}

fn evict<D: PageMover>(
    mover: &D,
    inner: &mut Inner<D>,
    piece: Piece,
    dirty: bool,
    counted: bool,
) -> Result<(), PagingError> {
    let Some(entry) = inner.entry(piece) else {
        return Ok(());
    };
    if !entry.fetched {
        // It could not be fetched.
        return Ok(());
    }
    let part = entry.part.clone();
    // The plan counts an eviction that has failed as done.
    let dirty = dirty || entry.unwritten;
    let moved = dirty || mover.moves_unchanged(&entry.region);
    entry.unwritten = dirty;
    let ticket = mover.evict(&entry.region, part, dirty, entry.ticket.as_ref())?;
    (entry.fetched, entry.failed) = (false, false);
    (entry.unwritten, entry.ticket) = (false, None);
    inner.evicted = Some(ticket);
    inner.count(piece, |state: &mut PagedState, bytes| {
        state.resident -= bytes;
        if counted {
            state.moved.evicted += bytes as u64;
            state.moved.written += if moved { bytes as u64 } else { 0 };
        }
    });
    Ok(())
}
