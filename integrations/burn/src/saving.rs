//! Saves and loads a run: the optimizer and the tensors of the module, in one file.

use crate::lend::put;
use crate::tensor::{slice, slice_mut};
use crate::visit::{Visited, floats};
use crate::{Error, LionBurn};
use burn_core::module::Module;
use burn_core::tensor::{TensorData, bf16, f16};
use lion::Dtype;
use lion::backend::Operand;
use lion::checkpoint::{Checkpoint, Load, LoadReport, Save, load};
use lion::tensor::MemoryOrder;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;

/// The section that holds the shapes of the tensors. The format of lion has the number of elements only.
const SHAPES: &str = "lion-burn.shapes";

impl LionBurn {
    /// Saves the settings, the states and the tensors of a module to one file, and returns its size in bytes. An existing
    /// file is replaced atomically, as [`lion::checkpoint::save`] specifies.
    ///
    /// All tensors of `f32`, `f16` and `bf16` that the module visits are saved, so also frozen parameters and the running
    /// means of a batch normalization. They are copied for it. Tensors of integers, of booleans and of other floats are
    /// not saved.
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
    /// [`Error::Unsupported`] for a tensor on a device of another backend than flex; [`Error::Checkpoint`] with the errors
    /// of [`lion::checkpoint::save`].
    pub fn save<M: Module>(&self, path: impl AsRef<Path>, module: &M) -> Result<u64, Error> {
        self.save_with(path, module, Save::new())
    }

    /// Saves a run as [`save`](LionBurn::save) does, with what `save` adds to it, such as the epoch.
    /// [`Checkpoint::section`](lion::checkpoint::Checkpoint::section) reads it back; [`Save`] has an example.
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
        let tensors = floats(module, true)?;
        let shapes = shapes(&tensors);
        let mut save = save.section(SHAPES, shapes.as_bytes());
        for tensor in &tensors {
            if let Some(values) = &tensor.values {
                let values = slice(&tensor.name, Operand::Parameter, values)?;
                save = save.param(&*tensor.name, values);
            }
        }
        Ok(self.lion.save_with(path, &save)?)
    }

    /// Loads the settings, the states and the tensors of a module from a file. The tensors must be exactly those of the
    /// file, by name, shape and type. They keep their ids and whether they require gradients.
    /// [`save`](LionBurn::save) has an example.
    ///
    /// Parameters with a state in the file are added to the optimizer. If it has parameters without a state in the file,
    /// it returns an error.
    ///
    /// Everything is checked before anything changes. The file is read three times.
    ///
    /// # Errors
    /// [`Error::Module`] if the file has no values or other tensors; [`Error::Checkpoint`] with the errors of
    /// [`Lion::load`](lion::Lion::load); [`Error::Lion`] with the errors of [`Lion::register`](lion::Lion::register);
    /// [`Error::Unsupported`] for a tensor on a device of another backend than flex; [`Error::NotMapped`], after which
    /// everything but these tensors is loaded.
    pub fn load<M: Module>(
        &mut self,
        path: impl AsRef<Path>,
        module: &mut M,
    ) -> Result<LoadReport, Error> {
        let path = path.as_ref();
        let mut file = Checkpoint::open(path)?;
        file.verify_all()?;
        let tensors = floats(module, false)?;
        check_values(path, &mut file, &tensors)?;
        let mut values: Vec<TensorData> = tensors.iter().map(zeros).collect();
        let pairs = tensors.iter().zip(&mut values);
        let slices: Result<Vec<_>, Error> = pairs
            .map(|(tensor, values)| Ok((&*tensor.name, slice_mut(&tensor.name, values)?)))
            .collect();
        file.read_params(slices?)?;

        let mut states = HashSet::new();
        for state in file.tensors()? {
            states.insert(state?.name);
        }
        let stepped = tensors.iter().filter(|it| states.contains(&*it.name));
        let added = self.add(stepped)?;
        let report = match load(&mut self.lion, &mut file, Load::new()) {
            Ok(report) => report,
            Err(error) => {
                self.remove(added);
                return Err(error.into());
            }
        };
        let names: Vec<String> = tensors.into_iter().map(|tensor| tensor.name).collect();
        let mut values: Vec<_> = values.into_iter().map(|it| Some(it.into())).collect();
        put(module, &names, &mut values);
        match names
            .into_iter()
            .zip(values)
            .find(|(_, left)| left.is_some())
        {
            Some((parameter, _)) => Err(Error::NotMapped { parameter }),
            None => Ok(report),
        }
    }
}

/// Returns a line with shape and name per tensor, sorted by name.
fn shapes(tensors: &[Visited]) -> String {
    let mut tensors: Vec<_> = tensors.iter().collect();
    tensors.sort_unstable_by_key(|tensor| &tensor.name);
    let lines = tensors.into_iter();
    let lines = lines.map(|tensor| format!("{:?} {}\n", tensor.shape, tensor.name));
    lines.collect()
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

/// Checks that a file has the tensors of a module, in their shapes and types, and no others.
fn check_values(
    path: &Path,
    file: &mut Checkpoint<File>,
    tensors: &[Visited],
) -> Result<(), Error> {
    let differs = |given: String, wanted: String| Error::Module {
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
    if let Some(name) = saved.into_keys().min() {
        let wanted = "tensors of the module only".to_owned();
        return Err(differs(format!("values of tensor `{name}`"), wanted));
    }
    // A file that was not saved by this crate has no shapes.
    let Some(given) = file.section(SHAPES)? else {
        return Ok(());
    };
    let (given, wanted) = (String::from_utf8_lossy(&given), shapes(tensors));
    let mut pairs = given.lines().zip(wanted.lines());
    match pairs.find(|(given, wanted)| given != wanted) {
        Some((given, wanted)) => Err(differs(
            format!("the shape and tensor {given}"),
            wanted.to_owned(),
        )),
        None => Ok(()),
    }
}
