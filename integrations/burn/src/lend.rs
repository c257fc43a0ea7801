//! Takes the elements of parameters out of a module, and puts them back.
//!
//! A step needs the elements of all parameters mutably at once. burn has no reference to them, but returns them without a
//! copy if a tensor is the only one with these elements. So the tensors are replaced by empty ones, which costs a map of
//! the module, and another map puts the elements back.

use crate::Error;
use crate::tensor::slice_mut;
use crate::visit::Path;
use burn_core::module::{Module, ModuleMapper, Param, ParamId};
use burn_core::tensor::{Tensor, TensorData};
use lion::tensor::SliceMut;
use std::collections::HashMap;

/// The elements of a parameter, and what else to put back.
#[derive(Debug)]
pub(crate) struct Elements {
    data: TensorData,
    /// `None` if the tensor in the module has them.
    settings: Option<Settings>,
}

impl From<TensorData> for Elements {
    fn from(data: TensorData) -> Self {
        Elements {
            data,
            settings: None,
        }
    }
}

/// The elements of some parameters of a module. They are put back when this is dropped, also while a panic unwinds.
#[derive(Debug)]
pub(crate) struct Lent<'m, M: Module> {
    module: &'m mut M,
    names: Vec<String>,
    /// By the index of the name. `None` if the module does not map the parameter.
    elements: Vec<Option<Elements>>,
    copied: Vec<usize>,
}

impl<'m, M: Module> Lent<'m, M> {
    /// Takes the elements of parameters. Those that another tensor has too, such as that of a clone of the module, are
    /// copied.
    pub(crate) fn take<'n>(
        module: &'m mut M,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<Self, Error> {
        let names: Vec<String> = names.map(str::to_owned).collect();
        let mut take = Take {
            path: Path::default(),
            indices: indices(&names),
            taken: names.iter().map(|_| None).collect(),
        };
        // The clone shares all tensors, until this drops the module with the same tensors.
        *module = module.clone().map(&mut take);
        let taken = take.taken;
        let mut copied = Vec::new();
        let elements = (0..).zip(taken).map(|(index, tensor)| {
            let (tensor, settings) = tensor?;
            if tensor.is_shared() {
                copied.push(index);
            }
            Some(Elements {
                data: tensor.into_data(),
                settings: Some(settings),
            })
        });
        let elements = elements.collect();
        let lent = Lent {
            module,
            names,
            elements,
            copied,
        };
        let mut pairs = lent.names.iter().zip(&lent.elements);
        match pairs.find(|(_, elements)| elements.is_none()) {
            Some((name, _)) => Err(Error::NotMapped {
                parameter: name.clone(),
            }),
            None => Ok(lent),
        }
    }

    /// Returns the elements of each parameter, in the order of the names.
    pub(crate) fn elements(&mut self) -> impl Iterator<Item = Result<SliceMut<'_>, Error>> {
        let pairs = self.names.iter().zip(&mut self.elements);
        pairs.filter_map(|(name, elements)| Some(slice_mut(name, &mut elements.as_mut()?.data)))
    }

    /// Returns the indices of the parameters whose elements were copied.
    pub(crate) fn copied(&self) -> &[usize] {
        &self.copied
    }
}

impl<M: Module> Drop for Lent<'_, M> {
    fn drop(&mut self) {
        put(self.module, &self.names, &mut self.elements);
    }
}

/// Replaces the elements of parameters, and takes them out of the list. Gradient settings and ids are kept.
pub(crate) fn put<M: Module>(module: &mut M, names: &[String], elements: &mut [Option<Elements>]) {
    let mut put = Put {
        path: Path::default(),
        indices: indices(names),
        elements,
    };
    *module = module.clone().map(&mut put);
}

fn indices(names: &[String]) -> HashMap<&str, usize> {
    names.iter().map(String::as_str).zip(0..).collect()
}

/// A tensor of any rank.
trait Taken {
    /// Returns whether another tensor has the same elements.
    fn is_shared(&self) -> bool;

