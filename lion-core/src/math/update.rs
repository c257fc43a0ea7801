//! The elementwise update, in `f32`, with one rounding per operation.

use crate::Hyper;

/// The constants of one parameter in one step, each rounded to `f32` once.
///
/// `1 - beta` and `1 - lr * weight_decay` are computed in `f64` and then rounded.
///
/// ```
/// use lion_core::{Hyper, update::StepConstants};
/// let mut hyper = Hyper::default();
/// (hyper.beta1, hyper.beta2, hyper.weight_decay) = (0.5, 0.75, 1.0);
/// let c = StepConstants::new(&hyper, 0.5, 1.0);
/// let (p, g, m) = (3.0, 2.0, -1.0);
/// assert_eq!(c.direction(g, m), 0.5);
/// assert_eq!(c.parameter(p, g, m), 3.0 * 0.5 - 0.5);
/// assert_eq!(c.momentum(g, m), 0.75 * -1.0 + 0.25 * 2.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepConstants {
    /// Size of the step, after clipping by `max_unorm`.
    pub lr: f32,
    /// `1 - lr * weight_decay`, with the unclipped learning rate.
    pub decay: f32,
    /// Factor of every gradient.
    pub grad_scale: f32,
    /// `beta1` in `c = beta1 * m + (1 - beta1) * g`.
    pub beta1: f32,
    /// `1 - beta1`.
    pub one_minus_beta1: f32,
    /// `beta2` in `m' = beta2 * m + (1 - beta2) * g`.
    pub beta2: f32,
    /// `1 - beta2`.
    pub one_minus_beta2: f32,
    /// Whether elements whose gradient is exactly 0 keep their parameter and momentum.
    pub skip_zeros: bool,
}

impl StepConstants {
    /// Computes the constants of a step. `lr` is the unclipped learning rate.
    pub fn new(hyper: &Hyper, lr: f64, grad_scale: f64) -> Self {
        StepConstants {
            lr: lr as f32,
            decay: (1.0 - lr * hyper.weight_decay) as f32,
            grad_scale: grad_scale as f32,
            beta1: hyper.beta1 as f32,
            one_minus_beta1: (1.0 - hyper.beta1) as f32,
            beta2: hyper.beta2 as f32,
            one_minus_beta2: (1.0 - hyper.beta2) as f32,
            skip_zeros: hyper.skip_zeros,
        }
    }

    /// Returns the same constants with a step size clipped by `max_unorm`. The decay does not
    /// change.
    #[must_use]
    pub fn with_lr(self, lr: f64) -> Self {
        StepConstants {
            lr: lr as f32,
            ..self
        }
    }

    /// Returns `c = beta1 * m + (1 - beta1) * (g * grad_scale)`. Its sign is the direction of the
    /// step.
    #[inline(always)]
    pub fn direction(&self, g: f32, m: f32) -> f32 {
        (self.beta1 * m) + (self.one_minus_beta1 * (g * self.grad_scale))
    }

    /// Returns whether `sign(c)` of this element is not 0, so that it counts in the norm of the
    /// update.
    #[inline(always)]
    pub fn moves(&self, g: f32, m: f32) -> bool {
        let c = self.direction(g, m);
        ((c > 0.0) | (c < 0.0)) & !(self.skip_zeros & (g == 0.0))
    }

    /// Returns the new momentum, `m' = beta2 * m + (1 - beta2) * (g * grad_scale)`.
    #[inline(always)]
    pub fn momentum(&self, g: f32, m: f32) -> f32 {
        let new = (self.beta2 * m) + (self.one_minus_beta2 * (g * self.grad_scale));
        if self.skip_zeros & (g == 0.0) { m } else { new }
    }

    /// Returns the new parameter, `p' = p * (1 - lr * weight_decay) - lr * sign(c)`.
    #[inline(always)]
    pub fn parameter(&self, p: f32, g: f32, m: f32) -> f32 {
        let c = self.direction(g, m);
        // The sign of 0 and of NaN is 0 here. `f32::signum` returns 1 or NaN for them.
        let moves = u32::from(c.abs() > 0.0).wrapping_neg();
        let signed = self.lr.to_bits() ^ (c.to_bits() & 0x8000_0000);
        let step = f32::from_bits(signed & moves);
        let new = (p * self.decay) - step;
        if self.skip_zeros & (g == 0.0) { p } else { new }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half_and_half() -> StepConstants {
        // All values are powers of two, so every result below is exact and can be computed by hand.
        let hyper = Hyper {
            beta1: 0.5,
            beta2: 0.75,
            weight_decay: 2.0,
            ..Hyper::default()
        };
        StepConstants::new(&hyper, 0.25, 0.5)
    }

    #[test]
    fn by_hand() {
        let c = half_and_half();
        assert_eq!((c.lr, c.decay), (0.25, 0.5));
        // g = 4 scaled to 2; c = 0.5 * -1 + 0.5 * 2 = 0.5; p = 3 * 0.5 - 0.25; m = -0.75 + 0.5
        assert_eq!(c.parameter(3.0, 4.0, -1.0), 1.25);
        assert_eq!(c.momentum(4.0, -1.0), -0.25);
        // c = 0: only the decay moves the parameter
        assert_eq!(c.parameter(3.0, 2.0, -1.0), 1.5);
        assert!(!c.moves(2.0, -1.0));
        assert_eq!(c.parameter(3.0, f32::NAN, 0.0), 1.5);
        assert_eq!(c.parameter(-0.0, 0.0, 0.0).to_bits(), (-0f32).to_bits());
    }

    #[test]
    fn skip_zeros_keeps_elements_without_a_gradient() {
        let c = StepConstants {
            skip_zeros: true,
            ..half_and_half()
        };
        for zero in [0.0, -0.0] {
            assert_eq!(c.parameter(3.0, zero, 1.0), 3.0);
            assert_eq!(c.momentum(zero, 1.0), 1.0);
            assert!(!c.moves(zero, 1.0));
        }
        assert!(c.moves(1e-30, 1.0));
    }
}
