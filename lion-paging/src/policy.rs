//! Decides which pieces of state are resident at which time, by a plan that is made before each
//! step.
//!
//! Every step accesses the same pieces in the same order. Least-recently-used eviction then evicts
//! exactly the pieces that are needed next, so that every step moves every piece. It is better to
//! keep a part of the state resident and to stream the rest. With `S` bytes of state, a budget of
//! `B` bytes, and a window of `W` bytes of the budget, `S - B + W` bytes are streamed through the
//! window, in and out, and the other bytes stay resident. No plan moves less than `2 * (S - B)`
//! bytes.
//!
//! The part that stays does not depend on the order of accesses, so a step in another order moves
//! no more bytes. Pieces that are not accessed for several steps make room for others.

use crate::{Access, Action, Limits, Piece};
use lion_core::PagingError;
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of steps without an access after which a piece that stays can be replaced by another.
/// With it, a trainer that steps two halves of a model in turn keeps its resident pieces.
const PATIENCE: u64 = 8;

/// The position of an access that does not occur.
const NEVER: usize = usize::MAX;

/// The serial number of the next piece of any policy in this process.
static SERIAL: AtomicU64 = AtomicU64::new(1);

/// The purpose of a sequence of accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// A step. The next step is expected to have the same order, so its first pieces are
    /// prefetched.
    Step,
    /// A pass over all states before a step. Its transfers are counted as part of the step.
    Survey,
    /// An access to some states outside a step, such as an export. Its transfers are not counted.
    Uncounted,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    /// The serial number of the piece; 0 if the slot is free.
    serial: u64,
    bytes: usize,
    /// Whether the piece is resident at the end of the current plan.
    resident: bool,
    /// Whether the piece was written since it was fetched.
    dirty: bool,
    /// Whether the piece stays resident.
    fixed: bool,
    /// The last step that accessed the piece.
    last: u64,
    /// Within a plan: the next access that was not yet considered, the number of fetched accesses
    /// that have not yet run, and the index of the action that has fetched the piece.
    next: usize,
    pending: usize,
    fetch: usize,
}

/// The pieces of all paged states. Makes a plan for each step.
///
/// ```
/// use lion_paging::{Action, Limits, Policy, Access, Pass};
/// // Four pieces of one page, and memory for three pieces. One of the three is the window.
/// let mut policy = Policy::new(Limits::new(3 * 4096, Some(4096), 4096)?);
/// let pieces = (0..4).map(|_| policy.add(4096)).collect::<Result<Vec<_>, _>>()?;
/// let accesses: Vec<Access> = pieces.into_iter().map(Access::write).collect();
/// policy.plan(&accesses, Pass::Step)?;
/// let again = policy.plan(&accesses, Pass::Step)?;
/// let moved: usize = again.iter().map(|action| match action {
///     Action::Access(_) => 0,
///     Action::Fetch { .. } | Action::Evict { .. } => 4096,
/// }).sum();
/// assert_eq!(moved, 2 * (4 - 3 + 1) * 4096); // Two pieces stay, and two are streamed.
/// # Ok::<(), lion_paging::PagingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Policy {
    limits: Limits,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Bytes of all pieces, of the resident pieces, and of the pieces that stay.
    total: usize,
    resident: usize,
    fixed: usize,
    /// Pieces that stay, in the order in which they were selected.
    kept: Vec<usize>,
    /// Pieces that are resident but do not stay.
    loose: Vec<usize>,
    steps: u64,
}

impl Policy {
    /// Returns a policy without pieces.
    pub fn new(limits: Limits) -> Self {
        Policy {
            limits,
            slots: Vec::new(),
            free: Vec::new(),
            total: 0,
            resident: 0,
            fixed: 0,
            kept: Vec::new(),
            loose: Vec::new(),
            steps: 0,
        }
    }

    /// Returns the limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the bytes of all pieces.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Returns the bytes that are resident after everything that has been planned.
    pub fn resident(&self) -> usize {
        self.resident
    }

    /// Returns whether a piece is resident after everything that has been planned, or `false` if
    /// this policy does not have the piece.
    pub fn is_resident(&self, piece: Piece) -> bool {
        self.find(piece)
            .is_some_and(|index| self.slots[index].resident)
    }

    /// Returns the slot of a piece, or `None` if this policy does not have the piece.
    fn find(&self, piece: Piece) -> Option<usize> {
        let slot = self.slots.get(piece.index);
        slot.filter(|slot| slot.serial == piece.serial)
            .map(|_| piece.index)
    }

