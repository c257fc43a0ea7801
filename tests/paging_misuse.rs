//! The parts of paging that the author of a backend calls, called wrongly: typed errors, no waits without
//! an end, and no panic.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use lion::paging::{Driver, HostDriver, Limits, Pager, Use, Visit};
use lion::{Device, Dtype, PagedLion, PagedLion8bit, Paging, PagingError, ParamSpec};
use lion_core::Momentum32;
use std::sync::Arc;

const PAGE: usize = HostDriver::PAGE;

fn pager(folder: &tempfile::TempDir) -> Arc<Pager<HostDriver>> {
    let driver = HostDriver::in_folder(folder.path()).unwrap();
    let limits = Limits::new(4 * PAGE, Some(2 * PAGE), PAGE).unwrap();
    Arc::new(Pager::new(driver, limits))
}

#[test]
fn parts_outside_a_region_are_refused_and_nobody_waits_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let driver = HostDriver::in_folder(folder.path()).unwrap();
    let (region, _memory) = driver.allocate(4 * PAGE, PAGE).unwrap();
    let parts = [
        0..5 * PAGE,
        4 * PAGE..5 * PAGE,
        usize::MAX - PAGE + 1..usize::MAX,
        1..PAGE,
        0..PAGE - 1,
        #[allow(clippy::reversed_empty_ranges)]
        (2 * PAGE..PAGE),
    ];
    for part in parts {
        let errors = [
            driver.evict(&region, part.clone(), true, None).unwrap_err(),
            driver
                .evict(&region, part.clone(), false, None)
                .unwrap_err(),
            driver
                .fetch(&region, part.clone(), true, true, None)
                .unwrap_err(),
            driver
                .fetch(&region, part.clone(), false, false, None)
                .unwrap_err(),
            driver.resident(&region, part.clone()).unwrap_err(),
        ];
        for error in errors {
            let PagingError::BadPart {
                start,
                end,
                bytes,
                page,
            } = error
            else {
                panic!("{part:?}: {error}");
            };
            assert_eq!((start, end, bytes), (part.start, part.end, 4 * PAGE));
            assert!(PAGE.is_multiple_of(page));
        }
    }
    // The helper threads are still there.
    let ticket = driver.fetch(&region, 0..PAGE, true, false, None).unwrap();
    driver.wait(&ticket).unwrap();
    let ticket = driver.evict(&region, 0..PAGE, true, None).unwrap();
    driver.wait(&ticket).unwrap();
}

#[test]
fn positions_and_pieces_that_are_not_there_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let pager = pager(&folder);
    let (pages, _memory) = pager.allocate(&Momentum32, 8 * PAGE / 4).unwrap();
    let uses: Vec<Use> = (0..8).map(|i| Use::write(pages.piece(i))).collect();
    let walk = pager.begin(&uses, Visit::Step).unwrap();
    for position in [8, usize::MAX] {
        let errors = [
            walk.acquire(position).unwrap_err(),
            walk.try_acquire(position).map(drop).unwrap_err(),
        ];
        for error in errors {
            assert!(
                matches!(error, PagingError::UnknownPosition { position: p, uses: 8 } if p == position),
                "{error}"
            );
        }
        walk.release(position);
    }
    drop(walk);

    drop(pages);
    let error = pager.begin(&uses[3..], Visit::Step).unwrap_err();
    assert!(
        matches!(error, PagingError::UnknownPiece { position: 0 }),
        "{error}"
    );
    assert_eq!(pager.measure().unwrap(), 0);
    assert_eq!((pager.totals().paged, pager.totals().resident), (0, 0));
}

#[test]
fn a_paged_state_that_cannot_be_addressed_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for len in [1 << 62, (1 << 62) + (1 << 20), usize::MAX - 1, usize::MAX] {
        let paging = Paging::in_folder(folder.path()).budget(1 << 20);
        let builder = PagedLion::builder().paging(paging).device(Device::Cpu);
        let mut lion = builder.build().unwrap();
        let error = lion
            .register(ParamSpec::new("w", len, Dtype::F32))
            .unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        assert!(
            error
                .to_string()
                .contains("more bytes than can be addressed"),
            "{len}: {error}: {source:?}"
        );
        assert_eq!(lion.parameters().len(), 0);
    }
    // 2^60 bytes of codes can be addressed, and no disk has them.
    let paging = Paging::in_folder(folder.path()).budget(1 << 20);
    let builder = PagedLion8bit::builder().paging(paging).device(Device::Cpu);
    let mut lion = builder.build().unwrap();
    let error = lion
        .register(ParamSpec::new("w", 1 << 60, Dtype::F32))
        .unwrap_err();
    assert!(error.to_string().contains("has no room for"), "{error}");
    lion.register(ParamSpec::new("w", 200_000, Dtype::F32))
        .unwrap();
}

#[test]
fn a_budget_above_what_the_process_may_have_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let exceeds = |budget| {
        let paging = Paging::in_folder(folder.path()).budget(budget);
        let lion = PagedLion::builder()
            .paging(paging)
            .device(Device::Cpu)
            .build()
            .unwrap();
        lion.paging().unwrap().totals.exceeds
    };
    assert_eq!(exceeds(1 << 20), None);
    // No machine has an exbibyte of memory.
    let limit = exceeds(1 << 60).unwrap();
    assert!(
        limit.bytes < 1 << 60 && !limit.source.is_empty(),
        "{limit:?}"
    );
}
