//! The step of a whole block in plain loops that the compiler vectorizes for the baseline of the target, SSE2
//! among them.
//!
//! It is for blocks of 256 elements with a new momentum that is surely finite. `step32` and `step8` are for steps without
//! `skip_zeros` and stochastic rounding. Others go to [`scalar::step_block`](super::scalar::step_block), which returns
//! the same bits. The arrays have a constant length, so there is no remainder loop. Each step is a function whose
//! arguments do not alias, as the compiler needs for vectorization.

use half::{bf16, f16};
use lion_core::update::StepConstants;
use lion_core::{BLOCK, Element};
use lion_quant::{CODEBOOK, quantize_within};
use std::array;

/// If the magnitudes of momentum and scaled gradient are at most this, the new momentum is finite.
pub(super) const BOUND: f32 = f32::from_bits((127 + 126) << 23); // 2^126

/// Returns the bits of the largest gradient whose scaled magnitude is at most [`BOUND`].
pub(super) fn gradient_bound(grad_scale: f32) -> u32 {
    let scale = f64::from(grad_scale.abs());
    // Slightly less, so that rounding does not cross the bound.
    let bound = f64::from(BOUND) * (1.0 - 1e-6) / scale;
    // If the scale is 0, the quotient is infinite, and every finite gradient is allowed.
    (bound.min(f64::from(f32::MAX)) as f32).to_bits()
}

/// The bits of the codewords by code.
static CODEWORDS: [u32; 256] = {
    let mut bits = [0; 256];
    let mut code = 0;
    while code < 256 {
        bits[code] = CODEBOOK[code].to_bits();
        code += 1;
    }
    bits
};

/// An element type whose magnitudes are compared with a bound.
pub(super) trait Bounded: Element {
    /// Returns the bits, as `f32`, of a number that no magnitude exceeds: the bitwise or of all.
    fn upper_bound(block: &[Self; BLOCK]) -> u32;

    /// Returns whether the bits of all magnitudes, as `f32`, are at most `bound`.
    #[inline(always)]
    fn is_within(block: &[Self; BLOCK], bound: u32) -> bool {
        Self::upper_bound(block) <= bound
            || block
                .iter()
                .all(|x| x.widen().to_bits() & 0x7FFF_FFFF <= bound)
    }
}

impl Bounded for f32 {
    #[inline(always)]
    fn upper_bound(block: &[f32; BLOCK]) -> u32 {
        block.iter().fold(0, |bits, x| bits | x.to_bits()) & 0x7FFF_FFFF
    }
}

impl Bounded for f16 {
    #[inline(always)]
    fn upper_bound(block: &[f16; BLOCK]) -> u32 {
        let bits = block.iter().fold(0, |bits, x| bits | x.to_bits());
        f16::from_bits(bits & 0x7FFF).widen().to_bits()
    }
}

impl Bounded for bf16 {
    #[inline(always)]
    fn upper_bound(block: &[bf16; BLOCK]) -> u32 {
        let bits = block.iter().fold(0, |bits, x| bits | x.to_bits());
        u32::from(bits & 0x7FFF) << 16
    }
}

/// Nonzero momenta below this are small: in the next steps, their products with the betas may be subnormal.
const SMALL: f32 = f32::from_bits((127 - 118) << 23); // 2^-118

/// Finds blocks with small momenta in a run.
///
/// A test of all momenta would make steps in the cache slower. So an eighth of every fourth block is tested, each
/// eighth in turn, until a small momentum is found. From then on, all blocks of the run are tested in full. A block
/// that is missed is stepped in the ordinary way, which returns the same bits more slowly.
#[derive(Default)]
pub(super) struct SmallMomenta {
    blocks: usize,
    are_likely: bool,
}

impl SmallMomenta {
    /// Returns whether the next block is known to have a small momentum.
    #[inline(always)]
    pub(super) fn are_in(&mut self, m: &[f32; BLOCK]) -> bool {
        if self.blocks.is_multiple_of(4) {
            let (eighths, _) = m.as_chunks::<{ BLOCK / 8 }>();
            self.are_likely |= any_small(&eighths[self.blocks / 4 % 8]);
        }
        self.blocks += 1;
        self.are_likely && any_small(m)
    }
}

