//! Blockwise quantization with the kernel of a CPU backend, on the calling thread.

use crate::backend::Cpu;
use lion_core::philox::PhiloxKey;
use lion_quant::{QuantError, dequantize_by, quantize_by};

impl Cpu {
    /// Quantizes as [`lion_quant::quantize`], with the kernel of this backend. The codes are the same.
    ///
    /// ```
    /// # use lion_cpu::Cpu;
    /// let cpu = Cpu::new()?;
    /// let m: Vec<f32> = (0..300).map(|i| (i as f32).sin()).collect();
    /// let (mut codes, mut absmax) = (vec![0; 300], vec![0.0; 2]);
    /// cpu.quantize(&m, &mut codes, &mut absmax, None)?;
    /// let mut back = vec![0.0; 300];
    /// cpu.dequantize(&codes, &absmax, &mut back)?;
    /// assert!(m.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.01));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`lion_quant::quantize`].
    pub fn quantize(
        &self,
        m: &[f32],
        codes: &mut [u8],
        absmax: &mut [f32],
        key: Option<PhiloxKey>,
    ) -> Result<(), QuantError> {
        let kernel = self.kernel;
        quantize_by(m, codes, absmax, key, |m, draws, codes| {
            kernel.quantize(m, draws, codes)
        })
    }

    /// Dequantizes as [`lion_quant::dequantize`], with the kernel of this backend. The numbers are the same. For an
    /// example see [`quantize`](Cpu::quantize).
    ///
    /// # Errors
    /// The errors of [`lion_quant::dequantize`].
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
