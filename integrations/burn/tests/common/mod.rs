//! What the tests share. Each test program uses a part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::nn::Linear;
use burn::optim::GradientsParams;
use burn::tensor::activation::relu;
use burn::tensor::{DType, Device, Element, Tensor, TensorData};

/// Returns numbers in `[-1, 1)` that depend on the seed.
pub fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let number = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(number).take(len).collect()
}

/// Returns a device with autodiff.
pub fn device() -> Device {
    Device::flex().autodiff()
}

/// Returns a tensor of these elements, in their type.
pub fn tensor<const D: usize, T: Element>(
    elements: Vec<T>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    let data = TensorData::new(elements, shape);
    Tensor::from_data(data, (device, T::dtype()))
}

/// Returns a parameter of these elements, in their type.
pub fn param<const D: usize, T: Element>(elements: Vec<T>, shape: [usize; D]) -> Param<Tensor<D>> {
    Param::from_tensor(tensor(elements, shape, &device()))
}

/// Returns a layer whose parameters depend on the seed. burn's own initialization differs in each run, because the tests
/// draw from one generator at the same time.
pub fn linear(seed: u64, inputs: usize, outputs: usize, device: &Device) -> Linear {
    let bound = 1.0 / (inputs as f32).sqrt();
    let scaled = |seed, len| numbers(seed, len).into_iter().map(|x| bound * x).collect();
    let weight = tensor::<2, f32>(scaled(seed, inputs * outputs), [inputs, outputs], device);
    let bias = tensor::<1, f32>(scaled(seed + 1, outputs), [outputs], device);
    Linear {
        weight: Param::from_tensor(weight),
        bias: Some(Param::from_tensor(bias)),
    }
}

/// Returns the elements of a tensor, in their type.
pub fn elements<const D: usize, T: Element>(tensor: &Param<Tensor<D>>) -> Vec<T> {
    let data = tensor.base().inner().into_data();
    assert_eq!(data.dtype(), T::dtype());
    data.try_into_vec().unwrap()
}

/// What [`tensors`] returns of a tensor: its path, type, id, whether it requires gradients, and its bytes.
pub type Record = (String, DType, ParamId, bool, Vec<u8>);

/// Returns all tensors of floats of a module.
pub fn tensors<M: Module>(module: &M) -> Vec<Record> {
    #[derive(Default)]
    struct Visitor(Vec<String>, Vec<Record>);
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let (require_grad, data) = (param.is_require_grad(), param.base().inner().into_data());
            let name = self.0.join(".");
            let bytes = data.as_bytes().to_vec();
            self.1
                .push((name, data.dtype(), param.id, require_grad, bytes));
        }
    }
    let mut visitor = Visitor::default();
    module.visit(&mut visitor);
    visitor.1
}

/// A network of two layers. The larger weight has 5,120 elements, so an 8-bit state.
#[derive(Module, Debug)]
pub struct Network {
    pub first: Linear,
    pub second: Linear,
}

impl Network {
    pub fn new() -> Self {
        Network {
            first: linear(1, 64, 80, &device()),
            second: linear(3, 80, 10, &device()),
        }
    }

    /// Returns gradients of a loss of random inputs.
    pub fn gradients(&self, seed: u64) -> GradientsParams {
        let x = tensor(numbers(seed, 8 * 64), [8, 64], &device());
        let out = self.second.forward(relu(self.first.forward(x)));
        GradientsParams::from_grads(out.square().mean().backward(), self)
    }
}
