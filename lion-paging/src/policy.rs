//! Which pieces of state are resident when: a plan for each step, made before it begins.
//!
//! A step goes over the same pieces in the same order again and again. Evicting what was used longest
//! ago then evicts just what is needed next, and every piece is moved in every step. The best that can be
//! done is to keep a part and to stream the rest: of `S` bytes of state and a budget of `B`, a window of
//! `W` bytes of the budget has `S - B + W` bytes streamed through it, in and out, and the rest stays
//! where it is. No plan moves less than `2 * (S - B)`.
//!
//! The part that stays does not depend on the order of a step, so another order costs nothing more.
//! Pieces that have not been stepped for some steps give their place up to others.

use crate::{Access, Action, Limits, Piece};
use lion_core::PagingError;
use std::sync::atomic::{AtomicU64, Ordering};

/// Steps without a piece after which its place may be given to one that is stepped: trainers that step
/// two halves of a model in turn keep what they have.
const PATIENCE: u64 = 8;

/// No position.
const NEVER: usize = usize::MAX;

/// The serial number of the piece that is made next, by any policy of the process.
static SERIAL: AtomicU64 = AtomicU64::new(1);

/// For what pieces are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// A step: it is expected to come again in the same order, and its first pieces are fetched ahead.
    Step,
    /// A look at all states before a step, counted with it.
    Survey,
    /// A look at some states between steps, not counted.
    Aside,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    /// The serial number of its piece; 0 if it is free.
    serial: u64,
    bytes: usize,
    /// Whether it is resident, at the end of what has been planned.
    here: bool,
    /// Whether it was written since it was fetched.
    dirty: bool,
    /// Whether it stays.
    fixed: bool,
    /// The step that used it last.
    last: u64,
    /// Within a plan: the first use that is not looked at yet, uses ahead that it waits for, and the
    /// action that has fetched it.
    next: usize,
    pending: usize,
    fetch: usize,
}

/// The pieces of all paged states, and a plan for each step.
///
/// ```
/// use lion_paging::{Action, Limits, Policy, Access, Pass};
/// // Four pieces of one page, memory for three, of which one is the window.
/// let mut policy = Policy::new(Limits::new(3 * 4096, Some(4096), 4096)?);
/// let pieces = (0..4).map(|_| policy.add(4096)).collect::<Result<Vec<_>, _>>()?;
/// let uses: Vec<Access> = pieces.into_iter().map(Access::write).collect();
/// policy.plan(&uses, Pass::Step)?;
/// let again = policy.plan(&uses, Pass::Step)?;
/// let moved: usize = again.iter().map(|action| match action {
///     Action::Use(_) => 0,
///     Action::Fetch { .. } | Action::Evict { .. } => 4096,
/// }).sum();
/// assert_eq!(moved, 2 * (4 - 3 + 1) * 4096); // two pieces stay, two are streamed
/// # Ok::<(), lion_paging::PagingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Policy {
    limits: Limits,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Bytes of all pieces, of those that are resident, and of those that stay.
    total: usize,
    here: usize,
    fixed: usize,
    /// Pieces that stay, in the order in which they were chosen.
    kept: Vec<usize>,
    /// Pieces that are resident and do not stay.
    loose: Vec<usize>,
    steps: u64,
}

