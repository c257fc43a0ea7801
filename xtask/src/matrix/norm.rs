//! The norm of gradients of a case.

use super::case::Case;
use anyhow::Result;
use lion::cuda::Cuda;
use lion::{Dtype, Lion, ParamSpec, backend::Backend};
use lion_test_support::{Rng, Tensor, reference_norm};
use std::sync::Arc;

/// The difference between a backend and the reference.
pub(super) fn run_case(
    backend: impl Backend + 'static,
    cuda: Option<&Arc<Cuda>>,
    case: &Case,
    param: Dtype,
    grad: Dtype,
) -> Result<Option<String>> {
    let mut rng = Rng::new(case.rule.seed);
    let (_, start) = case.starts;
    let mut lion = Lion::builder().backend(backend).build()?;
    let mut handles = Vec::new();
    let mut tensors: Vec<Tensor> = Vec::new();
    let mut values = Vec::new();
    for (i, &len) in case.lengths.iter().enumerate() {
        let name = format!("p{i}");
        handles.push(lion.register(ParamSpec::new(&name, len, param))?);
        let tensor = case.grad(&mut rng, grad, start + len);
        let of_tensor = tensor.tail(start).bits();
        values.push((name, of_tensor.into_iter().map(|(_, x)| x).collect()));
        tensors.push(tensor);
    }
    let found = if let Some(cuda) = cuda {
        let arrays = tensors.iter().map(|tensor| cuda.array(tensor.slice()));
        let arrays = arrays.collect::<Result<Vec<_>, _>>()?;
        let gradients = handles.iter().zip(&arrays);
        let gradients = gradients.map(|(&handle, array)| (handle, array.slice(start..array.len())));
        lion.grad_norm(gradients)?
    } else {
        let gradients = handles.iter().zip(&tensors);
        let gradients = gradients.map(|(&handle, tensor)| (handle, tensor.from(start)));
        lion.grad_norm(gradients)?
    };
    let (norm, left_out) = reference_norm(&values);
    let counted: u64 = found.non_finite.iter().map(|it| it.skipped).sum();
    if counted != left_out {
        return Ok(Some(format!(
            "{counted} blocks left out of the norm, wanted {left_out}"
        )));
    }
    let (given, wanted) = (found.norm.to_bits(), norm.to_bits());
    Ok((given != wanted).then(|| {
        let found = found.norm;
        format!("the norm is {found:e} ({given:#018x}), wanted {norm:e} ({wanted:#018x})")
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::case::norm_cases;
    use lion::backend::{
        BackendError, Gradient, Outcome, State, StateRequest, SumSquares, TensorStep,
    };
    use lion::cpu::{Cpu, Isa};

    /// The scalar kernel, whose sums are four times as large where they are not 0.
    #[derive(Debug)]
    struct Wrong(Cpu);

    impl Backend for Wrong {
        fn name(&self) -> &str {
            "wrong"
        }

        fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
            self.0.allocate(request)
        }

        fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
            self.0.step(tensors)
        }

        fn count_non_finite(
            &self,
            tensors: &mut [TensorStep<'_>],
        ) -> Result<Vec<u64>, BackendError> {
            self.0.count_non_finite(tensors)
        }

        fn sum_squares(&self, gradients: &[Gradient<'_>]) -> Result<Vec<SumSquares>, BackendError> {
            let mut sums = self.0.sum_squares(gradients)?;
            for sum in &mut sums {
                sum.sum *= 4.0;
            }
            Ok(sums)
        }
    }

    #[test]
    fn wrong_norm_is_reported() {
        let scalar = Cpu::with_isa(Isa::Scalar).unwrap();
        let dtype = Dtype::F32;
        for case in norm_cases(dtype, dtype) {
            let right = run_case(scalar.clone(), None, &case, dtype, dtype);
            assert_eq!(right.unwrap(), None, "{}", case.name);
            let wrong = Wrong(scalar.clone());
            let wrong = run_case(wrong, None, &case, dtype, dtype).unwrap();
            assert_eq!(wrong.is_some(), case.name != "zero", "{}", case.name);
        }
    }
}
