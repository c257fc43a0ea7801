//! The optimizer of one tensor, for burn's own `ModuleOptimizer`.

use crate::Error;
use crate::tensor::{check, data, flex, slice, slice_mut};
use burn_core::tensor::{Device, Tensor, TensorData};
use burn_optim::{LearningRate, ModuleOptimizer, Optimizer, RecordState, StateSink, StateSource};
use lion::Overrides;
use lion::backend::{
    Backend, BackendError, Hyper, Operand, Planes, State, StateRequest, TensorStep,
};
use lion::cpu::Cpu;
use lion::paging::PagingError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The name of every tensor in messages. burn does not pass a name to the optimizer of a tensor.
const NAME: &str = "tensor";

/// Lion as an [`Optimizer`] of burn, for code that needs a [`ModuleOptimizer`], such as burn's `Learner`.
///
/// [`LionBurn`](crate::LionBurn) is preferable where it can be used. burn calls this optimizer for one tensor at a time,
/// without its name, and expects no error from it. So it has:
///
/// - no groups by name. [`ModuleOptimizer::with_group`] uses another optimizer for a group of burn. If several groups
///   contain a parameter, the last one counts; of the groups of `LionBurn` it is the first one.
/// - no limit on the norm of all gradients, no factor of the gradients, and no report.
///   [`ModuleOptimizer::with_grad_clipping`] clips each gradient by itself.
/// - one step per tensor. Many small tensors take more time than in one step of all.
/// - no error: it panics.
/// - states that belong to a [`ParamId`](burn_core::module::ParamId), in memory and in the record of burn.
///
/// Both return the same bits for the same hyper-parameters, except with stochastic rounding.
///
/// # Seeds of stochastic rounding
/// They derive from the names in `LionBurn`, and from the order of the first steps here: the first tensor has the
/// [`seed`](Overrides::seed), the next one the number after it. Two `TensorLion` of one [`ModuleOptimizer`] therefore need
/// seeds that differ by more than the number of tensors. Otherwise two tensors are rounded with the same random numbers.
///
/// A state in a record has its seed. A tensor that is first stepped after the record was loaded gets a seed after those of
/// the states that were stepped before it, or the seed of this optimizer if those are smaller. If it comes before them in
/// the module, in the first step after the load, it may get one that a tensor of the record has.
///
/// # Records
/// [`ModuleOptimizer::load_record`] has no error: a state that does not fit, as in a damaged record, is left out
/// without a message, and its parameter begins with a momentum of 0. A record has no hyper-parameters; they are those of
/// the optimizer that loads it. [`LionBurn::load`](crate::LionBurn::load) returns errors and loads both.
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
    /// What to add to the seed for the next tensor without a state. It is more than was added for any tensor that has
    /// been stepped, except those of seeds before this one.
    tensors: Arc<AtomicU64>,
}

impl TensorLion {
    /// Returns an optimizer with these hyper-parameters, except [`lr`](Overrides::lr), which is not used: the learning
    /// rate is the one that burn passes to a step, times the [multiplier](Overrides::lr_multiplier).
    ///
    /// # Errors
    /// [`Error::Lion`] if a hyper-parameter is outside its range; if [`is_paged`](Overrides::is_paged) is set, because the
    /// states of burn cannot be paged, with [`PagingError::NotSetUp`]; and if the instruction set that the environment
    /// variable `LION_CPU_ISA` names is not available.
    pub fn new(overrides: Overrides) -> Result<Self, Error> {
        let hyper = overrides.resolved()?;
        let backend = Cpu::new().map_err(lion::Error::from)?;
        if hyper.is_paged {
            let backend = backend.name().to_owned();
            let error = BackendError::from(PagingError::NotSetUp { backend });
            return Err(lion::Error::from(error).into());
        }
        Ok(TensorLion {
            hyper,
            backend,
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
        let device = tensor.device().inner();
        let tensor = flex(NAME, Operand::Parameter, tensor)?;
        let mut elements = data(NAME, Operand::Parameter, tensor)?;
        let grad = flex(NAME, Operand::Gradient, grad)?;
        let grad = data(NAME, Operand::Gradient, grad)?;
        let len = elements.num_elements();
        let mut state = match state {
            Some(state) => {
                // The state may come from a record, whose seeds this counter has not given out. Seeds wrap around, so a
                // distance of more than half of the range is that of a seed before this one, which the counter does not
                // reach.
                let added = state.seed.wrapping_sub(self.hyper.seed);
                if added < 1 << 63 {
                    self.tensors.fetch_max(added + 1, Ordering::Relaxed);
                }
                state
            }
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
        let param = slice_mut(NAME, &mut elements)?;
        let grad = slice(NAME, Operand::Gradient, &grad)?;
        let step = TensorStep::new(NAME, param, grad, &mut *state.state, &hyper, state.steps)?;
        self.backend.step(&mut [step]).map_err(lion::Error::from)?;
        let dtype = elements.dtype();
        Ok((Tensor::from_data(elements, (&device, dtype)), state))
    }
}

impl Optimizer for TensorLion {
    type State<const D: usize> = TensorState<D>;

    /// # Panics
    /// If the tensor or its gradient is on a device of another backend than flex, or of another type than `f32`, `f16` and
    /// `bf16`; if their elements are in a file that cannot be read; if the gradient or the state has another length; if
    /// the learning rate is not valid.
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
        // The trait has neither an error nor a message for a record that does not fit.
        Self::of(Cpu::new().ok()?, &planes, steps, seed).ok()
    }
}

fn vector<E: burn_core::tensor::Element>(plane: Vec<E>) -> TensorData {
    let len = plane.len();
    TensorData::new(plane, [len])
}
