//! The methods of [`Lion`] that save and load checkpoints.

use crate::Lion;
use lion_checkpoint::{Checkpoint, CheckpointError, Load, LoadReport, load, save};
use std::path::Path;

impl Lion {
    /// Saves hyper-parameters and states to a file, and returns the size of the file in bytes. An existing
    /// file is replaced atomically, as [`checkpoint::save`](crate::checkpoint::save) specifies.
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
        save(self, path)
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
    /// changes.
    ///
    /// [`checkpoint::load`]: crate::checkpoint::load
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
    /// [`CheckpointError::UnknownVersion`], [`CheckpointError::Damaged`],
    /// [`CheckpointError::Mismatch`], [`CheckpointError::TooLarge`], [`CheckpointError::Optimizer`]. The
    /// optimizer is unchanged, except after [`CheckpointError::PartlyLoaded`], which lists the changes.
    pub fn load_with(
        &mut self,
        path: impl AsRef<Path>,
        how: Load,
    ) -> Result<LoadReport, CheckpointError> {
        load(self, &mut Checkpoint::open(path)?, how)
    }
}
