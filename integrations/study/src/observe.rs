//! What is measured in a run with Lion: lost and stuck elements, directions, and the noise of the gradients.

use crate::run::{Check, Directions, Rule};
use anyhow::{Context, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use candle_nn::VarMap;
use lion::backend::Planes;
use lion::tensor::BLOCK;
use lion::{Lion, StepArgs, quant};
use lion_candle::LionCandle;
use std::sync::PoisonError;

/// The betas of the runs that are measured.
const BETAS: (f32, f32) = {
    let (beta1, beta2) = Rule::Lion8.betas();
    (beta1 as f32, beta2 as f32)
};
/// The percentiles of the noise.
const PERCENTILES: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];

/// The variables of a map by name, in the order of the names.
pub(crate) fn variables(varmap: &VarMap) -> Vec<(String, Var)> {
    let map = varmap.data().lock().unwrap_or_else(PoisonError::into_inner);
    let mut named: Vec<_> = map
        .iter()
        .map(|(name, var)| (name.clone(), var.clone()))
        .collect();
    named.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    named
}

/// 32-bit momenta of the variables with an 8-bit state. They see the gradients of the run, and change nothing in it.
#[derive(Debug)]
pub(crate) struct Shadow(Vec<(String, Var, Vec<f32>)>);

impl Shadow {
    pub(crate) fn new(varmap: &VarMap, lion: &Lion) -> Result<Self> {
        let mut momenta = Vec::new();
        for (name, var) in variables(varmap) {
            if lion.info(lion.handle(&name)?)?.bits.get() == 8 {
                let zeros = vec![0.0; var.elem_count()];
                momenta.push((name, var, zeros));
            }
        }
        Ok(Shadow(momenta))
    }

    /// Moves the momenta as a step does.
    pub(crate) fn step(&mut self, gradients: &GradStore) -> Result<()> {
        for (name, var, momentum) in &mut self.0 {
            let gradient = floats(gradients.get(var).with_context(|| no_gradient(name))?)?;
            for (m, g) in momentum.iter_mut().zip(gradient) {
                *m = BETAS.1 * *m + (1.0 - BETAS.1) * g;
            }
        }
        Ok(())
    }

    /// Compares the directions of a step with those that it would have with these momenta.
    fn directions(&self, lion: &Lion, gradients: &GradStore) -> Result<Directions> {
        let (mut opposite, mut still, mut elements) = (0u64, 0u64, 0u64);
        for (name, var, momentum) in &self.0 {
            let gradient = floats(gradients.get(var).with_context(|| no_gradient(name))?)?;
            let state = momenta(lion, name)?;
            for ((m32, m8), g) in momentum.iter().zip(state).zip(gradient) {
                let direction = |m: f32| sign(BETAS.0 * m + (1.0 - BETAS.0) * g);
                let (exact, ours) = (direction(*m32), direction(m8));
                opposite += u64::from(exact * ours < 0);
                still += u64::from(exact != 0 && ours == 0);
                elements += 1;
            }
        }
        Ok(Directions {
            opposite: share(opposite, elements),
            still: share(still, elements),
        })
    }
}

/// Returns what a step with these gradients would lose.
pub(crate) fn check(
    optimizer: &mut LionCandle,
    step: usize,
    gradients: &GradStore,
    shadow: Option<&Shadow>,
) -> Result<Check> {
    let diagnosis = optimizer.diagnose(StepArgs::new(), gradients)?;
    let lion = optimizer.lion();
    let (mut all, mut eight) = (0, 0);
    let (mut lost, mut stuck, mut zero) = (0, 0, 0);
    for parameter in &diagnosis.parameters {
        all += parameter.elements;
        lost += parameter.losses.lost_updates;
        if lion.info(lion.handle(&parameter.name)?)?.bits.get() == 8 {
            eight += parameter.elements;
            stuck += parameter.losses.stuck_momenta;
            zero += parameter.losses.sign_differs;
        }
    }
    Ok(Check {
        step,
        stuck: share(stuck, eight),
        lost: share(lost, all),
        zero: share(zero, eight),
        directions: shadow
            .map(|it| it.directions(lion, gradients))
            .transpose()?,
        noise: None,
    })
}

