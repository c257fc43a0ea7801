//! Lion by majority vote: each rank has a momentum of its own, and one bit per element is sent each way.

mod bucket;
mod check;

use crate::Error;
use crate::abort::AbortOnPanic;
use crate::agree::{Item, agree, hash_of};
use crate::arguments::{empty_update, register_whole};
use check::{check_hyper, overrides_of_pieces};
#[cfg(doc)]
use lion::MissingGradient;
use lion::backend::{Hyper, State};
use lion::checkpoint::shard_name;
use lion::tensor::{IntoUpdate, Slice, SliceMut};
use lion::{Dtype, Handle, Lion, LionBuilder, OnNonFinite, Overrides, ParamSpec, StepArgs};
use mpi::topology::SimpleCommunicator;
use mpi::traits::Communicator;
use std::collections::HashMap;
use std::fmt;

/// The largest number of elements that are voted on at once. A parameter with more is registered in pieces.
const BUCKET: usize = 1 << 20;

/// The Lion optimizer by majority vote: "Distributed Lion" of Liu et al. 2024, arXiv:2404.00438.
///
/// Every rank holds all parameters, with the same values, and a momentum of each. The momentum is local: it follows the
/// gradients of its rank alone, and gradients are never sent. A rank sends only the sign of its direction, one bit per
/// element. In a step, rank `r` of `n` computes from its gradient `g_r`
///
/// ```text
/// d_r  = sign(beta1 * m_r + (1 - beta1) * g_r)
/// m_r' = beta2 * m_r + (1 - beta2) * g_r
/// p'   = p * (1 - lr * weight_decay) - lr * v,   v = sign(d_0 + ... + d_{n-1})
/// ```
///
/// with the operations and the rounding of [`Lion`], for states of 32 and of 8 bits. All ranks compute the same bits of
/// `p'`. tests/vectors/vote_spec.py specifies the result bit for bit.
///
/// # Elements without a vote
/// - **Ties.** If the sum is 0, a random bit decides, which is the same on all ranks. With an even number of ranks ties
///   are common: 37.5 % of the elements if 4 ranks vote at random. A fixed rule, such as -1, would push all of these
///   elements in the same direction in every step.
/// - **`c = 0`.** A bit cannot say that an element has no direction. A rank whose `c` is 0 in an element sends a random
///   bit there, as it does for an element that `skip_zeros` keeps. The bits of different ranks are independent, so
///   that ranks without a direction do not vote as one against those that have one.
/// - **Blocks without a vote.** A rank does not take part in the vote on a block of 256 elements if all of its `c`
///   are 0 there, or if it skips the block because a new momentum is not finite. The momentum of a skipped block is kept,
///   on this rank only. If no rank takes part, `v` is 0, so that only the weight decay changes the parameter. If
///   every rank keeps the block as it is, skipped or by `skip_zeros`, the parameter is kept as well.
///
/// The random bits are those of Philox4x32-7. They depend on the seed of the parameter, its step number, the
/// position of the element and, for `c = 0`, the rank.
///
/// # Bytes
/// An element costs a rank `2 * (n - 1) / n` bits sent: it sends the votes on the elements that other ranks count, and
/// the results on those that it counts. An all-reduce of `f32` gradients sends 32 times as many. Two more bits for
/// each block of 256 elements say whether it has votes. They are rounded up to 8 bytes per message, of which there is
/// one per pair of ranks, way, and 2^20 elements. Each step also sends about 40 bytes per pair of ranks and
/// 8 bytes per parameter, to agree on the arguments and to count skipped blocks.
///
/// # What it is not
/// - It does not return the bits of [`Lion`] for the sum or the mean of the gradients.
/// - The states are not sharded. Each rank needs the memory of all states, because each momentum is a different one.
/// - `max_unorm` and [`StepArgs::max_grad_norm`] are refused. [`StepArgs::grad_scale`] may differ between ranks, so
///   that each rank can clip its own gradients.
///
/// # Calls that all ranks make
/// [`new`](Voting::new) and [`step`](Voting::step) wait for all ranks of the communicator. Each rank registers the same
/// parameters, in any order. Drop it before MPI is finalized.
///
/// ```no_run
/// use lion::{Dtype, Lion8bit, ParamSpec};
/// use lion_mpi::Voting;
///
/// let universe = mpi::initialize().expect("MPI is initialized once");
/// let builder = Lion8bit::builder().lr(1e-4).weight_decay(0.1);
/// let mut voting = Voting::new(&universe.world(), builder)?;
/// let w = voting.register(ParamSpec::new("w", 8192, Dtype::F32))?;
///
/// let mut weight = vec![0.5f32; 8192];
/// let grad = vec![1.0f32; 8192]; // of this rank's part of the batch
/// let report = voting.step([(w, &mut weight, &grad)])?;
/// assert_eq!(report.elements, 8192);
/// # Ok::<(), lion_mpi::Error>(())
/// ```
pub struct Voting {
    // Dropped first: freeing a communicator waits for the other ranks.
    _abort: AbortOnPanic,
    comm: SimpleCommunicator,
    /// The parameters of the trainer are empty shards here: they have names, settings and step counts, but no state.
    /// Their states are those of the pieces.
    lion: Lion,
    params: Vec<Param>,
    by_handle: HashMap<Handle, usize>,
    /// One value per element of a bucket.
    scratch: Vec<f32>,
    /// A state for the pieces that fill a bucket, in which there is no momentum that matters.
    state: Option<Box<dyn State>>,
    sent: Vec<u64>,
    received: Vec<u64>,
}