#[inline(always)]
fn any_small<const N: usize>(m: &[f32; N]) -> bool {
    // Without the sign, and 0 as the largest number.
    let order = |x: f32| (x.to_bits() << 1).wrapping_sub(1);
    m.iter()
        .fold(false, |any, &x| any | (order(x) < order(SMALL)))
}

/// A momentum that is multiplied without a subnormal operand or result, which take over 100 cycles on some CPUs.
#[derive(Clone, Copy)]
struct Factor {
    /// The momentum, or 0 with its sign if its magnitude is below 2^-125.
    large: f32,
    /// The magnitude in units of the smallest subnormal if it is below 2^-125, or 0.
    units: f64,
}

impl Factor {
    #[inline(always)]
    fn new(m: f32) -> Self {
        let magnitude = m.to_bits() & 0x7FFF_FFFF;
        // The bits of a number with the two lowest exponents are its magnitude in those units.
        let units = magnitude & u32::from(magnitude < 1 << 24).wrapping_neg();
        Factor {
            large: f32::from_bits(m.to_bits() ^ units),
            units: f64::from(units as i32),
        }
    }

    /// Returns the product with a number from 0 to 1.
    ///
    /// The product in units has 48 bits at most, so it is exact in `f64`. The addition of 2^52 rounds it to an integer,
    /// half to even. The integer is less than 2^24, so it is the bits of the product in `f32`.
    #[inline(always)]
    fn times(self, beta: f32) -> f32 {
        const INTEGERS: f64 = (1u64 << 52) as f64;
        let units = (self.units * f64::from(beta) + INTEGERS).to_bits() as u32;
        f32::from_bits((beta * self.large).to_bits() | units)
    }
}

/// Steps a block with a 32-bit state, some of whose momenta are small. Returns the same bits as
/// [`step_block`](super::scalar::step_block).
///
/// Sums are not treated: CPUs add subnormal numbers in a few cycles at most.
#[inline(always)]
pub(super) fn step32_small<P: Element, G: Element>(
    c: &StepConstants,
    p: &mut [P; BLOCK],
    g: &[G; BLOCK],
    m: &mut [f32; BLOCK],
    draws: Option<&[u16; BLOCK]>,
) {
    let elements = p.iter_mut().zip(g).zip(m);
    match draws {
        None => {
            for ((p, g), m) in elements {
                *p = P::narrow(step_small(c, p.widen(), g.widen(), m));
            }
        }
        Some(draws) => {
            for (((p, g), m), &draw) in elements.zip(draws) {
                *p = P::narrow_stochastic(step_small(c, p.widen(), g.widen(), m), draw);
            }
        }
    }
}

/// Steps a momentum, and returns the new parameter.
#[inline(always)]
fn step_small(c: &StepConstants, p: f32, g: f32, m: &mut f32) -> f32 {
    let keeps = c.skip_zeros & (g == 0.0);
    let scaled = g * c.grad_scale;
    let old = Factor::new(*m);
    let direction = old.times(c.beta1) + c.one_minus_beta1 * scaled;
    let new = old.times(c.beta2) + c.one_minus_beta2 * scaled;
    *m = if keeps { *m } else { new };
    if keeps { p } else { stepped(c, p, direction) }
}

/// Steps a block with a 32-bit state.
#[inline(never)]
pub(super) fn step32<P: Element, G: Element>(
    c: &StepConstants,
    p: &mut [P; BLOCK],
    g: &[G; BLOCK],
    m: &mut [f32; BLOCK],
) {
    // With a constant in place of the option, the loop has no test for it.
    let mut c = *c;
    c.skip_zeros = false;
    for ((p, g), m) in p.iter_mut().zip(g).zip(m) {
        let (g, old) = (g.widen(), *m);
        *p = P::narrow(stepped(&c, p.widen(), c.direction(g, old)));
        *m = c.momentum(g, old);
    }
}

