//! A plain, element by element implementation of the specification. Backends are compared with it
//! where no trajectory is recorded.

use crate::Tensor;
use half_step::{narrow, widen};
use lion::arithmetic::philox::{PhiloxKey, Stream};
use lion::quant::{CODEBOOK, ZERO_CODE, position};
use lion::{
    Dtype,
    backend::{Bits, Planes},
    tensor::BLOCK,
};

/// Hyper-parameters of a reference step, as the specification names them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Learning rate.
    pub lr: f64,
    /// beta1 and beta2.
    pub betas: (f64, f64),
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Factor of all gradients.
    pub grad_scale: f64,
    /// If > 0, clips the norm of the update to this multiple of the norm of the parameter.
    pub max_unorm: f64,
    /// Whether elements with a gradient of 0 are skipped.
    pub skip_zeros: bool,
    /// Whether `bf16` parameters are rounded stochastically.
    pub stochastic_param: bool,
    /// Whether codes are rounded stochastically.
    pub stochastic_state: bool,
    /// Seed of the stochastic rounding.
    pub seed: u64,
}

/// Returns the state before the first step.
pub fn zero_state(bits: Bits, len: usize) -> Planes {
    match bits {
        Bits::ThirtyTwo => Planes::Momentum32 {
            momentum: vec![0.0; len],
        },
        Bits::Eight => Planes::Blockwise8 {
            codes: vec![ZERO_CODE; len],
            absmax: vec![0.0; len.div_ceil(BLOCK)],
        },
        other => unreachable!("the reference has no state of {other}"),
    }
}

/// Runs step number `step`, from 1, and returns the number of blocks that it skips.
///
/// # Panics
/// If the lengths differ.
pub fn reference_step(
    rule: &Rule,
    step: u64,
    param: &mut Tensor,
    grad: &Tensor,
    state: &mut Planes,
) -> u64 {
    let (p, g) = (widen(param), widen(grad));
    let m = momentum(state);
    assert!(p.len() == g.len() && p.len() == m.len());
    let lr = clipped_lr(rule, &p, &g, &m) as f32;
    let decay = (1.0 - rule.lr * rule.weight_decay) as f32;
    let key = PhiloxKey::new(rule.seed, step);
    let draws = |stream| {
        let mut draws = vec![0; p.len()];
        key.fill(stream, 0, &mut draws);
        draws
    };
    let (param_draws, state_draws) = (draws(Stream::Param), draws(Stream::State));
    let draw_param = rule.stochastic_param && param.dtype() == Dtype::Bf16;

    let mut skipped = 0;
    for (block, start) in (0..p.len()).step_by(BLOCK).enumerate() {
        let range = start..(start + BLOCK).min(p.len());
        let mut new: Vec<f32> = range
            .clone()
            .map(|i| new_momentum(rule, g[i], m[i]))
            .collect();
        if new.iter().any(|m| !m.is_finite()) {
            skipped += 1;
            continue;
        }
        for (i, new) in range.clone().zip(&mut new) {
            if rule.skip_zeros && g[i] == 0.0 {
                // The value is already of this type, so rounding it again does not change it.
                narrow(param, i, p[i], draw_param.then_some(param_draws[i]));
                *new = m[i];
                continue;
            }
            let c = direction(rule, g[i], m[i]);
            let step = if c > 0.0 {
                lr
            } else if c < 0.0 {
                -lr
            } else {
                0.0
            };
            let moved = (p[i] * decay) - step;
            narrow(param, i, moved, draw_param.then_some(param_draws[i]));
        }
        match state {
            Planes::Momentum32 { momentum } => momentum[range].copy_from_slice(&new),
            Planes::Blockwise8 { codes, absmax } => {
                let draws = rule.stochastic_state.then_some(&state_draws[range.clone()]);
                absmax[block] = quantize(&new, draws, &mut codes[range]);
            }
            _ => unreachable!("there are only two kinds of state"),
        }
    }
    skipped
}

/// Returns the norm of gradients, each with its name, and how many blocks are left out of it because they are not
/// finite.
///
/// The norm is the square root of the sum of all squares, in `f64`: blocks of 256 elements in eight lanes, the sums of
/// blocks added pair by pair and level by level, those of gradients from left to right, sorted by name.
pub fn reference_norm(gradients: &[(String, Vec<f32>)]) -> (f64, u64) {
    let mut sorted: Vec<_> = gradients.iter().collect();
    sorted.sort_by_key(|(name, _)| name.as_bytes());
    let (mut total, mut bad) = (0.0f64, 0);
    for (_, gradient) in sorted {
        let mut sums: Vec<f64> = Vec::new();
        for block in gradient.chunks(BLOCK) {
            if !block.iter().all(|g| g.is_finite()) {
                bad += 1;
                sums.push(0.0);
                continue;
            }
            let lane = |j: usize| {
                let of_lane = block.iter().skip(j).step_by(8);
                of_lane.fold(0.0, |sum, &g| sum + f64::from(g) * f64::from(g))
            };
            let l: Vec<f64> = (0..8).map(lane).collect();
            sums.push(((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7])));
        }
        while sums.len() > 1 {
            let pairs = sums.chunks(2);
            sums = pairs.map(|pair| pair.iter().sum()).collect();
        }
        total += sums.first().copied().unwrap_or(0.0);
    }
    (total.sqrt(), bad)
}

