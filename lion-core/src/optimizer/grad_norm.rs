//! The global norm of gradients, and clipping by it.

use super::step::{Batch, one_each};
use crate::norm::{block_sum_squares, tree_split};
use crate::{
    BLOCK, BackendError, Element, Error, GradRef, Handle, OnNonFinite, Operand, Optimizer,
    SkippedBlocks, Slice, StepArgs, Storage,
};
use lion_float_mode::in_default_mode;
use std::cmp::Ordering;

/// The sum of the squares of a gradient, over its finite blocks.
///
/// Elements are widened to `f32` and squared in `f64`; the square of a finite `f32` does not overflow.
/// [`block_sum_squares`] adds up each block of 256 elements. The sums of the blocks are added as a tree
/// of adjacent pairs, like those of a parameter in [`sum_squares`](crate::norm::sum_squares). A block
/// that contains an infinity or NaN counts as 0.
///
/// ```
/// use lion_core::{BLOCK, SumSquares};
/// let mut gradient = vec![0.0f32; BLOCK + 2];
/// gradient[0] = f32::INFINITY;
/// gradient[BLOCK..].copy_from_slice(&[3.0, -4.0]);
/// let squares = SumSquares::of(&gradient[..]);
/// assert_eq!((squares.sum, squares.non_finite_blocks), (25.0, 1));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SumSquares {
    /// The sum over the finite blocks.
    pub sum: f64,
    /// Number of blocks of 256 elements that contain an infinity or NaN.
    pub non_finite_blocks: u64,
}

impl SumSquares {
    /// Returns the sum of squares of a whole gradient, 0 if it is empty.
    pub fn of<G: Element>(gradient: &[G]) -> Self {
        let blocks = gradient.len().div_ceil(BLOCK);
        if blocks < 2 {
            return Self::of_block(gradient);
        }
        let (left, right) = gradient.split_at(tree_split(blocks) * BLOCK);
        Self::of(left).plus(Self::of(right))
    }

    /// Returns the sum of squares of at most one block.
    ///
    /// ```
    /// use lion_core::SumSquares;
    /// assert_eq!(SumSquares::of_block(&[3.0f32, 4.0]).sum, 25.0);
    /// ```
    #[inline]
    pub fn of_block<G: Element>(gradient: &[G]) -> Self {
        let sum = block_sum_squares(gradient);
        if sum.is_finite() {
            SumSquares {
                sum,
                non_finite_blocks: 0,
            }
        } else {
            SumSquares {
                sum: 0.0,
                non_finite_blocks: 1,
            }
        }
    }

    /// Adds the sums of adjacent parts of a gradient, as a tree of adjacent pairs. Overwrites `parts`.
    ///
    /// If all parts except the last have the same number of blocks, and that number is a power of two,
    /// the result has the bits of [`of`](SumSquares::of) for the whole gradient.
    ///
    /// ```
    /// use lion_core::{BLOCK, SumSquares};
    /// let gradient = [0.1f32; 3 * BLOCK];
    /// let mut parts: Vec<SumSquares> = gradient.chunks(BLOCK).map(SumSquares::of).collect();
    /// assert_eq!(SumSquares::of_parts(&mut parts), SumSquares::of(&gradient));
    /// ```
    #[inline]
    pub fn of_parts(parts: &mut [SumSquares]) -> Self {
        let mut apart = 1;
        while apart < parts.len() {
            for i in (0..parts.len() - apart).step_by(2 * apart) {
                parts[i] = parts[i].plus(parts[i + apart]);
            }
            apart *= 2;
        }
        parts.first().copied().unwrap_or_default()
    }

    fn plus(self, right: Self) -> Self {
        SumSquares {
            sum: self.sum + right.sum,
            non_finite_blocks: self.non_finite_blocks + right.non_finite_blocks,
        }
    }
}

/// The gradient of one parameter, as an input of [`Backend::sum_squares`](crate::Backend::sum_squares).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Gradient<'a> {
    /// Name of the parameter.
    pub name: &'a str,
    /// The elements.
    pub data: &'a Storage<'a>,
}

