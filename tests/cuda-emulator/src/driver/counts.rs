//! Additional exports for tests: counts of launches and paging, and the text of the last fault.

use super::config::Config;
use super::{IN_HOST_FUNCTION, STATE};
use crate::machine::{Counts, Launch, Moves};
use serde_json::json;
use std::collections::VecDeque;
use std::ffi::c_char;
use std::sync::PoisonError;

/// Maximum number of lines that are kept. If a program does not read them, the oldest are discarded.
const KEPT: usize = 1 << 16;

#[derive(Default)]
pub(super) struct Reports {
    launches: VecDeque<String>,
    paging: VecDeque<String>,
    pub(super) fault: String,
}

impl Reports {
    pub(super) fn launch(&mut self, launch: &Launch<'_>, counts: &Counts) {
        let line = json!({
            "kernel": launch.kernel.name(),
            "grid": launch.grid,
            "block": launch.block,
            "dynamic_shared": launch.dynamic_shared,
            "threads": counts.threads,
            "instructions": counts.instructions,
            "warp_instructions": counts.warp_instructions,
            "by_kind": counts.by_kind,
            "loaded_bytes": counts.loaded_bytes,
            "stored_bytes": counts.stored_bytes,
            "sectors_touched": counts.sectors_touched,
            "sectors_needed": counts.sectors_needed,
        });
        push(&mut self.launches, line.to_string());
    }

    pub(super) fn paging(&mut self, what: &str, address: u64, bytes: u64, device: i32) {
        let line = json!({ "what": what, "address": address, "bytes": bytes, "device": device });
        push(&mut self.paging, line.to_string());
    }
}

fn push(lines: &mut VecDeque<String>, line: String) {
    if lines.len() == KEPT {
        lines.pop_front();
    }
    lines.push_back(line);
}

#[unsafe(no_mangle)]
extern "C" fn lionEmulatorIsEmulator() -> i32 {
    let anonymous = Config::get().is_ok_and(|config| config.anonymous);
    i32::from(!anonymous)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lionEmulatorCounts(json: *mut c_char, bytes: usize) -> usize {
    // SAFETY: the caller's contract.
    unsafe { take_lines(json, bytes, |reports| &mut reports.launches) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lionEmulatorPaging(json: *mut c_char, bytes: usize) -> usize {
    // SAFETY: the caller's contract.
    unsafe { take_lines(json, bytes, |reports| &mut reports.paging) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lionEmulatorResidency(json: *mut c_char, bytes: usize) -> usize {
    if IN_HOST_FUNCTION.get() {
        return 0;
    }
    let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let devices = state.as_ref().map_or(&[][..], |state| &state.devices);
    let moves = || devices.iter().map(|device| device.memory.moves());
    let text = Moves::report(moves()).to_string();
    // SAFETY: the caller's contract.
    if unsafe { give(&text, json, bytes) } {
        moves().for_each(Moves::restart);
    }
    text.len() + 1
}

#[unsafe(no_mangle)]
unsafe extern "C" fn lionEmulatorLastFault(text: *mut c_char, bytes: usize) -> usize {
    if IN_HOST_FUNCTION.get() {
        return 0;
    }
    let state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let fault = state.as_ref().map_or("", |state| &state.reports.fault);
    // SAFETY: the caller's contract.
    unsafe { give(fault, text, bytes) };
    fault.len() + 1
}

/// # Safety
///
/// `to` is null or valid for writes of `bytes` bytes.
unsafe fn take_lines(
    to: *mut c_char,
    bytes: usize,
    lines: impl FnOnce(&mut Reports) -> &mut VecDeque<String>,
) -> usize {
    if IN_HOST_FUNCTION.get() {
        return 0;
    }
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut none = Reports::default();
    let reports = state.as_mut().map_or(&mut none, |state| &mut state.reports);
    let lines = lines(reports);
    let mut text = String::new();
    for line in lines.iter() {
        text.push_str(line);
        text.push('\n');
    }
    // SAFETY: as for this function.
    if unsafe { give(&text, to, bytes) } {
        lines.clear();
    }
    text.len() + 1
}

/// Writes the text and a NUL if the buffer has room for both.
///
/// # Safety
///
/// `to` is null or valid for writes of `bytes` bytes.
unsafe fn give(text: &str, to: *mut c_char, bytes: usize) -> bool {
    let fits = !to.is_null() && text.len() < bytes;
    if fits {
        // SAFETY: not null, and `bytes` is more than what is written.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), text.len());
            to.add(text.len()).write(0);
        }
    }
    fits
}
