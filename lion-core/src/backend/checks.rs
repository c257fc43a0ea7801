//! The checks of a record that do not depend on the parameter that takes it.

use super::Planes;
use crate::MemoryOrder;
use lion_float_mode::in_default_mode;

/// The maximum step count of a record. No run reaches it, and counting further does not overflow.
pub(crate) const MAX_STEPS: u64 = 1 << 62;

/// A part of a record that no step produces, or that does not agree with the others.
#[derive(Debug)]
pub(crate) struct Mismatch {
    /// The field or the plane.
    pub(crate) part: &'static str,
    pub(crate) given: String,
    pub(crate) wanted: String,
}

impl Mismatch {
    pub(crate) fn new(part: &'static str, given: impl ToString, wanted: impl ToString) -> Self {
        Mismatch {
            part,
            given: given.to_string(),
            wanted: wanted.to_string(),
        }
    }
}

/// Checks a step count, and that a memory order is one of `len` elements.
pub(crate) fn check_progress(
    steps: u64,
    order: Option<&MemoryOrder>,
    len: usize,
) -> Result<(), Mismatch> {
    if steps > MAX_STEPS {
        let wanted = format!("{MAX_STEPS} at most");
        return Err(Mismatch::new("steps", steps, wanted));
    }
    match order {
        Some(order) if !order.is_order_of(len) => {
            let wanted = format!("a contiguous order of {len} elements");
            Err(Mismatch::new("order", order, wanted))
        }
        _ => Ok(()),
    }
}

impl Planes {
    /// Checks that all floats are finite, and that no absmax is negative.
    pub(crate) fn check_values(&self) -> Result<(), Mismatch> {
        let (plane, floats, lowest) = match self {
            Planes::Momentum32 { momentum } => ("momentum", momentum, f32::MIN),
            Planes::Blockwise8 { absmax, .. } => ("absmax", absmax, 0.0),
        };
        // Finite, and at least `lowest`. In another mode, a negative subnormal number may compare as zero.
        let valid = |x: &f32| (lowest..=f32::MAX).contains(x);
        match in_default_mode(|| floats.iter().position(|x| !valid(x))) {
            Some(at) => {
                let given = format!("{} at index {at}", floats[at]);
                let wanted = "finite values, and no negative absmax";
                Err(Mismatch::new(plane, given, wanted))
            }
            None => Ok(()),
        }
    }
}
