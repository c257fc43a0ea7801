//! A model without layers: the loss is half the squared distance of each parameter to a goal.

use lion::{Dtype, Handle, Lion, ParamSpec, tensor::Update, update};
use std::collections::TryReserveError;

/// The tensors of one transformer block, and their shares of its parameters.
const SHARES: [(&str, usize); 4] = [("qkv", 3), ("out", 1), ("up", 4), ("down", 4)];

const BLOCKS: usize = 2;

#[derive(Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    value: Vec<f32>,
    gradient: Vec<f32>,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) tensors: Vec<Tensor>,
}

impl Model {
    /// Returns a model of about this number of parameters, with a small tensor that is not paged.
    pub(crate) fn new(parameters: usize) -> Result<Self, TryReserveError> {
        let share = parameters / (BLOCKS * SHARES.iter().map(|(_, share)| share).sum::<usize>());
        let tensor = |name: String, n: usize| -> Result<Tensor, TryReserveError> {
            Ok(Tensor {
                name,
                value: zeros(n)?,
                gradient: zeros(n)?,
            })
        };
        let mut tensors = Vec::new();
        for block in 0..BLOCKS {
            for (name, shares) in SHARES {
                tensors.push(tensor(format!("block{block}.{name}"), share * shares)?);
            }
        }
        tensors.push(tensor("norm".to_owned(), 1024)?);
        Ok(Model { tensors })
    }

    /// Registers the tensors in order.
    pub(crate) fn register(&self, lion: &mut Lion) -> Result<Vec<Handle>, lion::Error> {
        let specs = self
            .tensors
            .iter()
            .map(|tensor| ParamSpec::new(tensor.name.clone(), tensor.value.len(), Dtype::F32));
        specs.map(|spec| lion.register(spec)).collect()
    }

    /// Computes the gradients, and returns the mean distance to the goals.
    pub(crate) fn backward(&mut self) -> f32 {
        let (mut sum, mut count) = (0.0, 0);
        for tensor in &mut self.tensors {
            for (i, (w, g)) in tensor.value.iter().zip(&mut tensor.gradient).enumerate() {
                *g = w - goal(i);
                sum += f64::from(g.abs());
            }
            count += tensor.value.len();
        }
        (sum / count.max(1) as f64) as f32
    }

    /// Returns the updates of one step.
    pub(crate) fn updates<'a>(
        &'a mut self,
        handles: &'a [Handle],
    ) -> impl Iterator<Item = Update<'a>> {
        let tensors = self.tensors.iter_mut().zip(handles);
        tensors.map(|(tensor, &handle)| update(handle, &mut tensor.value, &tensor.gradient))
    }
}

/// Returns `n` zeros, or an error if the memory cannot be allocated.
fn zeros(n: usize) -> Result<Vec<f32>, TryReserveError> {
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(n)?;
    numbers.resize(n, 0.0);
    Ok(numbers)
}

/// Returns the goal of element `i`, in `[-0.5, 0.5)`.
fn goal(i: usize) -> f32 {
    (i * 37 % 101) as f32 / 101.0 - 0.5
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_model_beyond_the_memory_is_an_error() {
        assert!(Model::new(usize::MAX).is_err());
    }

    #[test]
    fn gradients_point_away_from_the_goal() {
        let mut model = Model::new(24_000).unwrap();
        assert_eq!(
            model.tensors.iter().map(|t| t.value.len()).sum::<usize>(),
            25_024
        );
        let distance = model.backward();
        // The goals are spread evenly over an interval of length 1 around 0.
        assert!((distance - 0.25).abs() < 0.01, "{distance}");
        assert_eq!(model.tensors[0].gradient[0], 0.5);
    }
}
