//! `ndarray` arrays as parameters and gradients: any contiguous order is accepted, mismatched orders are rejected.
#![allow(clippy::unwrap_used)]

use lion::{Dtype, Error, Handle, Lion, ParamSpec, StepArgs, backend::Operand, bf16, update};
use ndarray::{Array1, Array2, Array3, ArrayD, ArrayView2, Axis, ShapeBuilder, arr2, s};

fn registered(n: usize, dtype: Dtype) -> (Lion, Handle) {
    let mut lion = Lion::builder().lr(1.0).build().unwrap();
    let handle = lion.register(ParamSpec::new("w", n, dtype)).unwrap();
    (lion, handle)
}

/// Returns gradients with different signs, so that mismatched elements change the result.
fn signs() -> Array2<f32> {
    arr2(&[[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
}

#[test]
fn arrays_and_views_of_any_contiguous_order_are_stepped() {
    let grad = signs();
    let expected = grad.mapv(|g| -g);

    let (mut lion, w) = registered(6, Dtype::F32);
    let mut p = Array2::<f32>::zeros((2, 3));
    lion.step([(w, &mut p, &grad)]).unwrap();
    assert_eq!(p, expected);

    let (mut lion, w) = registered(6, Dtype::F32);
    let mut p = Array2::<f32>::zeros((2, 3).f());
    let mut g = Array2::<f32>::zeros((2, 3).f());
    g.assign(&grad);
    lion.step([(w, p.view_mut(), g.view())]).unwrap();
    assert_eq!(p, expected);
    // A view with other axes may have other elements, so it is rejected.
    lion.step([(w, p.view_mut().reversed_axes(), g.t())])
        .unwrap_err();

    let (mut lion, w) = registered(6, Dtype::F32);
    let mut p = Array2::<f32>::zeros((2, 3));
    let mut g = grad.clone();
    g.invert_axis(Axis(1));
    p.invert_axis(Axis(1));
    let expected = g.mapv(|g| -g);
    lion.step([(w, &mut p, &g)]).unwrap();
    assert_eq!(p, expected);
}

#[test]
fn any_number_of_dimensions_and_slices_with_arrays_are_stepped() {
    let (mut lion, w) = registered(24, Dtype::Bf16);
    let mut p = Array3::from_elem((2, 3, 4), bf16::ZERO);
    let g = vec![1.0f32; 24];
    lion.step([update(w, &mut p, &g)]).unwrap();
    let g = ArrayD::from_elem(vec![2, 3, 4], 1.0f32);
    lion.step([update(w, &mut p, &g)]).unwrap();
    let g = Array1::from_elem(24, bf16::ONE);
    let slice = p.as_slice_mut().unwrap();
    lion.step([update(w, slice, g.view())]).unwrap();
    assert!(p.iter().all(|x| x.to_f32() == -3.0));
    // Whole rows of a row-major array are contiguous.
    let mut rows = Array2::<f32>::zeros((10, 3));
    let (mut lion, w) = registered(6, Dtype::F32);
    lion.step([(w, rows.slice_mut(s![4..6, ..]), signs().view())])
        .unwrap();
    assert_eq!(rows.sum(), -signs().sum());
    assert_eq!(rows[[4, 1]], 1.0);
}

#[test]
fn strided_view_is_rejected() {
    let (mut lion, w) = registered(6, Dtype::F32);
    let mut p = Array2::<f32>::zeros((2, 6));
    let gaps = p.slice_mut(s![.., ..;2]);
    let error = lion.step([(w, gaps, &signs())]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "parameter `w`: the parameter of shape [2, 3] has strides [6, 2], wanted a contiguous array"
    );
    let mut q = Array2::<f32>::zeros((2, 3));
    let g = Array2::<f32>::ones((4, 3));
    let error = lion.step([(w, &mut q, g.slice(s![..;2, ..]))]).unwrap_err();
    assert!(
        matches!(&error, Error::NotContiguous { operand: Operand::Gradient, strides, .. }
            if strides == &[6, 1]),
        "{error}"
    );
    assert_eq!((p.sum(), q.sum()), (0.0, 0.0));
}

/// A gradient in another order than its parameter has the right length but mismatched elements.
#[test]
fn mismatched_memory_orders_are_rejected() {
    let (mut lion, w) = registered(6, Dtype::F32);
    let mut p = Array2::<f32>::zeros((2, 3));
    let mut g = Array2::<f32>::zeros((2, 3).f());
    g.assign(&signs());
    let error = lion.step([(w, &mut p, &g)]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::OrderMismatch {
                operand: Operand::Gradient,
                ..
            }
        ),
        "{error}"
    );
    lion.step([(w, &mut p, &signs())]).unwrap();
    // The state is row-major now. A column-major parameter would be stepped with the
    // momenta of other elements.
    let mut turned = Array2::<f32>::zeros((2, 3).f());
    let error = lion.step([(w, &mut turned, &g)]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::OrderMismatch {
                operand: Operand::Parameter,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(turned.sum(), 0.0);
    assert_eq!(lion.info(w).unwrap().steps, 1);
    // A slice counts as row-major, and one axis has only one order.
    let flat: Vec<f32> = signs().into_iter().collect();
    lion.step_with(StepArgs::new().lr(0.5), [(w, &mut p, &flat)])
        .unwrap();
    let column = ArrayView2::from_shape((6, 1).f(), &flat).unwrap();
    lion.step([update(w, p.as_slice_mut().unwrap(), column)])
        .unwrap();
}

/// A gradient of another shape with the right length and order has mismatched elements.
#[test]
fn mismatched_shapes_are_rejected() {
    let (mut lion, w) = registered(6, Dtype::F32);
    let mut p = Array2::<f32>::zeros((2, 3));
    let g = Array2::<f32>::ones((3, 2));
    let error = lion.step([(w, &mut p, &g)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "parameter `w`: the gradient has the shape [3, 2], wanted [2, 3], the shape of the parameter"
    );
    let error = lion.step([(w, p.view_mut(), g.view())]).unwrap_err();
    assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
    let flat = Array1::<f32>::ones(6);
    let error = lion.step([(w, &mut p, &flat)]).unwrap_err();
    assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
    assert_eq!((p.sum(), lion.info(w).unwrap().steps), (0.0, 0));

    // Axes of length 1 do not change the order, and a slice has no shape.
    let g = Array3::<f32>::ones((1, 2, 3));
    lion.step([(w, &mut p, &g)]).unwrap();
    lion.step([(w, &mut p, &[1.0f32; 6])]).unwrap();
    let slice = p.as_slice_mut().unwrap();
    lion.step([(w, slice, &flat)]).unwrap();
    // The shape of a slice is compared if it is given.
    let param = lion::tensor::ParamMut::from(p.as_slice_mut().unwrap()).with_shape(&[2, 3]);
    let error = lion.step([(w, param, &flat)]).unwrap_err();
    assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
}
