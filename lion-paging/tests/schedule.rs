//! Walks over a mover that keeps account of what is resident: transfers that fail, walks that are misused or
//! left, and walks of several threads.
#![allow(clippy::unwrap_used)]

use lion_core::Momentum32;
use lion_paging::{
    Access, Limits, PageMover, Pager, PagingError, Pass, Residence, ScheduleRun, StatePages,
    StepGroup, StepOrder,
};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PAGE: usize = 4096;

/// Keeps account of what is resident, and fails when it is told to.
#[derive(Debug, Default)]
struct Failing(Mutex<Account>);

#[derive(Debug, Default)]
struct Account {
    here: BTreeSet<usize>,
    /// Calls until one fails.
    fetches: Option<usize>,
    evictions: Option<usize>,
}

fn fails(left: &mut Option<usize>) -> Result<(), PagingError> {
    match left.as_mut() {
        Some(0) => {
            *left = None;
            Err(PagingError::Unsupported {
                missing: "told to fail".to_owned(),
            })
        }
        Some(left) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

impl PageMover for Failing {
    type Region = ();
    type Memory = ();
    type Ticket = ();

    fn name(&self) -> String {
        "failing".to_owned()
    }

    fn page(&self) -> usize {
        PAGE
    }

    fn allocate(&self, _: usize, _: usize) -> Result<((), ()), PagingError> {
        Ok(((), ()))
    }

    fn fetch(
        &self,
        (): &(),
        part: Range<usize>,
        _: bool,
        _: bool,
        _: Option<&()>,
    ) -> Result<(), PagingError> {
        let mut account = self.0.lock().unwrap();
        fails(&mut account.fetches)?;
        assert!(account.here.insert(part.start), "fetched twice");
        Ok(())
    }

    fn evict(
        &self,
        (): &(),
        part: Range<usize>,
        _: bool,
        _: Option<&()>,
    ) -> Result<(), PagingError> {
        let mut account = self.0.lock().unwrap();
        fails(&mut account.evictions)?;
        assert!(account.here.remove(&part.start), "evicted and not there");
        Ok(())
    }

    fn wait(&self, (): &()) -> Result<Duration, PagingError> {
        Ok(Duration::ZERO)
    }

    fn is_done(&self, (): &()) -> bool {
        true
    }

    fn resident(&self, (): &(), part: Range<usize>) -> Result<usize, PagingError> {
        let here = self.0.lock().unwrap().here.contains(&part.start);
        Ok(if here { part.len() } else { 0 })
    }
}

/// A step over all pieces, each of which has to be there.
fn step(pager: &Pager<Failing>, uses: &[Access]) -> Result<(), PagingError> {
    let walk = pager.begin(uses, Pass::Step)?;
    for position in 0..uses.len() {
        walk.acquire(position)?;
        let here = pager.mover().0.lock().unwrap().here.clone();
        assert!(here.contains(&(position * PAGE)), "{position} of {here:?}");
        walk.release(position);
    }
    walk.finish()
}

/// All pieces of a state, to be changed.
fn writes(pages: &StatePages<Failing>) -> Vec<Access> {
    let pieces = (0..pages.pieces().count()).map(|i| pages.piece(i).unwrap());
    pieces.map(Access::write).collect()
}

/// Steps around a failure of the n-th call, for all n that a step has.
fn goes_on(fail: impl Fn(&mut Account, usize)) {
    let mut failures = 0;
    // Miri takes some minutes for all of them.
    for n in (0..20).step_by(if cfg!(miri) { 9 } else { 1 }) {
        // Eight pieces, memory for five, three of which stay.
        let limits = Limits::new(5 * PAGE, Some(2 * PAGE), PAGE).unwrap();
        let pager = Arc::new(Pager::new(Failing::default(), limits));
        let (pages, ()) = pager.allocate(&Momentum32, 8 * PAGE / 4).unwrap();
        let uses = writes(&pages);
        for before in [0, 2] {
            for _ in 0..before {
                step(&pager, &uses).unwrap();
            }
            fail(&mut pager.mover().0.lock().unwrap(), n);
            let failed = step(&pager, &uses).is_err();
            failures += usize::from(failed);
            fail(&mut pager.mover().0.lock().unwrap(), usize::MAX);
            assert_eq!(pager.totals().resident, pager.measure().unwrap());
            for _ in 0..3 {
                step(&pager, &uses).unwrap();
                assert_eq!(pager.totals().resident, pager.measure().unwrap());
            }
            assert!(pager.measure().unwrap() <= 5 * PAGE);
        }
    }
    assert!(failures >= if cfg!(miri) { 1 } else { 10 }, "{failures}");
}

#[test]
fn a_step_after_a_fetch_that_failed_fetches_again() {
    goes_on(|account, n| account.fetches = Some(n));
}

#[test]
fn a_piece_that_could_not_be_evicted_is_still_there() {
    goes_on(|account, n| account.evictions = Some(n));
}

/// A pager with memory for two pages, and a state of so many.
fn two_of(pages: usize) -> (Arc<Pager<Failing>>, StatePages<Failing>) {
    let limits = Limits::new(2 * PAGE, Some(2 * PAGE), PAGE).unwrap();
    let pager = Arc::new(Pager::new(Failing::default(), limits));
    let (pages, ()) = pager.allocate(&Momentum32, pages * PAGE / 4).unwrap();
    (pager, pages)
}

/// What a walk says of a position that may not be acquired.
fn out_of_order(walk: &ScheduleRun<'_, Failing>, position: usize) -> usize {
    let errors = [
        walk.acquire(position).unwrap_err(),
        walk.try_acquire(position).unwrap_err(),
    ];
    let [a, b] = errors.map(|error| match error {
        PagingError::OutOfOrder {
            position: given,
            next,
        } if given == position => next,
        error => panic!("{error}"),
    });
    assert_eq!(a, b);
    a
}

#[test]
fn a_clipped_state_is_read_just_before_it_is_written() {
    let (pager, a) = two_of(2);
    let (b, ()) = pager.allocate(&Momentum32, PAGE / 4).unwrap();
    let [a0, a1] = [0, 1].map(|piece| a.piece(piece).unwrap());
    let b0 = b.piece(0).unwrap();
    let states = [
        (Residence::Pages(&b), false),
        (Residence::Memory(700), true),
        (Residence::Pages(&a), true),
        (Residence::Memory(0), false),
        (Residence::Pages(&b), true),
    ];
    let order = StepOrder::of_step(states);
    let wanted = [
        Access::write(b0),
        Access::read(a0),
        Access::read(a1),
        Access::write(a0),
        Access::write(a1),
        Access::read(b0),
        Access::write(b0),
    ];
    assert_eq!(order.accesses(), wanted);
    // Tensor, piece, and position of the access to its pages.
    let list = |group: StepGroup<'_>| {
        let [reads, writes] = [group.reads, group.writes].map(|pieces| {
            let pieces = pieces.iter();
            let pieces = pieces.map(|piece| (piece.tensor, piece.piece, piece.position));
            pieces.collect::<Vec<_>>()
        });
        (reads, writes)
    };
    let groups: Vec<_> = order.groups().map(list).collect();
    let wanted = [
        (vec![(1, 0, None)], vec![(0, 0, Some(0)), (1, 0, None)]),
        (
            vec![(2, 0, Some(1)), (2, 1, Some(2))],
            vec![(2, 0, Some(3)), (2, 1, Some(4)), (3, 0, None)],
        ),
        (vec![(4, 0, Some(5))], vec![(4, 0, Some(6))]),
    ];
    assert_eq!(groups, wanted);
    let group = order.groups().next().unwrap();
    assert_eq!(group.reads[0].elements, 0..700);

    let survey = StepOrder::of_survey(states.map(|(residence, _)| residence));
    let reads = [b0, a0, a1, b0].map(Access::read);
    assert_eq!(survey.accesses(), reads);
    let groups: Vec<_> = survey.groups().map(list).collect();
    let reads = [Some(0), None, Some(1), Some(2), None, Some(3)];
    let positions = groups[0].0.iter().map(|piece| piece.2);
    assert_eq!(positions.collect::<Vec<_>>(), reads);
    assert_eq!((groups.len(), groups[0].1.len()), (1, 0));
}

#[test]
fn positions_are_acquired_in_order_and_once() {
    let (pager, pages) = two_of(5);
    let uses = writes(&pages);
    let walk = pager.begin(&uses, Pass::Step).unwrap();
    // The fifth is fetched when three are released: waiting for it would not end.
    for position in [1, 4, 5, usize::MAX] {
        assert_eq!(out_of_order(&walk, position), 0);
        assert!(position == 0 || walk.wait(position).is_err());
    }
    walk.acquire(0).unwrap();
    assert!(walk.try_acquire(0).unwrap(), "it is held");
    assert!(walk.try_acquire(1).unwrap());
    assert!(!walk.try_acquire(2).unwrap(), "there is no room");
    walk.release(0);
    assert_eq!(out_of_order(&walk, 0), 2);
    walk.wait(0).unwrap();
    walk.acquire(2).unwrap();
    walk.release(1);
    walk.release(2);
    walk.finish().unwrap();
    assert_eq!(pager.totals().resident, pager.measure().unwrap());
    step(&pager, &uses).unwrap();
}

#[test]
fn only_what_is_held_is_released() {
    let (pager, pages) = two_of(5);
    let uses = writes(&pages);
    let here = |piece: usize| {
        let account = pager.mover().0.lock().unwrap();
        account.here.contains(&(piece * PAGE))
    };
    let walk = pager.begin(&uses, Pass::Step).unwrap();
    for position in [0, 1, 4, 5, usize::MAX] {
        walk.release(position);
    }
    walk.acquire(0).unwrap();
    walk.acquire(1).unwrap();
    assert!(here(0) && here(1), "released before they were acquired");
    walk.release(0);
    walk.release(0);
    walk.acquire(2).unwrap();
    assert!(here(1), "released instead of another");
    walk.finish().unwrap();
    step(&pager, &uses).unwrap();
}

#[test]
fn a_walk_within_a_walk_is_refused() {
    let (pager, pages) = two_of(3);
    let uses = writes(&pages);
    let walk = pager.begin(&uses, Pass::Step).unwrap();
    let error = pager.begin(&uses, Pass::Aside).unwrap_err();
    assert!(matches!(error, PagingError::Nested), "{error}");
    // Another thread waits for its turn.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| step(&pager, &uses));
        walk.acquire(0).unwrap();
        walk.finish().unwrap();
        other.join().unwrap().unwrap();
    });
    step(&pager, &uses).unwrap();
}

