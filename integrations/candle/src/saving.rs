//! Saves and loads a run: the optimizer and the variables, in one file.

use crate::lend::Lent;
use crate::variable::elements;
use crate::{Error, LionCandle};
use lion::checkpoint::{Checkpoint, CheckpointError, Load, LoadReport, Save, load};
use lion::tensor::{MemoryOrder, SliceMut};
use lion::{Dtype, bf16, f16};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The section that holds the shapes of the variables. The format of lion has the number of elements only.
const SHAPES: &str = "lion-candle.shapes";

impl LionCandle {
    /// Saves the settings, the states and the values of all variables to one file, and returns its size in bytes. An
    /// existing file is replaced atomically, as [`lion::checkpoint::save`] specifies.
    ///
    /// What a run has outside the optimizer and its variables is not saved:
    ///
    /// - variables of integers of the `VarMap`, which the optimizer ignores, and variables that were added to the map after
    ///   [`from_varmap`](LionCandle::from_varmap), unless [`add`](LionCandle::add) has added them here;
    /// - the state of a scheduler and of a data loader, and random numbers, as those from which dropout draws.
    ///
    /// [`save_with`](LionCandle::save_with) can add bytes for these. A resumed run returns the bits of one that was not
    /// interrupted if the trainer restores them.
    ///
    /// ```
    /// use candle_core::{Device, Var};
    /// use candle_nn::Optimizer;
    /// use lion::Lion;
    /// use lion_candle::LionCandle;
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    ///
    /// let x = Var::new(&[1f32, -2.0], &Device::Cpu)?;
    /// let mut optimizer = LionCandle::empty(Lion::builder().lr(0.5))?;
    /// optimizer.add("x", &x)?;
    /// optimizer.backward_step(&x.sqr()?.sum_all()?)?;
    /// optimizer.save(&path)?;
    ///
    /// let y = Var::new(&[0f32, 0.0], &Device::Cpu)?;
    /// let mut resumed = LionCandle::empty(Lion::builder())?;
    /// resumed.add("x", &y)?;
    /// resumed.load(&path)?;
    /// assert_eq!((y.to_vec1::<f32>()?, resumed.learning_rate()), (vec![0.5, -1.5], 0.5));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InUse`]; [`Error::Removed`] if a variable was removed from [`lion_mut`](LionCandle::lion_mut);
    /// [`Error::Checkpoint`] with the errors of [`lion::checkpoint::save`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<u64, Error> {
        self.save_with(path, Save::new())
    }

    /// Saves a run as [`save`](LionCandle::save) does, with what `save` adds to it, such as the epoch or averages of the
    /// variables. [`Checkpoint::section`](lion::checkpoint::Checkpoint::section) and
    /// [`Checkpoint::read_params`](lion::checkpoint::Checkpoint::read_params) read them back, and
    /// [`load`](LionCandle::load) ignores them; [`Save`] has an example.
    ///
    /// # Errors
    /// The errors of [`save`](LionCandle::save), and
    /// [`CheckpointError::InvalidSection`](lion::checkpoint::CheckpointError::InvalidSection) if `save` contains a
    /// variable or a section with the name `lion-candle.shapes`.
    pub fn save_with(&self, path: impl AsRef<Path>, save: Save<'_>) -> Result<u64, Error> {
        // A file of values without a state could not be loaded.
        self.check_registered()?;
        let shapes = self.shapes();
        let locks = self.variables.iter();
        let locks = locks.map(|variable| (variable, variable.var.storage_and_layout().0));
        let locks: Vec<_> = locks.collect();
        let mut save = save.section(SHAPES, shapes.as_bytes());
        for (variable, storage) in &locks {
            let values = elements(storage, variable.range.clone());
            let values = values.ok_or_else(|| Error::InUse {
                variable: variable.name.clone(),
            })?;
            save = save.param(&*variable.name, values);
        }
        Ok(self.lion.save_with(path, &save)?)
    }

    /// Loads the settings, the states and the values of all variables from a file. The variables must be exactly those of
    /// the file, by name, shape and type. [`save`](LionCandle::save) has an example.
    ///
    /// The settings of the file replace those of the builder: the learning rate and all other hyper-parameters, the groups,
    /// and the group of each variable. Only a group whose name is not in the file is kept, with its variables. A run that
    /// resumes with other settings needs [`keep_settings`](Load::keep_settings), an option of
    /// [`load_with`](LionCandle::load_with), or sets them after the load.
    ///
    /// # Errors
    /// The errors of [`load_with`](LionCandle::load_with).
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<LoadReport, Error> {
        let report = self.load_with(path, Load::new())?;
        // The file has replaced it, also by the learning rate that was valid before.
        self.refused_lr = None;
        Ok(report)
    }

    /// Loads a run as [`load`](LionCandle::load) does, with options.
    ///
    /// [`keep_settings`](Load::keep_settings) and [`convert_states`](Load::convert_states) do what they do in
    /// [`Lion::load_with`](lion::Lion::load_with). With [`LoadPolicy::NonStrict`](lion::checkpoint::LoadPolicy::NonStrict),
    /// the file may have more variables or fewer, and a variable that is not in the file keeps its value and its state. All
    /// values of variables that are in the file are loaded, also that of a variable whose state is not, because it has
    /// another width. Values that were added with [`Save::param`] are not, even if a variable has their name.
    ///
    /// If an invalid learning rate was [set](candle_nn::Optimizer::set_learning_rate), steps return its error after the load
    /// too, unless the load has changed the learning rate.
    ///
    /// Values are neither converted nor renamed. A variable whose shape or type is not that of the file is an error, with
    /// [`allow_dtype_change`](Load::allow_dtype_change) and `NonStrict` too. The function of [`rename`](Load::rename) is not
    /// called.
    ///
    /// All of the file is checked before anything changes. The values are read into memory before the states are loaded, and
    /// copied into the variables after that, so a load needs memory for another copy of the variables, and one that fails
    /// changes none of them. Other threads can use the variables until the values are in memory. The file is read up to three
    /// times.
    ///
    /// ```
    /// use candle_core::{Device, Var};
    /// use candle_nn::Optimizer;
    /// use lion::{Lion, checkpoint::Load};
    /// use lion_candle::LionCandle;
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    /// let x = Var::new(&[1f32, -2.0], &Device::Cpu)?;
    /// let mut optimizer = LionCandle::empty(Lion::builder().lr(0.5))?;
    /// optimizer.add("x", &x)?;
    /// optimizer.save(&path)?;
    ///
    /// let y = Var::new(&[0f32, 0.0], &Device::Cpu)?;
    /// let mut tuned = LionCandle::empty(Lion::builder().lr(0.125))?;
    /// tuned.add("x", &y)?;
    /// tuned.load_with(&path, Load::new().keep_settings(true))?;
    /// assert_eq!((y.to_vec1::<f32>()?, tuned.learning_rate()), (vec![1.0, -2.0], 0.125));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Values`] if the file has the state of a variable but not its values, or has them in another shape or
    /// type; [`Error::InUse`]; [`Error::Removed`]; [`Error::Checkpoint`] with the errors of [`lion::checkpoint::load`], such as
    /// [`CheckpointError::Mismatch`](lion::checkpoint::CheckpointError::Mismatch) if the file has other variables. After
    /// [`CheckpointError::PartlyLoaded`](lion::checkpoint::CheckpointError::PartlyLoaded) the variables have their old
    /// values, and the states that it lists must be loaded again before the next step; after all other errors nothing has
    /// changed.
    pub fn load_with(
        &mut self,
        path: impl AsRef<Path>,
        how: Load<'_>,
    ) -> Result<LoadReport, Error> {
        let path = path.as_ref();
        self.check_registered()?;
        let mut file = Checkpoint::open(path)?;
        file.verify_all()?;
        let mut values = self.check_values(path, &mut file)?;
        let pairs = self.variables.iter().zip(&mut values);
        let saved = pairs.filter_map(|(it, values)| Some((&*it.name, values.as_mut()?.slice())));
        file.read_params(saved).map_err(nothing_loaded)?;

        // From here to the end, other threads cannot use the variables. What can fail comes before the states are loaded.
        let mut lent = Lent::take(&self.variables)?;
        let mut targets = Vec::with_capacity(values.len());
        for (element, values) in lent.elements().zip(values) {
            let (variable, slice) = element?;
            if let Some(values) = values {
                // Length and type are those of the variable, of which the values have been made.
                let target = Target::new(slice, values).ok_or_else(|| Error::InUse {
                    variable: variable.name.clone(),
                })?;
                targets.push(target);
            }
        }
        // With new names, the states would not be those of the variables that get the values.
        let same_names = |_: &str| None;
        let report = load(&mut self.lion, &mut file, how.rename(&same_names))?;
        for target in targets {
            target.set();
        }
        drop(lent);
        // It would come back with the learning rate that was valid before. If no settings were loaded, it is still refused.
        if self.refused_lr().is_none() {
            self.refused_lr = None;
        }
        Ok(report)
    }

    /// Returns a line with shape and name per variable, sorted by name.
    fn shapes(&self) -> String {
        let mut variables: Vec<_> = self.variables.iter().collect();
        variables.sort_unstable_by_key(|variable| &variable.name);
        let lines = variables.into_iter().map(|variable| {
            let dims = variable.var.dims();
            format!("{dims:?} {}\n", in_a_line(&variable.name))
        });
        lines.collect()
    }

    /// Returns, for each variable, memory for its values if a file has them, which are then of its shape and type. The load
    /// of the states refuses a file without the variable, unless the caller allows it.
    fn check_values(
        &self,
        path: &Path,
        file: &mut Checkpoint<std::fs::File>,
    ) -> Result<Vec<Option<Values>>, Error> {
        let differs = |given: String, wanted: String| Error::Values {
            path: path.to_owned(),
            given,
            wanted,
        };
        let mut params = HashMap::new();
        for param in file.params()? {
            let param = param?;
            params.insert(param.name.clone(), param);
        }
        let mut states = HashSet::new();
        for state in file.tensors()? {
            states.insert(state?.name);
        }
        // A file that was not saved by this crate has no shapes.
        let lines = file.section(SHAPES)?;
        let lines = lines.as_deref().map(String::from_utf8_lossy);
        let shapes: Option<HashMap<&str, String>> = lines.as_deref().map(|lines| {
            let lines = lines.split('\n').filter_map(|line| {
                let (dims, name) = line.split_once("] ")?;
                Some((name, format!("{dims}]")))
            });
            lines.collect()
        });

        let mut saved = Vec::with_capacity(self.variables.len());
        for variable in &self.variables {
            let name = &variable.name;
            let info = self.lion.info(variable.handle)?;
            let describe = |len: u64, dtype: Dtype, order: &MemoryOrder| {
                format!("{len} {dtype} values ({order:?})")
            };
            let wanted = describe(info.len as u64, info.dtype, &MemoryOrder::RowMajor);
            let line = in_a_line(name);
            let shape = shapes.as_ref().map(|shapes| shapes.get(&*line));
            // Values without a shape, in a file that has shapes, are not those of a variable: the trainer has added them.
            let param = params.get(name).filter(|_| shape != Some(None));
            let Some(param) = param else {
                if states.contains(name) {
                    return Err(differs(format!("no values of variable `{name}`"), wanted));
                }
                saved.push(None);
                continue;
            };
            let given = describe(param.len, param.dtype, &param.order);
            if given != wanted {
                return Err(differs(format!("{given} for variable `{name}`"), wanted));
            }
            let wanted = format!("{:?}", variable.var.dims());
            if let Some(Some(given)) = shape
                && *given != wanted
            {
                let given = format!("shape {given} for variable `{name}`");
                return Err(differs(given, wanted));
            }
            saved.push(Some(Values::zeros(info.dtype, info.len)));
        }
        Ok(saved)
    }
}

