//! A safetensors file that checks that every metadata key and tensor is read.

use anyhow::{Context, Result, bail, ensure};
use lion::Dtype;
use safetensors::{Dtype as FileType, SafeTensors};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::str::FromStr;

use crate::Tensor;

/// A file in memory. A key or tensor that was not read is an error at the end, so that data with an
/// unknown meaning is not ignored.
pub struct RecordFile {
    tensors: BTreeMap<String, (FileType, Vec<u8>)>,
    metadata: BTreeMap<String, String>,
    asked: RefCell<BTreeSet<String>>,
}

impl RecordFile {
    /// Reads a file.
    ///
    /// # Errors
    /// If the file cannot be read or is not a safetensors file.
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

    /// Returns the value of a metadata key.
    ///
    /// # Errors
    /// If the key is missing or its value cannot be parsed as a `T`.
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

    /// Returns a tensor of bytes.
    ///
    /// # Errors
    /// If it is missing or has another type.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.raw(name, FileType::U8).map(<[u8]>::to_vec)
    }

    /// Returns a tensor of floats.
    ///
    /// # Errors
    /// If it is missing or has another type.
    pub fn tensor(&self, name: &str, dtype: Dtype) -> Result<Tensor> {
        let file_type = match dtype {
            Dtype::F32 => FileType::F32,
            Dtype::F16 => FileType::F16,
            Dtype::Bf16 => FileType::BF16,
            other => bail!("no tensor of {other} is in these files"),
        };
        Ok(Tensor::from_bytes(dtype, self.raw(name, file_type)?))
    }

    /// Returns a tensor of `f32`.
    ///
    /// # Errors
    /// If it is missing or has another type.
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

    /// Checks that everything has been read.
    ///
    /// # Errors
    /// Names a metadata key or tensor that was not read.
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

/// Returns whether the file contains only a codebook, such as the one that is stored with the
/// trajectories.
pub fn is_codebook(file: &RecordFile) -> bool {
    file.metadata.is_empty() && file.tensors.keys().eq(["qmap"])
}