struct Param {
    name: String,
    handle: Handle,
    len: usize,
    dtype: Dtype,
    pieces: Vec<Piece>,
}

/// Some blocks of a parameter, of at most [`BUCKET`] elements.
struct Piece {
    handle: Handle,
    offset: usize,
    len: usize,
}

/// What a step did. It is the same on all ranks.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct VoteReport {
    /// The parameters of this step, sorted by name.
    pub updated: Vec<Handle>,
    /// The parameters without a gradient on any rank, under [`MissingGradient::Skip`], sorted by name. They were not
    /// updated.
    pub without_gradient: Vec<Handle>,
    /// The total number of elements of the updated parameters.
    pub elements: u64,
    /// The names of parameters with blocks that some ranks skipped because a new momentum is not finite, and the number
    /// of these blocks summed over the ranks.
    pub skipped: Vec<(String, u64)>,
}

impl VoteReport {
    /// Returns the number of skipped blocks of all parameters, summed over the ranks.
    pub fn skipped_blocks(&self) -> u64 {
        self.skipped.iter().map(|(_, blocks)| blocks).sum()
    }
}

/// One parameter of a step, after its arguments are checked.
struct Tensor<'a> {
    param: usize,
    hyper: Hyper,
    /// The number of this step, from 1.
    step: u64,
    /// Taken when the arrays are dealt to buckets.
    arrays: Option<(SliceMut<'a>, Slice<'a>)>,
}

impl Voting {
    /// Returns an optimizer of the ranks of a communicator, which is duplicated. All ranks must set the same
    /// hyper-parameters, which a step checks.
    ///
    /// # Errors
    /// The errors of [`LionBuilder::build`]; [`Error::OtherRank`].
    pub fn new(comm: &impl Communicator, builder: LionBuilder) -> Result<Self, Error> {
        let comm = comm.duplicate();
        let (lion, error) = match builder.build() {
            Ok(lion) => (Ok(lion), None),
            Err(error) => {
                let (rank, message) = (comm.rank() as usize, error.to_string());
                (Err(Error::OtherRank { rank, message }), Some(error.into()))
            }
        };
        // Returns the error of this rank if there is one.
        agree(&comm, error.map_or(Ok(&[][..]), Err), |_| Vec::new())?;
        let lion = lion?;
        Ok(Voting {
            comm,
            lion,
            params: Vec::new(),
            by_handle: HashMap::new(),
            scratch: Vec::new(),
            state: None,
            sent: Vec::new(),
            received: Vec::new(),
            _abort: AbortOnPanic,
        })
    }

    /// Adds a group; see [`Lion::add_group`]. The call does not wait for other ranks.
    ///
    /// # Errors
    /// The errors of [`Lion::add_group`].
    pub fn add_group(&mut self, name: &str, overrides: Overrides) -> Result<(), Error> {
        Ok(self.lion.add_group(name, overrides)?)
    }

    /// Registers a parameter and allocates its momentum on this rank. The call does not wait for other ranks.
    ///
    /// The optimizer that [`lion`](Voting::lion) returns has the momentum in pieces of at most 2^20 elements, which are
    /// named `NAME@OFFSET`.
    ///
    /// # Errors
    /// The errors of [`Lion::register`]; [`Error::Unsupported`] for `max_unorm`. No parameter is registered then.
    pub fn register(&mut self, spec: ParamSpec) -> Result<Handle, Error> {
        let (name, len, dtype) = (spec.name(), spec.len(), spec.dtype());
        let handle = register_whole(&mut self.lion, &spec)?;
        let mut pieces = Vec::with_capacity(len.div_ceil(BUCKET));
        let mut register_pieces = || -> Result<(), Error> {
            let info = self.lion.info(handle)?;
            check_hyper(name, &info.hyper)?;
            let overrides = overrides_of_pieces(&info.overrides, &info.hyper);
            let group = info.group.map(str::to_owned);
            for offset in (0..len).step_by(BUCKET) {
                let len = BUCKET.min(len - offset);
                let mut piece = ParamSpec::new(shard_name(name, offset), len, Dtype::F32)
                    .shard(offset, spec.len())
                    .overrides(overrides);
                if let Some(group) = &group {
                    piece = piece.group(group);
                }
                let handle = self.lion.register(piece)?;
                pieces.push(Piece {
                    handle,
                    offset,
                    len,
                });
            }
            Ok(())
        };
        if let Err(error) = register_pieces() {
            for piece in pieces {
                self.lion.remove(piece.handle)?;
            }
            self.lion.remove(handle)?;
            return Err(error);
        }
        let index = self.params.len();
        self.by_handle.insert(handle, index);
        self.params.push(Param {
            name: name.to_owned(),
            handle,
            len,
            dtype,
            pieces,
        });
        Ok(handle)
    }

