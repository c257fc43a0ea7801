//! The tensors of a call: checked, their states downcast, and the device addresses of their arrays.

use crate::CudaError;
use crate::device::Cuda;
use crate::driver::{Owner, Session};
use crate::kind::{Kind, Task};
use crate::memory::{BorrowedMemory, bytes_of, bytes_of_mut};
use crate::state::CudaState;
use crate::tensor_table::TensorDesc;
use crate::workspace::Workspace;
use lion_core::{BackendError, DeviceMemory, Operand, Shard, Slice, SliceMut, TensorStep};
use lion_paging::StepPiece;
use std::any::Any;

/// A tensor of a call that this backend can step.
#[derive(Debug)]
pub(crate) struct CudaTensor<'t> {
    /// The elements of the parameter and of the gradient, if they are in host memory.
    host_param: Option<SliceMut<'t>>,
    host_grad: Option<Slice<'t>>,
    pub(crate) state: &'t mut CudaState,
    pub(crate) kind: Kind,
    pub(crate) shard: Shard,
    /// The row of the whole tensor, without the addresses of the state.
    pub(crate) desc: TensorDesc,
}

impl CudaTensor<'_> {
    /// Returns whether the parameter is in host memory. A step of it is complete when the call returns.
    pub(crate) fn is_on_host(&self) -> bool {
        self.host_param.is_some()
    }

    /// Returns the row of a piece, which is resident.
    pub(crate) fn row(&self, piece: &StepPiece) -> (Kind, TensorDesc) {
        let (state, absmax) = self.state.addresses(piece.piece);
        let desc = self.desc.piece(&piece.elements);
        (
            self.kind,
            TensorDesc {
                state,
                absmax,
                ..desc
            },
        )
    }
}

impl Cuda {
    /// Checks the tensors of a call, and downcasts their states and the memory of their arrays.
    ///
    /// The optimizer has checked the lengths. A backend that wraps this one may have changed them since.
    ///
    /// # Errors
    /// [`BackendError::ForeignState`], [`BackendError::WrongState`], [`BackendError::WrongGradient`],
    /// [`BackendError::WrongShard`]; the
    /// errors of [`address`](Cuda::address).
    pub(crate) fn check<'t>(
        &self,
        tensors: &'t mut [TensorStep<'_>],
        task: Task,
    ) -> Result<Vec<CudaTensor<'t>>, BackendError> {
        tensors
            .iter_mut()
            .map(|tensor| self.check_tensor(tensor, task))
            .collect()
    }

    fn check_tensor<'t>(
        &self,
        tensor: &'t mut TensorStep<'_>,
        task: Task,
    ) -> Result<CudaTensor<'t>, BackendError> {
        tensor.check_shard()?;
        let mut desc = TensorDesc::new(tensor);
        let kind = match task {
            Task::Step => Kind::of_step(tensor, desc.flags),
            Task::Norm => Kind::of_norm(tensor),
            _ => Kind::of_survey(tensor),
        };
        let TensorStep {
            name,
            param,
            grad,
            state,
            shard,
            ..
        } = tensor;
        let (len, state_len, backend) = (param.len(), state.len(), self.name.as_str());
        let state: &mut dyn Any = &mut **state;
        let state = state.downcast_mut::<CudaState>();
        let own = |state: &&mut CudaState| state.belongs_to(&self.session, self.pager.as_ref());
        let Some(state) = state.filter(own) else {
            return Err(BackendError::ForeignState {
                backend: backend.to_owned(),
                parameter: (*name).to_owned(),
            });
        };
        if state_len != len {
            return Err(BackendError::WrongState {
                backend: backend.into(),
                parameter: (*name).into(),
                given_len: state_len,
                wanted_len: len,
                given_bits: kind.bits,
                wanted_bits: kind.bits,
            });
        }
        if grad.len() != len {
            return Err(BackendError::WrongGradient {
                backend: backend.into(),
                parameter: (*name).into(),
                given: grad.len(),
                wanted: len,
            });
        }
        if let Some(memory) = param.device() {
            desc.param = self.address(name, Operand::Parameter, memory)?;
        }
        if let Some(memory) = grad.device() {
            desc.grad = self.address(name, Operand::Gradient, memory)?;
        }
        Ok(CudaTensor {
            host_param: param.host_mut(),
            host_grad: grad.host(),
            state,
            kind,
            shard: *shard,
            desc,
        })
    }

    /// Returns the address of an array in device memory.
    ///
    /// # Errors
    /// [`BackendError::WrongDevice`] if the memory belongs to another backend. [`CudaError::WrongDevice`],
    /// [`CudaError::WrongContext`], [`CudaError::UnknownAddress`] if it is at an address that the caller
    /// passed and kernels of this session cannot access it.
    pub(crate) fn address(
        &self,
        parameter: &str,
        operand: Operand,
        memory: &dyn DeviceMemory,
    ) -> Result<u64, BackendError> {
        let any: &dyn Any = memory;
        let borrowed = any.downcast_ref::<BorrowedMemory>();
        match borrowed.map(|memory| (memory.address, memory.belongs_to(&self.session))) {
            Some((address, Some(true))) => Ok(address),
            Some((address, None)) => {
                if !memory.is_empty() {
                    check_owner(&self.session, parameter, operand, address)?;
                }
                Ok(address)
            }
            None | Some((_, Some(false))) => Err(BackendError::WrongDevice {
                backend: self.name.clone(),
                parameter: parameter.to_owned(),
                operand,
            }),
        }
    }
}

