//! Faults of a launch, with their position.

use std::fmt;

/// A launch that ended with an error.
#[derive(Debug)]
pub(crate) struct Fault {
    code: u32,
    text: String,
}

impl Fault {
    /// The `CUresult` that a driver returns for it.
    pub(crate) fn code(&self) -> u32 {
        self.code
    }

    pub(super) fn new(cause: Cause, text: String) -> Self {
        Self {
            code: cause.code(),
            text,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The kind of the fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    IllegalAddress,
    IllegalInstruction,
    Misaligned,
    /// Errors that a GPU would not detect, or on which it would hang: races, unwritten memory, incomplete barriers.
    LaunchFailed,
}

impl Cause {
    fn code(self) -> u32 {
        match self {
            Self::IllegalAddress => 700,
            Self::IllegalInstruction => 715,
            Self::Misaligned => 716,
            Self::LaunchFailed => 719,
        }
    }
}

/// A fault of an instruction. The warp adds the position.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) cause: Cause,
    pub(super) lane: Option<u32>,
    pub(super) text: String,
}

/// The result of executing an instruction. The error is boxed, because it is rare and large.
pub(super) type Done<T = ()> = Result<T, Box<Trouble>>;

impl Trouble {
    pub(super) fn new(cause: Cause, lane: u32, text: String) -> Box<Self> {
        Box::new(Self {
            cause,
            lane: Some(lane),
            text,
        })
    }

    /// Creates a fault of the whole warp.
    pub(super) fn of_warp(cause: Cause, text: String) -> Box<Self> {
        Box::new(Self {
            cause,
            lane: None,
            text,
        })
    }
}

/// Formats the lanes of a mask for messages.
pub(super) fn lanes_text(mask: u32) -> String {
    let mut text = String::new();
    let mut lane = 0;
    while lane < 32 {
        if mask >> lane & 1 == 0 {
            lane += 1;
            continue;
        }
        let first = lane;
        while lane < 32 && mask >> lane & 1 == 1 {
            lane += 1;
        }
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&first.to_string());
        if lane - first > 1 {
            text.push_str(&format!(" to {}", lane - 1));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_printed_as_ranges() {
        assert_eq!(lanes_text(0b1), "0");
        assert_eq!(lanes_text(0x8000_00f5), "0, 2, 4 to 7, 31");
        assert_eq!(lanes_text(u32::MAX), "0 to 31");
    }
}
