//! Sums gradients over the ranks, and sends stepped parameters to all of them, one bucket at a time.
//!
//! Bucket `k` has the `k`-th piece of the share of each rank. Every rank sends to each rank that rank's piece of its own
//! gradient (`MPI_Ialltoallv`), and adds what it receives in the order of the ranks. So the sums have the same bits in
//! every run, and a rank sends `(n - 1) / n` of its gradient, the least that is possible. The reductions of MPI add in
//! an order that they do not specify. Stepped pieces go to all ranks with `MPI_Iallgatherv`.
//!
//! While a bucket is summed and stepped, the gradients of the next one and the parameters of the one before are on
//! their way, as far as MPI makes progress without calls.

use crate::agree::starts;
use crate::arrays::{Arrays, Part};
use crate::bytes::{add, bytes_of, store};
use crate::division::Division;
use mpi::datatype::{Partition, PartitionMut};
use mpi::request::{WaitGuard, scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

/// What is done with the buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Sums the gradients.
    Sum,
    /// Sends the parameters after they are stepped.
    Send,
    /// Both.
    SumAndSend,
}

/// Exchanges the buckets of one step.
pub(crate) struct Exchange<'a> {
    comm: &'a SimpleCommunicator,
    division: &'a Division,
    /// Buffers that are used again.
    spare: Vec<Message>,
    /// The number of bytes that this rank has sent to others.
    pub(crate) sent: u64,
}

/// Bytes to each rank.
type Sent<'a> = Partition<'a, [u8], &'a [i32], Vec<i32>>;

/// Room for the bytes from each rank.
type Received<'a> = PartitionMut<'a, [u8], &'a [i32], Vec<i32>>;

/// Bytes that are sent to all ranks and received from all ranks.
#[derive(Default)]
struct Message {
    send: Vec<u8>,
    /// The number of bytes to each rank. Not used if all ranks get the same bytes.
    send_counts: Vec<i32>,
    receive: Vec<u8>,
    /// The number of bytes from each rank.
    receive_counts: Vec<i32>,
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(comm: &'a SimpleCommunicator, division: &'a Division) -> Self {
        Exchange {
            comm,
            division,
            spare: Vec::new(),
            sent: 0,
        }
    }

    fn ranks(&self) -> usize {
        self.comm.size() as usize
    }

    fn rank(&self) -> usize {
        self.comm.rank() as usize
    }

