//! Blockwise 8-bit quantization with the signed dynamic codebook, and the 8-bit state layout.
//!
//! A block has 256 elements. It stores its absmax, which is the largest magnitude in the block, as `f32`.
//! For each element it stores the 8-bit code of the codeword nearest to `element / absmax`. This takes
//! 8.125 bits per element. The codewords are spaced roughly logarithmically and are dense around 0.
//! Therefore a small momentum in the same block as a large one keeps its sign and about two digits.
//!
//! ```
//! let momentum: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 1e-5).collect();
//! let (mut codes, mut absmax) = (vec![0; 1000], vec![0.0; 4]);
//! lion_quant::quantize(&momentum, &mut codes, &mut absmax, None)?;
//!
//! let mut back = vec![0.0; 1000];
//! lion_quant::dequantize(&codes, &absmax, &mut back)?;
//! let worst = momentum.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
//! assert!(worst < 0.01 * 500e-5);
//! # Ok::<(), lion_quant::QuantError>(())
//! ```
#![forbid(unsafe_code)]

mod blockwise;
mod codebook;
mod losses;
mod nearest;
mod position;

pub use blockwise::{
    QuantError, dequantize, dequantize_block, dequantize_by, quantize, quantize_block, quantize_by,
    top_bits,
};
pub use codebook::{CODEBOOK, MAGNITUDES, ZERO_CODE};
pub use losses::RoundingLosses;
pub use position::{OFFSETS, PIECES, SLOPES, THRESHOLDS, position};
// For the look-ups of lion-cpu. Not part of the interface.
#[doc(hidden)]
pub use blockwise::quantize_within;
#[doc(hidden)]
pub use position::{KEY_BASE, LAST_KEY, LAST_UPPER_HALF, PIECE_OF_KEY};

use lion_core::{BLOCK, Bits, Momentum32, PlaneSpec, PlaneType, StateLayout};

/// Returns the state layout for a width, or `None` if there is none.
///
/// ```
/// use lion_core::Bits;
/// let layout = lion_quant::state_layout(Bits::Eight).expect("8 bits are known");
/// assert_eq!(layout.bytes(1024), 1024 + 4 * 4);
/// ```
pub fn state_layout(bits: Bits) -> Option<&'static dyn StateLayout> {
    match bits {
        Bits::Eight => Some(&Blockwise8),
        Bits::ThirtyTwo => Some(&Momentum32),
        _ => None,
    }
}

/// The layout of a blockwise 8-bit state of `n` elements: `codes: u8[n]` and `absmax: f32[ceil(n / 256)]`.
///
/// ```
/// use lion_core::StateLayout;
/// use lion_quant::Blockwise8;
/// let planes: Vec<_> = Blockwise8.planes().iter().map(|plane| plane.name).collect();
/// assert_eq!(planes, ["codes", "absmax"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blockwise8;

impl StateLayout for Blockwise8 {
    fn name(&self) -> &'static str {
        "blockwise8"
    }

    fn bits(&self) -> Bits {
        Bits::Eight
    }

    fn planes(&self) -> &'static [PlaneSpec] {
        const PLANES: [PlaneSpec; 2] = [
            PlaneSpec::new("codes", PlaneType::U8, 1),
            PlaneSpec::new("absmax", PlaneType::F32, BLOCK),
        ];
        &PLANES
    }
}
