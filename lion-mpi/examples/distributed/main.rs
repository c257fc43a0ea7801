//! Trains the network of `examples/digits` on several ranks, each with its part of every minibatch, and prints a table
//! by rank. Trains it once more by majority vote.
//!
//! `lion-mpi/distributed 4` starts it on four ranks of this machine. Rank 0 also trains on one process with the
//! same sums of gradients, to show that the final parameters have the same bits.

// Modules of the example `digits`, which uses more of them.
#[allow(dead_code)]
#[path = "../../../examples/digits/data.rs"]
mod data;
#[allow(dead_code)]
#[path = "../../../examples/digits/network.rs"]
mod network;
#[allow(dead_code)]
#[path = "../../../examples/digits/random.rs"]
mod random;

use anyhow::{Context, Result, ensure};
use data::{CLASSES, Digits, PIXELS};
use lion::{Lion, Lion8bit, LionBuilder, Overrides, ParamSpec, StepArgs};
use lion_mpi::{Reduction, Sharded, Voting};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};
use network::Network;
use random::Random;
use std::f64::consts::PI;
use std::path::Path;
use std::time::{Duration, Instant};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/digits.csv");

/// Inputs, hidden units and outputs of the network.
const SIZES: [usize; 4] = [PIXELS, 256, 128, CLASSES];

/// The images of a minibatch of all ranks. Divisible by 1, 2, 3 and 4.
const BATCH: usize = 24;

const LR: f64 = 5e-4;
const WEIGHT_DECAY: f64 = 1.0;
const SEED: u64 = 0;

fn main() -> Result<()> {
    let universe = mpi::initialize().context("MPI is initialized already")?;
    lion_mpi::abort_on_panic();
    let epochs = match std::env::args().nth(1) {
        None => 60,
        Some(text) => {
            let epochs = text.parse();
            epochs.with_context(|| format!("{text:?} epochs, wanted a number"))?
        }
    };
    run(&universe.world(), epochs)
}

fn run(comm: &SimpleCommunicator, epochs: usize) -> Result<()> {
    let (rank, ranks) = (comm.rank() as usize, comm.size() as usize);
    ensure!(
        BATCH.is_multiple_of(ranks),
        "{ranks} ranks, wanted a divisor of the {BATCH} images of a minibatch"
    );
    let digits = Digits::read(Path::new(DATA))?;
    let (training, test) = digits.split(&mut Random::new(SEED, 0));
    let plan = Plan {
        training,
        test,
        epochs,
    };
    let own = plan.train_sharded(comm)?;
    let rows = gather(comm, &own);
    let voted = plan.train_voting(comm)?;
    let votes = gather(comm, &voted);
    if rank > 0 {
        return Ok(());
    }
    println!(
        "rank  state (bytes)  sent per step (bytes)  step (µs)  test accuracy (%)  parameters"
    );
    for (rank, row) in rows.iter().enumerate() {
        let [state, sent, micros, accuracy, checksum] = *row;
        let accuracy = 100.0 * f64::from_bits(accuracy);
        println!("{rank:4}  {state:13}  {sent:21}  {micros:9}  {accuracy:17.2}  {checksum:016x}");
    }
    let [state, _, micros, accuracy, checksum] = voted;
    println!(
        "majority vote: {state} bytes of state, {micros} µs, test accuracy {:.2} %, parameters {checksum:016x}",
        100.0 * f64::from_bits(accuracy)
    );
    ensure!(
        votes.iter().all(|row| row[4] == checksum),
        "the parameters differ between ranks after the vote"
    );
    let alone = plan.train_alone(ranks)?;
    println!(
        "one process with the same sums: {} bytes of state, parameters {:016x}",
        alone.0, alone.1
    );
    ensure!(
        rows.iter().all(|row| row[4] == alone.1),
        "the parameters differ from those of one process"
    );
    Ok(())
}

/// The same on all ranks.
struct Plan {
    training: Digits,
    test: Digits,
    epochs: usize,
}

/// The figures of a rank: bytes of state, bytes sent per step, median microseconds per step, the accuracy as bits, and a
/// checksum of the parameters.
type Figures = [u64; 5];

fn builder() -> LionBuilder {
    Lion8bit::builder().weight_decay(WEIGHT_DECAY).seed(SEED)
}

impl Plan {
    fn network(&self) -> Network {
        Network::new(&SIZES, &mut Random::new(SEED, 1))
    }

    /// Calls `step` with each minibatch and the arguments of its step.
    fn minibatches(&self, mut step: impl FnMut(&Digits, StepArgs) -> Result<()>) -> Result<()> {
        let mut random = Random::new(SEED, 2);
        let mut order: Vec<usize> = (0..self.training.labels.len()).collect();
        let steps = self.epochs * (order.len() / BATCH);
        let mut done = 0;
        for _ in 0..self.epochs {
            random.shuffle(&mut order);
            for places in order.chunks_exact(BATCH) {
                let batch = self.training.select(places).jittered(&mut random);
                let lr = LR * 0.5 * (1.0 + (PI * done as f64 / steps as f64).cos());
                step(&batch, StepArgs::new().lr(lr))?;
                done += 1;
            }
        }
        Ok(())
    }