/// Asks the driver who owns the memory at an address, and refuses memory that kernels of this session cannot
/// access.
fn check_owner(
    session: &Session,
    parameter: &str,
    operand: Operand,
    address: u64,
) -> Result<(), CudaError> {
    let (parameter, wanted) = (parameter.to_owned(), session.device);
    Err(match session.owner_of(address)? {
        None | Some(Owner::All) => return Ok(()),
        Some(Owner::Device { ordinal, .. }) if ordinal != wanted => CudaError::WrongDevice {
            parameter,
            operand,
            given: ordinal,
            wanted,
        },
        Some(Owner::Device { context, .. }) => {
            if context.is_null() || session.is_in(context) {
                return Ok(());
            }
            CudaError::WrongContext {
                parameter,
                operand,
                device: wanted,
            }
        }
        Some(Owner::Unknown) => CudaError::UnknownAddress {
            parameter,
            operand,
            address,
            wanted,
        },
    })
}

/// Queues copies of the gradients that are in host memory to the device, and of the parameters too if `task` is a step or a
/// norm.
/// Sets their addresses.
pub(crate) fn upload(
    workspace: &mut Workspace,
    tensors: &mut [CudaTensor<'_>],
    task: Task,
) -> Result<(), CudaError> {
    let with_params = matches!(task, Task::Step | Task::Norm);
    let arrays = &mut workspace.host_arrays;
    let params = param_sizes(tensors).filter(|_| with_params);
    let grads = tensors.iter().filter_map(|tensor| tensor.host_grad);
    arrays.begin(params.chain(grads.map(|grad| bytes_of(&grad).len())))?;
    // The parameters come first, so that one copy returns them.
    for tensor in &mut *tensors {
        if let Some(param) = tensor.host_param.as_ref().filter(|_| with_params) {
            tensor.desc.param = arrays.add(bytes_of(&param.as_slice()));
        }
    }
    for tensor in tensors {
        if let Some(grad) = &tensor.host_grad {
            tensor.desc.grad = arrays.add(bytes_of(grad));
        }
    }
    arrays.send()
}

/// Waits for the step, and copies the parameters that are in host memory back.
pub(crate) fn download(
    workspace: &mut Workspace,
    tensors: &mut [CudaTensor<'_>],
) -> Result<(), CudaError> {
    let arrays = &mut workspace.host_arrays;
    arrays.receive(param_sizes(tensors))?;
    for tensor in tensors {
        if let Some(param) = &mut tensor.host_param {
            let to = bytes_of_mut(param);
            to.copy_from_slice(arrays.get(tensor.desc.param, to.len()));
        }
    }
    Ok(())
}

/// Returns the bytes of each parameter in host memory.
fn param_sizes(tensors: &[CudaTensor<'_>]) -> impl Iterator<Item = usize> {
    let params = tensors
        .iter()
        .filter_map(|tensor| tensor.host_param.as_ref());
    params.map(|param| bytes_of(&param.as_slice()).len())
}