/// The mean and the variance of gradients over minibatches, per element.
#[derive(Debug)]
pub(crate) struct Noise {
    sums: Vec<(String, Var, Vec<f64>, Vec<f64>)>,
    batches: f64,
}

impl Noise {
    pub(crate) fn new(varmap: &VarMap, lion: &Lion) -> Result<Self> {
        let zeros = |(name, var, momentum): (String, Var, Vec<f32>)| {
            let zeros = vec![0.0; momentum.len()];
            (name, var, zeros.clone(), zeros)
        };
        let Shadow(momenta) = Shadow::new(varmap, lion)?;
        Ok(Noise {
            sums: momenta.into_iter().map(zeros).collect(),
            batches: 0.0,
        })
    }

    /// Adds the gradients of a minibatch.
    pub(crate) fn add(&mut self, gradients: &GradStore) -> Result<()> {
        self.batches += 1.0;
        for (name, var, sum, squares) in &mut self.sums {
            let gradient = floats(gradients.get(var).with_context(|| no_gradient(name))?)?;
            for ((sum, squares), g) in sum.iter_mut().zip(squares).zip(gradient) {
                *sum += f64::from(g);
                *squares += f64::from(g) * f64::from(g);
            }
        }
        Ok(())
    }

    /// Returns percentiles over the blocks: the median standard deviation of the block over its largest momentum.
    pub(crate) fn of_blocks(&self, lion: &Lion) -> Result<[f64; 5]> {
        let mut ratios = Vec::new();
        for (name, _, sum, squares) in &self.sums {
            let deviation = sum.iter().zip(squares).map(|(sum, squares)| {
                let mean = sum / self.batches;
                (squares / self.batches - mean * mean).max(0.0).sqrt()
            });
            let deviation: Vec<f64> = deviation.collect();
            let state = momenta(lion, name)?;
            for (deviation, momentum) in deviation.chunks(BLOCK).zip(state.chunks(BLOCK)) {
                let largest = momentum.iter().fold(0.0f32, |top, m| top.max(m.abs()));
                if largest > 0.0 {
                    let mut deviation = deviation.to_vec();
                    ratios.push(percentile(&mut deviation, 0.5) / f64::from(largest));
                }
            }
        }
        Ok(PERCENTILES.map(|share| percentile(&mut ratios, share)))
    }
}

/// Returns the momenta of a parameter.
fn momenta(lion: &Lion, name: &str) -> Result<Vec<f32>> {
    match lion.export_state(lion.handle(name)?)?.planes {
        Planes::Blockwise8 { codes, absmax } => {
            let mut momenta = vec![0.0; codes.len()];
            quant::dequantize(&codes, &absmax, &mut momenta)?;
            Ok(momenta)
        }
        Planes::Momentum32 { momentum } => Ok(momentum),
        other => anyhow::bail!("`{name}` has an unknown state: {:?}", other.bits()),
    }
}