    /// Adds a piece of `bytes` bytes, at most [`Limits::piece`]. It is not resident.
    ///
    /// # Errors
    /// [`PagingError::NotAPiece`] if there are more bytes. [`PagingError::TooLarge`] if the bytes
    /// of all pieces overflow.
    pub fn add(&mut self, bytes: usize) -> Result<Piece, PagingError> {
        if bytes > self.limits.piece() {
            return Err(PagingError::NotAPiece {
                start: 0,
                end: bytes,
                bytes,
                piece: self.limits.piece(),
            });
        }
        let total = self.total.checked_add(bytes);
        self.total = total.ok_or(PagingError::TooLarge { len: bytes })?;
        let slot = Slot {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            bytes,
            ..Slot::default()
        };
        let serial = slot.serial;
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        Ok(Piece { index, serial })
    }

    /// Removes pieces whose memory was freed. Ignores pieces that this policy does not have.
    pub fn remove(&mut self, pieces: &[Piece]) {
        for &piece in pieces {
            let Some(index) = self.find(piece) else {
                continue;
            };
            let slot = std::mem::take(&mut self.slots[index]);
            self.total -= slot.bytes;
            self.resident -= if slot.resident { slot.bytes } else { 0 };
            self.fixed -= if slot.fixed { slot.bytes } else { 0 };
            self.free.push(index);
        }
        // A state may have a million pieces, so the lists are filtered once for all of them.
        let slots = &self.slots;
        self.kept.retain(|&index| slots[index].serial != 0);
        self.loose.retain(|&index| slots[index].serial != 0);
    }

    /// Marks a piece as not resident because its fetch has failed, whatever was planned.
    pub fn lost(&mut self, piece: Piece) {
        let Some(lost) = self.find(piece) else {
            return;
        };
        let slot = &mut self.slots[lost];
        self.resident -= if slot.resident { slot.bytes } else { 0 };
        (slot.resident, slot.dirty) = (false, false);
        self.loose.retain(|&index| index != lost);
    }

    /// Returns the fetches and evictions for these accesses, in order. A piece may be accessed more
    /// than once. If every eviction completes before the next fetch begins, resident bytes never
    /// exceed the budget.
    ///
    /// # Errors
    /// [`PagingError::UnknownPiece`] if this policy does not have a piece.
    pub fn plan(&mut self, accesses: &[Access], pass: Pass) -> Result<Vec<Action>, PagingError> {
        let unknown = accesses
            .iter()
            .position(|used| self.find(used.piece).is_none());
        if let Some(position) = unknown {
            return Err(PagingError::UnknownPiece { position });
        }
        Ok(self.plan_known(accesses, pass))
    }

    fn plan_known(&mut self, accesses: &[Access], pass: Pass) -> Vec<Action> {
        self.choose(accesses, pass);
        let mut later = vec![NEVER; accesses.len()];
        for slot in &mut self.slots {
            (slot.next, slot.pending, slot.fetch) = (NEVER, 0, NEVER);
        }
        for (position, used) in accesses.iter().enumerate().rev() {
            let slot = &mut self.slots[used.piece.index];
            later[position] = std::mem::replace(&mut slot.next, position);
        }
        let mut actions = Vec::with_capacity(3 * accesses.len());
        let mut ahead = 0;
        for (position, used) in accesses.iter().enumerate() {
            while let Some(next) = accesses.get(ahead) {
                if !self.fetch(next.piece, ahead, ahead == position, &mut actions) {
                    break;
                }
                let slot = &mut self.slots[next.piece.index];
                slot.pending += 1;
                slot.next = later[ahead];
                ahead += 1;
            }
            actions.push(Action::Access(position));
            let slot = &mut self.slots[used.piece.index];
            slot.pending -= 1;
            slot.dirty |= used.write;
            if let Some(Action::Fetch { write, .. }) = actions.get_mut(slot.fetch) {
                *write |= used.write;
            }
            // An access between steps may be repeated soon, so its pieces are kept.
            let over = slot.pending == 0 && slot.next == NEVER;
            if over && !slot.fixed && pass != Pass::Uncounted {
                self.evict(used.piece.index, &mut actions);
            }
        }
        if pass == Pass::Step {
            self.fetch_ahead(accesses, &mut actions);
        }
        actions
    }

