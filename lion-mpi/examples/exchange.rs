//! Measures a step of all ranks beside the same work done with MPI's own reduction, in turn:
//!
//! - `Sharded::step` sums gradients, steps the shares and sends the parameters;
//! - `MPI_Reduce_scatter_block` sums the gradients, one optimizer steps the share, and `MPI_Allgatherv` sends the
//!   parameters. It adds in an unspecified order, holds the whole share of the sums, and overlaps nothing.
//!
//! `lion-mpi/distributed 4 exchange [ELEMENTS] [SAMPLES]` starts it on four ranks. The figures are those of the slowest
//! rank.

use anyhow::{Context, Result};
use lion::{Dtype, Lion8bit, ParamSpec};
use lion_mpi::Sharded;
use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};
use std::time::Instant;

fn main() -> Result<()> {
    let universe = mpi::initialize().context("MPI is initialized already")?;
    lion_mpi::abort_on_panic();
    let comm = universe.world();
    let number = |position: usize, default: usize| match std::env::args().nth(position) {
        None => Ok(default),
        Some(text) => text
            .parse()
            .with_context(|| format!("{text:?}, wanted a number")),
    };
    let ranks = comm.size() as usize;
    // Shares of equal size, which the reduction needs.
    let share = number(1, 1 << 24)?.div_ceil(256 * ranks) * 256;
    let (n, samples) = (share * ranks, number(2, 7)?);

    let grad: Vec<f32> = (0..n).map(|i| (i % 1000) as f32 - 500.0).collect();
    let mut param = vec![1.0f32; n];
    let mut sharded = Sharded::new(&comm, Lion8bit::builder())?;
    let w = sharded.register(ParamSpec::new("w", n, Dtype::F32))?;
    let mut sent = 0;

    let start = comm.rank() as usize * share;
    let mut lion = Lion8bit::builder().build()?;
    let spec = ParamSpec::new("w", share, Dtype::F32).shard(start, n);
    let own = lion.register(spec)?;
    let mut other = vec![1.0f32; n];
    let mut stepped = vec![1.0f32; share];
    let mut sums = vec![0.0f32; share];

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..samples {
        ours.push(time(&comm, || {
            sent = sharded.step([(w, &mut param, &grad)])?.bytes_sent;
            Ok(())
        })?);
        theirs.push(time(&comm, || {
            comm.reduce_scatter_block_into(&grad[..], &mut sums[..], SystemOperation::sum());
            lion.step([(own, &mut stepped, &sums)])?;
            let counts = vec![share as i32; ranks];
            let starts: Vec<i32> = (0..ranks).map(|rank| (rank * share) as i32).collect();
            let mut all = PartitionMut::new(&mut other[..], counts, starts);
            comm.all_gather_varcount_into(&stepped[..], &mut all);
            Ok(())
        })?);
    }
    let [ours, theirs] = [ours, theirs].map(|mut times| {
        times.sort_unstable_by(f64::total_cmp);
        times[samples / 2]
    });
    if comm.rank() == 0 {
        let minimum = 8 * (ranks as u64 - 1) * share as u64;
        println!(
            "{ranks} ranks, {n} elements, {samples} samples in turn, medians of the slowest rank"
        );
        println!(
            "Sharded::step                                {:8.1} ms",
            1e3 * ours
        );
        println!(
            "reduce_scatter_block, step, allgatherv       {:8.1} ms",
            1e3 * theirs
        );
        println!(
            "ratio {:.2}; {sent} bytes sent per rank, the minimum is {minimum}",
            theirs / ours
        );
    }
    Ok(())
}

/// Returns the seconds that the slowest rank needs.
fn time(comm: &SimpleCommunicator, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    comm.barrier();
    let start = Instant::now();
    work()?;
    let own = start.elapsed().as_secs_f64();
    let mut slowest = 0.0;
    comm.all_reduce_into(&own, &mut slowest, SystemOperation::max());
    Ok(slowest)
}
