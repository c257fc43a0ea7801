//! A safetensors file whose every metadata key and tensor must be asked for.

use anyhow::{Context, Result, bail, ensure};
use lion::Dtype;
use safetensors::{Dtype as FileType, SafeTensors};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::str::FromStr;

use crate::Tensor;

/// A file that is read whole. What nobody asked for is an error at the end, so that a record with a
/// meaning unknown here is not passed over.
pub struct RecordFile {
    tensors: BTreeMap<String, (FileType, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
    asked: RefCell<BTreeSet<String>>,
}

impl RecordFile {
    /// Reads a file.
    ///
    /// # Errors
    /// Where the file cannot be read or is not in the format of safetensors.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).context("cannot be read")?;
        let (_, header) = SafeTensors::read_metadata(&bytes).context("not a safetensors file")?;
        let file = SafeTensors::deserialize(&bytes).context("not a safetensors file")?;
        let tensors = file.iter().map(|(name, tensor)| {
            ensure!(
                tensor.shape().len() == 1,
                "tensor `{name}` has shape {:?}, wanted one axis",
                tensor.shape()
            );
            Ok((name.to_owned(), (tensor.dtype(), tensor.data().to_vec())))
        });
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(RecordFile {
            tensors: tensors.collect::<Result<_>>()?,
            metadata: metadata.into_iter().collect(),
            asked: RefCell::default(),
        })
    }

    /// The value of a metadata key.
    ///
    /// # Errors
    /// Where the key is missing or its value cannot be read as a `T`.
    pub fn meta<T: FromStr>(&self, key: &str) -> Result<T> {
        self.asked.borrow_mut().insert(key.to_owned());
        let Some(text) = self.metadata.get(key) else {
            bail!("metadata `{key}` is missing");
        };
        let wanted = std::any::type_name::<T>();
        text.parse()
            .ok()
            .with_context(|| format!("metadata `{key}` is `{text}`, wanted {wanted}"))
    }

    /// A tensor of bytes.
    ///
    /// # Errors
    /// Where it is missing or of another type.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.raw(name, FileType::U8).map(<[u8]>::to_vec)
    }

    /// A tensor of floats.
    ///
    /// # Errors
    /// Where it is missing or of another type.
    pub fn tensor(&self, name: &str, dtype: Dtype) -> Result<Tensor> {
        let file_type = match dtype {
            Dtype::F32 => FileType::F32,
            Dtype::F16 => FileType::F16,
            Dtype::Bf16 => FileType::BF16,
            other => bail!("no tensor of {other} is in these files"),
        };
        Ok(Tensor::from_bytes(dtype, self.raw(name, file_type)?))
    }

    /// A tensor of `f32`.
    ///
    /// # Errors
    /// Where it is missing or of another type.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        match self.tensor(name, Dtype::F32)? {
            Tensor::F32(x) => Ok(x),
            other => bail!("tensor `{name}` has type {}", other.dtype()),
        }
    }

    fn raw(&self, name: &str, wanted: FileType) -> Result<&[u8]> {
        self.asked.borrow_mut().insert(name.to_owned());
        let Some((given, bytes)) = self.tensors.get(name) else {
            bail!("tensor `{name}` is missing");
        };
        ensure!(
            *given == wanted,
            "tensor `{name}` has type {given:?}, wanted {wanted:?}"
        );
        Ok(bytes)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Names a metadata key or tensor that nobody asked for.
    pub fn finish(self) -> Result<()> {
        let asked = self.asked.borrow();
        if let Some(key) = self.metadata.keys().find(|key| !asked.contains(*key)) {
            bail!("metadata `{key}` is unknown");
        }
        if let Some(name) = self.tensors.keys().find(|name| !asked.contains(*name)) {
            bail!("tensor `{name}` is unknown");
        }
        Ok(())
    }
}

/// Whether the file holds a codebook alone, as it lies beside the trajectories.
pub fn is_codebook(file: &RecordFile) -> bool {
    file.metadata.is_empty() && file.tensors.keys().eq(["qmap"])
}
