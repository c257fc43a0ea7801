//! The counts of launches and paging as JSON lines, and the text of a fault.

mod api;

use api::*;
use serde_json::Value;
use std::sync::{Mutex, PoisonError};

/// Runs one test at a time, because these exports are for the whole process.
static ONE: Mutex<()> = Mutex::new(());

#[test]
fn launches_and_paging_are_reported_once_after_they_run() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let context = Context::new();
    let store = context.function("store");
    let (device, mut managed) = (context.alloc(4 * 32), 0);
    ok!(cuMemAllocManaged(&mut managed, 4096, 1));
    assert_eq!(launch(store, 32, DEFAULT_STREAM, device, 1), 0);
    ok!(cuMemPrefetchAsync(managed, 4096, 0, DEFAULT_STREAM));
    // The launch is queued, so there is no line yet.
    assert_eq!(text_of(lionEmulatorCounts), "");
    assert_eq!(text_of(lionEmulatorPaging), "");
    ok!(cuCtxSynchronize());

    // Nothing is written to a buffer that is too small, and nothing is reset.
    let mut small = [0_i8; 4];
    // SAFETY: the buffer has four bytes.
    assert!(unsafe { lionEmulatorCounts(small.as_mut_ptr().cast(), 4) } > 4);
    assert_eq!(small, [0; 4]);

    let counts = text_of(lionEmulatorCounts);
    assert_eq!(counts.lines().count(), 1, "{counts}");
    let line: Value = serde_json::from_str(counts.trim_end()).expect("JSON");
    assert_eq!(line["kernel"], "store");
    assert_eq!(line["grid"], serde_json::json!([1, 1, 1]));
    assert_eq!(line["block"], serde_json::json!([32, 1, 1]));
    assert_eq!(line["threads"], 32);
    // 32 lanes store four bytes each.
    assert_eq!(line["stored_bytes"], 128);
    assert_eq!(line["by_kind"]["st.global.u32"], 32);
    assert_eq!(text_of(lionEmulatorCounts), "");

    ok!(cuMemAdvise(managed, 100, 3, -1));
    let paging: Vec<Value> = text_of(lionEmulatorPaging)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(
        paging,
        [
            serde_json::json!({"what": "prefetch", "address": managed, "bytes": 4096, "device": 0}),
            serde_json::json!(
                {"what": "set preferred location", "address": managed, "bytes": 100, "device": -1}
            ),
        ]
    );
}

#[test]
fn fault_text_names_the_kernel() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let context = Context::new();
    let (store, device) = (context.function("store"), context.alloc(4));
    // Two lanes store to an allocation for one.
    assert_eq!(launch(store, 2, DEFAULT_STREAM, device, 1), 0);
    fails!(700, cuCtxSynchronize());
    let text = text_of(lionEmulatorLastFault);
    assert!(text.contains("store"), "{text}");
}