    /// Fetches the piece at a position if it is not resident, and returns whether there was room.
    /// `must` is set if nothing can proceed without the piece.
    fn fetch(
        &mut self,
        piece: Piece,
        position: usize,
        must: bool,
        actions: &mut Vec<Action>,
    ) -> bool {
        let index = piece.index;
        if self.slots[index].resident {
            return true;
        }
        // A prefetch does not evict pieces that are accessed again soon.
        let soon = position.saturating_add(self.loose.len());
        let bytes = self.slots[index].bytes;
        while self.resident + bytes > self.limits.budget() {
            // Belady's choice among the pieces that do not stay: the one whose next access is the
            // latest, or never.
            let idle = |&&index: &&usize| self.slots[index].pending == 0;
            let victims = self.loose.iter().filter(idle);
            let victim = victims
                .max_by_key(|&&index| self.slots[index].next)
                .copied();
            match victim {
                Some(victim) if must || self.slots[victim].next > soon => {
                    self.evict(victim, actions);
                }
                _ => return false,
            }
        }
        let slot = &mut self.slots[index];
        let keep = slot.fixed;
        (slot.resident, slot.dirty) = (true, false);
        slot.fetch = actions.len();
        self.resident += bytes;
        if !slot.fixed {
            self.loose.push(index);
        }
        actions.push(Action::Fetch {
            piece,
            write: false,
            keep,
        });
        true
    }

    fn evict(&mut self, index: usize, actions: &mut Vec<Action>) {
        self.loose.retain(|&loose| loose != index);
        let slot = &mut self.slots[index];
        self.resident -= slot.bytes;
        slot.resident = false;
        slot.fetch = NEVER;
        actions.push(Action::Evict {
            piece: Piece {
                index,
                serial: slot.serial,
            },
            dirty: std::mem::take(&mut slot.dirty),
        });
    }

    /// Prefetches as many of the first pieces of the next step as there is room for.
    fn fetch_ahead(&mut self, accesses: &[Access], actions: &mut Vec<Action>) {
        for used in accesses {
            let slot = &mut self.slots[used.piece.index];
            let keep = slot.fixed;
            if slot.resident {
                continue;
            }
            if self.resident + slot.bytes > self.limits.budget() {
                return;
            }
            (slot.resident, slot.dirty) = (true, false);
            self.resident += slot.bytes;
            if !slot.fixed {
                self.loose.push(used.piece.index);
            }
            actions.push(Action::Fetch {
                piece: used.piece,
                write: used.write,
                keep,
            });
        }
    }

    /// Selects the pieces that stay: as many as fit the budget without the window.
    fn choose(&mut self, accesses: &[Access], pass: Pass) {
        self.shrink();
        if pass == Pass::Step {
            self.steps += 1;
            for used in accesses {
                self.slots[used.piece.index].last = self.steps;
            }
        }
        let all = self.keep(accesses);
        if pass == Pass::Step && !all && self.give_up() {
            self.keep(accesses);
        }
    }

    /// Returns the target for the bytes that stay if not all pieces can. They may exceed it by less
    /// than one piece.
    fn share(&self) -> usize {
        self.limits.budget() - self.limits.window()
    }

    /// Releases pieces that no longer fit because others were added.
    fn shrink(&mut self) {
        if self.total <= self.limits.budget() {
            return;
        }
        while let Some(&index) = self.kept.last() {
            if self.fixed - self.slots[index].bytes < self.share() {
                break;
            }
            self.kept.pop();
            self.release(index);
        }
    }

    /// Marks accessed pieces as staying while there is room, and returns whether all of them fit.
    fn keep(&mut self, accesses: &[Access]) -> bool {
        let mut all = true;
        for used in accesses {
            let index = used.piece.index;
            let slot = &self.slots[index];
            if slot.fixed {
                continue;
            }
            let fits = self.total <= self.limits.budget()
                || self.fixed < self.share()
                    && self.fixed + slot.bytes + self.limits.piece() <= self.limits.budget();
            if !fits {
                all = false;
                continue;
            }
            let slot = &mut self.slots[index];
            slot.fixed = true;
            self.fixed += slot.bytes;
            self.kept.push(index);
            if slot.resident {
                self.loose.retain(|&loose| loose != index);
            }
        }
        all
    }

