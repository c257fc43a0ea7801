//! The plan of a paged step never exceeds the budget, has every piece resident when it is accessed, and moves no more
//! bytes than documented. It is compared with the offline optimum.
#![allow(clippy::unwrap_used)]

use lion_paging::{Access, Action, Limits, Pass, Piece, Policy};
use lion_test_support::{Rng, property};
use std::collections::{HashMap, HashSet};

const PAGE: usize = 4096;

/// Executes plans, one action at a time.
#[derive(Default)]
struct Machine {
    budget: usize,
    bytes: HashMap<Piece, usize>,
    here: HashSet<Piece>,
    dirty: HashSet<Piece>,
    fetched: usize,
    written: usize,
}

impl Machine {
    fn resident(&self) -> usize {
        self.here.iter().map(|piece| self.bytes[piece]).sum()
    }

    /// Runs a plan, and fails if an action is invalid.
    fn run(&mut self, uses: &[Access], actions: &[Action]) {
        (self.fetched, self.written) = (0, 0);
        let mut position = 0;
        let mut for_writing = HashMap::new();
        for action in actions {
            match *action {
                Action::Fetch { piece, write, .. } => {
                    assert!(self.here.insert(piece), "fetched twice");
                    self.fetched += self.bytes[&piece];
                    for_writing.insert(piece, write);
                }
                Action::Access(at) => {
                    assert_eq!(at, position, "uses are in order");
                    position += 1;
                    let Access { piece, write } = uses[at];
                    assert!(self.here.contains(&piece), "used and not resident");
                    if write {
                        self.dirty.insert(piece);
                        assert!(
                            for_writing.get(&piece).is_none_or(|&w| w),
                            "fetched to be read only"
                        );
                    }
                }
                Action::Evict { piece, dirty } => {
                    assert!(self.here.remove(&piece), "evicted and not resident");
                    assert_eq!(
                        dirty,
                        self.dirty.remove(&piece),
                        "a change is written, and only a change"
                    );
                    self.written += if dirty { self.bytes[&piece] } else { 0 };
                }
            }
            assert!(self.resident() <= self.budget, "over budget");
        }
        assert_eq!(position, uses.len(), "all are used");
    }
}

/// Returns a policy with pieces of random sizes, and a machine with the same pieces.
fn setup(rng: &mut Rng, equal: bool) -> (Policy, Machine, Vec<Piece>) {
    let pages = 1 + rng.below(64);
    let budget = PAGE * pages;
    let window = match rng.below(3) {
        0 => None,
        _ => Some(PAGE * (1 + rng.below(pages))),
    };
    let limits = Limits::new(budget, window, PAGE).unwrap();
    let mut policy = Policy::new(limits);
    let mut machine = Machine {
        budget,
        ..Machine::default()
    };
    let largest = limits.piece() / PAGE;
    let count = 1 + rng.below(100);
    let pieces = (0..count).map(|_| {
        let bytes = if equal {
            largest
        } else {
            1 + rng.below(largest)
        } * PAGE;
        let piece = policy.add(bytes).unwrap();
        machine.bytes.insert(piece, bytes);
        piece
    });
    let pieces = pieces.collect();
    (policy, machine, pieces)
}

fn writes(pieces: &[Piece]) -> Vec<Access> {
    pieces.iter().map(|&piece| Access::write(piece)).collect()
}

#[test]
fn steady_step_moves_no_more_than_documented() {
    fn holds(seed: u64) {
        let mut rng = Rng::new(seed);
        let (mut policy, mut machine, mut pieces) = setup(&mut rng, false);
        rng.shuffle(&mut pieces);
        let uses = writes(&pieces);
        for step in 0..6 {
            let actions = policy.plan(&uses, Pass::Step).unwrap();
            machine.run(&uses, &actions);
            assert_eq!(policy.resident(), machine.resident());
            // The first step also fetches the pieces that stay resident.
            if step > 0 {
                let moved = machine.fetched + machine.written;
                assert!(
                    moved <= policy.limits().steady_bytes(policy.total()),
                    "{moved}"
                );
            }
        }
    }
    property("steady", holds);
}

/// A different order in each step moves no more bytes, except for the pieces that were prefetched for the previous
/// order.
#[test]
fn changing_orders_move_at_most_one_window_more() {
    fn holds(seed: u64) {
        let mut rng = Rng::new(seed);
        let (mut policy, mut machine, mut pieces) = setup(&mut rng, false);
        for step in 0..6 {
            rng.shuffle(&mut pieces);
            let uses = writes(&pieces);
            let actions = policy.plan(&uses, Pass::Step).unwrap();
            machine.run(&uses, &actions);
            if step > 0 {
                let limits = policy.limits();
                let ahead = if policy.total() > limits.budget() {
                    limits.window()
                } else {
                    0
                };
                let promised = limits.steady_bytes(policy.total()) + ahead + limits.piece();
                let moved = machine.fetched + machine.written;
                assert!(moved <= promised, "{moved} of {promised}");
            }
        }
    }
    property("changing orders", holds);
}