fn direction(rule: &Rule, g: f32, m: f32) -> f32 {
    let (beta1, one_minus) = (rule.betas.0 as f32, (1.0 - rule.betas.0) as f32);
    (beta1 * m) + (one_minus * (g * rule.grad_scale as f32))
}

fn new_momentum(rule: &Rule, g: f32, m: f32) -> f32 {
    if rule.skip_zeros && g == 0.0 {
        return m;
    }
    let (beta2, one_minus) = (rule.betas.1 as f32, (1.0 - rule.betas.1) as f32);
    (beta2 * m) + (one_minus * (g * rule.grad_scale as f32))
}

fn momentum(state: &Planes) -> Vec<f32> {
    match state {
        Planes::Momentum32 { momentum } => momentum.clone(),
        Planes::Blockwise8 { codes, absmax } => {
            let codes = codes.iter().enumerate();
            codes
                .map(|(i, &code)| CODEBOOK[usize::from(code)] * absmax[i / BLOCK])
                .collect()
        }
        _ => unreachable!("there are only two kinds of state"),
    }
}

fn quantize(m: &[f32], draws: Option<&[u16]>, codes: &mut [u8]) -> f32 {
    let top = m.iter().fold(0f32, |top, m| top.max(m.abs()));
    if top < f32::MIN_POSITIVE {
        codes.fill(ZERO_CODE);
        return 0.0;
    }
    let inverse = 1.0 / top;
    for (i, (&m, code)) in m.iter().zip(codes).enumerate() {
        let x = m * inverse;
        let at = position(x.abs());
        let k = match draws {
            None => at.round_ties_even(),
            Some(draws) => (at + f32::from(draws[i]) / 65_536.0).floor(),
        } as i32;
        *code = if x.is_sign_negative() {
            127 - k.min(127)
        } else {
            127 + k.min(128)
        } as u8;
    }
    top
}

fn clipped_lr(rule: &Rule, p: &[f32], g: &[f32], m: &[f32]) -> f64 {
    if rule.max_unorm <= 0.0 {
        return rule.lr;
    }
    let moves = g.iter().zip(m).filter(|&(&g, &m)| {
        let c = direction(rule, g, m);
        c.abs() > 0.0 && !(rule.skip_zeros && g == 0.0)
    });
    let norm = (moves.count() as f64).sqrt();
    let bound = rule.max_unorm * sum_squares(p).sqrt();
    if 0.0 < bound && bound < norm {
        rule.lr * bound / norm
    } else {
        rule.lr
    }
}

/// Sums in the order of the specification.
fn sum_squares(p: &[f32]) -> f64 {
    let block = |block: &[f32]| {
        let mut lane = [0.0f64; 8];
        for (i, &x) in block.iter().enumerate() {
            lane[i % 8] += f64::from(x) * f64::from(x);
        }
        ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]))
    };
    let mut sums: Vec<f64> = p.chunks(BLOCK).map(block).collect();
    while sums.len() > 1 {
        sums = sums.chunks(2).map(|pair| pair.iter().sum()).collect();
    }
    sums.first().copied().unwrap_or(0.0)
}

mod half_step {
    //! Tests the 16-bit formats against the crate `half`, and stochastic rounding by hand.

    use crate::Tensor;
    use lion::{bf16, f16};

    pub(super) fn widen(tensor: &Tensor) -> Vec<f32> {
        match tensor {
            Tensor::F32(x) => x.clone(),
            Tensor::F16(x) => x.iter().map(|x| x.to_f32()).collect(),
            Tensor::Bf16(x) => x.iter().map(|x| x.to_f32()).collect(),
        }
    }

    pub(super) fn narrow(tensor: &mut Tensor, i: usize, x: f32, draw: Option<u16>) {
        match (tensor, draw) {
            (Tensor::F32(to), _) => to[i] = x,
            (Tensor::F16(to), _) => to[i] = f16::from_f32(x),
            (Tensor::Bf16(to), Some(draw)) if x.is_finite() => {
                to[i] = bf16::from_bits((x.to_bits().wrapping_add(u32::from(draw)) >> 16) as u16);
            }
            (Tensor::Bf16(to), _) => to[i] = bf16::from_f32(x),
        }
    }
}
