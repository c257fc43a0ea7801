//! What rounding would lose in a step, counted without running the step.

use crate::blockwise::{dequantize_block, quantize_block, top_bits};
use lion_core::{BLOCK, BackendError, Bits, Element, Operand, Slice, TensorStep};
use lion_float_mode::in_default_mode;

/// Elements whose state is read at a time.
const PART: usize = 64 * BLOCK;

/// The place where the counts are computed, for the errors.
const HOST: &str = "host";

/// Numbers of elements of one parameter whose change in a step is lost to rounding.
///
/// Here `p`, `g` and `m` are the parameter, the scaled gradient and the momentum before the step, `c` and `m'` are
/// those of the [update](lion_core::update), and `q'` is `m'` after it is quantized and dequantized. Elements of
/// skipped blocks are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoundingLosses {
    /// Elements that the step should move, but whose parameter keeps its bits: `c` is not 0, `lr` is greater than 0,
    /// `p` is finite, and `p'`, rounded to the type of the parameter, has the bits of `p`. It is 0 if the parameter
    /// is rounded stochastically, because then no update is lost on average.
    pub lost_updates: u64,
    /// Elements of an 8-bit state whose code cannot follow the momentum: `m'` differs from `m`, the new code is the
    /// old one, and the new absmax of the block does not carry the change either, that is, `q' - m` has another sign
    /// than `m' - m`, or less than half its magnitude. It is 0 if codes are rounded stochastically.
    pub stuck_momenta: u64,
    /// Elements of an 8-bit state where `sign(q')` differs from `sign(m')`, with `sign(0) = 0`. Quantization keeps
    /// the sign or returns 0, so these are the momenta that it rounds to 0. It is 0 if codes are rounded
    /// stochastically.
    pub sign_differs: u64,
    /// Blocks that the step would skip, because a new momentum is not finite.
    pub skipped_blocks: u64,
}

impl RoundingLosses {
    /// Counts the losses of a step. Nothing changes. The state is read in parts of 16,384 elements. The learning
    /// rate is that of [`TensorStep::constants`].
    ///
    /// # Errors
    /// [`BackendError::WrongDevice`] if an array is in device memory; [`BackendError::WrongGradient`] if the
    /// gradient has another length than the parameter; errors of [`State::read`](lion_core::State::read).
    pub fn of(step: &TensorStep<'_>) -> Result<Self, BackendError> {
        let wrong_device = |operand| BackendError::WrongDevice {
            backend: HOST.to_owned(),
            parameter: step.name.to_owned(),
            operand,
        };
        let param = step.param.host();
        let param = param.ok_or_else(|| wrong_device(Operand::Parameter))?;
        let grad = step.grad.host();
        let grad = grad.ok_or_else(|| wrong_device(Operand::Gradient))?;
        if grad.len() != param.len() {
            return Err(BackendError::WrongGradient {
                backend: HOST.into(),
                parameter: step.name.into(),
                given: grad.len(),
                wanted: param.len(),
            });
        }
        in_default_mode(|| match param {
            Slice::F32(param) => count(step, param, grad),
            Slice::F16(param) => count(step, param, grad),
            Slice::Bf16(param) => count(step, param, grad),
            _ => unreachable!("there is no other element type"),
        })
    }
}

fn count<P: Element>(
    step: &TensorStep<'_>,
    param: &[P],
    grad: Slice<'_>,
) -> Result<RoundingLosses, BackendError> {
    let mut losses = RoundingLosses::default();
    let mut part = Part::default();
    for (index, param) in param.chunks(PART).enumerate() {
        let first = index * PART;
        part.read(step, first, param.len())?;
        part.widen(grad.slice(first..first + param.len()));
        let grad = part.grad.chunks(BLOCK);
        let momentum = part.momentum.chunks(BLOCK);
        for (block, ((p, g), m)) in param.chunks(BLOCK).zip(grad).zip(momentum).enumerate() {
            let codes = part.codes.chunks(BLOCK).nth(block);
            losses.add_block(step, p, g, m, codes);
        }
    }
    Ok(losses)
}

/// A part of a gradient and of a state.
#[derive(Default)]
struct Part {
    grad: Vec<f32>,
    /// The momentum, dequantized if the state is 8-bit.
    momentum: Vec<f32>,
    /// The codes of an 8-bit state; otherwise empty.
    codes: Vec<u8>,
    bytes: Vec<u8>,
}