/// Returns the error of a reading of values, without its list of what is partly read: no variable has these values yet, and
/// the caller would take it for a list of states.
fn nothing_loaded(error: CheckpointError) -> CheckpointError {
    match error {
        CheckpointError::PartlyLoaded { path, source, .. } => {
            let source = source.downcast::<CheckpointError>();
            source.map_or_else(
                |source| CheckpointError::Io {
                    action: "read",
                    path,
                    source: std::io::Error::other(source),
                },
                |source| *source,
            )
        }
        other => other,
    }
}

/// Returns a name without line breaks.
fn in_a_line(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\n', "\\n")
}

/// The values that a variable will get.
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Values {
    /// Returns zeros of a type that a variable can have.
    fn zeros(dtype: Dtype, len: usize) -> Self {
        match dtype {
            Dtype::F16 => Values::F16(vec![f16::ZERO; len]),
            Dtype::Bf16 => Values::Bf16(vec![bf16::ZERO; len]),
            _ => Values::F32(vec![0.0; len]),
        }
    }

    /// Returns the memory into which a file is read.
    fn slice(&mut self) -> SliceMut<'_> {
        match self {
            Values::F32(values) => SliceMut::F32(values),
            Values::F16(values) => SliceMut::F16(values),
            Values::Bf16(values) => SliceMut::Bf16(values),
        }
    }
}

