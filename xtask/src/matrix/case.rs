//! Cases of the matrix: parameters with lengths, offsets and gradients, and the options of a step.

use lion::{Dtype, Overrides, backend::Bits};
use lion_test_support::{Rng, Rule, Tensor};

/// Steps per case.
pub(super) const STEPS: u64 = 3;

/// Parameters that are stepped together with the same hyper-parameters.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) rule: Rule,
    pub(super) lengths: Vec<usize>,
    /// Offsets of the parameter and the gradient in their arrays, in elements.
    pub(super) starts: (usize, usize),
    /// The kind of the gradients.
    special: Special,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    None,
    /// All gradients are 0, with either sign.
    Zero,
    /// Gradients whose products are subnormal.
    Subnormal,
    /// Some gradients are infinite.
    Infinite,
    /// Some gradients are NaN.
    NotANumber,
    /// One gradient in three is 0.
    Sparse,
}

const PLAIN: Rule = Rule {
    lr: 1e-3,
    betas: (0.9, 0.99),
    weight_decay: 0.0,
    grad_scale: 1.0,
    max_unorm: 0.0,
    skip_zeros: false,
    stochastic_param: false,
    stochastic_state: false,
    seed: 0x0123_4567_89AB_CDEF,
};

/// Lengths around one block, and around the eight blocks that a warp of the GPU processes.
const LENGTHS: [usize; 10] = [0, 1, 255, 256, 257, 511, 2047, 2048, 2049, 4999];

impl Case {
    fn new(name: &'static str, rule: Rule, lengths: impl Into<Vec<usize>>) -> Self {
        Case {
            name,
            rule,
            lengths: lengths.into(),
            starts: (0, 0),
            special: Special::None,
        }
    }

    fn special(name: &'static str, special: Special) -> Self {
        Case {
            special,
            ..Case::new(name, PLAIN, [700, 2304])
        }
    }

    /// Returns the initial values of one parameter.
    pub(super) fn param(&self, rng: &mut Rng, dtype: Dtype, len: usize) -> Tensor {
        Tensor::from_f32(dtype, &rng.spread(len, 4.0))
    }

    /// Returns the gradient of one step.
    pub(super) fn grad(&self, rng: &mut Rng, dtype: Dtype, len: usize) -> Tensor {
        let mut values = rng.spread(len, 6.0);
        match self.special {
            Special::None => {}
            Special::Zero => values.iter_mut().for_each(|x| *x *= 0.0),
            Special::Subnormal => values.iter_mut().for_each(|x| *x *= 1e-37),
            Special::Infinite => poke(&mut values, rng, &[f32::INFINITY, f32::NEG_INFINITY]),
            Special::NotANumber => poke(&mut values, rng, &[f32::NAN, -f32::NAN]),
            Special::Sparse => values.iter_mut().step_by(3).for_each(|x| *x *= 0.0),
        }
        Tensor::from_f32(dtype, &values)
    }

    /// Returns the hyper-parameters of one parameter.
    pub(super) fn overrides(&self, bits: Bits) -> Overrides {
        let rule = &self.rule;
        Overrides::new()
            .optim_bits(bits.get())
            .min_8bit_size(0)
            .lr(rule.lr)
            .betas(rule.betas)
            .weight_decay(rule.weight_decay)
            .max_unorm(rule.max_unorm)
            .skip_zeros(rule.skip_zeros)
            .stochastic_param(rule.stochastic_param)
            .stochastic_state(rule.stochastic_state)
            .seed(rule.seed)
    }
}

/// Overwrites one value in about 500 with one of the values in `with`.
fn poke(values: &mut [f32], rng: &mut Rng, with: &[f32]) {
    for part in values.chunks_mut(500) {
        let at = rng.below(part.len());
        part[at] = with[rng.below(with.len())];
    }
}

/// Returns the cases for the norm of gradients, which no option of a step changes.
pub(super) fn norm_cases(param: Dtype, grad: Dtype) -> Vec<Case> {
    let mut cases = cases(Bits::ThirtyTwo, param, grad);
    cases.retain(|case| case.rule == PLAIN);
    cases
}

/// Returns the cases for a state width and the types of parameter and gradient.
pub(super) fn cases(bits: Bits, param: Dtype, grad: Dtype) -> Vec<Case> {
    let mut cases = vec![
        Case::new("lengths", PLAIN, LENGTHS),
        Case::new(
            "decay",
            Rule {
                betas: (0.95, 0.98),
                weight_decay: 0.3,
                ..PLAIN
            },
            [769],
        ),
        Case::new(
            "grad_scale",
            Rule {
                grad_scale: 0.37,
                ..PLAIN
            },
            [769],
        ),
        Case {
            special: Special::Sparse,
            ..Case::new(
                "skip_zeros",
                Rule {
                    skip_zeros: true,
                    weight_decay: 0.1,
                    ..PLAIN
                },
                [769],
            )
        },
        Case::new(
            "max_unorm",
            Rule {
                lr: 1e-2,
                max_unorm: 0.02,
                weight_decay: 0.1,
                ..PLAIN
            },
            [1, 257, 2048, 9000],
        ),
        Case {
            starts: (1, 3),
            ..Case::new("misaligned", PLAIN, [300, 2049])
        },
        Case::special("zero", Special::Zero),
        Case::special("subnormal", Special::Subnormal),
        Case::special("infinite", Special::Infinite),
        Case::special("nan", Special::NotANumber),
        Case::new("100 tensors", PLAIN, (0..100).collect::<Vec<_>>()),
    ];
    let (draw_param, draw_state) = (param == Dtype::Bf16, bits == Bits::Eight);
    if draw_param || draw_state {
        let rule = Rule {
            stochastic_param: draw_param,
            stochastic_state: draw_state,
            ..PLAIN
        };
        cases.push(Case::new("stochastic", rule, [257, 2100]));
    }
    cases.push(Case {
        special: Special::Sparse,
        starts: (3, 2),
        ..Case::new(
            "all options",
            Rule {
                betas: (0.8, 0.9),
                weight_decay: 0.2,
                grad_scale: -0.5,
                max_unorm: 0.05,
                skip_zeros: true,
                stochastic_param: draw_param,
                stochastic_state: draw_state,
                ..PLAIN
            },
            [1000, 2500],
        )
    });
    if param == grad && param != Dtype::F16 {
        let lengths: Vec<_> = (0..10_000).map(|i| 1 + i % 7).collect();
        cases.push(Case::new("10,000 tensors", PLAIN, lengths));
    }
    cases
}