/// Returns the fetches of the offline optimum, which evicts the piece whose next access is farthest away (Belady 1966).
fn belady(sequence: &[Piece], room: usize) -> Vec<bool> {
    let mut here: HashSet<Piece> = HashSet::new();
    let next = |piece: Piece, from: usize| {
        let found = sequence[from..].iter().position(|&other| other == piece);
        found.unwrap_or(usize::MAX)
    };
    let fetched = sequence.iter().enumerate().map(|(i, &piece)| {
        if here.contains(&piece) {
            return false;
        }
        if here.len() == room {
            let last = here.iter().copied().max_by_key(|&other| next(other, i));
            here.remove(&last.unwrap());
        }
        here.insert(piece)
    });
    fetched.collect()
}

/// With pieces of one size, a plan fetches at most a window more per step than the optimum, which
/// knows all future accesses and needs no window to overlap transfers and steps.
#[test]
fn fetches_exceed_the_optimum_by_at_most_a_window() {
    fn holds(seed: u64) {
        let mut rng = Rng::new(seed);
        let (mut policy, mut machine, mut pieces) = setup(&mut rng, true);
        let repeated = rng.below(2) == 0;
        let mut sequence = Vec::new();
        let mut fetched = Vec::new();
        for _ in 0..6 {
            if !repeated || sequence.is_empty() {
                rng.shuffle(&mut pieces);
            }
            sequence.extend_from_slice(&pieces);
            let uses = writes(&pieces);
            let actions = policy.plan(&uses, Pass::Step).unwrap();
            machine.run(&uses, &actions);
            fetched.push(machine.fetched);
        }
        let limits = *policy.limits();
        let room = limits.budget() / limits.piece();
        let optimum = belady(&sequence, room);
        for (step, &ours) in fetched.iter().enumerate().skip(1) {
            let optimum = &optimum[step * pieces.len()..(step + 1) * pieces.len()];
            let optimum = optimum.iter().filter(|&&fetch| fetch).count() * limits.piece();
            // If the order changes, one more window has been prefetched in vain.
            let ahead = if repeated { 1 } else { 2 };
            // If the budget is not a multiple of a piece, the optimum also has a part of a piece unused.
            let most = optimum + ahead * limits.window() + 2 * limits.piece();
            assert!(
                ours <= most,
                "step {step}: {ours}, optimum {optimum}, {limits:?}"
            );
        }
    }
    property("Belady", holds);
}

/// Changing subsets, uncounted passes, added and removed pieces, and pieces accessed twice per step.
#[test]
fn any_history_stays_within_the_budget() {
    fn holds(seed: u64) {
        let mut rng = Rng::new(seed);
        let (mut policy, mut machine, mut pieces) = setup(&mut rng, false);
        for _ in 0..30 {
            if rng.below(8) == 0 && pieces.len() > 1 {
                let piece = pieces.swap_remove(rng.below(pieces.len()));
                policy.remove(&[piece]);
                machine.here.remove(&piece);
                machine.dirty.remove(&piece);
                machine.bytes.remove(&piece);
            }
            if rng.below(8) == 0 {
                let bytes = PAGE * (1 + rng.below(policy.limits().piece() / PAGE));
                let piece = policy.add(bytes).unwrap();
                machine.bytes.insert(piece, bytes);
                pieces.push(piece);
            }
            rng.shuffle(&mut pieces);
            let some = &pieces[..1 + rng.below(pieces.len())];
            let mut uses = Vec::new();
            // Runs of pieces that are read up to twice before they are written, as for norms and surveys.
            for run in some.chunks(1 + rng.below(12)) {
                for _ in 0..rng.below(3) {
                    uses.extend(run.iter().map(|&piece| Access::read(piece)));
                }
                uses.extend(writes(run));
            }
            let visit = [Pass::Step, Pass::Step, Pass::Survey, Pass::Uncounted][rng.below(4)];
            let actions = policy.plan(&uses, visit).unwrap();
            machine.run(&uses, &actions);
            assert_eq!(policy.resident(), machine.resident());
        }
    }
    property("any history", holds);
}

/// If a part of the model is frozen, the rest has the whole budget after some steps.
#[test]
fn pieces_that_are_no_longer_stepped_are_evicted() {
    let limits = Limits::new(20 * PAGE, Some(4 * PAGE), PAGE).unwrap();
    let mut policy = Policy::new(limits);
    let pieces: Vec<Piece> = (0..40).map(|_| policy.add(PAGE).unwrap()).collect();
    let mut machine = Machine {
        budget: limits.budget(),
        bytes: pieces.iter().map(|&piece| (piece, PAGE)).collect(),
        ..Machine::default()
    };
    let (all, half) = (writes(&pieces), writes(&pieces[20..]));
    for _ in 0..3 {
        let actions = policy.plan(&all, Pass::Step).unwrap();
        machine.run(&all, &actions);
    }
    // 16 pieces of the first half stay, 24 are streamed.
    assert_eq!(machine.fetched, 24 * PAGE);
    let mut steps = 0;
    while steps == 0 || machine.fetched > 4 * PAGE {
        let actions = policy.plan(&half, Pass::Step).unwrap();
        machine.run(&half, &actions);
        steps += 1;
        assert!(steps < 12, "{} bytes are fetched", machine.fetched);
    }
    // Not immediately: two halves that are stepped alternately keep their resident pieces.
    assert!(steps > 8, "{steps}");
}
