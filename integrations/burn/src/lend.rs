//! Takes the elements of parameters out of a module, and puts them back.
//!
//! A step needs the elements of all parameters mutably at once. burn has no reference to them, but returns them without a
//! copy if a tensor is the only one with these elements. So the tensors are replaced by empty ones, which costs a map of
//! the module, and another map puts the elements back.

use crate::Error;
use crate::tensor::{data, flex, is_movable, slice_mut};
use crate::visit::{Path, Place, Places};
use burn_core::backend::Flex;
use burn_core::backend::flex::FlexTensor;
use burn_core::module::{Module, ModuleMapper, Param, ParamId};
use burn_core::tensor::{Tensor, TensorData};
use lion::backend::Operand;
use lion::tensor::SliceMut;

/// The elements of a parameter, and what else to put back.
#[derive(Debug)]
pub(crate) struct Elements {
    content: Content,
    /// `None` if the tensor in the module has them.
    settings: Option<Settings>,
}

/// Elements, as what came out of the module or as what a step needs.
#[derive(Debug)]
enum Content {
    Tensor(FlexTensor),
    Data(TensorData),
}

impl Content {
    fn rank(&self) -> usize {
        match self {
            Content::Tensor(tensor) => tensor.layout().num_dims(),
            Content::Data(data) => data.rank(),
        }
    }
}

impl From<TensorData> for Elements {
    fn from(data: TensorData) -> Self {
        Elements {
            content: Content::Data(data),
            settings: None,
        }
    }
}

/// The elements of some parameters of a module. They are put back when this is dropped, also while a panic unwinds.
#[derive(Debug)]
pub(crate) struct Lent<'m, M: Module> {
    module: &'m mut M,
    places: Vec<Place>,
    /// By the index of the place. `None` if the module does not map the parameter.
    elements: Vec<Option<Elements>>,
    copied: Vec<usize>,
}

impl<'m, M: Module> Lent<'m, M> {
    /// Takes the elements of parameters. They are copied if another tensor has them too, such as that of a clone of the
    /// module, or if they are not all elements of their memory, in their order.
    pub(crate) fn take(
        module: &'m mut M,
        places: impl Iterator<Item = Place>,
    ) -> Result<Self, Error> {
        // From the time at which the module has empty tensors, this puts the elements back, whatever fails.
        let mut lent = Lent {
            module,
            places: places.collect(),
            elements: Vec::new(),
            copied: Vec::new(),
        };
        let mut take = Take {
            path: Path::default(),
            places: Places::new(&lent.places),
            taken: lent.places.iter().map(|_| None).collect(),
        };
        let emptied = lent.module.clone().map(&mut take);
        lent.elements = take.taken;
        // The clone shares all tensors, until this drops the module with the same tensors.
        *lent.module = emptied;
        for index in 0..lent.places.len() {
            lent.convert(index)?;
        }
        Ok(lent)
    }

    /// Replaces the tensor that was taken from a place by its elements.
    fn convert(&mut self, index: usize) -> Result<(), Error> {
        let name = &self.places[index].name;
        let slot = &mut self.elements[index];
        match slot.take() {
            None => Err(Error::NotMapped {
                parameter: name.clone(),
            }),
            // A move does not fail. It requires that no other tensor has the elements, so none is kept here.
            Some(Elements {
                content: Content::Tensor(tensor),
                settings,
            }) if is_movable(&tensor) => {
                let content = Content::Data(tensor.into_data());
                *slot = Some(Elements { content, settings });
                Ok(())
            }
            Some(elements) => {
                // A copy can fail, so the tensor stays until there is one.
                let elements = slot.insert(elements);
                if let Content::Tensor(tensor) = &elements.content {
                    let copy = data(name, Operand::Parameter, tensor.clone())?;
                    elements.content = Content::Data(copy);
                    self.copied.push(index);
                }
                Ok(())
            }
        }
    }

    /// Returns the elements of each parameter, in the order of the places.
    pub(crate) fn elements(&mut self) -> impl Iterator<Item = Result<SliceMut<'_>, Error>> {
        let pairs = self.places.iter().zip(&mut self.elements);
        pairs.map(|(place, elements)| match elements {
            Some(Elements {
                content: Content::Data(data),
                ..
            }) => slice_mut(&place.name, data),
            _ => Err(Error::NotMapped {
                parameter: place.name.clone(),
            }),
        })
    }

    /// Returns the indices of the parameters whose elements were copied.
    pub(crate) fn copied(&self) -> &[usize] {
        &self.copied
    }
}

impl<M: Module> Drop for Lent<'_, M> {
    fn drop(&mut self) {
        put(self.module, &self.places, &mut self.elements);
    }
}

/// Replaces the elements of parameters, and takes them out of the list. Gradient settings and ids are kept.
pub(crate) fn put<M: Module>(module: &mut M, places: &[Place], elements: &mut [Option<Elements>]) {
    if elements.iter().all(Option::is_none) {
        return;
    }
    let mut put = Put {
        path: Path::default(),
        places: Places::new(places),
        elements,
    };
    *module = module.clone().map(&mut put);
}

struct Take<'p> {
    path: Path,
    places: Places<'p>,
    taken: Vec<Option<Elements>>,
}

impl ModuleMapper for Take<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(index) = self.places.find(&self.path, param.id) else {
            return param;
        };
        if self.taken[index].is_some() {
            return param;
        }
        // A parameter of another backend stays in the module, as one that is not mapped.
        let Ok(tensor) = flex("", Operand::Parameter, param.base()) else {
            return param;
        };
        let settings = Some(Settings::of::<D>(&param));
        let (id, base, mapper) = param.consume();
        let base = base.inner();
        let empty = Tensor::empty([0; D], (&base.device(), base.dtype()));
        self.taken[index] = Some(Elements {
            content: Content::Tensor(tensor),
            settings,
        });
        Param::from_mapped_value(id, empty, mapper)
    }
}

struct Put<'p> {
    path: Path,
    places: Places<'p>,
    elements: &'p mut [Option<Elements>],
}

impl ModuleMapper for Put<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let index = self.places.find(&self.path, param.id);
        let slot = index.and_then(|index| self.elements.get_mut(index));
        let slot = slot.and_then(|slot| slot.take_if(|it| it.content.rank() == D));
        let Some(Elements { content, settings }) = slot else {
            return param;
        };
        let (id, old, mapper) = param.consume();
        let settings = settings.unwrap_or_else(|| Settings::of(&old));
        let tensor = match content {
            Content::Tensor(tensor) => Tensor::from_primitive::<Flex>(tensor),
            Content::Data(data) => {
                // Without the type, burn would convert the elements to the default type of the device.
                let dtype = data.dtype();
                Tensor::from_data(data, (&old.inner().device(), dtype))
            }
        };
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
        let place = Place {
            name: "0".to_owned(),
            id,
        };
        let panics = std::panic::AssertUnwindSafe(|| {
            let mut lent = Lent::take(&mut module, [place].into_iter()).unwrap();
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
