//! Exchanges optimizer states with PyTorch, as safetensors files with the state names of bitsandbytes.
//!
//! For each parameter `NAME`, a file has these tensors:
//!
//! | tensor | type | content |
//! | --- | --- | --- |
//! | `NAME.state1` | U8 or F32 | the codes of an 8-bit state, or the momentum of a 32-bit state |
//! | `NAME.absmax1` | F32 | 8-bit states only: the largest magnitude of each block of 256 elements |
//! | `NAME.qmap1` | F32 | 8-bit states only: the codebook, which is the signed dynamic map |
//! | `NAME.step` | I64, no axes | the number of steps |
//!
//! The keys after `NAME` are those of `bitsandbytes.optim.Lion8bit(...).state_dict()`. The script in
//! examples/python converts such a dictionary to a file and back. The files do not contain seeds,
//! hyper-parameters or groups; an import keeps those of the optimizer.
//!
//! Before its version 0.44, bitsandbytes used blocks of 2,048 elements. [`Import::requantize`] accepts such states.
//!
//! ```
//! use lion::{Dtype, Lion8bit, ParamSpec, interop::{self, Import}};
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("states.safetensors");
//! let mut lion = Lion8bit::builder().build()?;
//! let w = lion.register(ParamSpec::new("layer.weight", 4096, Dtype::F32))?;
//! lion.step([(w, &mut vec![0.0f32; 4096], &vec![1.0f32; 4096])])?;
//! interop::export(&lion, &path)?;
//!
//! let mut other = Lion8bit::builder().build()?;
//! let v = other.register(ParamSpec::new("layer.weight", 4096, Dtype::F32))?;
//! interop::import(&mut other, &path, Import::new())?;
//! assert_eq!(other.info(v)?.steps, 1);
//! assert_eq!(other.export_state(v)?.planes, lion.export_state(w)?.planes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod export;
mod header;
mod import;
mod options;

pub use error::InteropError;
pub use export::export;
pub use import::{import, import_from};
pub use options::Import;

use lion_core::Bits;
use safetensors::Dtype;

/// Returns the names of a state's planes in bitsandbytes, with the types of their elements.
fn planes(bits: Bits) -> &'static [(&'static str, Dtype)] {
    match bits {
        Bits::ThirtyTwo => &[("state1", Dtype::F32)],
        Bits::Eight => &[("state1", Dtype::U8), ("absmax1", Dtype::F32)],
        _ => &[],
    }
}

/// The name of the codebook in bitsandbytes.
const QMAP: &str = "qmap1";
/// The name of the step count in bitsandbytes.
const STEP: &str = "step";
