//! Exchange of states with PyTorch: safetensors files with the names of bitsandbytes.
//!
//! Of a parameter `NAME` a file has
//!
//! | tensor | type | what |
//! | --- | --- | --- |
//! | `NAME.state1` | U8 or F32 | the codes of an 8-bit state, or the momentum of a 32-bit one |
//! | `NAME.absmax1` | F32 | of an 8-bit state, the largest magnitude of each block of 256 |
//! | `NAME.qmap1` | F32 | of an 8-bit state, the codebook: the signed dynamic map |
//! | `NAME.step` | I64, no axes | steps done |
//!
//! as `bitsandbytes.optim.Lion8bit(...).state_dict()` has them under the keys after the name.
//! examples/python carries them from and to such a dictionary. Seeds, hyper-parameters and groups are not
//! in these files: a load keeps those that the optimizer has.
//!
//! ```
//! use lion::{Dtype, Lion8bit, ParamSpec, interop};
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("states.safetensors");
//! let mut lion = Lion8bit::builder().build()?;
//! let w = lion.register(ParamSpec::new("layer.weight", 4096, Dtype::F32))?;
//! lion.step([(w, &mut vec![0.0f32; 4096], &vec![1.0f32; 4096])])?;
//! interop::export(&lion, &path)?;
//!
//! let mut other = Lion8bit::builder().build()?;
//! let v = other.register(ParamSpec::new("layer.weight", 4096, Dtype::F32))?;
//! interop::import(&mut other, &path, Default::default())?;
//! assert_eq!(other.info(v)?.steps, 1);
//! assert_eq!(other.export_state(v)?.planes, lion.export_state(w)?.planes);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod export;
mod header;
mod import;

pub use error::InteropError;
pub use export::export;
pub use import::{import, import_from};

use lion_core::Bits;
use safetensors::Dtype;

/// What bitsandbytes calls the planes of a state, with the types of their numbers.
fn planes(bits: Bits) -> &'static [(&'static str, Dtype)] {
    match bits {
        Bits::ThirtyTwo => &[("state1", Dtype::F32)],
        Bits::Eight => &[("state1", Dtype::U8), ("absmax1", Dtype::F32)],
        _ => &[],
    }
}

const QMAP: &str = "qmap1";
const STEP: &str = "step";
