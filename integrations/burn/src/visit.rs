//! Lists the tensors of a module under their names, with their gradients.

use crate::Error;
use crate::tensor::{check, dtype_of};
use burn_core::module::{Module, ModuleVisitor, Param, ParamId};
use burn_core::tensor::{Tensor, TensorData};
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
        if !self.names.insert(name.clone()) {
            return Err(lion::Error::DuplicateParameter { parameter: name }.into());
        }
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
            Ok(gradient.into_data())
        });
        self.visited.push(Visited {
            gradient: gradient.transpose()?,
            values: self.values.then(|| tensor.clone().inner().into_data()),
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
