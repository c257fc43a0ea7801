//! A checkpoint that is open for reading.

use super::error::CheckpointError;
use super::format::MAX_GROUPS;
use super::open::{self, Head};
use super::records::Records;
use super::sharded::ShardFile;
use super::source::{Source, open as open_file};
use super::tensors::{Tensor, Tensors};
#[cfg(doc)]
use lion_core::NUMBERS_VERSION;
use lion_core::{Optimizer, OptimizerConfig};
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// A checkpoint open for reading.
///
/// Opening a checkpoint checks everything except the planes: the checksums of the preamble and of the
/// records, and every length and offset against the length of the file.
///
/// To resume a run, use `Lion::load`. This type is for inspecting a file.
///
/// ```
/// use lion::{Dtype, Lion8bit, ParamSpec, checkpoint::Checkpoint};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("run.lion");
/// let mut lion = Lion8bit::builder().lr(0.25).build()?;
/// lion.register(ParamSpec::new("weight", 8192, Dtype::Bf16))?;
/// let bytes = lion.save(&path)?;
///
/// let mut file = Checkpoint::open(&path)?;
/// assert_eq!((file.version(), file.file_bytes()), (2, bytes));
/// assert_eq!(file.numbers(), lion::arithmetic::NUMBERS_VERSION);
/// assert!(file.library().starts_with("lion "));
/// assert_eq!(file.settings().defaults.lr, Some(0.25));
///
/// let tensors = file.tensors()?.collect::<Result<Vec<_>, _>>()?;
/// assert_eq!((tensors[0].name.as_str(), tensors[0].len), ("weight", 8192));
/// let planes: Vec<_> = tensors[0].planes.iter().map(|p| (p.name, p.bytes)).collect();
/// assert_eq!(planes, [("codes", 8192), ("absmax", 32 * 4)]);
/// file.verify(&tensors[0])?; // reads the planes and compares their checksums
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint<R> {
    pub(super) source: Source<R>,
    version: u32,
    pub(super) head: Head,
}

impl Checkpoint<File> {
    /// Opens a checkpoint file and checks its records.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::NotAFile`], [`CheckpointError::NotACheckpoint`],
    /// [`CheckpointError::UnknownVersion`], [`CheckpointError::UnknownNumbers`],
    /// [`CheckpointError::UnknownSection`], [`CheckpointError::Damaged`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        Checkpoint::read(open_file(path)?, path)
    }
}

impl<R: Read + Seek + Send> Checkpoint<R> {
    /// Opens a checkpoint from any reader, such as a `Cursor` over bytes in memory. The checkpoint must be all that the
    /// reader returns, from position 0 to its end. Error messages name it `path`.
    ///
    /// ```
    /// use lion::{Lion, checkpoint::Checkpoint};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    /// Lion::builder().build()?.save(&path)?;
    /// let bytes = std::fs::read(&path)?;
    /// let checkpoint = Checkpoint::read(std::io::Cursor::new(bytes), "run.lion")?;
    /// assert_eq!(checkpoint.settings().groups.len(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`open`](Checkpoint::open), except [`CheckpointError::NotAFile`].
    pub fn read(reader: R, path: impl Into<PathBuf>) -> Result<Self, CheckpointError> {
        let mut source = Source::new(reader, path.into())?;
        let (version, head) = open::read(&mut source)?;
        let mut checkpoint = Checkpoint {
            source,
            version,
            head,
        };
        for tensor in checkpoint.tensors()? {
            tensor?;
        }
        for param in checkpoint.params()? {
            param?;
        }
        for section in checkpoint.sections()? {
            section?;
        }
        Ok(checkpoint)
    }

    /// Returns the version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Returns the name and version of the library that wrote the file.
    pub fn library(&self) -> &str {
        &self.head.library
    }

    /// Returns the version of the numbers with which the file was written. It is 1 for every file of version 1
    /// of the format. [`NUMBERS_VERSION`] is the version with which a run continues.
    pub fn numbers(&self) -> u32 {
        self.head.numbers
    }

    /// Returns the size of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.source.len()
    }

    /// Returns the score of the run, if the file was saved with one. Lower is better.
    pub fn score(&self) -> Option<f64> {
        self.head.score
    }

    /// Returns the files that hold the states, if this is the index of a checkpoint in several files
    /// ([`ShardedSave`](crate::ShardedSave)). Otherwise there are none.
    ///
    /// ```
    /// use lion::{Lion, checkpoint::Checkpoint};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    /// Lion::builder().build()?.save(&path)?;
    /// assert!(Checkpoint::open(&path)?.files().is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn files(&self) -> &[ShardFile] {
        &self.head.files
    }

    /// Returns the hyper-parameters and groups.
    pub fn settings(&self) -> &OptimizerConfig {
        &self.head.settings
    }

    /// Returns a copy of the settings, to be loaded into `optimizer`.
    ///
    /// The optimizer keeps the groups that only it has. If this would give it more groups than a file can
    /// hold, it could not be saved afterwards; therefore the load is refused here.
    pub(super) fn settings_for(
        &self,
        optimizer: &Optimizer,
    ) -> Result<OptimizerConfig, CheckpointError> {
        let names: HashSet<_> = self.head.settings.groups.iter().map(|g| &g.name).collect();
        let own = optimizer.groups().iter();
        let kept = own.filter(|group| !names.contains(&group.name)).count();
        let given = names.len() + kept;
        if kept > 0 && given > MAX_GROUPS {
            return Err(CheckpointError::TooLarge {
                what: "groups of the file and the optimizer together",
                given,
                most: MAX_GROUPS,
            });
        }
        Ok(self.head.settings.clone())
    }

    /// Returns an iterator over the records of all tensors, sorted by name. Each record is read from the
    /// file when the iterator returns it.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]. The iterator itself returns [`CheckpointError::Io`] and
    /// [`CheckpointError::Damaged`].
    pub fn tensors(&mut self) -> Result<Tensors<'_, R>, CheckpointError> {
        let groups = self.head.settings.groups.len();
        let records = Records::new(&mut self.source, self.head.tensors)?;
        Ok(Tensors::new(records, groups, self.head.layouts.as_deref()))
    }

    /// Reads the planes of a tensor and checks them: the checksums, and that the numbers are valid.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Damaged`].
    pub fn verify(&mut self, tensor: &Tensor) -> Result<(), CheckpointError> {
        let mut buffer = Vec::new();
        let mut planes = tensor.planes.iter();
        planes.try_for_each(|plane| self.plane(&tensor.name, plane, &mut buffer, |_, _| Ok(())))
    }

    /// Reads the planes of all states, parameters and sections and checks them. Needs memory for all records at once.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Damaged`].
    pub fn verify_all(&mut self) -> Result<(), CheckpointError> {
        let mut all = Vec::new();
        for tensor in self.tensors()? {
            let tensor = tensor?;
            all.push((tensor.name, tensor.planes));
        }
        for param in self.params()? {
            let param = param?;
            all.push((param.name, vec![param.plane]));
        }
        for section in self.sections()? {
            let section = section?;
            all.push((section.name, vec![section.plane]));
        }
        let mut buffer = Vec::new();
        for (name, planes) in &all {
            for plane in planes {
                self.plane(name, plane, &mut buffer, |_, _| Ok(()))?;
            }
        }
        Ok(())
    }
}
