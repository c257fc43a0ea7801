//! What a save writes beside the optimizer: the values of parameters, and named bytes of the trainer.

#[cfg(doc)]
use crate::{Checkpoint, CheckpointError};
use lion_core::{GradRef, IntoGrad};

/// What a save writes beside the optimizer, so that one file holds a whole run: the values of parameters, and
/// named bytes of the trainer, such as the epoch, the position in the data or the state of a random generator.
///
/// The values are borrowed until the file is written. [`Checkpoint::read_params`] and [`Checkpoint::section`] read
/// them back.
///
/// ```
/// use lion::{Dtype, Lion8bit, ParamSpec};
/// use lion::checkpoint::{self, Checkpoint, Load, Save};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("run.lion");
/// let (mut weight, grad) = (vec![1.0f32; 8192], vec![0.5f32; 8192]);
/// let mut lion = Lion8bit::builder().build()?;
/// let w = lion.register(ParamSpec::new("weight", 8192, Dtype::F32))?;
/// lion.step([(w, &mut weight, &grad)])?;
/// let epoch = 3u64.to_le_bytes();
/// lion.save_with(&path, &Save::new().param("weight", &weight).section("epoch", &epoch))?;
///
/// let mut resumed = Lion8bit::builder().build()?;
/// resumed.register(ParamSpec::new("weight", 8192, Dtype::F32))?;
/// let mut values = vec![0.0f32; 8192];
/// let mut file = Checkpoint::open(&path)?;
/// file.verify_all()?; // a load checks the states only
/// checkpoint::load(&mut resumed, &mut file, Load::new())?;
/// file.read_params([("weight", &mut values)])?;
/// assert_eq!(values, weight);
/// assert_eq!(file.section("epoch")?.as_deref(), Some(&epoch[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Save<'a> {
    pub(super) params: Vec<(String, Option<GradRef<'a>>)>,
    pub(super) sections: Vec<(String, &'a [u8])>,
    pub(super) score: Option<f64>,
}

impl<'a> Save<'a> {
    /// Returns a save of the optimizer alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the values of a parameter, in the types that a step accepts as a gradient: slices, vectors and `ndarray`
    /// arrays of `f32`, `f16` or `bf16`, in any contiguous memory order. The name need not be that of a registered
    /// parameter.
    ///
    /// A save returns [`CheckpointError::InvalidSection`] for an empty or repeated name, an array that is not
    /// contiguous, and values in device memory.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>, values: impl IntoGrad<'a>) -> Self {
        self.params.push((name.into(), values.into_grad()));
        self
    }

    /// Adds the values of several parameters, as [`param`](Save::param) does.
    ///
    /// ```
    /// use lion::checkpoint::Save;
    /// let layers = [("embed", vec![0.5f32; 64]), ("head", vec![0.25; 16])];
    /// let save = Save::new().params(layers.iter().map(|(name, values)| (*name, values)));
    /// ```
    #[must_use]
    pub fn params<N: Into<String>, V: IntoGrad<'a>>(
        mut self,
        params: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        for (name, values) in params {
            self = self.param(name, values);
        }
        self
    }

    /// Adds bytes of the trainer under a name.
    ///
    /// A save returns [`CheckpointError::InvalidSection`] for an empty or repeated name.
    #[must_use]
    pub fn section(mut self, name: impl Into<String>, bytes: &'a [u8]) -> Self {
        self.sections.push((name.into(), bytes));
        self
    }

    /// Sets the score of the run at this step, such as the validation loss. Lower is better.
    /// [`Rotation::keep_best`](crate::Rotation::keep_best) keeps the checkpoints with the lowest scores, and
    /// [`Checkpoint::score`] returns it.
    #[must_use]
    pub fn score(mut self, score: f64) -> Self {
        self.score = Some(score);
        self
    }
}
