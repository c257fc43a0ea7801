//! `ndarray` arrays as parameters and gradients: rows, columns and views, in place.
//!
//! `cargo run --example 03-ndarray` prints
//!
//! ```text
//! [[1, 1, 0.75],
//!  [1, 1, 1]]
//! [[-0.25, -0.25],
//!  [-0.25, -0.25],
//!  [0, 0]]
//! row-major gradient of a column-major parameter: refused
//! ```

use lion::{Dtype, Lion, ParamSpec};
use ndarray::{Array2, ShapeBuilder, s};

fn main() -> Result<(), lion::Error> {
    let mut lion = Lion::builder().lr(0.25).build()?;
    let w = lion.register(ParamSpec::new("weight", 6, Dtype::F32))?;
    let e = lion.register(ParamSpec::new("embedding", 4, Dtype::F32))?;

    // An array in any contiguous memory order is stepped in place.
    let mut weight = Array2::<f32>::ones((2, 3).f());
    let mut grad = Array2::<f32>::zeros((2, 3).f());
    grad[[0, 2]] = 1.0;
    lion.step([(w, &mut weight, &grad)])?;
    println!("{weight}");

    // A view is too, here the first two rows of an array.
    let mut table = Array2::<f32>::zeros((3, 2));
    let ones = Array2::<f32>::ones((2, 2));
    lion.step([(e, table.slice_mut(s![..2, ..]), ones.view())])?;
    println!("{table}");

    // Parameter and gradient must have the same shape and memory order. Otherwise the step returns an
    // error and changes nothing.
    let row_major = Array2::<f32>::ones((2, 3));
    let refused = lion.step([(w, &mut weight, &row_major)]).is_err();
    let outcome = if refused { "refused" } else { "stepped" };
    println!("row-major gradient of a column-major parameter: {outcome}");
    Ok(())
}
