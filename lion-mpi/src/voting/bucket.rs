//! One bucket of a step: the momenta of this rank, the exchange of the votes, and the result.

use super::{BUCKET, Piece, Tensor, Voting};
use crate::Error;
use crate::agree::starts;
use crate::votes::{Coins, Layout, Message, MessageMut, START};
use lion::StepArgs;
use lion::backend::{Bits, SkippedBlocks, StateRequest, TensorStep};
use lion::checkpoint::shard_name;
use lion::tensor::{BLOCK, Shard, Slice, SliceMut, Update};
use mpi::collective::SystemOperation;
use mpi::datatype::{Partition, PartitionMut};
use mpi::traits::{Communicator, CommunicatorCollectives};
use std::ops::Range;

/// One piece of a bucket.
pub(super) struct Slot<'a> {
    tensor: usize,
    piece: usize,
    /// Its first block in the bucket.
    block: usize,
    param: SliceMut<'a>,
    grad: Slice<'a>,
}

impl Voting {
    /// Deals the arrays to buckets, in the order of the names.
    pub(super) fn buckets<'a>(&self, tensors: &mut [Tensor<'a>]) -> Vec<Vec<Slot<'a>>> {
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
    pub(super) fn count_non_finite(
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
                shard_name(name, slot.piece * BUCKET) == *blocks.parameter
            };
            if let Some(slot) = slots.iter().find(named) {
                skipped[slot.tensor] += blocks.skipped;
            }
        }
    }

    /// Returns the names of the parameters with skipped blocks, and their number over all ranks.
    pub(super) fn sum_skipped(
        &self,
        skipped: &[u64],
        tensors: &[Tensor<'_>],
    ) -> Vec<(String, u64)> {
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
    pub(super) fn vote(
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
        if let Some(state) = states.pop().filter(|state| state.len() == BUCKET) {
            self.state = Some(state);
        }
        Ok(())
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
