//! Lists the tensors of a module under their names, with their gradients.

use crate::Error;
use crate::tensor::{check, data, dtype_of, flex};
use burn_core::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn_core::tensor::{Bool, Int, Tensor, TensorData};
use burn_optim::{GradAdaptor, GradientsParams};
use lion::Dtype;
use lion::backend::Operand;
use std::collections::{HashMap, HashSet};

/// The path from the module to the tensor that is visited or mapped.
#[derive(Debug, Default)]
pub(crate) struct Path(Vec<String>);

impl Path {
    pub(crate) fn enter(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    pub(crate) fn exit(&mut self) {
        self.0.pop();
    }

    /// Returns the path with dots, such as `layer.weight`. It is the name of the tensor.
    pub(crate) fn name(&self) -> String {
        self.0.join(".")
    }
}

/// A tensor of a module.
#[derive(Debug)]
pub(crate) struct Visited {
    pub(crate) name: String,
    pub(crate) id: ParamId,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) gradient: Option<TensorData>,
    /// Its elements, if they were asked for.
    pub(crate) values: Option<TensorData>,
}

impl Visited {
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub(crate) fn place(&self) -> Place {
        Place {
            name: self.name.clone(),
            id: self.id,
        }
    }
}

/// Where a tensor is in a module. A module that maps other tensors than it visits can have several with one name.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) id: ParamId,
}

/// Finds places by their names.
#[derive(Debug)]
pub(crate) struct Places<'p> {
    places: &'p [Place],
    indices: HashMap<&'p str, usize>,
}

impl<'p> Places<'p> {
    pub(crate) fn new(places: &'p [Place]) -> Self {
        let names = places.iter().map(|place| &*place.name);
        Places {
            places,
            indices: names.zip(0..).collect(),
        }
    }

    /// Returns the index of the place of a tensor, if it is one of the places.
    pub(crate) fn find(&self, path: &Path, id: ParamId) -> Option<usize> {
        let index = *self.indices.get(&*path.name())?;
        (self.places[index].id == id).then_some(index)
    }
}

/// Where gradients come from.
pub(crate) trait Gradients {
    fn of<const D: usize>(&mut self, id: ParamId) -> Option<Tensor<D>>;
}

/// Gradients that are taken out, so that their elements need not be copied.
impl Gradients for GradAdaptor {
    fn of<const D: usize>(&mut self, id: ParamId) -> Option<Tensor<D>> {
        self.remove(id).map(|(gradient, _)| gradient)
    }
}

impl Gradients for &GradientsParams {
    fn of<const D: usize>(&mut self, id: ParamId) -> Option<Tensor<D>> {
        self.get(id)
    }
}

/// No gradients.
#[derive(Debug)]
pub(crate) struct NoGradients;

impl Gradients for NoGradients {
    fn of<const D: usize>(&mut self, _: ParamId) -> Option<Tensor<D>> {
        None
    }
}

/// Returns the parameters of a step, in the order of the module: those that require gradients, and those that have
/// one. `values` tells whether to copy their elements.
pub(crate) fn trained<M: Module>(
    module: &M,
    gradients: impl Gradients,
    values: bool,
) -> Result<Vec<Visited>, Error> {
    visit(module, gradients, true, values)
}

/// Returns all tensors of `f32`, `f16` and `bf16`, in the order of the module, without gradients.
pub(crate) fn floats<M: Module>(module: &M, values: bool) -> Result<Vec<Visited>, Error> {
    visit(module, NoGradients, false, values)
}

/// Returns the names of the other tensors, in the order of the module.
pub(crate) fn unsaved<M: Module>(module: &M) -> Vec<String> {
    let mut unsaved = Unsaved::default();
    module.visit(&mut unsaved);
    unsaved.names
}

/// Returns the name of the first of these tensors that the module visits and does not map. It cannot be replaced.
pub(crate) fn unmapped<M: Module>(module: &M, tensors: &[Visited]) -> Option<String> {
    let places: Vec<Place> = tensors.iter().map(Visited::place).collect();
    let mut mapper = Mapped {
        path: Path::default(),
        places: Places::new(&places),
        tensors,
        met: vec![false; tensors.len()],
    };
    // A map has no reference to the module. That of a clone changes nothing, because it returns all tensors as they are.
    let _ = module.clone().map(&mut mapper);
    let index = mapper.met.iter().position(|met| !met)?;
    Some(tensors[index].name.clone())
}