/// Steps a block with an 8-bit state. The buffer is for its momenta.
#[inline(never)]
pub(super) fn step8<P: Element, G: Element>(
    c: &StepConstants,
    p: &mut [P; BLOCK],
    g: &[G; BLOCK],
    codes: &mut [u8; BLOCK],
    absmax: &mut f32,
    m: &mut [f32; BLOCK],
) {
    update8(c, p, g, &look_up(codes), *absmax, m);
    *absmax = quantize_within(m, largest(m), codes);
}

/// Returns the bits of the codewords of a block.
#[inline(always)]
fn look_up(codes: &[u8; BLOCK]) -> [u32; BLOCK] {
    array::from_fn(|i| CODEWORDS[usize::from(codes[i])])
}

/// Steps the parameters of a block, and writes its new momenta.
#[inline(never)]
fn update8<P: Element, G: Element>(
    c: &StepConstants,
    p: &mut [P; BLOCK],
    g: &[G; BLOCK],
    codewords: &[u32; BLOCK],
    absmax: f32,
    m: &mut [f32; BLOCK],
) {
    // With a constant in place of the option, the loop has no test for it.
    let mut c = *c;
    c.skip_zeros = false;
    for (((p, g), m), &codeword) in p.iter_mut().zip(g).zip(m).zip(codewords) {
        let (g, old) = (g.widen(), f32::from_bits(codeword) * absmax);
        *p = P::narrow(stepped(&c, p.widen(), c.direction(g, old)));
        *m = c.momentum(g, old);
    }
}

/// Returns `p * (1 - lr * weight_decay) - lr * sign(direction)`. The direction is a number, so this takes fewer operations
/// than [`StepConstants::parameter`].
#[inline(always)]
fn stepped(c: &StepConstants, p: f32, direction: f32) -> f32 {
    // By its bits, because some CPUs take long to compare a subnormal number.
    let moves = u32::from(direction.to_bits() << 1 != 0).wrapping_neg();
    let signed = c.lr.to_bits() ^ (direction.to_bits() & 0x8000_0000);
    (p * c.decay) - f32::from_bits(signed & moves)
}

