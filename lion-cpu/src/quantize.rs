//! Blockwise quantization by the kernel of a CPU backend, on the caller's thread.

use crate::backend::Cpu;
use lion_core::philox::PhiloxKey;
use lion_quant::{QuantError, dequantize_by, quantize_by};

impl Cpu {
    /// [`lion_quant::quantize`] by this backend's kernel: the same codes, sooner.
    ///
    /// # Errors
    /// As [`lion_quant::quantize`].
    pub fn quantize(
        &self,
        m: &[f32],
        codes: &mut [u8],
        absmax: &mut [f32],
        words: Option<PhiloxKey>,
    ) -> Result<(), QuantError> {
        let kernel = self.kernel;
        quantize_by(m, codes, absmax, words, |m, words, codes| {
            kernel.quantize(m, words, codes)
        })
    }

    /// [`lion_quant::dequantize`] by this backend's kernel: the same numbers, sooner.
    ///
    /// # Errors
    /// As [`lion_quant::dequantize`].
    pub fn dequantize(
        &self,
        codes: &[u8],
        absmax: &[f32],
        m: &mut [f32],
    ) -> Result<(), QuantError> {
        let kernel = self.kernel;
        dequantize_by(codes, absmax, m, |codes, absmax, m| {
            kernel.dequantize(codes, absmax, m);
        })
    }
}
