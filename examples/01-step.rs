//! One parameter: build an optimizer, register the parameter, step it along a schedule.
//!
//! `cargo run --example 01-step` prints
//!
//! ```text
//! step 0: weight[0] = 0.480
//! step 25: weight[0] = 0.200
//! step 50: weight[0] = 0.241
//! step 75: weight[0] = 0.250
//! step 100: weight[0] = 0.250
//! 8192 elements, 8320 bytes of state
//! ```

use lion::{Dtype, Lion8bit, ParamSpec, StepArgs};

fn main() -> Result<(), lion::Error> {
    // The trainer owns the parameter. The optimizer owns only the state: one byte per element, and four
    // more per block of 256.
    let mut weight = vec![0.5f32; 8192];
    let mut lion = Lion8bit::builder().build()?;
    let w = lion.register(ParamSpec::new("weight", weight.len(), Dtype::F32))?;

    for t in 0..=100 {
        // The gradient of sum((weight - 0.25)^2) / 2. A trainer takes it from its backward pass.
        let grad: Vec<f32> = weight.iter().map(|w| w - 0.25).collect();
        let lr = 0.02 * (1.0 - f64::from(t) / 100.0);
        lion.step_with(StepArgs::new().lr(lr), [(w, &mut weight, &grad)])?;
        if t % 25 == 0 {
            println!("step {t}: weight[0] = {:.3}", weight[0]);
        }
    }
    let info = lion.info(w)?;
    println!("{} elements, {} bytes of state", info.len, info.state_bytes);
    Ok(())
}
