//! A random set of parameters with gradients, for comparing two ways of stepping it.

use crate::{Rng, Tensor};
use lion::{
    Dtype, Error, Handle, Lion, Overrides, ParamSpec, StepArgs,
    backend::{Backend, Planes},
    update,
};

/// One parameter of a model.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Its overrides.
    pub overrides: Overrides,
    /// Its elements.
    pub value: Tensor,
}

/// Parameters with different lengths, types, states and options.
#[derive(Clone, Debug)]
pub struct Model {
    /// The parameters.
    pub params: Vec<Param>,
}

/// All bits of a run's result: parameter and state, by name.
pub type Snapshot = Vec<(String, Vec<u32>, Planes)>;

impl Model {
    /// Returns `count` random parameters of at most `longest` elements.
    pub fn random(rng: &mut Rng, count: usize, longest: usize) -> Self {
        let param = |i| {
            let n = match rng.below(6) {
                0 => rng.below(3),
                1 => 255 + rng.below(3),
                _ => rng.below(longest + 1),
            };
            let overrides = Overrides::new()
                .optim_bits(if rng.below(3) == 0 { 32 } else { 8 })
                .min_8bit_size(rng.below(2) * 300)
                .max_unorm(if rng.below(3) == 0 { 0.01 } else { 0.0 })
                .skip_zeros(rng.below(3) == 0)
                .stochastic_param(rng.below(2) == 0)
                .stochastic_state(rng.below(2) == 0);
            let values = rng.spread(n, 4.0);
            let dtype = Dtype::ALL[rng.below(3)];
            Param {
                name: format!("layer{i}.weight"),
                overrides: match dtype {
                    Dtype::F16 => overrides.stochastic_param(false),
                    _ => overrides,
                },
                value: Tensor::from_f32(dtype, &values),
            }
        };
        Model {
            params: (0..count).map(param).collect(),
        }
    }

    /// Returns a gradient for each parameter. Magnitudes span eight decades, and some values are
    /// not finite.
    pub fn gradients(&self, rng: &mut Rng) -> Vec<Tensor> {
        let gradient = |param: &Param| {
            let mut values = rng.spread(param.value.len(), 8.0);
            if !values.is_empty() && rng.below(5) == 0 {
                let at = rng.below(values.len());
                values[at] = [f32::INFINITY, f32::NAN, -f32::NAN][rng.below(3)];
            }
            Tensor::from_f32(Dtype::ALL[rng.below(3)], &values)
        };
        self.params.iter().map(gradient).collect()
    }

    /// Returns an optimizer with all parameters registered, in the order given by `order`. The
    /// handles are in the order of the parameters.
    ///
    /// # Errors
    /// The error of the registration.
    pub fn register(
        &self,
        backend: impl Backend + 'static,
        order: &[usize],
    ) -> Result<(Lion, Vec<Handle>), Error> {
        let builder = Lion::builder()
            .lr(1e-2)
            .betas((0.9, 0.95))
            .weight_decay(0.1);
        let mut lion = builder.seed(7).backend(backend).build()?;
        for &i in order {
            let Param {
                name,
                overrides,
                value,
            } = &self.params[i];
            let spec = ParamSpec::new(name, value.len(), value.dtype());
            lion.register(spec.overrides(*overrides))?;
        }
        let handles = self.params.iter().map(|param| lion.handle(&param.name));
        let handles = handles.collect::<Result<_, _>>()?;
        Ok((lion, handles))
    }

    /// Steps the parameters `subset`, in that order.
    ///
    /// # Errors
    /// The error of the step.
    pub fn step(
        &mut self,
        lion: &mut Lion,
        handles: &[Handle],
        grads: &[Tensor],
        subset: &[usize],
    ) -> Result<u64, Error> {
        let mut params: Vec<Option<&mut Param>> = self.params.iter_mut().map(Some).collect();
        let updates = subset.iter().filter_map(|&i| {
            let param = params[i].take()?;
            Some(update(
                handles[i],
                param.value.slice_mut(),
                grads[i].slice(),
            ))
        });
        let args = StepArgs::new().grad_scale(0.5);
        Ok(lion.step_with(args, updates)?.skipped_blocks())
    }

    /// Returns all bits of parameters and states.
    ///
    /// # Errors
    /// The error of the export.
    pub fn snapshot(&self, lion: &Lion) -> Result<Snapshot, Error> {
        let all = self.params.iter().map(|param| {
            let record = lion.export_state(lion.handle(&param.name)?)?;
            let bits = param.value.bits().into_iter().map(|(bits, _)| bits);
            Ok((param.name.clone(), bits.collect(), record.planes))
        });
        all.collect()
    }
}