/// Returns the largest magnitude of finite numbers.
#[inline(never)]
fn largest(m: &[f32; BLOCK]) -> f32 {
    let mut tops = [0f32; 16];
    for row in m.as_chunks::<16>().0 {
        for (top, x) in tops.iter_mut().zip(row) {
            // In this form it is one instruction, of SSE2 too.
            *top = if x.abs() > *top { x.abs() } else { *top };
        }
    }
    tops.into_iter().fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Isa, Kernel};
    use crate::job::{Job, KernelOptions, StateMut};
    use lion_core::philox::{PhiloxKey, Stream};
    use lion_core::{Hyper, Slice, SliceMut};

    #[test]
    fn products_of_small_momenta_are_those_of_f32() {
        let betas = [
            0.0, 1e-45, 1e-3, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999999, 1.0,
        ];
        let stride = if cfg!(miri) { 100_003 } else { 1 };
        // All numbers below 2^-125, and some above.
        for bits in (0u32..(1 << 24) + (1 << 10)).step_by(stride) {
            for bits in [bits, bits | 0x8000_0000] {
                let m = f32::from_bits(bits);
                let factor = Factor::new(m);
                for beta in betas {
                    let (product, wanted) = (factor.times(beta), beta * m);
                    assert_eq!(product.to_bits(), wanted.to_bits(), "{beta:e} * {m:e}");
                }
            }
        }
    }

    /// Numbers from a linear congruential generator.
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u32 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
            self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 32) as u32
        }

        /// Returns a number with one of the first exponents, or an ordinary one, or 0.
        fn small(&mut self) -> f32 {
            let sign_and_fraction = self.next() & 0x807F_FFFF;
            match self.next() % 8 {
                0 => f32::from_bits(sign_and_fraction & 0x8000_0000),
                1 => f32::from_bits(sign_and_fraction | 0x3F00_0000),
                exponent => f32::from_bits(sign_and_fraction | ((exponent - 2) << 23)),
            }
        }
    }

    /// Steps with each kernel, and compares with the functions that define a step.
    #[test]
    fn blocks_with_small_momenta_step_as_defined_on_each_instruction_set() {
        const LEN: usize = 9 * BLOCK;
        for isa in Isa::ALL {
            let Ok(kernel) = Kernel::new(*isa) else {
                println!("SKIPPED {isa}: this CPU does not have the instruction set");
                continue;
            };
            for seed in 0..if cfg!(miri) { 2 } else { 60 } {
                let mut numbers = Numbers(seed);
                let mut hyper = Hyper::default();
                hyper.skip_zeros = seed % 2 == 1;
                let c = StepConstants::new(&hyper, 1e-3, if seed % 3 == 0 { 0.5 } else { 1.0 });
                let options = KernelOptions {
                    constants: c,
                    key: PhiloxKey::new(seed, 1),
                    stochastic_param: seed % 4 >= 2,
                    stochastic_state: false,
                };
                // Some blocks have a small momentum in one place only.
                let small_place = 37 * seed as usize;
                let m: Vec<f32> = (0..LEN)
                    .map(
                        |i| match i / BLOCK % 3 == 2 && i % BLOCK != small_place % BLOCK {
                            true => f32::from_bits(numbers.next() & 0x8FFF_FFFF | 0x3000_0000),
                            false => numbers.small(),
                        },
                    )
                    .collect();
                let g: Vec<f32> = (0..LEN)
                    .map(|i| match seed % 5 {
                        0 => 0.0,
                        1 if i % 2 == 0 => -0.0,
                        _ => numbers.small(),
                    })
                    .collect();
                let p: Vec<bf16> = (0..LEN).map(|_| bf16::narrow(numbers.small())).collect();

                let mut draws = [0; LEN];
                options.key.fill(Stream::Param, 0, &mut draws);
                let stepped = |i: usize| {
                    let p = c.parameter(p[i].widen(), g[i], m[i]);
                    let p = match options.stochastic_param {
                        true => bf16::narrow_stochastic(p, draws[i]),
                        false => bf16::narrow(p),
                    };
                    (p.to_bits(), c.momentum(g[i], m[i]).to_bits())
                };
                let (mut new_p, mut new_m) = (p.clone(), m.clone());
                let job = Job {
                    param: SliceMut::Bf16(&mut new_p),
                    grad: Slice::F32(&g),
                    state: StateMut::Momentum32(&mut new_m),
                    first: 0,
                    options,
                };
                assert_eq!(kernel.step(job), 0);
                for i in 0..LEN {
                    let new = (new_p[i].to_bits(), new_m[i].to_bits());
                    assert_eq!(new, stepped(i), "{isa}, seed {seed}, element {i}");
                }
            }
        }
    }

    #[test]
    fn a_small_momentum_is_found_wherever_it_is() {
        for at in 0..BLOCK {
            let mut m = [1.0; BLOCK];
            m[(at + 1) % BLOCK] = 0.0;
            let mut small = SmallMomenta::default();
            assert!((0..32).all(|_| !small.are_in(&m)));
            m[at] = -f32::from_bits(1);
            assert!((0..32).any(|_| small.are_in(&m)));
            // From then on, all of a block is tested.
            assert!(small.are_in(&m));
            m[at] = 0.0;
            assert!(!small.are_in(&m));
        }
    }

    #[test]
    fn a_block_is_within_its_largest_magnitude() {
        fn check<T: Bounded>(small: T, large: T) {
            let mut block = [small; BLOCK];
            block[200] = large;
            let bits = large.widen().to_bits() & 0x7FFF_FFFF;
            assert!(T::is_within(&block, bits));
            assert!(!T::is_within(&block, bits - 1));
        }
        // The or of the bits of 1.5 and 2.0 is above both.
        check(1.5f32, -2.0);
        check(bf16::from_f32(1.5), bf16::from_f32(-2.0));
        check(f16::from_f32(1.5), f16::from_f32(-2.0));
        check(1.5f32, f32::NAN);
    }
}