    /// Returns the optimizer of this rank, for example to save it. Each rank has momenta of its own, so each saves a
    /// file of its own. A load into a `Voting` with the same parameters continues the run with the same bits.
    pub fn lion(&self) -> &Lion {
        &self.lion
    }

    /// Returns the optimizer of this rank, to load it or to change hyper-parameters, which must be done in the same way on
    /// all ranks. Set those of one parameter by the handle that [`register`](Voting::register) returned.
    pub fn lion_mut(&mut self) -> &mut Lion {
        &mut self.lion
    }

    /// Does what [`step_with`](Voting::step_with) does, without arguments.
    ///
    /// # Errors
    /// The errors of [`step_with`](Voting::step_with).
    pub fn step<'a, I>(&mut self, updates: I) -> Result<VoteReport, Error>
    where
        I: IntoIterator<Item: IntoUpdate<'a>>,
    {
        self.step_with(StepArgs::new(), updates)
    }

    /// Updates parameters with the majority of all ranks' votes, and the momenta of this rank with its gradients. Every
    /// rank passes the same parameters, in any order. A gradient that is missing on one rank must be missing on all.
    ///
    /// # Errors
    /// On every rank, and nothing has changed:
    /// - an error of [`Lion::step`], [`Error::DeviceMemory`], or [`Error::Unsupported`] for `max_unorm`,
    ///   [`StepArgs::max_grad_norm`], or an array that is not in row-major order. The other ranks return
    ///   [`Error::OtherRank`].
    /// - [`Error::Disagreement`] if the parameters, their lengths, types, step counts, hyper-parameters or the learning
    ///   rates of this step differ between ranks. The values of parameters are not compared.
    /// - [`Error::NonFinite`] under [`OnNonFinite::RejectStep`].
    ///
    /// [`Error::Partly`] if a rank fails later.
    pub fn step_with<'a, I>(&mut self, args: StepArgs, updates: I) -> Result<VoteReport, Error>
    where
        I: IntoIterator<Item: IntoUpdate<'a>>,
    {
        let (mut tensors, error) = match self.check(&args, updates) {
            Ok(tensors) => (tensors, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let call = self.fields_of_call(&args);
        let mut items = vec![Item {
            name: None,
            hash: hash_of(&call),
        }];
        items.extend(tensors.iter().map(|tensor| Item {
            name: Some(&self.params[tensor.param].name),
            hash: hash_of(self.fields(tensor)),
        }));
        let describe = |i: usize| match i.checked_sub(1) {
            Some(tensor) => self.fields(&tensors[tensor]),
            None => call.clone(),
        };
        agree(&self.comm, error.map_or(Ok(&items[..]), Err), describe)?;

        let mut report = VoteReport::default();
        let mut updated = Vec::new();
        for tensor in &tensors {
            let param = &self.params[tensor.param];
            if tensor.arrays.is_none() {
                report.without_gradient.push(param.handle);
                continue;
            }
            report.updated.push(param.handle);
            report.elements += param.len as u64;
            updated.push(empty_update(param.handle, param.dtype));
        }
        let mut buckets = self.buckets(&mut tensors);
        let piece_args = StepArgs::new().grad_scale(args.get_grad_scale());
        let mut skipped = vec![0; tensors.len()];
        if self.lion.on_non_finite() == OnNonFinite::RejectStep {
            let counted = self.count_non_finite(piece_args, &buckets, &tensors, &mut skipped);
            agree(&self.comm, counted.map(|()| &[][..]), |_| Vec::new())?;
            let parameters = self.sum_skipped(&skipped, &tensors);
            if !parameters.is_empty() {
                return Err(Error::NonFinite { parameters });
            }
        }
        // A rank that fails keeps taking part in the exchange, without votes, because the others wait for it.
        let mut result = Ok(());
        for slots in &mut buckets {
            let voted = self.vote(slots, &tensors, piece_args, result.is_ok(), &mut skipped);
            result = result.and(voted);
        }
        if result.is_ok() {
            // The whole parameters have no elements here. Their steps are counted.
            result = self
                .lion
                .step_with(args, updated)
                .map(drop)
                .map_err(Error::from);
        }
        agree(&self.comm, result.map(|()| &[][..]), |_| Vec::new()).map_err(|e| self.partly(e))?;
        report.skipped = self.sum_skipped(&skipped, &tensors);
        Ok(report)
    }

    fn partly(&self, error: Error) -> Error {
        match error {
            Error::OtherRank { rank, message } => Error::Partly { rank, message },
            error => Error::Partly {
                rank: self.comm.rank() as usize,
                message: error.to_string(),
            },
        }
    }
}

/// Prints the number of ranks and the optimizer, without the values of its states.
impl fmt::Debug for Voting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Voting")
            .field("ranks", &self.comm.size())
            .field("lion", &self.lion)
            .finish_non_exhaustive()
    }
}
