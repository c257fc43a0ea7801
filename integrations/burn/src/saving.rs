//! Saves and loads a run: the optimizer and the tensors of the module, in one file.

use crate::lend::put;
use crate::tensor::{slice, slice_mut};
use crate::visit::{Place, Visited, floats, unmapped, unsaved};
use crate::{Error, LionBurn};
use burn_core::module::Module;
use burn_core::tensor::{TensorData, bf16, f16};
use lion::Dtype;
use lion::backend::Operand;
use lion::checkpoint::{Checkpoint, CheckpointError, Load, LoadReport, Save, load};
use lion::tensor::MemoryOrder;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::Path;

/// The section that holds the shapes and names of the tensors of the module. The format of lion has the number of elements
/// only, and does not tell them from values that the trainer has added.
const SHAPES: &str = "lion-burn.shapes";

impl LionBurn {
    /// Saves the settings, the states and the tensors of a module to one file, and returns its size in bytes. An existing
    /// file is replaced atomically, as [`lion::checkpoint::save`] specifies.
    ///
    /// All tensors of `f32`, `f16` and `bf16` that the module visits are saved, so also frozen parameters and the running
    /// means of a batch normalization. They are copied for it. Tensors of integers, of booleans, of `f64` and quantized
    /// ones are not saved; [`unsaved`](LionBurn::unsaved) returns their names.
    ///
    /// Nor is what a run has outside the module and the optimizer: the state of a scheduler, of a data loader, and of burn's
    /// random numbers, from which dropout draws. [`save_with`](LionBurn::save_with) can add bytes for these.
    ///
    /// burn keeps the running means of a forward pass apart until the next pass. A save moves them into the module, as the
    /// next pass would. If passes of several threads are pending, it averages those that are there. A save that is refused
    /// because of the module moves none; one that fails later, as on a full disk, has moved them.
    ///
    /// ```
    /// use burn::nn::{Linear, LinearConfig};
    /// use burn::optim::GradientsParams;
    /// use burn::prelude::*;
    /// use lion::Lion8bit;
    /// use lion_burn::LionBurn;
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    ///
    /// let device = Device::flex().autodiff();
    /// let mut model = LinearConfig::new(4, 2).init(&device);
    /// let mut optimizer = LionBurn::new(Lion8bit::builder())?;
    /// let grads = |model: &Linear| {
    ///     let loss = model.forward(Tensor::<2>::ones([1, 4], &device)).sum();
    ///     GradientsParams::from_grads(loss.backward(), model)
    /// };
    /// let first = grads(&model);
    /// optimizer.step(1e-3, &mut model, first)?;
    /// optimizer.save(&path, &model)?;
    ///
    /// let mut resumed = LinearConfig::new(4, 2).init(&device);
    /// let mut optimizer = LionBurn::new(Lion8bit::builder())?;
    /// optimizer.load(&path, &mut resumed)?;
    /// assert_eq!(resumed.weight.val().into_data(), model.weight.val().into_data());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotInModule`] if a parameter of the optimizer is not in the module, as after a layer was replaced;
    /// [`Error::Unsupported`] for a tensor on a device of another backend than flex; [`Error::Lion`] with
    /// [`lion::Error::DuplicateParameter`] if the module has two tensors with one path; [`Error::Checkpoint`] with the
    /// errors of [`lion::checkpoint::save`].
    pub fn save<M: Module>(&self, path: impl AsRef<Path>, module: &M) -> Result<u64, Error> {
        self.save_with(path, module, Save::new())
    }

    /// Saves a run as [`save`](LionBurn::save) does, with what `save` adds to it, such as the epoch or averages of the
    /// parameters. [`Checkpoint::section`](lion::checkpoint::Checkpoint::section) and
    /// [`Checkpoint::read_params`](lion::checkpoint::Checkpoint::read_params) read them back; [`Save`] has an example.
    ///
    /// # Errors
    /// The errors of [`save`](LionBurn::save), and
    /// [`CheckpointError::InvalidSection`](lion::checkpoint::CheckpointError::InvalidSection) if `save` contains a
    /// tensor of the module or a section with the name `lion-burn.shapes`.
    pub fn save_with<M: Module>(
        &self,
        path: impl AsRef<Path>,
        module: &M,
        save: Save<'_>,
    ) -> Result<u64, Error> {
        // A module that is refused is left as it is.
        self.check_registered(&floats(module, false)?)?;
        synchronize(module);
        let tensors = floats(module, true)?;
        let shapes: String = lines(&tensors).into_values().collect();
        let mut save = save.section(SHAPES, shapes.as_bytes());
        for tensor in &tensors {
            if let Some(values) = &tensor.values {
                let values = slice(&tensor.name, Operand::Parameter, values)?;
                save = save.param(&*tensor.name, values);
            }
        }
        Ok(self.lion.save_with(path, &save)?)
    }

