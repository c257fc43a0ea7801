//! Transfers that cannot be queued: a typed error, and the next step goes on with what is really there.
#![allow(clippy::unwrap_used)]

use lion::PagingError;
use lion::paging::{Driver, Limits, Pager, Use, Visit};
use lion_core::Momentum32;
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
    /// Pieces that were changed and not written back.
    changed: BTreeSet<usize>,
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

impl Driver for Failing {
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
        dirty: bool,
        _: Option<&()>,
    ) -> Result<(), PagingError> {
        let mut account = self.0.lock().unwrap();
        fails(&mut account.evictions)?;
        assert!(account.here.remove(&part.start), "evicted and not there");
        let changed = account.changed.remove(&part.start);
        assert!(dirty || !changed, "a change is not written back");
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
fn step(pager: &Pager<Failing>, uses: &[Use]) -> Result<(), PagingError> {
    let walk = pager.begin(uses, Visit::Step)?;
    for (position, used) in uses.iter().enumerate() {
        walk.acquire(position)?;
        let mut account = pager.driver().0.lock().unwrap();
        let (part, here) = (position * PAGE, account.here.clone());
        assert!(here.contains(&part), "{position} of {here:?}");
        if used.write {
            account.changed.insert(part);
        }
        drop(account);
        walk.release(position);
    }
    walk.finish()
}

/// Steps around a failure of the n-th call, for all n that a step has.
fn goes_on(fail: impl Fn(&mut Account, usize)) {
    let mut failures = 0;
    for n in 0..20 {
        // Eight pieces, memory for five, three of which stay.
        let limits = Limits::new(5 * PAGE, Some(2 * PAGE), PAGE).unwrap();
        let pager = Arc::new(Pager::new(Failing::default(), limits));
        let (pages, ()) = pager.allocate(&Momentum32, 8 * PAGE / 4).unwrap();
        let uses: Vec<Use> = (0..8).map(|i| Use::write(pages.piece(i))).collect();
        let reads: Vec<Use> = (0..8).map(|i| Use::read(pages.piece(i))).collect();
        for before in [0, 2] {
            for _ in 0..before {
                step(&pager, &uses).unwrap();
            }
            fail(&mut pager.driver().0.lock().unwrap(), n);
            let failed = step(&pager, &uses).is_err();
            failures += usize::from(failed);
            fail(&mut pager.driver().0.lock().unwrap(), usize::MAX);
            assert_eq!(pager.totals().resident, pager.measure().unwrap());
            for uses in [&reads, &uses, &uses] {
                step(&pager, uses).unwrap();
                assert_eq!(pager.totals().resident, pager.measure().unwrap());
            }
            assert!(pager.measure().unwrap() <= 5 * PAGE);
        }
    }
    assert!(failures >= 10, "{failures}");
}

#[test]
fn a_step_after_a_fetch_that_failed_fetches_again() {
    goes_on(|account, n| account.fetches = Some(n));
}

#[test]
fn a_piece_that_could_not_be_evicted_is_still_there() {
    goes_on(|account, n| account.evictions = Some(n));
}
