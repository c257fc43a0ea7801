//! A checkpoint of the trainer's own: one structure with the parameters, a random generator and lion's records, which
//! one call of bincode writes.
//!
//! `cargo run --example 07-trainer-file --features bincode` prints
//!
//! ```text
//! saved 41176 bytes
//! resumed at step 10 with lr 0.01
//! same bits after 10 more steps: true
//! ```

use bincode::{Decode, Encode, config};
use lion::backend::StateRecord;
use lion::{Dtype, Handle, Lion, Overrides, ParamSpec};

/// The trainer's model, and the random generator that selects its data.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
struct Trainer {
    rng: u64,
    weight: Vec<f32>,
}

/// Everything that a run needs to continue. Lion's records check themselves when they are decoded.
#[derive(Encode, Decode)]
struct Saved {
    trainer: Trainer,
    defaults: Overrides,
    state: StateRecord,
}

impl Trainer {
    fn step(&mut self, lion: &mut Lion, w: Handle) -> Result<(), lion::Error> {
        let mut grad = self.weight.clone();
        for g in &mut grad {
            self.rng = self.rng.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            *g -= (self.rng >> 40) as f32 / (1 << 24) as f32;
        }
        lion.step([(w, &mut self.weight, &grad)])?;
        Ok(())
    }
}

fn begin(defaults: Overrides) -> Result<(Lion, Handle), lion::Error> {
    let mut lion = Lion::builder().overrides(defaults).build()?;
    let w = lion.register(ParamSpec::new("weight", 8192, Dtype::F32))?;
    Ok((lion, w))
}

fn main() -> anyhow::Result<()> {
    let defaults = Overrides::new().lr(0.01).optim_bits(8);
    let (mut lion, w) = begin(defaults.stochastic_state(true))?;
    let (rng, weight) = (1, vec![0.5; 8192]);
    let mut trainer = Trainer { rng, weight };
    for _ in 0..10 {
        trainer.step(&mut lion, w)?;
    }
    let saved = Saved {
        trainer: trainer.clone(),
        defaults: *lion.defaults(),
        state: lion.export_state(w)?,
    };
    let bytes = bincode::encode_to_vec(&saved, config::standard())?;
    println!("saved {} bytes", bytes.len());

    // In another process. The limit is one of bincode, for vectors of the trainer whose length is damaged.
    let limited = config::standard().with_limit::<1_000_000>();
    let (saved, _): (Saved, usize) = bincode::decode_from_slice(&bytes, limited)?;
    let (mut resumed, v) = begin(saved.defaults)?;
    resumed.import_state(v, &saved.state)?;
    let mut copy = saved.trainer;
    let (steps, lr) = (resumed.info(v)?.steps, resumed.lr());
    println!("resumed at step {steps} with lr {lr}");

    for _ in 0..10 {
        trainer.step(&mut lion, w)?;
        copy.step(&mut resumed, v)?;
    }
    println!("same bits after 10 more steps: {}", trainer == copy);
    Ok(())
}