    /// Returns the names of the tensors of a module that a [`save`](LionBurn::save) leaves out: those of integers, of
    /// booleans, of `f64`, and quantized ones.
    ///
    /// ```
    /// use burn::module::Param;
    /// use burn::prelude::*;
    /// use lion_burn::LionBurn;
    ///
    /// #[derive(Module, Debug)]
    /// struct Model {
    ///     weight: Param<Tensor<1>>,
    ///     positions: Param<Tensor<1, Int>>,
    /// }
    ///
    /// let device = Device::flex();
    /// let model = Model {
    ///     weight: Param::from_data([0.5, 0.5], &device),
    ///     positions: Param::initialized(Default::default(), Tensor::arange(0..4, &device)),
    /// };
    /// assert_eq!(LionBurn::unsaved(&model), ["positions"]);
    /// ```
    pub fn unsaved<M: Module>(module: &M) -> Vec<String> {
        unsaved(module)
    }

    /// Checks that the module has all parameters that are registered. A file without their tensors could not be loaded.
    fn check_registered(&self, tensors: &[Visited]) -> Result<(), Error> {
        let by_name: HashMap<_, _> = tensors.iter().map(|it| (&*it.name, it)).collect();
        for info in self.lion.parameters() {
            let describe = |len: usize, dtype: Dtype| format!("{len} {dtype} elements");
            let wanted = describe(info.len, info.dtype);
            let given = match by_name.get(info.name) {
                Some(tensor) => describe(tensor.len(), tensor.dtype),
                None => "no such tensor of f32, f16 or bf16".to_owned(),
            };
            if given != wanted {
                return Err(Error::NotInModule {
                    parameter: info.name.to_owned(),
                    given,
                    wanted,
                });
            }
        }
        Ok(())
    }

    /// Loads the settings, the states and the tensors of a module from a file. The tensors must be exactly those of the
    /// file, by name, shape and type. They keep their ids and whether they require gradients.
    /// [`save`](LionBurn::save) has an example.
    ///
    /// Parameters with a state in the file are added to the optimizer. If it has parameters without a state in the file,
    /// it returns an error.
    ///
    /// The settings of the file replace those of the builder: the defaults, the groups of the same name, and the group and
    /// overrides of each parameter. A group that only the builder has is kept, with the parameters that are in no group in
    /// the file. [`lion::checkpoint::load`] has the details. The width of the states is not a setting that a load changes:
    /// if the optimizer has another one than the file, the load returns an error.
    ///
    /// Clones of a module share the running means of its batch normalizations, so a load replaces those of the clones too.
    ///
    /// Everything is checked before anything changes. The file is read three times.
    ///
    /// # Errors
    /// The errors of [`load_with`](LionBurn::load_with).
    pub fn load<M: Module>(
        &mut self,
        path: impl AsRef<Path>,
        module: &mut M,
    ) -> Result<LoadReport, Error> {
        self.load_with(path, module, Load::new())
    }

    /// Loads a run as [`load`](LionBurn::load) does, with options for its settings and states.
    ///
    /// The options do not apply to the tensors: with any of them, the tensors must be exactly those of the file. The function
    /// of [`Load::rename`] is not called, because a state with another name would not be that of the tensor that gets the
    /// values.
    ///
    /// ```
    /// use burn::nn::LinearConfig;
    /// use burn::prelude::*;
    /// use lion::{Lion8bit, checkpoint::Load};
    /// use lion_burn::LionBurn;
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    ///
    /// let mut model = LinearConfig::new(4, 2).init(&Device::flex().autodiff());
    /// let mut optimizer = LionBurn::new(Lion8bit::builder().weight_decay(0.1))?;
    /// optimizer.register(&model)?;
    /// optimizer.save(&path, &model)?;
    ///
    /// // Continues with another weight decay.
    /// let mut tuned = LionBurn::new(Lion8bit::builder().weight_decay(0.5))?;
    /// tuned.load_with(&path, &mut model, Load::new().keep_settings(true))?;
    /// let handle = tuned.lion().handle("weight")?;
    /// assert_eq!(tuned.lion().info(handle)?.hyper.weight_decay, 0.5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Values`] if the file has no values or other tensors; [`Error::Checkpoint`] with the errors of
    /// [`lion::checkpoint::load`]; [`Error::Lion`] with the errors of
    /// [`Lion::register`](lion::Lion::register), and with [`lion::Error::DuplicateParameter`] if the module has two
    /// tensors with one path; [`Error::Unsupported`] for a tensor on a device of another backend than flex;
    /// [`Error::NotMapped`].
    ///
    /// After [`CheckpointError::PartlyLoaded`](lion::checkpoint::CheckpointError::PartlyLoaded), which the load of the states
    /// returns if the file can no longer be read then, the module is unchanged, and the states that the error lists must be
    /// loaded again before the next step. After all other errors nothing has changed.
    pub fn load_with<M: Module>(
        &mut self,
        path: impl AsRef<Path>,
        module: &mut M,
        how: Load<'_>,
    ) -> Result<LoadReport, Error> {
        let path = path.as_ref();
        let mut file = Checkpoint::open(path)?;
        file.verify_all()?;
        let tensors = floats(module, false)?;
        check_values(path, &mut file, &tensors)?;
        if let Some(parameter) = unmapped(module, &tensors) {
            return Err(Error::NotMapped { parameter });
        }
        let mut values: Vec<TensorData> = tensors.iter().map(zeros).collect();
        let pairs = tensors.iter().zip(&mut values);
        let slices: Result<Vec<_>, Error> = pairs
            .map(|(tensor, values)| Ok((&*tensor.name, slice_mut(&tensor.name, values)?)))
            .collect();
        file.read_params(slices?).map_err(nothing_loaded)?;

        let mut states = HashSet::new();
        for state in file.tensors()? {
            states.insert(state?.name);
        }
        let stepped = tensors.iter().filter(|it| states.contains(&*it.name));
        let added = self.add(stepped)?;
        // With new names, the states would not be those of the tensors that get the values.
        let same_names = |_: &str| None;
        let report = match load(&mut self.lion, &mut file, how.rename(&same_names)) {
            Ok(report) => report,
            Err(error) => {
                self.remove(added);
                return Err(error.into());
            }
        };
        let places: Vec<Place> = tensors.iter().map(Visited::place).collect();
        let mut values: Vec<_> = values.into_iter().map(|it| Some(it.into())).collect();
        // Otherwise the next forward pass would replace the running means by those of the last one.
        synchronize(module);
        put(module, &places, &mut values);
        // Nothing is left, unless the module maps other tensors each time.
        match places
            .into_iter()
            .zip(values)
            .find(|(_, left)| left.is_some())
        {
            Some((place, _)) => Err(Error::NotMapped {
                parameter: place.name,
            }),
            None => Ok(report),
        }
    }
}

