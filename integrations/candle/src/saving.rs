//! Saves and loads a run: the optimizer and the variables, in one file.

use crate::lend::Lent;
use crate::variable::elements;
use crate::{Error, LionCandle};
use lion::Dtype;
use lion::checkpoint::{Checkpoint, Load, LoadReport, Save, load};
use lion::tensor::MemoryOrder;
use std::collections::HashMap;
use std::path::Path;

/// The section that holds the shapes of the variables. The format of lion has the number of elements only.
const SHAPES: &str = "lion-candle.shapes";

impl LionCandle {
    /// Saves the settings, the states and the values of all variables to one file, and returns its size in bytes. An
    /// existing file is replaced atomically, as [`lion::checkpoint::save`] specifies.
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
    /// [`Error::InUse`]; [`Error::Checkpoint`] with the errors of [`lion::checkpoint::save`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<u64, Error> {
        self.save_with(path, Save::new())
    }

    /// Saves a run as [`save`](LionCandle::save) does, with what `save` adds to it, such as the epoch.
    /// [`Checkpoint::section`](lion::checkpoint::Checkpoint::section) reads it back; [`Save`] has an example.
    ///
    /// # Errors
    /// The errors of [`save`](LionCandle::save), and
    /// [`CheckpointError::InvalidSection`](lion::checkpoint::CheckpointError::InvalidSection) if `save` contains a
    /// variable or a section with the name `lion-candle.shapes`.
    pub fn save_with(&self, path: impl AsRef<Path>, save: Save<'_>) -> Result<u64, Error> {
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
    /// Everything is checked before anything changes. The file is read three times.
    ///
    /// # Errors
    /// [`Error::Variables`] if the file has no values or other variables; [`Error::Checkpoint`] with the errors of
    /// [`Lion::load`](lion::Lion::load); [`Error::InUse`]; [`Error::PartlyLoaded`].
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<LoadReport, Error> {
        let path = path.as_ref();
        let mut file = Checkpoint::open(path)?;
        file.verify_all()?;
        self.check_values(path, &mut file)?;
        let mut lent = Lent::take(&self.variables)?;
        let mut values = Vec::with_capacity(self.variables.len());
        for element in lent.elements() {
            let (variable, slice) = element?;
            values.push((&*variable.name, slice));
        }
        let report = load(&mut self.lion, &mut file, Load::new())?;
        let read = file.read_params(values);
        read.map_err(|source| Error::PartlyLoaded {
            source: Box::new(source.into()),
        })?;
        self.refused_lr = None;
        Ok(report)
    }

    /// Returns a line with shape and name per variable, sorted by name.
    fn shapes(&self) -> String {
        let mut variables: Vec<_> = self.variables.iter().collect();
        variables.sort_unstable_by_key(|variable| &variable.name);
        let lines = variables.into_iter().map(|variable| {
            let dims = variable.var.dims();
            format!("{dims:?} {}\n", variable.name)
        });
        lines.collect()
    }

    /// Checks that a file has the values of the variables, in their shapes and types.
    fn check_values(&self, path: &Path, file: &mut Checkpoint<std::fs::File>) -> Result<(), Error> {
        let differs = |given: String, wanted: String| Error::Variables {
            path: path.to_owned(),
            given,
            wanted,
        };
        let mut saved = HashMap::new();
        for param in file.params()? {
            let param = param?;
            saved.insert(param.name.clone(), param);
        }
        for variable in &self.variables {
            let name = &variable.name;
            let info = self.lion.info(variable.handle)?;
            let describe = |len: u64, dtype: Dtype, order: &MemoryOrder| {
                format!("{len} {dtype} values ({order:?})")
            };
            let wanted = describe(info.len as u64, info.dtype, &MemoryOrder::RowMajor);
            let param = saved.get(name);
            let param = param.ok_or_else(|| {
                differs(format!("no values of variable `{name}`"), wanted.clone())
            })?;
            let given = describe(param.len, param.dtype, &param.order);
            if given != wanted {
                return Err(differs(format!("{given} for variable `{name}`"), wanted));
            }
        }
        // A file that was not saved by this crate has no shapes.
        let Some(given) = file.section(SHAPES)? else {
            return Ok(());
        };
        let (given, wanted) = (String::from_utf8_lossy(&given), self.shapes());
        let mut pairs = given.lines().zip(wanted.lines());
        match pairs.find(|(given, wanted)| given != wanted) {
            Some((given, wanted)) => Err(differs(
                format!("the shape and variable {given}"),
                wanted.to_owned(),
            )),
            // A file with more variables is refused by the load of the states.
            None => Ok(()),
        }
    }
}