fn visit<M: Module>(
    module: &M,
    gradients: impl Gradients,
    trained: bool,
    values: bool,
) -> Result<Vec<Visited>, Error> {
    let mut visitor = Visitor {
        path: Path::default(),
        gradients,
        trained,
        values,
        names: HashSet::new(),
        ids: HashMap::new(),
        visited: Vec::new(),
        error: None,
    };
    module.visit(&mut visitor);
    match visitor.error {
        Some(error) => Err(error),
        None => Ok(visitor.visited),
    }
}

struct Visitor<G> {
    path: Path,
    gradients: G,
    /// Whether only the parameters of a step are listed.
    trained: bool,
    values: bool,
    /// The names of all tensors of floats.
    names: HashSet<String>,
    /// The names by id, of the parameters of a step.
    ids: HashMap<ParamId, String>,
    visited: Vec<Visited>,
    /// The first error.
    error: Option<Error>,
}

impl<G: Gradients> Visitor<G> {
    fn tensor<const D: usize>(&mut self, id: ParamId, tensor: &Tensor<D>) -> Result<(), Error> {
        let gradient = self.gradients.of::<D>(id);
        let name = self.path.name();
        // Also if one of the two is not listed: nobody could tell which one a name means.
        if !self.names.insert(name.clone()) {
            return Err(lion::Error::DuplicateParameter { parameter: name }.into());
        }
        if self.trained {
            if gradient.is_none() && !tensor.is_require_grad() {
                return Ok(());
            }
            if let Some(with) = self.ids.get(&id) {
                return Err(Error::SharedId {
                    parameter: name,
                    with: with.clone(),
                });
            }
            self.ids.insert(id, name.clone());
        } else if dtype_of(tensor.dtype()).is_none() {
            return Ok(());
        }
        let dtype = check(&name, Operand::Parameter, tensor)?;
        let shape = tensor.shape().as_slice().to_vec();
        let gradient = gradient.map(|gradient| {
            let gradient = gradient.inner();
            check(&name, Operand::Gradient, &gradient)?;
            let given = gradient.shape();
            if given.as_slice() != shape {
                return Err(Error::Unsupported {
                    parameter: name.clone(),
                    operand: Operand::Gradient,
                    what: "shape",
                    given: format!("{:?}", given.as_slice()),
                    wanted: format!("{shape:?}"),
                });
            }
            data(
                &name,
                Operand::Gradient,
                flex(&name, Operand::Gradient, gradient)?,
            )
        });
        let gradient = gradient.transpose()?;
        let values = self.values.then(|| {
            let tensor = flex(&name, Operand::Parameter, tensor.clone())?;
            data(&name, Operand::Parameter, tensor)
        });
        self.visited.push(Visited {
            gradient,
            values: values.transpose()?,
            name,
            id,
            dtype,
            shape,
        });
        Ok(())
    }
}

impl<G: Gradients> ModuleVisitor for Visitor<G> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.error.is_none() {
            self.error = self.tensor(param.id, param).err();
        }
    }
}

/// Notes which tensors a module maps.
struct Mapped<'v> {
    path: Path,
    places: Places<'v>,
    tensors: &'v [Visited],
    met: Vec<bool>,
}

impl ModuleMapper for Mapped<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if let Some(index) = self.places.find(&self.path, param.id)
            && self.tensors[index].shape.len() == D
        {
            self.met[index] = true;
        }
        param
    }
}

#[derive(Debug, Default)]
struct Unsaved {
    path: Path,
    names: Vec<String>,
}

impl ModuleVisitor for Unsaved {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if dtype_of(param.dtype()).is_none() {
            self.names.push(self.path.name());
        }
    }

    fn visit_int<const D: usize>(&mut self, _param: &Param<Tensor<D, Int>>) {
        self.names.push(self.path.name());
    }

    fn visit_bool<const D: usize>(&mut self, _param: &Param<Tensor<D, Bool>>) {
        self.names.push(self.path.name());
    }
}