#[test]
fn pieces_of_others_are_refused() {
    let (pager, pages) = two_of(3);
    let (other, _pages) = two_of(3);
    let uses = writes(&pages);
    let refused = |pager: &Pager<Failing>| {
        let error = pager.begin(&uses, Pass::Step).unwrap_err();
        assert!(
            matches!(error, PagingError::UnknownPiece { position: 0 }),
            "{error}"
        );
    };
    refused(&other);
    assert_eq!(pages.piece(3), None);
    drop(pages);
    refused(&pager);
    // They have the places of those that are gone.
    let (pages, ()) = pager.allocate(&Momentum32, 3 * PAGE / 4).unwrap();
    refused(&pager);
    step(&pager, &writes(&pages)).unwrap();
}

#[test]
fn a_state_may_be_dropped_and_another_come_during_a_walk() {
    let (pager, pages) = two_of(5);
    let uses = writes(&pages);
    let walk = pager.begin(&uses, Pass::Step).unwrap();
    walk.acquire(0).unwrap();
    drop(pages);
    let (pages, ()) = pager.allocate(&Momentum32, 2 * PAGE / 4).unwrap();
    assert_eq!(pager.totals().paged, 7 * PAGE, "freed at the end");
    walk.release(0);
    walk.acquire(1).unwrap();
    walk.finish().unwrap();
    assert_eq!(pager.totals().paged, 2 * PAGE);
    // The account of what is gone is kept by the mover alone.
    pager.mover().0.lock().unwrap().here.clear();
    step(&pager, &writes(&pages)).unwrap();
}

