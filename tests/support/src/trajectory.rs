//! A trajectory in the format of `write_case` in lion_spec.py: hyper-parameters, and the parameter,
//! gradient and state before each step.

use crate::{RecordFile, Tensor};
use anyhow::{Context, Result, bail, ensure};
use lion::{Dtype, Overrides, backend::Planes, tensor::BLOCK};
use std::path::Path;

/// A recorded run of one parameter.
#[derive(Clone, Debug)]
pub struct Trajectory {
    /// Hyper-parameters, the seed included.
    pub overrides: Overrides,
    /// Factor of every gradient.
    pub grad_scale: f64,
    /// Seed of stochastic rounding.
    pub seed: u64,
    /// Type of the parameter.
    pub param_dtype: Dtype,
    /// Type of the gradient.
    pub grad_dtype: Dtype,
    /// Bits of the state.
    pub bits: u32,
    /// The parameter before each step, and after the last.
    pub params: Vec<Tensor>,
    /// The gradient of each step.
    pub grads: Vec<Tensor>,
    /// The state before each step, and after the last.
    pub states: Vec<Planes>,
    /// Blocks skipped in each step.
    pub skipped: Vec<u64>,
}

fn dtype(file: &RecordFile, key: &str) -> Result<Dtype> {
    let name: String = file.meta(key)?;
    let found = Dtype::ALL.into_iter().find(|dtype| dtype.name() == name);
    found.with_context(|| format!("metadata `{key}` is `{name}`, wanted f32, f16 or bf16"))
}

impl Trajectory {
    /// Reads a trajectory.
    ///
    /// # Errors
    /// If the file cannot be read, or a metadata key or tensor is missing, invalid, or unknown.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_file(RecordFile::read(path)?)
    }

    /// Reads a trajectory from an open file.
    ///
    /// # Errors
    /// If a metadata key or tensor is missing, invalid, or unknown.
    pub fn from_file(file: RecordFile) -> Result<Self> {
        let steps: usize = file.meta("steps")?;
        let bits: u32 = file.meta("state")?;
        ensure!(
            bits == 8 || bits == 32,
            "metadata `state` is `{bits}`, wanted 8 or 32"
        );
        let seed = file.meta("seed")?;
        let (param_dtype, grad_dtype) = (dtype(&file, "param")?, dtype(&file, "grad")?);
        let stochastic_param: bool = file.meta("stochastic_param")?;
        let overrides = Overrides::new()
            .lr(file.meta("lr")?)
            .betas((file.meta("beta1")?, file.meta("beta2")?))
            .weight_decay(file.meta("weight_decay")?)
            .max_unorm(file.meta("max_unorm")?)
            .skip_zeros(file.meta("skip_zeros")?)
            // The specification ignores this option for f16, and the optimizer rejects it.
            .stochastic_param(stochastic_param && param_dtype != Dtype::F16)
            .stochastic_state(file.meta("stochastic_state")?)
            .seed(seed)
            .optim_bits(bits)
            .min_8bit_size(0);
        let skipped: String = file.meta("skipped")?;
        let skipped = skipped
            .split(',')
            .map(str::parse)
            .collect::<Result<Vec<u64>, _>>();
        let skipped = skipped.context("metadata `skipped` is not a list of numbers")?;
        ensure!(steps > 0, "metadata `steps` is 0, wanted at least one step");
        ensure!(
            skipped.len() == steps,
            "metadata `skipped` has {} numbers, wanted {steps}",
            skipped.len()
        );

        let params: Vec<_> = (0..=steps)
            .map(|t| file.tensor(&format!("p.{t}"), param_dtype))
            .collect::<Result<_>>()?;
        let grads: Vec<_> = (0..steps)
            .map(|t| file.tensor(&format!("g.{t}"), grad_dtype))
            .collect::<Result<_>>()?;
        let states = (0..=steps).map(|t| planes(&file, bits, t));
        let trajectory = Trajectory {
            overrides,
            grad_scale: file.meta("grad_scale")?,
            seed,
            param_dtype,
            grad_dtype,
            bits,
            params,
            grads,
            states: states.collect::<Result<_>>()?,
            skipped,
        };
        file.finish()?;
        trajectory.check_lengths()?;
        Ok(trajectory)
    }

    /// Returns the number of elements of the parameter.
    pub fn elements(&self) -> usize {
        self.params[0].len()
    }

    /// Returns the number of steps.
    pub fn steps(&self) -> usize {
        self.grads.len()
    }

    fn check_lengths(&self) -> Result<()> {
        let n = self.elements();
        let check = |plane: &str, t: usize, given: usize, wanted: usize| {
            if given != wanted {
                bail!("tensor `{plane}.{t}` has {given} elements, wanted {wanted}");
            }
            Ok(())
        };
        for (t, p) in self.params.iter().enumerate() {
            check("p", t, p.len(), n)?;
        }
        for (t, g) in self.grads.iter().enumerate() {
            check("g", t, g.len(), n)?;
        }
        for (t, planes) in self.states.iter().enumerate() {
            match planes {
                Planes::Momentum32 { momentum } => check("m", t, momentum.len(), n)?,
                Planes::Blockwise8 { codes, absmax } => {
                    check("c", t, codes.len(), n)?;
                    check("a", t, absmax.len(), n.div_ceil(BLOCK))?;
                }
                _ => bail!("a state of an unknown kind"),
            }
        }
        Ok(())
    }
}

fn planes(file: &RecordFile, bits: u32, t: usize) -> Result<Planes> {
    Ok(if bits == 8 {
        Planes::Blockwise8 {
            codes: file.bytes(&format!("c.{t}"))?,
            absmax: file.floats(&format!("a.{t}"))?,
        }
    } else {
        Planes::Momentum32 {
            momentum: file.floats(&format!("m.{t}"))?,
        }
    })
}
