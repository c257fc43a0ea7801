//! Groups, overrides of one parameter, a schedule and clipping.
//!
//! `cargo run --example 02-groups` prints
//!
//! ```text
//! norm of the gradients: 64.25
//! body: 8 bits, weight decay 0.1, lr times 1
//! norm: 32 bits, weight decay 0, lr times 1
//! head: 32 bits, weight decay 0.1, lr times 0.5
//! body 0.9396, norm 0.9450, head 0.9698
//! ```

use lion::{Dtype, Lion8bit, Overrides, ParamSpec, StepArgs, update};

fn main() -> Result<(), lion::Error> {
    // Parameters join this group by name, and the next one if their specification says so.
    let no_decay = Overrides::new().weight_decay(0.0);
    let mut lion = Lion8bit::builder()
        .weight_decay(0.1)
        .group("no_decay", no_decay, |name| name.ends_with("norm"))
        .build()?;
    lion.add_group("head", Overrides::new().lr_multiplier(0.5))?;

    // A setting comes from the narrowest scope that has it: defaults < group < parameter < step.
    let full = Overrides::new().optim_bits(32);
    let body = lion.register(ParamSpec::new("body", 8192, Dtype::F32))?;
    let norm = lion.register(ParamSpec::new("norm", 128, Dtype::F32))?;
    let head = ParamSpec::new("head", 8192, Dtype::F32).group("head");
    let head = lion.register(head.overrides(full))?;

    let (mut body_w, mut norm_w, mut head_w) = (vec![1.0f32; 8192], [1.0f32; 128], vec![1.0; 8192]);
    let (body_g, norm_g, head_g) = (vec![0.5f32; 8192], [0.5f32; 128], vec![0.5f32; 8192]);
    for t in 0..10 {
        // `lr` applies to every parameter of this step; multipliers of groups still apply. Gradients
        // are clipped by their norm, taken over all parameters of the step.
        let lr = 1e-2 * (1.0 - f64::from(t) / 10.0);
        let args = StepArgs::new().lr(lr).max_grad_norm(1.0);
        let updates = [
            update(body, &mut body_w, &body_g),
            update(norm, &mut norm_w, &norm_g),
            update(head, &mut head_w, &head_g),
        ];
        let report = lion.step_with(args, updates)?;
        if t == 0 {
            println!(
                "norm of the gradients: {:.2}",
                report.grad_norm.unwrap_or(f64::NAN)
            );
        }
    }
    for info in lion.parameters() {
        let (name, bits, decay) = (info.name, info.bits, info.hyper.weight_decay);
        println!(
            "{name}: {bits}, weight decay {decay}, lr times {}",
            info.hyper.lr_multiplier
        );
    }
    println!(
        "body {:.4}, norm {:.4}, head {:.4}",
        body_w[0], norm_w[0], head_w[0]
    );
    Ok(())
}
