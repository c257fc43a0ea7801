//! Steps one parameter twice on the calling thread. `cycles.py` counts the instructions of the second step.

use anyhow::{Context, Result, bail};
use lion::cpu::Cpu;
use lion::{Dtype, Lion, Overrides, ParamSpec, bf16, update};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bits, dtype, elements, rounding] = &arguments[..] else {
        bail!("usage: step 8|32 f32|bf16 ELEMENTS nearest|stochastic");
    };
    let elements = elements.parse().context("ELEMENTS")?;
    let overrides = Overrides::new()
        .optim_bits(bits.parse().context("8 or 32")?)
        .min_8bit_size(0)
        .stochastic_state(rounding == "stochastic");
    let mut lion = Lion::builder()
        .backend(Cpu::new()?)
        .overrides(overrides)
        .build()?;
    let values = (0..elements).map(|i: usize| ((i * 7919 % 1009) as f32 - 504.0) * 1e-3);
    if dtype == "f32" {
        let handle = lion.register(ParamSpec::new("w", elements, Dtype::F32))?;
        let grad: Vec<f32> = values.collect();
        let mut param = grad.clone();
        for _ in 0..2 {
            lion.step([update(handle, param.as_mut_slice(), grad.as_slice())])?;
        }
    } else {
        let handle = lion.register(ParamSpec::new("w", elements, Dtype::Bf16))?;
        let grad: Vec<bf16> = values.map(bf16::from_f32).collect();
        let mut param = grad.clone();
        for _ in 0..2 {
            lion.step([update(handle, param.as_mut_slice(), grad.as_slice())])?;
        }
    }
    Ok(())
}
