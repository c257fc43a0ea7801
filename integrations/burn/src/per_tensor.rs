//! The optimizer of one tensor, for burn's own `ModuleOptimizer`.

use crate::Error;
use crate::tensor::{check, slice, slice_mut};
use burn_core::tensor::{Device, Tensor, TensorData};
use burn_optim::{LearningRate, ModuleOptimizer, Optimizer, RecordState, StateSink, StateSource};
use lion::Overrides;
use lion::backend::{
    Backend, BackendError, Hyper, Operand, Planes, State, StateRequest, TensorStep,
};
use lion::cpu::Cpu;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The name of every tensor in messages. burn does not pass a name to the optimizer of a tensor.
const NAME: &str = "tensor";

/// Lion as an [`Optimizer`] of burn, for code that needs a [`ModuleOptimizer`], such as burn's `Learner`.
///
/// [`LionBurn`](crate::LionBurn) is preferable where it can be used. burn calls this optimizer for one tensor at a time,
/// without its name, and expects no error from it. So it has:
///
/// - no groups by name. [`ModuleOptimizer::with_group`] uses another optimizer for a group of burn.
/// - no limit on the norm of all gradients, no factor of the gradients, and no report.
///   [`ModuleOptimizer::with_grad_clipping`] clips each gradient by itself.
/// - one step per tensor. Many small tensors take more time than in one step of all.
/// - no error: it panics.
/// - states that belong to a [`ParamId`](burn_core::module::ParamId), in memory and in the record of burn.
///
/// Both return the same bits for the same hyper-parameters, except with stochastic rounding, whose seeds derive from the
/// names in `LionBurn` and from the order of the first steps here.
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::optim::{GradientsParams, ModuleOptimizer};
/// use burn::prelude::*;
/// use lion::Overrides;
/// use lion_burn::TensorLion;
///
/// let device = Device::flex().autodiff();
/// let mut model = LinearConfig::new(128, 64).init(&device);
///
/// // let mut optimizer = AdamWConfig::new().init();
/// let overrides = Overrides::new().optim_bits(8).weight_decay(0.1);
/// let mut optimizer: ModuleOptimizer = TensorLion::new(overrides)?.init();
///
/// let loss = model.forward(Tensor::<2>::ones([1, 128], &device)).sum();
/// let grads = GradientsParams::from_grads(loss.backward(), &model);
/// model = optimizer.step(1e-4, model, grads);
/// let record = optimizer.into_bytes()?;
/// assert!(record.len() < 128 * 64 + 4 * 64 + 2_000); // an 8-bit state of the weight, a 32-bit state of the bias
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct TensorLion {
    hyper: Hyper,
    backend: Cpu,
    /// The number of tensors that have been stepped.
    tensors: Arc<AtomicU64>,
}

impl TensorLion {
    /// Returns an optimizer with these hyper-parameters. The learning rate is the one that burn passes to a step, times
    /// the [multiplier](Overrides::lr_multiplier). States are not paged.
    ///
    /// # Errors
    /// [`Error::Lion`] if a hyper-parameter is outside its range, or if the instruction set that the environment
    /// variable `LION_CPU_ISA` names is not available.
    pub fn new(overrides: Overrides) -> Result<Self, Error> {
        Ok(TensorLion {
            hyper: overrides.resolved()?,
            backend: Cpu::new().map_err(lion::Error::from)?,
            tensors: Arc::default(),
        })
    }

    /// Returns burn's optimizer of a module that uses this optimizer for all tensors.
    pub fn init(self) -> ModuleOptimizer {
        ModuleOptimizer::from(self)
    }

    fn try_step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<TensorState<D>>,
    ) -> Result<(Tensor<D>, TensorState<D>), Error> {
        check(NAME, Operand::Parameter, &tensor)?;
        check(NAME, Operand::Gradient, &grad)?;
        let (tensor, grad) = (tensor.inner(), grad.inner());
        let device = tensor.device();
        let (mut data, grad) = (tensor.into_data(), grad.into_data());
        let len = data.num_elements();
        let mut state = match state {
            Some(state) => state,
            None => {
                let request = StateRequest::new(NAME, self.hyper.bits_for(len), len);
                let state = self.backend.allocate(&request);
                TensorState {
                    state: state.map_err(lion::Error::from)?,
                    backend: self.backend.clone(),
                    steps: 0,
                    // Each seed is the key of random numbers that are independent of those of the others.
                    seed: self
                        .hyper
                        .seed
                        .wrapping_add(self.tensors.fetch_add(1, Ordering::Relaxed)),
                }
            }
        };
        let mut hyper = self.hyper;
        hyper.lr = lr;
        hyper.seed = state.seed;
        state.steps += 1;
        let param = slice_mut(NAME, &mut data)?;
        let grad = slice(NAME, Operand::Gradient, &grad)?;
        let step = TensorStep::new(NAME, param, grad, &mut *state.state, &hyper, state.steps)?;
        self.backend.step(&mut [step]).map_err(lion::Error::from)?;
        let dtype = data.dtype();
        Ok((Tensor::from_data(data, (&device, dtype)), state))
    }
}