/// Multiplies the gradient of the first element of each block by a factor. Lion's direction does not depend on the
/// scale of an element, so with a 32-bit state, a power of 2 changes nothing.
pub(crate) fn add_outliers(varmap: &VarMap, gradients: &mut GradStore, gain: u32) -> Result<()> {
    for (_, var) in variables(varmap) {
        let Some(gradient) = gradients.get(&var) else {
            continue;
        };
        let mut values = floats(gradient)?;
        values
            .iter_mut()
            .step_by(BLOCK)
            .for_each(|g| *g *= gain as f32);
        let scaled = Tensor::from_vec(values, var.shape(), var.device())?;
        gradients.insert(&var, scaled.to_dtype(var.dtype())?);
    }
    Ok(())
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

fn share(count: u64, of: u64) -> f64 {
    count as f64 / of.max(1) as f64
}

fn sign(x: f32) -> i8 {
    i8::from(x > 0.0) - i8::from(x < 0.0)
}

fn no_gradient(name: &str) -> String {
    format!("`{name}` has no gradient")
}

/// Returns the value below which a share of the values lies. Returns 0 if there are none.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let index = (share * values.len().saturating_sub(1) as f64).round();
    values.get(index as usize).copied().unwrap_or(0.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use candle_core::Device;
    use candle_nn::{Init, Optimizer};
    use lion::Lion8bit;

    #[test]
    fn percentiles_are_values_of_the_list() {
        let mut values = [4.0, 1.0, 3.0, 2.0, 5.0];
        assert_eq!(percentile(&mut values, 0.5), 3.0);
        assert_eq!(percentile(&mut values, 0.95), 5.0);
        assert_eq!(percentile(&mut [], 0.5), 0.0);
    }

    /// Returns a variable `w` of two blocks, and its optimizer, whose momentum is the last gradient.
    fn optimizer() -> (VarMap, LionCandle) {
        let varmap = VarMap::new();
        varmap
            .get(2 * BLOCK, "w", Init::Const(0.0), DType::F32, &Device::Cpu)
            .unwrap();
        let builder = Lion8bit::builder().min_8bit_size(1).betas((0.0, 0.0));
        let optimizer = LionCandle::from_varmap(&varmap, builder).unwrap();
        (varmap, optimizer)
    }

    /// Returns a gradient with the same value in all elements.
    fn gradients(varmap: &VarMap, value: f32) -> GradStore {
        let var = &varmap.all_vars()[0];
        let mut store = var.sum_all().unwrap().backward().unwrap();
        let gradient = Tensor::full(value, var.shape(), &Device::Cpu).unwrap();
        store.insert(var, gradient);
        store
    }

    #[test]
    fn noise_is_a_deviation_over_the_largest_momentum() {
        let (varmap, mut optimizer) = optimizer();
        optimizer.step(&gradients(&varmap, 2.0)).unwrap();
        let mut noise = Noise::new(&varmap, optimizer.lion()).unwrap();
        for value in [0.5, 1.5, 0.5, 1.5] {
            noise.add(&gradients(&varmap, value)).unwrap();
        }
        assert_eq!(noise.of_blocks(optimizer.lion()).unwrap(), [0.25; 5]);
    }

    #[test]
    fn directions_are_those_of_the_exact_momentum() {
        let (varmap, mut optimizer) = optimizer();
        let mut shadow = Shadow::new(&varmap, optimizer.lion()).unwrap();
        let directions = |shadow: &Shadow, optimizer: &LionCandle, value| {
            let found = shadow.directions(optimizer.lion(), &gradients(&varmap, value));
            let found = found.unwrap();
            (found.opposite, found.still)
        };
        assert_eq!(directions(&shadow, &optimizer, 1.0), (0.0, 0.0));
        // The exact momentum is not 0, and that of the optimizer is.
        shadow.step(&gradients(&varmap, 1.0)).unwrap();
        assert_eq!(directions(&shadow, &optimizer, 0.0), (0.0, 1.0));
        // The two have different signs.
        optimizer.step(&gradients(&varmap, -2.0)).unwrap();
        assert_eq!(directions(&shadow, &optimizer, 0.0), (1.0, 0.0));
    }

    #[test]
    fn the_first_gradient_of_a_block_is_the_outlier() {
        let (varmap, _) = optimizer();
        let mut store = gradients(&varmap, 0.5);
        add_outliers(&varmap, &mut store, 16).unwrap();
        let gradient = floats(store.get(&varmap.all_vars()[0]).unwrap()).unwrap();
        let outliers = gradient.iter().enumerate().filter(|it| *it.1 != 0.5);
        let outliers: Vec<_> = outliers.map(|(index, &g)| (index, g)).collect();
        assert_eq!(outliers, [(0, 8.0), (BLOCK, 8.0)]);
    }
}