    /// Trains on all ranks, each with its part of the images.
    fn train_sharded(&self, comm: &SimpleCommunicator) -> Result<Figures> {
        let (rank, ranks) = (comm.rank() as usize, comm.size() as usize);
        let mut network = self.network();
        let mut gradients = network.gradients();
        // The loss is a mean over the images of a rank, so the mean of the gradients is that over all images.
        let mut lion = Sharded::new(comm, builder())?.reduction(Reduction::Mean);
        lion.add_group("no_decay", Overrides::new().weight_decay(0.0))?;
        let mut handles = Vec::new();
        for spec in specs(&network) {
            handles.push(lion.register(spec)?);
        }
        let (mut sent, mut times) = (0, Vec::new());
        self.minibatches(|batch, args| {
            let part = part(batch, rank, ranks);
            network.backward(part.images.view(), &part.labels, &mut gradients);
            let start = Instant::now();
            let updates = handles
                .iter()
                .zip(network.arrays_mut())
                .zip(gradients.arrays());
            let updates = updates.map(|((&handle, (_, param)), (_, grad))| (handle, param, grad));
            let report = lion.step_with(args, updates)?;
            times.push(start.elapsed());
            sent = report.bytes_sent;
            Ok(())
        })?;
        self.figures(&network, lion.state_bytes(), sent, times)
    }

    /// Trains on all ranks by majority vote. A rank sends `2 (ranks - 1) / ranks` bits per element and step.
    fn train_voting(&self, comm: &SimpleCommunicator) -> Result<Figures> {
        let (rank, ranks) = (comm.rank() as usize, comm.size() as usize);
        let mut network = self.network();
        let mut gradients = network.gradients();
        let mut lion = Voting::new(comm, builder())?;
        lion.add_group("no_decay", Overrides::new().weight_decay(0.0))?;
        let mut handles = Vec::new();
        for spec in specs(&network) {
            handles.push(lion.register(spec)?);
        }
        let mut times = Vec::new();
        self.minibatches(|batch, args| {
            let part = part(batch, rank, ranks);
            network.backward(part.images.view(), &part.labels, &mut gradients);
            let start = Instant::now();
            let updates = handles
                .iter()
                .zip(network.arrays_mut())
                .zip(gradients.arrays());
            let updates = updates.map(|((&handle, (_, param)), (_, grad))| (handle, param, grad));
            lion.step_with(args, updates)?;
            times.push(start.elapsed());
            Ok(())
        })?;
        self.figures(&network, lion.lion().state_bytes(), 0, times)
    }

    /// Returns the figures of this rank after its training.
    fn figures(
        &self,
        network: &Network,
        state: usize,
        sent: u64,
        mut times: Vec<Duration>,
    ) -> Result<Figures> {
        times.sort_unstable();
        let time = times.get(times.len() / 2).map_or(0, Duration::as_micros);
        let (_, accuracy) = network.evaluate(self.test.images.view(), &self.test.labels);
        Ok([
            state as u64,
            sent,
            time as u64,
            accuracy.to_bits(),
            network.checksum(),
        ])
    }

    /// Trains on this process with the sums of the gradients that `ranks` ranks compute. Returns the bytes of the state
    /// and the checksum of the parameters.
    fn train_alone(&self, ranks: usize) -> Result<(usize, u64)> {
        let mut network = self.network();
        let mut sums = network.gradients();
        let mut gradients = network.gradients();
        let mut lion: Lion = builder().build()?;
        lion.add_group("no_decay", Overrides::new().weight_decay(0.0))?;
        let mut handles = Vec::new();
        for spec in specs(&network) {
            handles.push(lion.register(spec)?);
        }
        self.minibatches(|batch, args| {
            for rank in 0..ranks {
                let part = part(batch, rank, ranks);
                network.backward(part.images.view(), &part.labels, &mut gradients);
                for (sum, gradient) in sums.layers.iter_mut().zip(&gradients.layers) {
                    if rank == 0 {
                        sum.weight.assign(&gradient.weight);
                        sum.bias.assign(&gradient.bias);
                    } else {
                        sum.weight += &gradient.weight;
                        sum.bias += &gradient.bias;
                    }
                }
            }
            let updates = handles.iter().zip(network.arrays_mut()).zip(sums.arrays());
            let updates = updates.map(|((&handle, (_, param)), (_, grad))| (handle, param, grad));
            lion.step_with(args.grad_scale(1.0 / ranks as f64), updates)?;
            Ok(())
        })?;
        Ok((lion.state_bytes(), network.checksum()))
    }
}

/// Returns the images of a rank.
fn part(batch: &Digits, rank: usize, ranks: usize) -> Digits {
    let size = BATCH / ranks;
    let places: Vec<usize> = (rank * size..(rank + 1) * size).collect();
    batch.select(&places)
}

/// Returns the parameters in the order of the arrays of a network.
fn specs(network: &Network) -> impl Iterator<Item = ParamSpec> + '_ {
    network.arrays().map(|(name, array)| {
        let len = array.map_or(0, |array| array.data.len());
        let is_bias = name.ends_with("bias");
        let spec = ParamSpec::new(name, len, lion::Dtype::F32);
        if is_bias {
            spec.group("no_decay")
        } else {
            spec
        }
    })
}

/// Returns the figures of all ranks.
fn gather(comm: &SimpleCommunicator, own: &Figures) -> Vec<Figures> {
    let mut all = vec![0u64; own.len() * comm.size() as usize];
    comm.all_gather_into(&own[..], &mut all[..]);
    all.as_chunks().0.to_vec()
}
