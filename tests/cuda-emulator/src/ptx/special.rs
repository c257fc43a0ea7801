//! Names of the registers that the machine sets.

use super::ast::{Axis, Operand, Special};

/// Lanes of a warp: `WARP_SZ`.
const WARP_SIZE: i128 = 32;

/// The special register, or the constant, of this name.
pub(super) fn named(name: &str) -> Option<Operand> {
    if name == "WARP_SZ" {
        return Some(Operand::Integer(WARP_SIZE));
    }
    let special = match name.strip_prefix('%')? {
        "laneid" => Special::Laneid,
        "lanemask_eq" => Special::LanemaskEq,
        "lanemask_le" => Special::LanemaskLe,
        "lanemask_lt" => Special::LanemaskLt,
        "lanemask_ge" => Special::LanemaskGe,
        "lanemask_gt" => Special::LanemaskGt,
        of_axis => {
            let (of, axis) = of_axis.split_once('.')?;
            let axis = match axis {
                "x" => Axis::X,
                "y" => Axis::Y,
                "z" => Axis::Z,
                _ => return None,
            };
            match of {
                "tid" => Special::Tid(axis),
                "ntid" => Special::Ntid(axis),
                "ctaid" => Special::Ctaid(axis),
                "nctaid" => Special::Nctaid(axis),
                _ => return None,
            }
        }
    };
    Some(Operand::Special(special))
}