    fn into_data(self: Box<Self>) -> TensorData;
}

impl<const D: usize> Taken for Tensor<D> {
    fn is_shared(&self) -> bool {
        !self.can_mut()
    }

    fn into_data(self: Box<Self>) -> TensorData {
        // It cannot fail for a tensor of flex, and all have been checked to be of flex.
        Tensor::into_data(*self)
    }
}

struct Take<'n> {
    path: Path,
    indices: HashMap<&'n str, usize>,
    taken: Vec<Option<(Box<dyn Taken>, Settings)>>,
}

impl ModuleMapper for Take<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(&index) = self.indices.get(&*self.path.name()) else {
            return param;
        };
        let (id, tensor, mapper) = param.consume();
        let settings = Settings::of(&tensor);
        let tensor = tensor.inner();
        let (device, dtype) = (tensor.device(), tensor.dtype());
        let empty = Tensor::empty([0; D], (&device, dtype));
        self.taken[index] = Some((Box::new(tensor), settings));
        Param::from_mapped_value(id, empty, mapper)
    }
}

struct Put<'n> {
    path: Path,
    indices: HashMap<&'n str, usize>,
    elements: &'n mut [Option<Elements>],
}

impl ModuleMapper for Put<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let index = self.indices.get(&*self.path.name());
        let Some(elements) = index.and_then(|&index| self.elements[index].take()) else {
            return param;
        };
        let Elements { data, settings } = elements;
        let (id, tensor, mapper) = param.consume();
        let settings = settings.unwrap_or_else(|| Settings::of(&tensor));
        // Without the type, burn would convert the elements to the default type of the device.
        let dtype = data.dtype();
        let tensor = Tensor::from_data(data, (&tensor.inner().device(), dtype));
        Param::from_mapped_value(id, settings.apply(tensor, id), mapper)
    }
}

/// What a tensor of a parameter has beside its elements.
#[derive(Debug)]
pub(crate) struct Settings {
    checkpointing: Option<burn_core::tensor::GradientCheckpointingStrategy>,
    require_grad: bool,
    distributed: bool,
}

impl Settings {
    fn of<const D: usize>(tensor: &Tensor<D>) -> Self {
        Settings {
            checkpointing: tensor.gradient_checkpointing_strategy(),
            require_grad: tensor.is_require_grad(),
            // burn panics if it is asked of a tensor without autodiff.
            distributed: tensor.is_autodiff() && tensor.is_distributed(),
        }
    }

    /// Gives them to a tensor without autodiff.
    fn apply<const D: usize>(self, tensor: Tensor<D>, id: ParamId) -> Tensor<D> {
        let Some(strategy) = self.checkpointing else {
            return tensor;
        };
        let mut tensor = tensor
            .autodiff()
            .with_gradient_checkpointing_strategy(strategy);
        if self.require_grad {
            tensor = tensor.require_grad();
        }
        if self.distributed {
            tensor = tensor.set_distributed(id);
        }
        tensor
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use burn_core::tensor::Device;

    #[test]
    fn a_panic_puts_the_elements_back() {
        let device = Device::flex().autodiff();
        let param = Param::from_data([1.0f32, 2.0], &device);
        let id = param.id;
        let mut module = vec![param];
        let panics = std::panic::AssertUnwindSafe(|| {
            let mut lent = Lent::take(&mut module, ["0"].into_iter()).unwrap();
            let elements = lent.elements().map(Result::unwrap);
            assert_eq!(elements.map(|it| it.len()).collect::<Vec<_>>(), [2]);
            assert_eq!(lent.module[0].dims(), [0]);
            panic!("as in a step");
        });
        assert!(std::panic::catch_unwind(panics).is_err());
        let values = module[0].val().into_data().try_into_vec::<f32>().unwrap();
        assert_eq!(values, [1.0, 2.0]);
        assert_eq!((module[0].id, module[0].is_require_grad()), (id, true));
    }
}
