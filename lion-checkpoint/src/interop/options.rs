//! Options of an import.

use crate::{LoadPolicy, Rename};
use std::fmt;

/// Options of an import. A [`LoadPolicy`] alone converts to it.
///
/// ```
/// use lion::checkpoint::LoadPolicy;
/// use lion::interop::Import;
/// let how = Import::new().policy(LoadPolicy::NonStrict).requantize(true);
/// # assert!(format!("{how:?}").contains("NonStrict"));
/// ```
#[derive(Clone, Copy, Default)]
pub struct Import<'a> {
    pub(super) policy: LoadPolicy,
    pub(super) convert_states: bool,
    pub(super) requantize: bool,
    pub(super) rename: Option<&'a Rename<'a>>,
}

impl<'a> Import<'a> {
    /// Returns the default options: [`LoadPolicy::Strict`], neither conversions nor new names.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what the import does about parameters that differ.
    #[must_use]
    pub fn policy(mut self, policy: LoadPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// If set, converts a state of the file to the width of the state in the optimizer, as
    /// [`Load::convert_states`](crate::Load::convert_states) does. From 8 to 32 bits, the conversion is exact for blocks
    /// of 2,048 elements, too.
    #[must_use]
    pub fn convert_states(mut self, convert: bool) -> Self {
        self.convert_states = convert;
        self
    }

    /// If set, accepts 8-bit states with blocks of 2,048 elements, which bitsandbytes wrote before version 0.44, and
    /// requantizes them to blocks of 256: each element is dequantized with the absmax of its block, and each block of 256
    /// elements is quantized to the nearest codewords. Otherwise such a state is
    /// [`InteropError::BlockSize`](super::InteropError::BlockSize).
    ///
    /// This loses a little precision: an element changes by at most 0.0071 times the largest magnitude among the 256
    /// elements of its new block. [`LoadReport::requantized`](crate::LoadReport::requantized) lists the parameters.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec};
    /// use lion::interop::{self, Import, InteropError};
    /// use lion::quant::CODEBOOK;
    /// use safetensors::{Dtype as Type, serialize_to_file, tensor::TensorView};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("old.safetensors");
    /// // A state of 4,096 elements in two blocks: each element is 1 in the first one, and 0.5 in the second one.
    /// let codes = [255; 4096];
    /// let absmax = [1f32, 0.5].map(f32::to_le_bytes);
    /// let (qmap, step) = (CODEBOOK.map(f32::to_le_bytes), 7i64.to_le_bytes());
    /// serialize_to_file(
    ///     [
    ///         ("w.state1", TensorView::new(Type::U8, vec![4096], &codes)?),
    ///         ("w.absmax1", TensorView::new(Type::F32, vec![2], absmax.as_flattened())?),
    ///         ("w.qmap1", TensorView::new(Type::F32, vec![256], qmap.as_flattened())?),
    ///         ("w.step", TensorView::new(Type::I64, vec![], &step)?),
    ///     ],
    ///     None,
    ///     &path,
    /// )?;
    /// let mut lion = Lion::builder().optim_bits(8).build()?;
    /// lion.register(ParamSpec::new("w", 4096, Dtype::F32))?;
    /// let refused = interop::import(&mut lion, &path, Import::new());
    /// assert!(matches!(refused, Err(InteropError::BlockSize { given: 2048, .. })));
    /// let report = interop::import(&mut lion, &path, Import::new().requantize(true))?;
    /// assert_eq!(report.requantized, ["w"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn requantize(mut self, requantize: bool) -> Self {
        self.requantize = requantize;
        self
    }

    /// Sets a function from the name of a parameter in the file to its name in the optimizer, as
    /// [`Load::rename`](crate::Load::rename) does. It may be called several times with a name and must return the same
    /// each time.
    #[must_use]
    pub fn rename(mut self, rename: &'a (dyn Fn(&str) -> Option<String> + Sync)) -> Self {
        self.rename = Some(rename);
        self
    }
}

impl From<LoadPolicy> for Import<'_> {
    fn from(policy: LoadPolicy) -> Self {
        Import::new().policy(policy)
    }
}

impl fmt::Debug for Import<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Import")
            .field("policy", &self.policy)
            .field("convert_states", &self.convert_states)
            .field("requantize", &self.requantize)
            .field("renames", &self.rename.is_some())
            .finish()
    }
}