    /// Releases pieces that were not accessed for many steps, and returns whether there were any.
    fn give_up(&mut self) -> bool {
        let steps = self.steps;
        let kept = std::mem::take(&mut self.kept);
        let stale = |&index: &usize| steps - self.slots[index].last > PATIENCE;
        let (stale, kept): (Vec<usize>, Vec<usize>) = kept.into_iter().partition(stale);
        self.kept = kept;
        for &index in &stale {
            self.release(index);
        }
        !stale.is_empty()
    }

    fn release(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.fixed = false;
        self.fixed -= slot.bytes;
        if slot.resident {
            self.loose.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    fn policy() -> Policy {
        Policy::new(Limits::new(3 * PAGE, Some(PAGE), PAGE).unwrap())
    }

    #[test]
    fn pieces_that_are_not_of_a_policy_change_nothing() {
        let (mut policy, mut other) = (policy(), policy());
        let foreign = other.add(PAGE).unwrap();
        let gone = policy.add(PAGE).unwrap();
        policy.remove(&[gone]);
        // The new piece reuses the slot of the removed one.
        let piece = policy.add(PAGE).unwrap();
        policy.plan(&[Access::write(piece)], Pass::Step).unwrap();
        for strange in [foreign, gone] {
            let error = policy.plan(&[Access::read(piece), Access::read(strange)], Pass::Step);
            assert!(matches!(
                error,
                Err(PagingError::UnknownPiece { position: 1 })
            ));
            policy.lost(strange);
            policy.remove(&[strange, strange]);
            assert!(!policy.is_resident(strange));
        }
        assert_eq!((policy.total(), policy.resident()), (PAGE, PAGE));
        assert!(policy.is_resident(piece));
    }

    #[test]
    fn a_piece_is_no_larger_than_the_limits_say() {
        let mut policy = policy();
        for bytes in [PAGE + 1, usize::MAX] {
            let error = policy.add(bytes).unwrap_err();
            assert!(matches!(error, PagingError::NotAPiece { .. }), "{error}");
        }
        let mut huge = Policy::new(Limits::new(usize::MAX, None, usize::MAX).unwrap());
        huge.add(usize::MAX).unwrap();
        let error = huge.add(1).unwrap_err();
        assert!(matches!(error, PagingError::TooLarge { .. }), "{error}");
        assert_eq!(huge.total(), usize::MAX);
    }

    #[test]
    fn pieces_are_removed_together() {
        // A search in the list of staying pieces for each of a million would take minutes.
        let count = if cfg!(miri) { 100 } else { 1_000_000 };
        let mut policy = Policy::new(Limits::new(4 * count, Some(4), 1).unwrap());
        let mut add = || (0..count).map(|_| policy.add(1).unwrap()).collect();
        let (first, second): (Vec<Piece>, Vec<Piece>) = (add(), add());
        let accesses: Vec<Access> = first
            .iter()
            .chain(&second)
            .map(|&p| Access::write(p))
            .collect();
        policy.plan(&accesses, Pass::Step).unwrap();
        assert_eq!(policy.resident(), 2 * count);
        policy.remove(&first);
        assert_eq!((policy.total(), policy.resident()), (count, count));
        policy.remove(&second);
        assert_eq!((policy.total(), policy.resident()), (0, 0));
        assert!(policy.kept.is_empty() && policy.loose.is_empty() && policy.fixed == 0);
    }

    /// Executes plans action by action, for orders that change.
    #[test]
    fn plans_stay_within_the_budget() {
        let limits = Limits::new(6 * PAGE, Some(2 * PAGE), PAGE).unwrap();
        let mut policy = Policy::new(limits);
        let pieces: Vec<Piece> = (0..9).map(|_| policy.add(PAGE).unwrap()).collect();
        let mut resident = std::collections::HashSet::new();
        for step in 0..30 {
            let accesses: Vec<Access> = (0..9)
                .map(|i| (i * [1, 2, 4, 5, 7, 8][step % 6] + step) % 9)
                .map(|i| Access::write(pieces[i]))
                .collect();
            let pass = [Pass::Step, Pass::Survey, Pass::Uncounted][step % 3];
            for action in policy.plan(&accesses, pass).unwrap() {
                match action {
                    Action::Fetch { piece, .. } => assert!(resident.insert(piece), "fetched twice"),
                    Action::Access(at) => {
                        assert!(resident.contains(&accesses[at].piece), "not there")
                    }
                    Action::Evict { piece, .. } => assert!(resident.remove(&piece), "not there"),
                }
                assert!(resident.len() <= 6, "over budget");
            }
            assert_eq!(policy.resident(), resident.len() * PAGE);
        }
    }
}