/// The elements of a variable, and as many values, which they will get.
enum Target<'a> {
    F32(&'a mut [f32], Vec<f32>),
    F16(&'a mut [f16], Vec<f16>),
    Bf16(&'a mut [bf16], Vec<bf16>),
}

impl<'a> Target<'a> {
    /// Returns `None` if length or type differ.
    fn new(elements: SliceMut<'a>, values: Values) -> Option<Self> {
        match (elements, values) {
            (SliceMut::F32(all), Values::F32(values)) if all.len() == values.len() => {
                Some(Target::F32(all, values))
            }
            (SliceMut::F16(all), Values::F16(values)) if all.len() == values.len() => {
                Some(Target::F16(all, values))
            }
            (SliceMut::Bf16(all), Values::Bf16(values)) if all.len() == values.len() => {
                Some(Target::Bf16(all, values))
            }
            _ => None,
        }
    }

    /// Copies the values to the variable.
    fn set(self) {
        match self {
            Target::F32(all, values) => all.copy_from_slice(&values),
            Target::F16(all, values) => all.copy_from_slice(&values),
            Target::Bf16(all, values) => all.copy_from_slice(&values),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_of_another_length_or_type_are_not_copied() {
        let mut all = [1f32, 2.0];
        let mut target = |dtype, len| {
            let target = Target::new(SliceMut::F32(&mut all), Values::zeros(dtype, len));
            target.map(Target::set).is_some()
        };
        assert!(!target(Dtype::F32, 1));
        assert!(!target(Dtype::F16, 2));
        assert!(!target(Dtype::Bf16, 2));
        assert!(target(Dtype::F32, 2));
        assert_eq!(all, [0.0, 0.0]);
    }

    #[test]
    fn an_error_of_the_values_lists_no_states() {
        let partly = |source| CheckpointError::PartlyLoaded {
            path: "run.lion".into(),
            parameters: vec!["w".into()],
            source,
        };
        let index = CheckpointError::Sharded {
            path: "index.lion".into(),
        };
        let error = nothing_loaded(partly(Box::new(index)));
        assert!(matches!(error, CheckpointError::Sharded { .. }));
        let error = nothing_loaded(partly("gone".into()));
        assert!(matches!(error, CheckpointError::Io { .. }));
    }
}