    /// Makes a pass over all buckets. Calls `work` for each bucket, with its parts of this rank and, if the pass sums,
    /// with the sums of their gradients.
    pub(crate) fn run(
        &mut self,
        pass: Pass,
        arrays: &mut Arrays<'_>,
        mut work: impl FnMut(usize, &[Part], &[f32], &mut Arrays<'_>),
    ) {
        let buckets = self.division.buckets();
        let is_shared = self.ranks() > 1;
        let sums_gradients = pass != Pass::Send;
        let (receives, sends) = (is_shared && sums_gradients, is_shared && pass != Pass::Sum);
        let mut sums = Vec::new();
        let (mut received, mut stepped) = (None, None);
        // In a round, the gradients of its bucket are received, those of the bucket before are summed and stepped, and
        // the parameters of the bucket before that are sent.
        for round in 0..buckets + 2 {
            let is_incoming = receives && round < buckets;
            let mut incoming = is_incoming.then(|| self.pack_gradients(round, arrays));
            let mut outgoing = stepped.take();
            let mut gradients = incoming.as_mut().map(Message::of_each);
            let mut parameters = outgoing.as_mut().map(Message::of_all);
            scope(|scope| {
                let gradients = gradients.as_mut().map(|(send, receive)| {
                    let comm = self.comm;
                    WaitGuard::from(comm.immediate_all_to_all_varcount_into(scope, send, receive))
                });
                let parameters = parameters.as_mut().map(|(send, receive)| {
                    let comm = self.comm;
                    let send = &**send;
                    WaitGuard::from(comm.immediate_all_gather_varcount_into(scope, send, receive))
                });
                if let Some(bucket) = round.checked_sub(1)
                    && bucket < buckets
                {
                    let parts = self.parts(bucket, arrays);
                    if sums_gradients {
                        sum(received.as_ref(), &parts, arrays, &mut sums);
                    }
                    self.spare.extend(received.take());
                    work(bucket, &parts, &sums, arrays);
                    if sends {
                        stepped = Some(self.pack_parameters(bucket, &parts, arrays));
                    }
                }
                drop((gradients, parameters));
            });
            if let Some(message) = outgoing {
                self.unpack_parameters(round - 2, &message, arrays);
                self.spare.push(message);
            }
            received = incoming;
        }
    }

    /// Returns the parts of a bucket of this rank that the step updates.
    pub(crate) fn parts(&self, bucket: usize, arrays: &Arrays<'_>) -> Vec<Part> {
        let pieces = self.division.pieces(self.rank(), bucket);
        let pieces = pieces.filter(|(index, _)| arrays.grad(*index).is_some());
        let mut end = 0;
        let parts = pieces.map(|(index, range)| {
            let start = end;
            end += range.len();
            Part {
                index,
                range,
                sums: start..end,
            }
        });
        parts.collect()
    }

    /// Returns the gradients of a bucket as a message to each rank.
    fn pack_gradients(&mut self, bucket: usize, arrays: &Arrays<'_>) -> Message {
        let mut message = self.spare.pop().unwrap_or_default();
        message.clear();
        for rank in 0..self.ranks() {
            let before = message.send.len();
            for (index, range) in self.division.pieces(rank, bucket) {
                if let Some(grad) = arrays.grad(index) {
                    message.send.extend_from_slice(bytes_of(grad, range));
                }
            }
            message
                .send_counts
                .push((message.send.len() - before) as i32);
        }
        let own = message.send_counts[self.rank()];
        self.sent += (message.send.len() - own as usize) as u64;
        // Each rank sends the same elements of its own gradient, in the same types.
        message.receive_counts.resize(self.ranks(), own);
        message.make_room();
        message
    }

    /// Returns the parameters of the parts of this rank as a message to all ranks.
    fn pack_parameters(&mut self, bucket: usize, parts: &[Part], arrays: &Arrays<'_>) -> Message {
        let mut message = self.spare.pop().unwrap_or_default();
        message.clear();
        for part in parts {
            if let Some(param) = arrays.param(part.index) {
                message
                    .send
                    .extend_from_slice(bytes_of(param, part.range.clone()));
            }
        }
        self.sent += message.send.len() as u64 * (self.ranks() as u64 - 1);
        for rank in 0..self.ranks() {
            let pieces = self.division.pieces(rank, bucket);
            let bytes = pieces.filter_map(|(index, range)| {
                Some(range.len() * arrays.param(index)?.dtype().bytes())
            });
            message.receive_counts.push(bytes.sum::<usize>() as i32);
        }
        message.make_room();
        message
    }

    /// Stores the parameters of the other ranks.
    fn unpack_parameters(&self, bucket: usize, message: &Message, arrays: &mut Arrays<'_>) {
        let starts = starts(&message.receive_counts);
        for (rank, start) in starts.into_iter().enumerate() {
            if rank == self.rank() {
                continue;
            }
            let mut rest = &message.receive[start as usize..];
            for (index, range) in self.division.pieces(rank, bucket) {
                if let Some(param) = arrays.param_mut(index) {
                    let (bytes, later) = rest.split_at(range.len() * param.dtype().bytes());
                    store(param, range, bytes);
                    rest = later;
                }
            }
        }
    }
}

impl Message {
    fn clear(&mut self) {
        self.send.clear();
        self.send_counts.clear();
        self.receive_counts.clear();
    }

    /// Makes room for what is received. MPI never gets the address of a vector without memory, because it may be that of
    /// `MPI_IN_PLACE`.
    fn make_room(&mut self) {
        let total: i32 = self.receive_counts.iter().sum();
        self.receive.resize(total.max(1) as usize, 0);
        self.send.reserve(1);
    }

    /// Returns the arguments of a call that sends different bytes to each rank.
    fn of_each(&mut self) -> (Sent<'_>, Received<'_>) {
        let starts = [&self.send_counts, &self.receive_counts].map(|counts| starts(counts));
        let [send, receive] = starts;
        (
            Partition::new(&self.send[..], &self.send_counts[..], send),
            PartitionMut::new(&mut self.receive[..], &self.receive_counts[..], receive),
        )
    }

    /// Returns the arguments of a call that sends the same bytes to all ranks.
    fn of_all(&mut self) -> (&[u8], Received<'_>) {
        let starts = starts(&self.receive_counts);
        let receive = PartitionMut::new(&mut self.receive[..], &self.receive_counts[..], starts);
        (&self.send[..], receive)
    }
}

/// Sums the gradients of the parts of this rank, in the order of the ranks. Without a message there is one rank.
fn sum(message: Option<&Message>, parts: &[Part], arrays: &Arrays<'_>, sums: &mut Vec<f32>) {
    sums.resize(parts.last().map_or(0, |part| part.sums.end), 0.0);
    let Some(message) = message else {
        for part in parts {
            if let Some(grad) = arrays.grad(part.index) {
                let bytes = bytes_of(grad, part.range.clone());
                add(&mut sums[part.sums.clone()], bytes, grad.dtype(), true);
            }
        }
        return;
    };
    for (rank, start) in starts(&message.receive_counts).into_iter().enumerate() {
        let mut rest = &message.receive[start as usize..];
        for part in parts {
            if let Some(grad) = arrays.grad(part.index) {
                let (bytes, later) = rest.split_at(part.range.len() * grad.dtype().bytes());
                add(&mut sums[part.sums.clone()], bytes, grad.dtype(), rank == 0);
                rest = later;
            }
        }
    }
}
