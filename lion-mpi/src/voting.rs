//! Lion by majority vote: each rank has a momentum of its own, and one bit per element is sent each way.

use crate::Error;
use crate::abort::AbortOnPanic;
use crate::agree::{Field, Item, agree, hash_of, starts};
use crate::votes::{Coins, Layout, Message, MessageMut, START};
use lion::backend::{Bits, Hyper, Operand, SkippedBlocks, State, StateRequest, TensorStep};
use lion::tensor::{
    BLOCK, GradRef, IntoUpdate, MemoryOrder, ParamMut, Shard, Slice, SliceMut, Storage, StorageMut,
    Update,
};
use lion::{
    Dtype, Handle, Lion, LionBuilder, MissingGradient, OnNonFinite, Overrides, ParamSpec, StepArgs,
};
use mpi::collective::SystemOperation;
use mpi::datatype::{Partition, PartitionMut};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

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
    _abort: AbortOnPanic,
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

/// One piece of a bucket.
struct Slot<'a> {
    tensor: usize,
    piece: usize,
    /// Its first block in the bucket.
    block: usize,
    param: SliceMut<'a>,
    grad: Slice<'a>,
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
    /// named `NAME@OFFSET`. The specification is that of a whole tensor: [`ParamSpec::shard`] has no effect.
    ///
    /// # Errors
    /// The errors of [`Lion::register`]; [`Error::Unsupported`] for `max_unorm`. No parameter is registered then.
    pub fn register(&mut self, spec: ParamSpec) -> Result<Handle, Error> {
        let (name, len, dtype) = (spec.name(), spec.len(), spec.dtype());
        let part = |name: &str, len, dtype, offset| {
            let part = ParamSpec::new(name, len, dtype).shard(offset, spec.len());
            match spec.get_group() {
                Some(group) => part.group(group),
                None => part,
            }
        };
        let whole = part(name, 0, dtype, 0).overrides(spec.get_overrides());
        let handle = self.lion.register(whole)?;
        let mut pieces = Vec::with_capacity(len.div_ceil(BUCKET));
        let mut register_pieces = || -> Result<(), Error> {
            let info = self.lion.info(handle)?;
            check_hyper(name, &info.hyper)?;
            let overrides = overrides_of_pieces(&info.overrides, &info.hyper);
            for offset in (0..len).step_by(BUCKET) {
                let len = BUCKET.min(len - offset);
                let piece = part(&piece_name(name, offset), len, Dtype::F32, offset);
                let handle = self.lion.register(piece.overrides(overrides))?;
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
    /// - an error of [`Lion::step`], [`Error::UnknownHandle`], [`Error::DeviceMemory`], or [`Error::Unsupported`] for
    ///   `max_unorm`, [`StepArgs::max_grad_norm`], or an array that is not in row-major order. The other ranks return
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

    /// Checks everything that this rank can check alone. Returns the parameters sorted by name. Nothing changes, except that
    /// pieces follow their parameter's hyper-parameters.
    fn check<'a, I>(&mut self, args: &StepArgs, updates: I) -> Result<Vec<Tensor<'a>>, Error>
    where
        I: IntoIterator<Item: IntoUpdate<'a>>,
    {
        if args.get_max_grad_norm().is_some() {
            return Err(Error::Unsupported {
                parameter: None,
                what: "max_grad_norm, wanted a grad_scale that clips the gradients of this rank",
            });
        }
        let mut tensors = Vec::new();
        let mut empty = Vec::new();
        for update in updates {
            let update = update.into_update();
            let (index, param) = self.param(update.handle)?;
            let arrays = match update.grad {
                Some(grad) => Some(check_arrays(param, update.param, grad)?),
                None if args.get_missing_gradients() == MissingGradient::Skip => None,
                None => {
                    let parameter = param.name.clone();
                    return Err(lion::Error::MissingGradient { parameter }.into());
                }
            };
            empty.push(empty_update(param.handle, param.dtype));
            let info = self.lion.info(param.handle)?;
            check_hyper(&param.name, &info.hyper)?;
            let mut hyper = info.hyper;
            hyper.lr = args.get_lr().unwrap_or(hyper.lr);
            let step = info.steps + 1;
            tensors.push(Tensor {
                param: index,
                hyper,
                step,
                arrays,
            });
        }
        // Checks the arguments, the learning rates, and that no parameter is given twice.
        self.lion.non_finite_blocks(*args, empty)?;
        for tensor in &tensors {
            let param = &self.params[tensor.param];
            let info = self.lion.info(param.handle)?;
            let overrides = overrides_of_pieces(&info.overrides, &info.hyper);
            for piece in &param.pieces {
                if self.lion.info(piece.handle)?.overrides != overrides {
                    self.lion.set_overrides(piece.handle, overrides)?;
                }
            }
        }
        tensors.sort_by(|a, b| self.params[a.param].name.cmp(&self.params[b.param].name));
        Ok(tensors)
    }

    fn param(&self, handle: Handle) -> Result<(usize, &Param), Error> {
        let index = self.by_handle.get(&handle);
        let found = index.and_then(|&index| Some((index, self.params.get(index)?)));
        found.ok_or_else(|| match self.lion.info(handle) {
            Err(error) => error.into(),
            Ok(info) => Error::Unsupported {
                parameter: Some(info.name.to_owned()),
                what: "a handle that its register has not returned",
            },
        })
    }

    fn fields_of_call(&self, args: &StepArgs) -> Vec<Field> {
        let missing = format!("{:?}", args.get_missing_gradients());
        let non_finite = format!("{:?}", self.lion.on_non_finite());
        vec![
            ("the rule for missing gradients", missing),
            ("the rule for non-finite momenta", non_finite),
        ]
    }

    /// Returns what must be the same on all ranks, so that they compute the same parameter.
    fn fields(&self, tensor: &Tensor<'_>) -> Vec<Field> {
        let (param, hyper) = (&self.params[tensor.param], &tensor.hyper);
        let gradient = if tensor.arrays.is_some() {
            "given"
        } else {
            "missing"
        };
        vec![
            ("the number of elements", param.len.to_string()),
            ("the element type", param.dtype.to_string()),
            ("the gradient", gradient.to_owned()),
            ("the number of this step", tensor.step.to_string()),
            ("lr", hyper.lr.to_string()),
            ("lr_multiplier", hyper.lr_multiplier.to_string()),
            ("beta1", hyper.beta1.to_string()),
            ("beta2", hyper.beta2.to_string()),
            ("weight_decay", hyper.weight_decay.to_string()),
            ("skip_zeros", hyper.skip_zeros.to_string()),
            ("stochastic_param", hyper.stochastic_param.to_string()),
            ("the seed", hyper.seed.to_string()),
        ]
    }

    /// Deals the arrays to buckets, in the order of the names.
    fn buckets<'a>(&self, tensors: &mut [Tensor<'a>]) -> Vec<Vec<Slot<'a>>> {
        let mut buckets: Vec<Vec<Slot<'a>>> = Vec::new();
        let mut used = BUCKET / BLOCK;
        for (tensor, entry) in tensors.iter_mut().enumerate() {
            let Some((mut param, mut grad)) = entry.arrays.take() else {
                continue;
            };
            for (piece, shape) in self.params[entry.param].pieces.iter().enumerate() {
                let (param_head, param_tail) = param.split_at(shape.len);
                let (grad_head, grad_tail) = grad.split_at(shape.len);
                (param, grad) = (param_tail, grad_tail);
                let blocks = shape.len.div_ceil(BLOCK);
                if used + blocks > BUCKET / BLOCK {
                    buckets.push(Vec::new());
                    used = 0;
                }
                if let Some(bucket) = buckets.last_mut() {
                    bucket.push(Slot {
                        tensor,
                        piece,
                        block: used,
                        param: param_head,
                        grad: grad_head,
                    });
                }
                used += blocks;
            }
        }
        buckets
    }

    fn piece(&self, slot: &Slot<'_>, tensors: &[Tensor<'_>]) -> &Piece {
        &self.params[tensors[slot.tensor].param].pieces[slot.piece]
    }

    /// Adds the blocks that a step of this rank would skip to `skipped`.
    fn count_non_finite(
        &mut self,
        args: StepArgs,
        buckets: &[Vec<Slot<'_>>],
        tensors: &[Tensor<'_>],
        skipped: &mut [u64],
    ) -> Result<(), Error> {
        for slots in buckets {
            let mut scratch = std::mem::take(&mut self.scratch);
            let updates = self.local_updates(slots, tensors, &mut scratch);
            let counted = self.lion.non_finite_blocks(args, updates);
            self.scratch = scratch;
            self.add_skipped(&counted?, slots, tensors, skipped);
        }
        Ok(())
    }

    /// Pairs the pieces of a bucket with their parts of `scratch`, as parameters, and their gradients.
    fn local_updates<'s>(
        &self,
        slots: &'s [Slot<'_>],
        tensors: &[Tensor<'_>],
        scratch: &'s mut Vec<f32>,
    ) -> Vec<Update<'s>> {
        let blocks = slots.last().map_or(0, Slot::end);
        scratch.clear();
        scratch.resize(blocks * BLOCK, START);
        let mut rest = &mut scratch[..];
        let mut updates = Vec::with_capacity(slots.len());
        for slot in slots {
            let blocks;
            (blocks, rest) = rest.split_at_mut(slot.grad.len().next_multiple_of(BLOCK));
            let param = &mut blocks[..slot.grad.len()];
            let handle = self.piece(slot, tensors).handle;
            updates.push(Update::new(handle, param, Some(slot.grad.into())));
        }
        updates
    }

    fn add_skipped(
        &self,
        blocks: &[SkippedBlocks],
        slots: &[Slot<'_>],
        tensors: &[Tensor<'_>],
        skipped: &mut [u64],
    ) {
        for blocks in blocks {
            let named = |slot: &&Slot<'_>| {
                let name = &self.params[tensors[slot.tensor].param].name;
                piece_name(name, slot.piece * BUCKET) == *blocks.parameter
            };
            if let Some(slot) = slots.iter().find(named) {
                skipped[slot.tensor] += blocks.skipped;
            }
        }
    }

    /// Returns the names of the parameters with skipped blocks, and their number over all ranks.
    fn sum_skipped(&self, skipped: &[u64], tensors: &[Tensor<'_>]) -> Vec<(String, u64)> {
        let mut sums = vec![0; skipped.len()];
        if !skipped.is_empty() {
            let sum = SystemOperation::sum();
            self.comm.all_reduce_into(skipped, &mut sums[..], sum);
        }
        let sums = sums.into_iter().zip(tensors).filter(|&(sum, _)| sum > 0);
        sums.map(|(sum, tensor)| (self.params[tensor.param].name.clone(), sum))
            .collect()
    }

    /// Steps the momenta of a bucket, votes on its elements, and applies the result. With `take_part` unset this rank has
    /// no vote, and its momenta are kept. After an error this rank has taken part in the exchange all the same.
    fn vote(
        &mut self,
        slots: &mut [Slot<'_>],
        tensors: &[Tensor<'_>],
        args: StepArgs,
        take_part: bool,
        skipped: &mut [u64],
    ) -> Result<(), Error> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let updates = self.local_updates(slots, tensors, &mut scratch);
        let mut result = Ok(());
        if take_part {
            match self.lion.step_with(args, updates) {
                Ok(report) => self.add_skipped(&report.skipped, slots, tensors, skipped),
                Err(error) => {
                    result = Err(error.into());
                    scratch.fill(START);
                }
            }
        }
        self.exchange(slots, tensors, &mut scratch);
        let applied = self.apply(slots, tensors, &scratch);
        self.scratch = scratch;
        result.and(applied)
    }

    /// Replaces the elements that Lion has stepped by the gradients that [`apply`](Voting::apply) takes.
    fn exchange(&mut self, slots: &[Slot<'_>], tensors: &[Tensor<'_>], scratch: &mut [f32]) {
        let (own, ranks) = (self.comm.rank() as usize, self.comm.size() as usize);
        let blocks: Vec<Block> = slots
            .iter()
            .flat_map(|slot| self.blocks(slot, tensors))
            .collect();
        let layout = Layout::new(blocks.len(), ranks);
        let counts: Vec<i32> = (0..ranks).map(|rank| layout.words(rank) as i32).collect();
        let offsets = starts(&counts);
        let total: i32 = counts.iter().sum();
        let share = |rank: usize| offsets[rank] as usize..(offsets[rank] + counts[rank]) as usize;
        let (mine, own_words) = (layout.share(own), layout.words(own));
        let own_counts = vec![own_words as i32; ranks];
        let own_offsets = starts(&own_counts);
        // No buffer is empty: the address of an empty vector is one that OpenMPI takes for MPI_IN_PLACE.
        self.sent.resize((total as usize).max(1), 0);
        self.received.resize((own_words * ranks).max(1), 0);

        for rank in 0..ranks {
            let (to, words) = (layout.share(rank), &mut self.sent[share(rank)]);
            let mut message = MessageMut::new(words, to.len());
            for (i, block) in blocks[to].iter().enumerate() {
                let tensor = &tensors[block.tensor];
                let coins = Coins::of_rank(tensor.hyper.seed, tensor.step, own);
                message.pack(i, &scratch[block.elements.clone()], coins, block.at);
            }
        }
        self.comm.all_to_all_varcount_into(
            &Partition::new(&self.sent[..], &counts[..], &offsets[..]),
            &mut PartitionMut::new(&mut self.received[..], &own_counts[..], &own_offsets[..]),
        );
        let messages = self.received.chunks(own_words.max(1)).take(ranks);
        let messages: Vec<Message<'_>> = messages
            .map(|words| Message::new(&words[..own_words], mine.len()))
            .collect();
        let mut result = vec![0; own_words.max(1)];
        let mut majority = MessageMut::new(&mut result[..own_words], mine.len());
        for (i, block) in blocks[mine].iter().enumerate() {
            let tensor = &tensors[block.tensor];
            let ties = Coins::ties(tensor.hyper.seed, tensor.step);
            majority.count(i, &messages, ties, block.at);
        }
        self.comm.all_gather_varcount_into(
            &result[..own_words],
            &mut PartitionMut::new(&mut self.sent[..], &counts[..], &offsets[..]),
        );
        for rank in 0..ranks {
            let (from, words) = (layout.share(rank), &self.sent[share(rank)]);
            let message = Message::new(words, from.len());
            for (i, block) in blocks[from].iter().enumerate() {
                message.unpack(i, &mut scratch[block.elements.clone()]);
            }
        }
    }

    /// Returns the blocks of a piece.
    fn blocks(
        &self,
        slot: &Slot<'_>,
        tensors: &[Tensor<'_>],
    ) -> impl Iterator<Item = Block> + use<> {
        let first = (self.piece(slot, tensors).offset / BLOCK) as u64;
        let (tensor, start, end) = (
            slot.tensor,
            slot.block * BLOCK,
            slot.block * BLOCK + slot.grad.len(),
        );
        let starts = (start..end).step_by(BLOCK).zip(first..);
        starts.map(move |(start, at)| Block {
            tensor,
            at,
            elements: start..end.min(start + BLOCK),
        })
    }

    /// Applies the majority with Lion's own kernels: with both betas 0 the direction is the sign of the gradient, whatever
    /// the momentum is.
    fn apply(
        &mut self,
        slots: &mut [Slot<'_>],
        tensors: &[Tensor<'_>],
        gradients: &[f32],
    ) -> Result<(), Error> {
        let backend = self.lion.backend();
        let mut states = Vec::with_capacity(slots.len());
        for slot in &*slots {
            let len = slot.grad.len();
            let kept = self.state.take_if(|state| state.len() == len);
            states.push(match kept {
                Some(state) => state,
                None => {
                    let name = &self.params[tensors[slot.tensor].param].name;
                    let request = StateRequest::new(name, Bits::ThirtyTwo, len);
                    backend.allocate(&request).map_err(lion::Error::from)?
                }
            });
        }
        let mut steps = Vec::with_capacity(slots.len());
        for (slot, state) in slots.iter_mut().zip(&mut states) {
            let tensor = &tensors[slot.tensor];
            let param = &self.params[tensor.param];
            let mut hyper = tensor.hyper;
            (hyper.beta1, hyper.beta2) = (0.0, 0.0);
            (hyper.skip_zeros, hyper.stochastic_state) = (false, false);
            let len = slot.grad.len();
            let gradient = &gradients[slot.block * BLOCK..][..len];
            let shard = Shard::new(param.pieces[slot.piece].offset, param.len);
            let state = &mut **state;
            let step = TensorStep::new(
                &param.name,
                slot.param.reborrow(),
                gradient,
                state,
                &hyper,
                tensor.step,
            )?;
            steps.push(step.with_shard(shard)?);
        }
        backend.step(&mut steps).map_err(lion::Error::from)?;
        drop(steps);
        self.state = states.pop().filter(|state| state.len() == BUCKET);
        Ok(())
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

impl Slot<'_> {
    /// Returns the block after its last one in the bucket.
    fn end(&self) -> usize {
        self.block + self.grad.len().div_ceil(BLOCK)
    }
}

/// One block of a bucket.
struct Block {
    tensor: usize,
    /// The block in the whole parameter.
    at: u64,
    /// Its elements in the bucket.
    elements: Range<usize>,
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

fn piece_name(name: &str, offset: usize) -> String {
    format!("{name}@{offset}")
}

/// Returns the overrides of the pieces of a parameter, which make Lion return its direction; see [`START`]. The momentum has
/// the settings of the parameter, and its seed, which would else be derived from the name of the piece.
fn overrides_of_pieces(overrides: &Overrides, hyper: &Hyper) -> Overrides {
    let direction = Overrides::new()
        .lr(1.0)
        .lr_multiplier(1.0)
        .weight_decay(0.5);
    direction
        .stochastic_param(false)
        .seed(hyper.seed)
        .or(*overrides)
}

fn check_hyper(name: &str, hyper: &Hyper) -> Result<(), Error> {
    if hyper.max_unorm == 0.0 {
        return Ok(());
    }
    Err(Error::Unsupported {
        parameter: Some(name.to_owned()),
        what: "max_unorm, wanted 0",
    })
}

/// Checks the arrays of a parameter, and returns their elements.
fn check_arrays<'a>(
    param: &Param,
    given: ParamMut<'a>,
    grad: GradRef<'a>,
) -> Result<(SliceMut<'a>, Slice<'a>), Error> {
    let name = || param.name.clone();
    for order in [&given.order, &grad.order] {
        if *order != MemoryOrder::RowMajor {
            return Err(Error::Unsupported {
                parameter: Some(name()),
                what: "an array that is not in row-major order",
            });
        }
    }
    for (operand, given) in [
        (Operand::Parameter, given.data.len()),
        (Operand::Gradient, grad.data.len()),
    ] {
        if given != param.len {
            return Err(Error::Lion(lion::Error::WrongLength {
                parameter: name(),
                operand,
                given,
                wanted: param.len,
            }));
        }
    }
    if given.data.dtype() != param.dtype {
        return Err(Error::Lion(lion::Error::WrongDtype {
            parameter: name(),
            given: given.data.dtype(),
            wanted: param.dtype,
        }));
    }
    if let (Some(wanted), Some(given)) = (&given.shape, &grad.shape)
        && wanted != given
    {
        return Err(Error::Lion(lion::Error::ShapeMismatch {
            parameter: name(),
            given: given.to_vec(),
            wanted: wanted.to_vec(),
        }));
    }
    match (given.data, grad.data) {
        (StorageMut::Host(given), Storage::Host(grad)) => Ok((given, grad)),
        _ => Err(Error::DeviceMemory { parameter: name() }),
    }
}

/// Returns an update of a parameter that has no elements in this process.
fn empty_update(handle: Handle, dtype: Dtype) -> Update<'static> {
    let (param, grad) = match dtype {
        Dtype::F16 => (SliceMut::F16(&mut []), Slice::F16(&[])),
        Dtype::Bf16 => (SliceMut::Bf16(&mut []), Slice::Bf16(&[])),
        _ => (SliceMut::F32(&mut []), Slice::F32(&[])),
    };
    Update::new(handle, param, Some(grad.into()))
}
