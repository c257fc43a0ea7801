//! Result codes of the driver.

use std::cell::Cell;
use std::ffi::{CStr, c_uint};

/// `CUDA_ERROR_UNKNOWN`.
const UNKNOWN: c_uint = 999;

/// Returns the code if cust knows it, and [`UNKNOWN`] otherwise.
///
/// cust declares results as an enumeration with the codes of CUDA 11.4. Newer drivers have more codes. A value
/// outside the enumeration would be undefined behavior.
pub(super) fn known(code: c_uint) -> c_uint {
    match code {
        0..=8
        | 34
        | 100..=102
        | 200..=202
        | 205..=224
        | 300..=304
        | 400..=401
        | 500
        | 600
        | 700..=705
        | 708..=720
        | 800..=809
        | 900..=911
        | UNKNOWN => code,
        _ => UNKNOWN,
    }
}

thread_local! {
    /// The last result of the driver on this thread.
    static LAST: Cell<c_uint> = const { Cell::new(0) };
}

/// Stores a result of the driver, and returns the code for cust: see [`known`].
pub(super) fn pass_on(code: c_uint) -> c_uint {
    LAST.set(code);
    known(code)
}

/// Returns the driver's own code for a code that [`pass_on`] returned on this thread. The thread must not have called
/// the driver since.
pub(super) fn raw(code: c_uint) -> c_uint {
    let last = LAST.get();
    if code == UNKNOWN && known(last) == UNKNOWN {
        last
    } else {
        code
    }
}

/// Returns whether a code is an error of work that was queued before the call that returns it. Such errors are
/// sticky: every later call in the context returns the same error.
pub(crate) fn is_of_earlier_work(code: c_uint) -> bool {
    matches!(
        code,
        214 | 220 | 226 | 700 | 702 | 710 | 714..=719 | 721 | UNKNOWN
    )
}

/// Returns the text of a result code, for use without a driver.
pub(crate) fn text(code: c_uint) -> &'static CStr {
    match code {
        0 => c"no error",
        1 => c"invalid argument",
        2 => c"out of memory",
        3 => c"initialization error",
        34 => c"the stub library is loaded instead of the driver",
        100 => c"no CUDA-capable device is detected",
        101 => c"invalid device ordinal",
        201 => c"invalid device context",
        218 => c"a PTX JIT compilation failed",
        222 => c"the provided PTX was compiled with an unsupported toolchain",
        400 => c"invalid resource handle",
        500 => c"named symbol not found",
        700 => c"an illegal memory access was encountered",
        701 => c"too many resources requested for launch",
        716 => c"misaligned address",
        719 => c"unspecified launch failure",
        801 => c"operation not supported",
        _ => c"unknown error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_newer_driver_is_kept_beside_the_code_for_cust() {
        assert_eq!(pass_on(46), UNKNOWN);
        assert_eq!(raw(UNKNOWN), 46);
        // Codes that cust knows are not changed.
        assert_eq!(raw(pass_on(700)), 700);
        // A later call has overwritten the code.
        assert_eq!(raw(UNKNOWN), UNKNOWN);
        assert_eq!(raw(pass_on(UNKNOWN)), UNKNOWN);
        // Each thread has its own code.
        pass_on(46);
        let other = std::thread::spawn(|| raw(UNKNOWN)).join();
        assert_eq!((other.ok(), raw(UNKNOWN)), (Some(UNKNOWN), 46));
    }

    #[test]
    fn codes_that_cust_does_not_know_become_unknown() {
        // The codes in the enumeration of cust_raw 0.11.3.
        let cust = [
            0, 1, 2, 3, 4, 5, 6, 7, 8, 34, 100, 101, 102, 200, 201, 202, 205, 206, 207, 208, 209,
            210, 211, 212, 213, 214, 215, 216, 217, 218, 219, 220, 221, 222, 223, 224, 300, 301,
            302, 303, 304, 400, 401, 500, 600, 700, 701, 702, 703, 704, 705, 708, 709, 710, 711,
            712, 713, 714, 715, 716, 717, 718, 719, 720, 800, 801, 802, 803, 804, 805, 806, 807,
            808, 809, 900, 901, 902, 903, 904, 905, 906, 907, 908, 909, 910, 911, 999,
        ];
        for code in 0..2000 {
            let wanted = if cust.contains(&code) { code } else { 999 };
            assert_eq!(known(code), wanted, "{code}");
        }
    }
}
