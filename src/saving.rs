//! The methods of [`Lion`] that save and load checkpoints.

use crate::Lion;
use lion_checkpoint::{
    Checkpoint, CheckpointError, Load, LoadReport, Save, SaveHandle, ShardedCheckpoint, WhenSaving,
    load, save, save_async, save_with, write_to,
};
use std::io::{Read, Seek, Write};
use std::path::Path;

impl Lion {
    /// Saves hyper-parameters and states to a file, and returns the size of the file in bytes. An existing
    /// file is replaced atomically, as [`checkpoint::save`](crate::checkpoint::save) specifies. Waits for a save that a
    /// thread of [`save_async`](Lion::save_async) still writes.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    /// let mut lion = Lion::builder().lr(3e-4).build()?;
    /// let w = lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
    /// lion.step([(w, &mut [0.0f32; 4], &[1.0f32; 4])])?;
    /// lion.save(&path)?;
    ///
    /// let mut resumed = Lion::builder().build()?;
    /// let w = resumed.register(ParamSpec::new("w", 4, Dtype::F32))?;
    /// resumed.load(&path)?;
    /// assert_eq!((resumed.lr(), resumed.info(w)?.steps), (3e-4, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`checkpoint::save`](crate::checkpoint::save). The previous file is kept, except after
    /// [`CheckpointError::NotDurable`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<u64, CheckpointError> {
        self.background.wait();
        save(self, path)
    }

    /// Saves hyper-parameters and states to a file as [`save`](Lion::save) does, together with the values of parameters
    /// and named bytes of the trainer. [`Save`] has an example.
    ///
    /// # Errors
    /// The errors of [`save`](Lion::save), and [`CheckpointError::InvalidSection`].
    pub fn save_with(
        &self,
        path: impl AsRef<Path>,
        save: &Save<'_>,
    ) -> Result<u64, CheckpointError> {
        self.background.wait();
        save_with(self, path, save)
    }

    /// Saves to a file as [`save_with`](Lion::save_with) does, with a thread that writes the file. Returns when everything
    /// is copied. [`checkpoint::save_async`](crate::checkpoint::save_async) describes it and has an example.
    ///
    /// # Errors
    /// The errors of [`checkpoint::save_async`](crate::checkpoint::save_async).
    pub fn save_async(
        &self,
        path: impl AsRef<Path>,
        save: &Save<'_>,
        when: WhenSaving,
    ) -> Result<SaveHandle, CheckpointError> {
        save_async(self, &self.background, path, save, when)
    }

    /// Writes a checkpoint to anything but a file, from the beginning to the end, and returns its size in bytes.
    /// [`checkpoint::write_to`](crate::checkpoint::write_to) has an example.
    ///
    /// # Errors
    /// The errors of [`checkpoint::write_to`](crate::checkpoint::write_to). They name the writer `writer`.
    pub fn write_to(&self, writer: impl Write, save: &Save<'_>) -> Result<u64, CheckpointError> {
        write_to(self, writer, "writer", save)
    }

    /// Loads hyper-parameters and states from anything that can be read and positioned, such as bytes in memory. The
    /// checkpoint must be all of it, from its beginning to its end.
    ///
    /// ```
    /// use lion::{Lion, checkpoint::{Load, Save}};
    /// let mut bytes = Vec::new();
    /// Lion::builder().lr(3e-4).build()?.write_to(&mut bytes, &Save::new())?;
    /// let mut resumed = Lion::builder().build()?;
    /// resumed.read_from(std::io::Cursor::new(bytes), Load::new())?;
    /// assert_eq!(resumed.lr(), 3e-4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`load_with`](Lion::load_with), except [`CheckpointError::NotAFile`]. They name the reader `reader`.
    pub fn read_from(
        &mut self,
        reader: impl Read + Seek + Send,
        how: Load<'_>,
    ) -> Result<LoadReport, CheckpointError> {
        load(self, &mut Checkpoint::read(reader, "reader")?, how)
    }

    /// Loads hyper-parameters and states from a file. The registered parameters must be exactly those of
    /// the file. They are matched by name; their order does not matter. [`save`](Lion::save) has an example.
    ///
    /// # Errors
    /// The errors of [`load_with`](Lion::load_with).
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<LoadReport, CheckpointError> {
        self.load_with(path, Load::new())
    }

    /// Loads hyper-parameters and states from a file, with options. [`checkpoint::load`] specifies what it
    /// changes. The file may be the index of a checkpoint in several files, which
    /// [`checkpoint::load_sharded`] describes.
    ///
    /// [`checkpoint::load`]: crate::checkpoint::load
    /// [`checkpoint::load_sharded`]: crate::checkpoint::load_sharded
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec, checkpoint::{Load, LoadPolicy}};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    /// let mut lion = Lion::builder().lr(3e-4).build()?;
    /// lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
    /// lion.save(&path)?;
    ///
    /// // The new model has one more parameter, and the run a new learning rate.
    /// let mut tuned = Lion::builder().lr(1e-5).build()?;
    /// tuned.register(ParamSpec::new("w", 4, Dtype::F32))?;
    /// tuned.register(ParamSpec::new("head", 2, Dtype::F32))?;
    /// let how = Load::new().policy(LoadPolicy::NonStrict).keep_settings(true);
    /// let report = tuned.load_with(&path, how)?;
    /// assert_eq!((report.loaded, report.missing), (vec!["w".to_owned()], vec!["head".to_owned()]));
    /// assert_eq!(tuned.lr(), 1e-5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::NotAFile`], [`CheckpointError::NotACheckpoint`],
    /// [`CheckpointError::UnknownVersion`], [`CheckpointError::UnknownNumbers`],
    /// [`CheckpointError::UnknownSection`], [`CheckpointError::NameCollision`], [`CheckpointError::Damaged`],
    /// [`CheckpointError::Mismatch`], [`CheckpointError::TooLarge`], [`CheckpointError::Optimizer`], and
    /// [`CheckpointError::Shards`] for an index. The optimizer is unchanged, except after [`CheckpointError::PartlyLoaded`], which lists the changes.
    pub fn load_with(
        &mut self,
        path: impl AsRef<Path>,
        how: Load<'_>,
    ) -> Result<LoadReport, CheckpointError> {
        let mut checkpoint = Checkpoint::open(path)?;
        if checkpoint.files().is_empty() {
            return load(self, &mut checkpoint, how);
        }
        ShardedCheckpoint::of(checkpoint)?.load(self, how)
    }
}
