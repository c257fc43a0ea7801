//! Schedule runs over a mover that records residency: failing transfers, misuse, runs that are dropped early, and
//! runs on several threads.
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

/// Records which pieces are resident, and fails at a chosen call.
#[derive(Debug, Default)]
struct Failing(Mutex<Records>);

#[derive(Debug, Default)]
struct Records {
    /// The pieces whose fetch was queued, and no eviction since.
    resident: BTreeSet<usize>,
    /// Those of them whose fetch has failed after it was queued.
    failed: BTreeSet<usize>,
    /// Number of calls before one fails.
    fetches: Option<usize>,
    waits: Option<usize>,
    evictions: Option<usize>,
}

fn fails(left: &mut Option<usize>) -> Result<(), PagingError> {
    match left.as_mut() {
        Some(0) => {
            *left = None;
            Err(PagingError::Unsupported {
                missing: "chosen to fail".to_owned(),
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
    /// The start of the piece.
    type Ticket = usize;

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
        _: Option<&usize>,
    ) -> Result<usize, PagingError> {
        let mut records = self.0.lock().unwrap();
        fails(&mut records.fetches)?;
        let is_new = records.resident.insert(part.start);
        assert!(
            is_new || records.failed.remove(&part.start),
            "fetched twice"
        );
        Ok(part.start)
    }

    fn evict(
        &self,
        (): &(),
        part: Range<usize>,
        _: bool,
        _: Option<&usize>,
    ) -> Result<usize, PagingError> {
        let mut records = self.0.lock().unwrap();
        fails(&mut records.evictions)?;
        records.failed.remove(&part.start);
        assert!(
            records.resident.remove(&part.start),
            "evicted and not there"
        );
        Ok(part.start)
    }

    fn wait(&self, start: &usize) -> Result<Duration, PagingError> {
        let mut records = self.0.lock().unwrap();
        fails(&mut records.waits).inspect_err(|_| {
            records.failed.insert(*start);
        })?;
        Ok(Duration::ZERO)
    }

    fn is_done(&self, _: &usize) -> bool {
        true
    }

    fn has_failed(&self, start: &usize) -> bool {
        self.0.lock().unwrap().failed.contains(start)
    }

    fn resident(&self, (): &(), part: Range<usize>) -> Result<usize, PagingError> {
        let records = self.0.lock().unwrap();
        let resident =
            records.resident.contains(&part.start) && !records.failed.contains(&part.start);
        Ok(if resident { part.len() } else { 0 })
    }
}

/// Runs a step over all pieces, and asserts that each is resident.
fn step(pager: &Pager<Failing>, accesses: &[Access]) -> Result<(), PagingError> {
    let run = pager.begin(accesses, Pass::Step)?;
    for position in 0..accesses.len() {
        run.acquire(position)?;
        let resident = pager.mover().0.lock().unwrap().resident.clone();
        assert!(
            resident.contains(&(position * PAGE)),
            "{position} of {resident:?}"
        );
        run.release(position);
    }
    run.finish()
}

/// Returns an access to each piece of a state that changes it.
fn writes(pages: &StatePages<Failing>) -> Vec<Access> {
    let pieces = (0..pages.pieces().count()).map(|i| pages.piece(i).unwrap());
    pieces.map(Access::write).collect()
}

/// Steps before and after a failure of the n-th call, for every n in a step.
fn steps_after_failures(fail: impl Fn(&mut Records, usize)) {
    let mut failures = 0;
    // All of them take minutes under Miri.
    for n in (0..20).step_by(if cfg!(miri) { 9 } else { 1 }) {
        // Eight pieces, and memory for five. Three pieces stay.
        let limits = Limits::new(5 * PAGE, Some(2 * PAGE), PAGE).unwrap();
        let pager = Arc::new(Pager::new(Failing::default(), limits));
        let (pages, ()) = pager.allocate(&Momentum32, 8 * PAGE / 4).unwrap();
        let accesses = writes(&pages);
        for before in [0, 2] {
            for _ in 0..before {
                step(&pager, &accesses).unwrap();
            }
            fail(&mut pager.mover().0.lock().unwrap(), n);
            let failed = step(&pager, &accesses).is_err();
            failures += usize::from(failed);
            fail(&mut pager.mover().0.lock().unwrap(), usize::MAX);
            assert_eq!(pager.totals().resident, pager.measure().unwrap());
            for _ in 0..3 {
                step(&pager, &accesses).unwrap();
                assert_eq!(pager.totals().resident, pager.measure().unwrap());
            }
            assert!(pager.measure().unwrap() <= 5 * PAGE);
        }
    }
    assert!(failures >= if cfg!(miri) { 1 } else { 10 }, "{failures}");
}

#[test]
fn a_step_after_a_failed_fetch_fetches_again() {
    steps_after_failures(|records, n| records.fetches = Some(n));
}

/// Also a piece that stays resident, and so is not evicted before the next step.
#[test]
fn a_step_after_a_fetch_that_failed_while_queued_fetches_again() {
    steps_after_failures(|records, n| records.waits = Some(n));
}

#[test]
fn a_piece_stays_resident_after_a_failed_eviction() {
    steps_after_failures(|records, n| records.evictions = Some(n));
}

/// Returns a pager with memory for two pages, and a state of `pages` pages.
fn two_of(pages: usize) -> (Arc<Pager<Failing>>, StatePages<Failing>) {
    let limits = Limits::new(2 * PAGE, Some(2 * PAGE), PAGE).unwrap();
    let pager = Arc::new(Pager::new(Failing::default(), limits));
    let (pages, ()) = pager.allocate(&Momentum32, pages * PAGE / 4).unwrap();
    (pager, pages)
}

/// Asserts that a position cannot be acquired, and returns the next position from the error.
fn out_of_order(run: &ScheduleRun<'_, Failing>, position: usize) -> usize {
    let errors = [
        run.acquire(position).unwrap_err(),
        run.try_acquire(position).unwrap_err(),
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
    let accesses = writes(&pages);
    let run = pager.begin(&accesses, Pass::Step).unwrap();
    // The fifth piece is fetched when three are released, so a wait for it would be a deadlock.
    for position in [1, 4, 5, usize::MAX] {
        assert_eq!(out_of_order(&run, position), 0);
        assert!(position == 0 || run.wait(position).is_err());
    }
    run.acquire(0).unwrap();
    assert!(run.try_acquire(0).unwrap(), "it is held");
    assert!(run.try_acquire(1).unwrap());
    assert!(!run.try_acquire(2).unwrap(), "there is no room");
    run.release(0);
    assert_eq!(out_of_order(&run, 0), 2);
    run.wait(0).unwrap();
    run.acquire(2).unwrap();
    run.release(1);
    run.release(2);
    run.finish().unwrap();
    assert_eq!(pager.totals().resident, pager.measure().unwrap());
    step(&pager, &accesses).unwrap();
}

#[test]
fn release_ignores_positions_that_are_not_held() {
    let (pager, pages) = two_of(5);
    let accesses = writes(&pages);
    let resident = |piece: usize| {
        let records = pager.mover().0.lock().unwrap();
        records.resident.contains(&(piece * PAGE))
    };
    let run = pager.begin(&accesses, Pass::Step).unwrap();
    for position in [0, 1, 4, 5, usize::MAX] {
        run.release(position);
    }
    run.acquire(0).unwrap();
    run.acquire(1).unwrap();
    assert!(
        resident(0) && resident(1),
        "released before they were acquired"
    );
    run.release(0);
    run.release(0);
    run.acquire(2).unwrap();
    assert!(resident(1), "released instead of another");
    run.finish().unwrap();
    step(&pager, &accesses).unwrap();
}

#[test]
fn a_nested_run_is_an_error() {
    let (pager, pages) = two_of(3);
    let accesses = writes(&pages);
    let run = pager.begin(&accesses, Pass::Step).unwrap();
    let error = pager.begin(&accesses, Pass::Uncounted).unwrap_err();
    assert!(matches!(error, PagingError::Nested), "{error}");
    // Another thread waits.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| step(&pager, &accesses));
        run.acquire(0).unwrap();
        run.finish().unwrap();
        other.join().unwrap().unwrap();
    });
    step(&pager, &accesses).unwrap();
}

#[test]
fn pieces_of_another_pager_are_an_error() {
    let (pager, pages) = two_of(3);
    let (other, _pages) = two_of(3);
    let accesses = writes(&pages);
    let refused = |pager: &Pager<Failing>| {
        let error = pager.begin(&accesses, Pass::Step).unwrap_err();
        assert!(
            matches!(error, PagingError::UnknownPiece { position: 0 }),
            "{error}"
        );
    };
    refused(&other);
    assert_eq!(pages.piece(3), None);
    drop(pages);
    refused(&pager);
    // They use the slots of the dropped ones.
    let (pages, ()) = pager.allocate(&Momentum32, 3 * PAGE / 4).unwrap();
    refused(&pager);
    step(&pager, &writes(&pages)).unwrap();
}

#[test]
fn states_can_be_dropped_and_allocated_during_a_run() {
    let (pager, pages) = two_of(5);
    let accesses = writes(&pages);
    let run = pager.begin(&accesses, Pass::Step).unwrap();
    run.acquire(0).unwrap();
    drop(pages);
    let (pages, ()) = pager.allocate(&Momentum32, 2 * PAGE / 4).unwrap();
    assert_eq!(pager.totals().paged, 7 * PAGE, "freed at the end");
    run.release(0);
    run.acquire(1).unwrap();
    run.finish().unwrap();
    assert_eq!(pager.totals().paged, 2 * PAGE);
    // Only the mover still has a record of the dropped state.
    pager.mover().0.lock().unwrap().resident.clear();
    step(&pager, &writes(&pages)).unwrap();
}

#[test]
fn a_full_run_works_after_a_run_that_was_dropped_at_any_position() {
    let (pager, pages) = two_of(5);
    let accesses = writes(&pages);
    for end in (0..5).step_by(if cfg!(miri) { 2 } else { 1 }) {
        let run = pager.begin(&accesses, Pass::Step).unwrap();
        for position in 0..end {
            run.acquire(position).unwrap();
            run.release(position);
        }
        run.acquire(end).unwrap();
        drop(run);
        assert_eq!(pager.totals().resident, pager.measure().unwrap());
        step(&pager, &accesses).unwrap();
    }
}

#[test]
fn states_without_bytes_or_with_too_many_are_an_error() {
    let (pager, _pages) = two_of(1);
    let refused = |len| pager.allocate(&Momentum32, len).unwrap_err();
    assert!(matches!(refused(0), PagingError::Empty));
    // 2^62 + 2^20 on 64-bit targets: four times as many bytes wrap around to 2^22.
    for len in [usize::MAX, usize::MAX / 4 + 1 + (1 << 20)] {
        let error = refused(len);
        assert!(
            matches!(error, PagingError::TooLarge { len: given } if given == len),
            "{error}"
        );
    }
    assert_eq!(pager.totals().paged, PAGE);
}

/// Each thread takes the next position under a lock and waits for it outside the lock, as in a step.
#[test]
fn threads_share_a_run() {
    let (pager, pages) = two_of(9);
    let accesses = writes(&pages);
    for _ in 0..if cfg!(miri) { 1 } else { 100 } {
        let run = pager.begin(&accesses, Pass::Step).unwrap();
        let next = Mutex::new(0);
        let work = || loop {
            let mut position = next.lock().unwrap();
            if *position == accesses.len() {
                return;
            }
            let this = *position;
            if run.try_acquire(this).unwrap() {
                *position += 1;
                drop(position);
                let resident = pager.mover().0.lock().unwrap().resident.clone();
                assert!(resident.contains(&(this * PAGE)) && resident.len() <= 2);
                run.release(this);
            } else {
                drop(position);
                run.wait(this).unwrap();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(work);
            scope.spawn(work);
            work();
        });
        run.finish().unwrap();
    }
}