impl Gradient<'_> {
    /// Returns the sum of squares of a gradient in host memory, computed on the calling thread.
    /// `backend` is the name of the backend in an error.
    ///
    /// ```
    /// use lion_core::{BackendError, Gradient, SumSquares};
    /// // `Backend::sum_squares` of a backend without a kernel for the norm.
    /// fn sum_squares(gradients: &[Gradient<'_>]) -> Result<Vec<SumSquares>, BackendError> {
    ///     gradients.iter().map(|gradient| gradient.sum_on_host("mine")).collect()
    /// }
    /// assert_eq!(sum_squares(&[])?, []);
    /// # Ok::<(), BackendError>(())
    /// ```
    ///
    /// # Errors
    /// [`BackendError::NormUnsupported`] if the gradient is in device memory.
    pub fn sum_on_host(&self, backend: &str) -> Result<SumSquares, BackendError> {
        Ok(match self.data.host() {
            Some(Slice::F32(gradient)) => SumSquares::of(gradient),
            Some(Slice::F16(gradient)) => SumSquares::of(gradient),
            Some(Slice::Bf16(gradient)) => SumSquares::of(gradient),
            None => {
                return Err(BackendError::NormUnsupported {
                    backend: backend.to_owned(),
                    parameter: self.name.to_owned(),
                });
            }
        })
    }
}

/// The global norm of gradients, as [`Optimizer::grad_norm`] returns it.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct GradNorm {
    /// The square root of the sum of the squares of all elements of finite blocks.
    pub norm: f64,
    /// The gradients with blocks that contain an infinity or NaN, and the number of these blocks.
    pub non_finite: Vec<SkippedBlocks>,
}

impl GradNorm {
    /// Returns `min(1, max_norm / norm)`, the factor that reduces the norm to `max_norm`. Pass it to
    /// [`StepArgs::grad_scale`].
    ///
    /// ```
    /// # use lion_core::{Error, GradRef, Handle, Optimizer, StepArgs};
    /// # fn example(optimizer: &Optimizer, w: Handle, grad: &[f32]) -> Result<(), Error> {
    /// let norm = optimizer.grad_norm([(w, GradRef::from(grad))])?;
    /// let args = StepArgs::new().grad_scale(norm.clip_factor(1.0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn clip_factor(&self, max_norm: f64) -> f64 {
        if self.norm > max_norm {
            // As in a step, the quotient is rounded to nearest in any floating-point mode of the caller.
            in_default_mode(|| max_norm / self.norm)
        } else {
            1.0
        }
    }
}

impl Optimizer {
    /// Returns the global norm of some gradients: the square root of the sum of the squares of all their
    /// elements, in `f64`. Nothing changes.
    ///
    /// ```text
    /// norm = sqrt(sum over gradients of sum over elements of g * g)
    /// ```
    ///
    /// The [`SumSquares`] of the gradients are added from left to right, in the order of the bytes of the
    /// names of their parameters. Therefore the result has the same bits on every backend, for any number
    /// of threads and any order of the gradients.
    ///
    /// The backend computes the sums. If gradients are in device memory, the call waits for the work that
    /// is queued on the stream of the backend.
    ///
    /// A block of 256 elements that contains an infinity or NaN is excluded from the norm and counted,
    /// because a step skips such a block. Under [`OnNonFinite::RejectStep`] it is an error.
    /// [`GradNorm::clip_factor`] has an example.
    ///
    /// # Errors
    /// [`Error::UnknownHandle`], [`Error::RepeatedParameter`], [`Error::WrongLength`],
    /// [`Error::NotContiguous`]; [`Error::NonFinite`], only under [`OnNonFinite::RejectStep`];
    /// [`Error::Backend`], for example with [`BackendError::NormUnsupported`].
    pub fn grad_norm<'a>(
        &self,
        gradients: impl IntoIterator<Item = (Handle, GradRef<'a>)>,
    ) -> Result<GradNorm, Error> {
        let mut checked = Vec::new();
        for (handle, gradient) in gradients {
            let index = self.index(handle)?;
            self.params[index].expected().check_array(
                Operand::Gradient,
                &gradient.order,
                gradient.data.len(),
            )?;
            checked.push((index, gradient.data));
        }
        let gradients = checked.iter().map(|(index, data)| (*index, data));
        in_default_mode(|| self.norm_of(gradients.collect()))
    }

