//! Names of special registers.

use super::ast::{Axis, Operand, Special};

/// The value of `WARP_SZ`: lanes per warp.
const WARP_SIZE: i128 = 32;

/// Returns the special register or constant with this name.
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