impl Part {
    fn widen(&mut self, grad: Slice<'_>) {
        self.grad.clear();
        match grad {
            Slice::F32(g) => self.grad.extend_from_slice(g),
            Slice::F16(g) => self.grad.extend(g.iter().map(|g| g.widen())),
            Slice::Bf16(g) => self.grad.extend(g.iter().map(|g| g.widen())),
            _ => unreachable!("there is no other element type"),
        }
    }

    /// Reads the state of `len` elements from element `first` on, which begins a block.
    fn read(
        &mut self,
        step: &TensorStep<'_>,
        first: usize,
        len: usize,
    ) -> Result<(), BackendError> {
        match step.bits {
            Bits::ThirtyTwo => self.read_floats(step, 0, first, len),
            Bits::Eight => {
                self.read_floats(step, 1, first / BLOCK, len.div_ceil(BLOCK))?;
                let absmax = std::mem::take(&mut self.momentum);
                self.codes.resize(len, 0);
                step.state.read(0, first, &mut self.codes)?;
                self.momentum.resize(len, 0.0);
                let blocks = self
                    .codes
                    .chunks(BLOCK)
                    .zip(self.momentum.chunks_mut(BLOCK));
                for ((codes, momentum), absmax) in blocks.zip(absmax) {
                    dequantize_block(codes, absmax, momentum);
                }
                Ok(())
            }
            bits => Err(BackendError::no_state_of(HOST, bits)),
        }
    }

    /// Reads numbers of a plane of `f32` into `momentum`.
    fn read_floats(
        &mut self,
        step: &TensorStep<'_>,
        plane: usize,
        first: usize,
        len: usize,
    ) -> Result<(), BackendError> {
        self.bytes.resize(len * 4, 0);
        step.state.read(plane, first * 4, &mut self.bytes)?;
        let (numbers, _) = self.bytes.as_chunks();
        self.momentum.clear();
        let numbers = numbers.iter().map(|&bytes| f32::from_le_bytes(bytes));
        self.momentum.extend(numbers);
        Ok(())
    }
}

impl RoundingLosses {
    /// Adds the losses of one block. `codes` are those of an 8-bit state.
    fn add_block<P: Element>(
        &mut self,
        step: &TensorStep<'_>,
        param: &[P],
        grad: &[f32],
        momentum: &[f32],
        codes: Option<&[u8]>,
    ) {
        let constants = &step.constants;
        let mut new = [0.0; BLOCK];
        let new = &mut new[..param.len()];
        for ((new, &g), &m) in new.iter_mut().zip(grad).zip(momentum) {
            *new = constants.momentum(g, m);
        }
        if !f32::from_bits(top_bits(new)).is_finite() {
            self.skipped_blocks += 1;
            return;
        }
        if !step.stochastic_param && constants.lr > 0.0 {
            for ((&p, &g), &m) in param.iter().zip(grad).zip(momentum) {
                let old = p.widen();
                let rounded = P::narrow(constants.parameter(old, g, m)).widen();
                // Widening is exact, so it keeps apart what has different bits.
                let is_kept = rounded.to_bits() == old.to_bits();
                let is_lost = is_kept && old.is_finite() && constants.moves(g, m);
                self.lost_updates += u64::from(is_lost);
            }
        }
        if let Some(codes) = codes
            && !step.stochastic_state
        {
            self.add_codes(momentum, new, codes);
        }
    }

    fn add_codes(&mut self, momentum: &[f32], new: &[f32], codes: &[u8]) {
        let (mut new_codes, mut stored) = ([0; BLOCK], [0.0; BLOCK]);
        let new_codes = &mut new_codes[..new.len()];
        let absmax = quantize_block(new, None, new_codes);
        dequantize_block(new_codes, absmax, &mut stored);
        let elements = momentum.iter().zip(new).zip(stored);
        for (((&m, &new), stored), (old_code, code)) in elements.zip(codes.iter().zip(new_codes)) {
            // In f64, so that no difference overflows or is rounded to 0.
            let wanted = f64::from(new) - f64::from(m);
            let made = f64::from(stored) - f64::from(m);
            let is_carried = made * wanted.signum() >= 0.5 * wanted.abs();
            self.stuck_momenta += u64::from(*code == *old_code && new != m && !is_carried);
            self.sign_differs += u64::from(sign(stored) != sign(new));
        }
    }
}

/// Returns -1, 0 or 1.
fn sign(x: f32) -> i8 {
    i8::from(x > 0.0) - i8::from(x < 0.0)
}