impl Policy {
    /// No pieces yet.
    pub fn new(limits: Limits) -> Self {
        Policy {
            limits,
            slots: Vec::new(),
            free: Vec::new(),
            total: 0,
            here: 0,
            fixed: 0,
            kept: Vec::new(),
            loose: Vec::new(),
            steps: 0,
        }
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Bytes of all pieces.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Bytes that are resident after all that has been planned.
    pub fn resident(&self) -> usize {
        self.here
    }

    /// Whether a piece is resident after all that has been planned. False for a piece that is not of this
    /// policy.
    pub fn is_resident(&self, piece: Piece) -> bool {
        self.find(piece).is_some_and(|index| self.slots[index].here)
    }

    /// The slot of a piece, if it is one of this policy.
    fn find(&self, piece: Piece) -> Option<usize> {
        let slot = self.slots.get(piece.index);
        slot.filter(|slot| slot.serial == piece.serial)
            .map(|_| piece.index)
    }

    /// A piece of so many bytes, not resident: [`Limits::piece`] at most.
    ///
    /// # Errors
    /// [`PagingError::NotAPiece`] where there are more bytes; [`PagingError::TooLarge`] where the bytes of
    /// all pieces cannot be counted.
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

    /// Forgets pieces whose memory is freed. Those that are not of this policy are left out.
    pub fn remove(&mut self, pieces: &[Piece]) {
        for &piece in pieces {
            let Some(index) = self.find(piece) else {
                continue;
            };
            let slot = std::mem::take(&mut self.slots[index]);
            self.total -= slot.bytes;
            self.here -= if slot.here { slot.bytes } else { 0 };
            self.fixed -= if slot.fixed { slot.bytes } else { 0 };
            self.free.push(index);
        }
        // Once for all of them: a state may have a million pieces.
        let slots = &self.slots;
        self.kept.retain(|&index| slots[index].serial != 0);
        self.loose.retain(|&index| slots[index].serial != 0);
    }

    /// A piece that could not be fetched: it is not resident, whatever has been planned.
    pub fn lost(&mut self, piece: Piece) {
        let Some(lost) = self.find(piece) else {
            return;
        };
        let slot = &mut self.slots[lost];
        self.here -= if slot.here { slot.bytes } else { 0 };
        (slot.here, slot.dirty) = (false, false);
        self.loose.retain(|&index| index != lost);
    }

    /// What to fetch and evict around these uses, in order. A piece may be used more than once. At no
    /// point is more than the budget resident, where an eviction ends before the next fetch begins.
    ///
    /// # Errors
    /// [`PagingError::UnknownPiece`] where a piece is not of this policy.
    pub fn plan(&mut self, uses: &[Access], visit: Pass) -> Result<Vec<Action>, PagingError> {
        let unknown = uses.iter().position(|used| self.find(used.piece).is_none());
        if let Some(position) = unknown {
            return Err(PagingError::UnknownPiece { position });
        }
        Ok(self.plan_known(uses, visit))
    }

    fn plan_known(&mut self, uses: &[Access], visit: Pass) -> Vec<Action> {
        self.choose(uses, visit);
        let mut later = vec![NEVER; uses.len()];
        for slot in &mut self.slots {
            (slot.next, slot.pending, slot.fetch) = (NEVER, 0, NEVER);
        }
        for (position, used) in uses.iter().enumerate().rev() {
            let slot = &mut self.slots[used.piece.index];
            later[position] = std::mem::replace(&mut slot.next, position);
        }
        let mut actions = Vec::with_capacity(3 * uses.len());
        let mut ahead = 0;
        for (position, used) in uses.iter().enumerate() {
            while let Some(next) = uses.get(ahead) {
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
            // What is looked at aside may be looked at again.
            let over = slot.pending == 0 && slot.next == NEVER;
            if over && !slot.fixed && visit != Pass::Aside {
                self.evict(used.piece.index, &mut actions);
            }
        }
        if visit == Pass::Step {
            self.fetch_ahead(uses, &mut actions);
        }
        actions
    }

    /// Fetches the piece of a position if it is not resident, and says whether there was room. `must` is
    /// when nothing goes on before it is here.
    fn fetch(
        &mut self,
        piece: Piece,
        position: usize,
        must: bool,
        actions: &mut Vec<Action>,
    ) -> bool {
        let index = piece.index;
        if self.slots[index].here {
            return true;
        }
        // What is used again soon is not moved for what is only fetched ahead.
        let soon = position.saturating_add(self.loose.len());
        let bytes = self.slots[index].bytes;
        while self.here + bytes > self.limits.budget() {
            // Belady's choice among those that do not stay: the one that is used last, or never.
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
        (slot.here, slot.dirty) = (true, false);
        slot.fetch = actions.len();
        self.here += bytes;
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
        self.here -= slot.bytes;
        slot.here = false;
        slot.fetch = NEVER;
        actions.push(Action::Evict {
            piece: Piece {
                index,
                serial: slot.serial,
            },
            dirty: std::mem::take(&mut slot.dirty),
        });
    }

    /// Fetches the first pieces of the next step, as many as there is room for.
    fn fetch_ahead(&mut self, uses: &[Access], actions: &mut Vec<Action>) {
        for used in uses {
            let slot = &mut self.slots[used.piece.index];
            let keep = slot.fixed;
            if slot.here {
                continue;
            }
            if self.here + slot.bytes > self.limits.budget() {
                return;
            }
            (slot.here, slot.dirty) = (true, false);
            self.here += slot.bytes;
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

    /// Chooses what stays: as much as the budget has beside the window.
    fn choose(&mut self, uses: &[Access], visit: Pass) {
        self.shrink();
        if visit == Pass::Step {
            self.steps += 1;
            for used in uses {
                self.slots[used.piece.index].last = self.steps;
            }
        }
        let all = self.keep(uses);
        if visit == Pass::Step && !all && self.give_up() {
            self.keep(uses);
        }
    }

    /// Bytes that stay, where not all do. They may be more by less than one piece.
    fn share(&self) -> usize {
        self.limits.budget() - self.limits.window()
    }

    /// Gives up pieces that there is no place for since others have come.
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

    /// Lets used pieces stay while there is room, and says whether all of them do.
    fn keep(&mut self, uses: &[Access]) -> bool {
        let mut all = true;
        for used in uses {
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
            if slot.here {
                self.loose.retain(|&loose| loose != index);
            }
        }
        all
    }

    /// Gives up pieces that have not been stepped for long, and says whether there were any.
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
        if slot.here {
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
        // It has the place of the one that is gone.
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
        // A million take some minutes if each is looked for in the list of those that stay.
        let count = if cfg!(miri) { 100 } else { 1_000_000 };
        let mut policy = Policy::new(Limits::new(4 * count, Some(4), 1).unwrap());
        let mut add = || (0..count).map(|_| policy.add(1).unwrap()).collect();
        let (first, second): (Vec<Piece>, Vec<Piece>) = (add(), add());
        let uses: Vec<Access> = first
            .iter()
            .chain(&second)
            .map(|&p| Access::write(p))
            .collect();
        policy.plan(&uses, Pass::Step).unwrap();
        assert_eq!(policy.resident(), 2 * count);
        policy.remove(&first);
        assert_eq!((policy.total(), policy.resident()), (count, count));
        policy.remove(&second);
        assert_eq!((policy.total(), policy.resident()), (0, 0));
        assert!(policy.kept.is_empty() && policy.loose.is_empty() && policy.fixed == 0);
    }

    /// Carries plans out by the letter, over orders that change.
    #[test]
    fn plans_stay_within_the_budget() {
        let limits = Limits::new(6 * PAGE, Some(2 * PAGE), PAGE).unwrap();
        let mut policy = Policy::new(limits);
        let pieces: Vec<Piece> = (0..9).map(|_| policy.add(PAGE).unwrap()).collect();
        let mut here = std::collections::HashSet::new();
        for step in 0..30 {
            let uses: Vec<Access> = (0..9)
                .map(|i| (i * [1, 2, 4, 5, 7, 8][step % 6] + step) % 9)
                .map(|i| Access::write(pieces[i]))
                .collect();
            let visit = [Pass::Step, Pass::Survey, Pass::Aside][step % 3];
            for action in policy.plan(&uses, visit).unwrap() {
                match action {
                    Action::Fetch { piece, .. } => assert!(here.insert(piece), "fetched twice"),
                    Action::Access(at) => assert!(here.contains(&uses[at].piece), "not there"),
                    Action::Evict { piece, .. } => assert!(here.remove(&piece), "not there"),
                }
                assert!(here.len() <= 6, "over budget");
            }
            assert_eq!(policy.resident(), here.len() * PAGE);
        }
    }
}
