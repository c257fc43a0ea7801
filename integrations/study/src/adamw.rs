//! AdamW with `f32` states, for parameters of both types.

use crate::observe::variables;
use crate::random::Random;
use crate::run::Params;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Optimizer, VarMap};
use lion::bf16;

/// The settings of [`AdamW`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) lr: f64,
    pub(crate) decay: f64,
    pub(crate) params: Params,
    /// The seed of stochastic rounding.
    pub(crate) seed: u64,
}

/// AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019), with betas of 0.9 and 0.999 and an
/// epsilon of 1e-8. candle's own has moments of the type of the parameter, which is too coarse for `bf16`.
///
/// Vectors, such as biases, do not decay.
#[derive(Debug)]
pub(crate) struct AdamW {
    config: Config,
    slots: Vec<Slot>,
    step: i32,
    random: Random,
}

#[derive(Debug)]
struct Slot {
    var: Var,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl AdamW {
    /// Returns an optimizer for the variables of a map, in the order of their names.
    pub(crate) fn from_varmap(varmap: &VarMap, config: Config) -> Result<Self> {
        let vars = variables(varmap).into_iter().map(|(_, var)| var);
        Self::new(vars.collect(), config)
    }
}

impl Optimizer for AdamW {
    type Config = Config;

    fn new(vars: Vec<Var>, config: Config) -> Result<Self> {
        let slot = |var: Var| Slot {
            first: vec![0.0; var.elem_count()],
            second: vec![0.0; var.elem_count()],
            var,
        };
        Ok(AdamW {
            config,
            slots: vars.into_iter().map(slot).collect(),
            step: 0,
            random: Random::new(config.seed, 3),
        })
    }

    fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.step += 1;
        let Config {
            lr, decay, params, ..
        } = self.config;
        let step_size = (lr / (1.0 - 0.9f64.powi(self.step))) as f32;
        let correction = (1.0 / (1.0 - 0.999f64.powi(self.step))) as f32;
        for slot in &mut self.slots {
            let Some(grad) = grads.get(&slot.var) else {
                continue;
            };
            let decay = match slot.var.rank() {
                0 | 1 => 1.0,
                _ => (1.0 - lr * decay) as f32,
            };
            let read =
                |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>();
            let (mut values, grad) = (read(&slot.var)?, read(grad)?);
            let moments = slot.first.iter_mut().zip(&mut slot.second);
            for ((p, g), (m, v)) in values.iter_mut().zip(grad).zip(moments) {
                *m = 0.9 * *m + (1.0 - 0.9) * g;
                *v = 0.999 * *v + (1.0 - 0.999) * g * g;
                *p = *p * decay - step_size * *m / ((*v * correction).sqrt() + 1e-8);
            }
            if params == Params::Bf16Stochastic {
                values
                    .iter_mut()
                    .for_each(|p| *p = stochastic(*p, &mut self.random));
            }
            let values = Tensor::from_vec(values, slot.var.shape(), &Device::Cpu)?;
            slot.var.set(&values.to_dtype(slot.var.dtype())?)?;
        }
        Ok(())
    }

    fn learning_rate(&self) -> f64 {
        self.config.lr
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.config.lr = lr;
    }
}

/// Returns one of the two `bf16` numbers around a finite number, each with a probability in proportion to its nearness.
fn stochastic(value: f32, random: &mut Random) -> f32 {
    let draw = random.below(1 << 16) as u32;
    bf16::from_bits((value.to_bits().wrapping_add(draw) >> 16) as u16).to_f32()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_nn::ParamsAdamW;

    #[test]
    fn it_steps_as_the_one_of_candle() {
        let start = Tensor::new(&[[0.5f32, -2.0], [1e-3, 0.0]], &Device::Cpu).unwrap();
        let (ours, theirs) = (
            Var::from_tensor(&start).unwrap(),
            Var::from_tensor(&start).unwrap(),
        );
        let config = Config {
            lr: 0.01,
            decay: 0.1,
            params: Params::F32,
            seed: 0,
        };
        let mut adamw = AdamW::new(vec![ours.clone()], config).unwrap();
        let params = ParamsAdamW {
            lr: 0.01,
            weight_decay: 0.1,
            ..ParamsAdamW::default()
        };
        let mut reference = candle_nn::AdamW::new(vec![theirs.clone()], params).unwrap();
        for _ in 0..20 {
            let loss = |var: &Var| {
                (var.as_tensor() - 0.3)
                    .unwrap()
                    .sqr()
                    .unwrap()
                    .sum_all()
                    .unwrap()
            };
            adamw.backward_step(&loss(&ours)).unwrap();
            reference.backward_step(&loss(&theirs)).unwrap();
        }
        let distance = (ours.as_tensor() - theirs.as_tensor())
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap();
        assert!(distance.to_scalar::<f32>().unwrap() < 1e-5);
        let moved = (ours.as_tensor() - &start)
            .unwrap()
            .abs()
            .unwrap()
            .min_all()
            .unwrap();
        assert!(moved.to_scalar::<f32>().unwrap() > 0.1);
    }

    #[test]
    fn stochastic_rounding_keeps_the_mean() {
        let mut random = Random::new(0, 0);
        let value = -1.0 - 1.0 / 512.0; // a quarter of the way from -1 to its neighbour
        let draws: Vec<f32> = (0..10_000)
            .map(|_| stochastic(value, &mut random))
            .collect();
        assert!(
            draws
                .iter()
                .all(|&draw| draw == -1.0 || draw == -1.0 - 1.0 / 128.0)
        );
        let mean = draws.iter().sum::<f32>() / draws.len() as f32;
        assert!((mean - value).abs() < 2e-4, "{mean}");
    }
}