#[test]
fn a_walk_that_is_left_at_any_position_is_followed_by_a_whole_one() {
    let (pager, pages) = two_of(5);
    let uses = writes(&pages);
    for end in (0..5).step_by(if cfg!(miri) { 2 } else { 1 }) {
        let walk = pager.begin(&uses, Pass::Step).unwrap();
        for position in 0..end {
            walk.acquire(position).unwrap();
            walk.release(position);
        }
        walk.acquire(end).unwrap();
        drop(walk);
        assert_eq!(pager.totals().resident, pager.measure().unwrap());
        step(&pager, &uses).unwrap();
    }
}

#[test]
fn states_without_bytes_or_with_too_many_are_refused() {
    let (pager, _pages) = two_of(1);
    let refused = |len| pager.allocate(&Momentum32, len).unwrap_err();
    assert!(matches!(refused(0), PagingError::Empty));
    // 2^62 + 2^20 where a word has 64 bits: four times as many are 2^22.
    for len in [usize::MAX, usize::MAX / 4 + 1 + (1 << 20)] {
        let error = refused(len);
        assert!(
            matches!(error, PagingError::TooLarge { len: given } if given == len),
            "{error}"
        );
    }
    assert_eq!(pager.totals().paged, PAGE);
}

/// As threads of a step do: whoever comes takes the next position, and waits for it outside the lock.
#[test]
fn threads_share_a_walk() {
    let (pager, pages) = two_of(9);
    let uses = writes(&pages);
    for _ in 0..if cfg!(miri) { 1 } else { 100 } {
        let walk = pager.begin(&uses, Pass::Step).unwrap();
        let next = Mutex::new(0);
        let work = || loop {
            let mut position = next.lock().unwrap();
            if *position == uses.len() {
                return;
            }
            let this = *position;
            if walk.try_acquire(this).unwrap() {
                *position += 1;
                drop(position);
                let here = pager.mover().0.lock().unwrap().here.clone();
                assert!(here.contains(&(this * PAGE)) && here.len() <= 2);
                walk.release(this);
            } else {
                drop(position);
                walk.wait(this).unwrap();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(work);
            scope.spawn(work);
            work();
        });
        walk.finish().unwrap();
    }
}