/// Returns the error of a reading of values, without its list of what is partly read: no tensor has these values yet, and
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

/// Moves the running means of the last forward pass into the tensors that the module visits and maps.
fn synchronize<M: Module>(module: &M) {
    // burn does so at the beginning of `valid`, and has no function that does only this. `valid` does not copy elements.
    let _ = module.valid();
}

/// Returns a line with shape and name per tensor, by name.
fn lines(tensors: &[Visited]) -> BTreeMap<&str, String> {
    let lines = tensors.iter().map(|tensor| {
        let line = format!("{:?} {}\n", tensor.shape, one_line(&tensor.name));
        (&*tensor.name, line)
    });
    lines.collect()
}

/// Returns a name as a part of a line.
fn one_line(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\n', "\\n")
}

/// Returns elements of 0, in the shape and type of a tensor.
fn zeros(tensor: &Visited) -> TensorData {
    let shape = &*tensor.shape;
    match tensor.dtype {
        Dtype::F16 => TensorData::zeros::<f16, _>(shape),
        Dtype::Bf16 => TensorData::zeros::<bf16, _>(shape),
        _ => TensorData::zeros::<f32, _>(shape),
    }
}

/// Checks that a file has the tensors of a module, in their shapes and types, and no others. It may have values that the
/// trainer has added.
fn check_values(
    path: &Path,
    file: &mut Checkpoint<File>,
    tensors: &[Visited],
) -> Result<(), Error> {
    let differs = |given: String, wanted: String| Error::Values {
        path: path.to_owned(),
        given,
        wanted,
    };
    let mut saved = HashMap::new();
    for param in file.params()? {
        let param = param?;
        saved.insert(param.name.clone(), param);
    }
    for tensor in tensors {
        let name = &tensor.name;
        let describe = |len: u64, dtype: Dtype, order: &MemoryOrder| {
            format!("{len} {dtype} values ({order:?})")
        };
        let wanted = describe(tensor.len() as u64, tensor.dtype, &MemoryOrder::RowMajor);
        let param = saved.remove(name);
        let param = param
            .ok_or_else(|| differs(format!("no values of tensor `{name}`"), wanted.clone()))?;
        let given = describe(param.len, param.dtype, &param.order);
        if given != wanted {
            return Err(differs(format!("{given} for tensor `{name}`"), wanted));
        }
    }
    let only = || "tensors of the module only".to_owned();
    // A file that was not saved by this crate has no shapes. All of its values count as tensors.
    let Some(shapes) = file.section(SHAPES)? else {
        return match saved.into_keys().min() {
            Some(name) => Err(differs(format!("values of tensor `{name}`"), only())),
            None => Ok(()),
        };
    };
    let shapes = String::from_utf8_lossy(&shapes);
    // The shape is in brackets, and the rest of the line is the name.
    let pairs = shapes
        .split_terminator('\n')
        .map(|line| match line.split_once("] ") {
            Some((_, name)) => (name, line),
            None => (line, line),
        });
    let mut given: BTreeMap<&str, &str> = pairs.collect();
    for (name, wanted) in lines(tensors) {
        let wanted = wanted.trim_end_matches('\n');
        match given.remove(&*one_line(name)) {
            Some(line) if line == wanted => {}
            Some(line) => {
                let given = format!("the shape and tensor {line}");
                return Err(differs(given, wanted.to_owned()));
            }
            None => {
                let given = format!("values `{name}` that are not a tensor of the module");
                return Err(differs(given, wanted.to_owned()));
            }
        }
    }
    match given.into_keys().next() {
        Some(name) => Err(differs(format!("tensor `{name}`"), only())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