    /// Returns the factor of the gradients in a step: [`grad_scale`](StepArgs::grad_scale), times the
    /// clipping factor if [`max_grad_norm`](StepArgs::max_grad_norm) is set.
    pub(super) fn clip(&self, args: &StepArgs, batch: &mut Batch<'_>) -> Result<f64, Error> {
        let scale = args.get_grad_scale();
        let Some(max_norm) = args.get_max_grad_norm() else {
            return Ok(scale);
        };
        let gradients = batch.arrays.iter().map(|arrays| &arrays.grad);
        let gradients = batch.indices.iter().copied().zip(gradients);
        let norm = self.norm_of(gradients.collect());
        // The step has not begun.
        let mut norm = norm.map_err(|error| match error {
            Error::Backend { parameter, source } => Error::Backend {
                parameter,
                source: source.not_begun(),
            },
            error => error,
        })?;
        norm.norm *= scale.abs();
        let scale = scale * norm.clip_factor(max_norm);
        // The product may be outside the range of `grad_scale`.
        StepArgs::new().grad_scale(scale).check()?;
        batch.report.grad_norm = Some(norm.norm);
        batch.report.non_finite_gradients = norm.non_finite;
        Ok(scale)
    }

    fn norm_of(&self, mut gradients: Vec<(usize, &Storage<'_>)>) -> Result<GradNorm, Error> {
        let name = |index: usize| &*self.params[index].name;
        gradients.sort_unstable_by(|(a, _), (b, _)| match a == b {
            true => Ordering::Equal,
            false => name(*a).cmp(name(*b)),
        });
        if let Some(pair) = gradients.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::RepeatedParameter {
                parameter: name(pair[0].0).to_owned(),
            });
        }
        let inputs = gradients.iter().map(|&(index, data)| Gradient {
            name: name(index),
            data,
        });
        let inputs: Vec<Gradient<'_>> = inputs.collect();
        let sums = self.backend.sum_squares(&inputs)?;
        let sums = one_each(&*self.backend, sums, inputs.len())?;
        let total = sums.iter().fold(0.0, |sum, of| sum + of.sum);
        let bad = gradients.iter().zip(&sums);
        let bad = bad.map(|(&(index, _), of)| (index, of.non_finite_blocks));
        let bad: Vec<(usize, u64)> = bad.filter(|&(_, blocks)| blocks > 0).collect();
        let non_finite = self.name_skipped(&bad);
        if !non_finite.is_empty() && self.on_non_finite == OnNonFinite::RejectStep {
            return Err(Error::NonFinite {
                parameters: non_finite,
            });
        }
        Ok(GradNorm {
            norm: total.sqrt(),
            non_finite,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::norm::sum_squares;

    #[test]
    fn a_finite_gradient_has_the_sum_of_a_parameter() {
        let long = if cfg!(miri) { 3 } else { 40 } * BLOCK;
        for len in [0, 1, 255, 256, 257, long] {
            let g: Vec<f32> = (0..len)
                .map(|i| ((i * 2_654_435_761) % 65_537) as f32 / 65_537.0)
                .collect();
            let squares = SumSquares::of(&g);
            assert_eq!(squares.sum.to_bits(), sum_squares(&g).to_bits(), "{len}");
            assert_eq!(squares.non_finite_blocks, 0);
        }
    }

    #[test]
    fn parts_make_the_sum_of_the_whole() {
        let blocks = if cfg!(miri) { 6 } else { 70 };
        let mut g: Vec<f32> = (0..blocks * BLOCK - 3)
            .map(|i| ((i * 2_654_435_761) % 65_537) as f32 / 65_537.0)
            .collect();
        g[1000] = f32::NAN;
        g[(blocks - 1) * BLOCK] = f32::NEG_INFINITY;
        for blocks in [1, 2, 4, 64, 128] {
            let mut parts: Vec<SumSquares> = g.chunks(blocks * BLOCK).map(SumSquares::of).collect();
            let whole = SumSquares::of_parts(&mut parts);
            assert_eq!(whole.sum.to_bits(), SumSquares::of(&g).sum.to_bits());
            assert_eq!(whole.non_finite_blocks, 2);
        }
        assert_eq!(SumSquares::of_parts(&mut []), SumSquares::default());
    }

    #[test]
    fn the_largest_floats_do_not_overflow() {
        let squares = SumSquares::of(&[f32::MAX; 512][..]);
        assert_eq!(squares.non_finite_blocks, 0);
        assert_eq!(
            squares.sum,
            512.0 * (f64::from(f32::MAX) * f64::from(f32::MAX))
        );
    }
}