impl Optimizer for TensorLion {
    type State<const D: usize> = TensorState<D>;

    /// # Panics
    /// If the tensor or its gradient is on a device of another backend than flex, or of another type than `f32`, `f16` and
    /// `bf16`; if the state has another length; if the learning rate is not valid.
    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<TensorState<D>>,
    ) -> (Tensor<D>, Option<TensorState<D>>) {
        match self.try_step(lr, tensor, grad, state) {
            Ok((tensor, state)) => (tensor, Some(state)),
            // The trait has no error, and a step that does nothing would go unnoticed.
            Err(error) => panic!("{error}"),
        }
    }

    /// Returns the state itself. It is in host memory.
    fn to_device<const D: usize>(state: TensorState<D>, _device: &Device) -> TensorState<D> {
        state
    }
}

/// The state of a [`TensorLion`] for one tensor: the momentum in 8 or 32 bits, the number of steps, and the seed of
/// stochastic rounding.
///
/// Its record has the tensor `momentum`, or the tensors `codes` and `absmax`, and the scalars `steps` and `seed`.
#[derive(Debug)]
pub struct TensorState<const D: usize> {
    state: Box<dyn State>,
    backend: Cpu,
    steps: u64,
    seed: u64,
}

impl<const D: usize> TensorState<D> {
    /// Returns the size of the momentum in bytes.
    pub fn bytes(&self) -> usize {
        self.state.layout().bytes(self.state.len())
    }

    /// Returns the number of steps.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Returns the state with these planes.
    fn of(backend: Cpu, planes: &Planes, steps: u64, seed: u64) -> Result<Self, BackendError> {
        let len = match planes {
            Planes::Momentum32 { momentum } => momentum.len(),
            Planes::Blockwise8 { codes, .. } => codes.len(),
            _ => 0,
        };
        let mut state = backend.allocate(&StateRequest::new(NAME, planes.bits(), len))?;
        state.import(planes)?;
        Ok(TensorState {
            state,
            backend,
            steps,
            seed,
        })
    }

    fn planes(&self) -> Planes {
        match self.state.export() {
            Ok(planes) => planes,
            // It fails if there is no memory. The traits of burn have no error.
            Err(error) => panic!("{error}"),
        }
    }
}

/// # Panics
/// If there is no memory for the copy.
impl<const D: usize> Clone for TensorState<D> {
    fn clone(&self) -> Self {
        let copy = Self::of(self.backend.clone(), &self.planes(), self.steps, self.seed);
        match copy {
            Ok(copy) => copy,
            Err(error) => panic!("{error}"),
        }
    }
}

impl<const D: usize> RecordState for TensorState<D> {
    /// # Panics
    /// If there is no memory for the copy.
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        let mut push = |leaf, data| out.push_tensor(prefix, leaf, data);
        match self.planes() {
            Planes::Momentum32 { momentum } => push("momentum", vector(momentum)),
            Planes::Blockwise8 { codes, absmax } => {
                push("codes", vector(codes));
                push("absmax", vector(absmax));
            }
            _ => {}
        }
        out.push_scalar(prefix, "steps", self.steps.into());
        out.push_scalar(prefix, "seed", self.seed.into());
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, _device: &Device) -> Option<Self> {
        let scalar = |src: &mut StateSource, leaf| src.take_scalar(prefix, leaf)?.try_into().ok();
        let (steps, seed) = (scalar(src, "steps")?, scalar(src, "seed")?);
        let planes = match src.take_tensor(prefix, "codes") {
            Some(codes) => Planes::Blockwise8 {
                codes: codes.try_into_vec().ok()?,
                absmax: src.take_tensor(prefix, "absmax")?.try_into_vec().ok()?,
            },
            None => Planes::Momentum32 {
                momentum: src.take_tensor(prefix, "momentum")?.try_into_vec().ok()?,
            },
        };
        Self::of(Cpu::new().ok()?, &planes, steps, seed).ok()
    }
}

fn vector<E: burn_core::tensor::Element>(plane: Vec<E>) -> TensorData {
    let len = plane.len();
    TensorData::new(plane, [len])
}
