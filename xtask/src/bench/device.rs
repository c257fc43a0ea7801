//! Measures steps on a CUDA device: exact counts on the emulator, and times relative to a copy on a
//! GPU.
//!
//! The emulator counts what a GPU would execute: PTX instructions per lane, bytes that lanes load
//! and store, and sectors of 32 bytes that the accesses of a warp touch. It does not predict times.

use super::case::Case;
use anyhow::{Context as _, Result, bail, ensure};
use lion::cpu::Isa;
use lion::cuda::{Cuda, DeviceArray, cust, emulator_counts, is_emulated};
use lion::{Dtype, Handle, Lion, ParamSpec, backend::Backend, update};
use lion_test_support::{Rng, Tensor, backends};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Elements of the tensor for counting. All kernels process it in full tiles.
const COUNTED: usize = 1 << 18;

/// Maximum number of elements of the tensor for timing: much larger than the caches of a GPU.
const TIMED: usize = 1 << 28;

/// Steps per time measurement.
const STEPS: u32 = 10;

/// One kernel on a device.
pub(super) struct DeviceRow {
    backend: &'static str,
    bits: u32,
    param: Dtype,
    grad: Dtype,
    n: usize,
    /// Minimum bytes per element of a step.
    minimum: f64,
    result: Measured,
}

enum Measured {
    Counts {
        bytes: f64,
        sectors: f64,
        instructions: f64,
    },
    Times {
        gelem_s: f64,
        /// Bytes per second relative to a copy on the device.
        ratio: f64,
    },
}

/// Returns the device with this name, or any device of this machine, preferring a GPU to the
/// emulator.
///
/// # Errors
/// If there is no device with this name, or no device at all, with the reason for each.
pub(super) fn find(name: Option<&str>) -> Result<(&'static str, Arc<Cuda>)> {
    let mut candidates = backends();
    if let Some(name) = name {
        let names: Vec<_> = candidates.iter().map(|candidate| candidate.name).collect();
        ensure!(
            names.contains(&name),
            "--isa is `{name}`, wanted one of {}",
            names.join(", ")
        );
        candidates.retain(|candidate| candidate.name == name);
    }
    let mut reasons = Vec::new();
    for candidate in candidates {
        match candidate.cuda() {
            Some(Ok(cuda)) => return Ok((candidate.name, cuda)),
            Some(Err(reason)) => reasons.push(format!("{}: {reason}", candidate.name)),
            None => {}
        }
    }
    bail!("{}", reasons.join("; "))
}

/// Measures each kernel, for some pairs of types, on a tensor of `n` elements, or of a number that
/// suits the device.
pub(super) fn measure(
    backend: &'static str,
    cuda: &Arc<Cuda>,
    pairs: &[(Dtype, Dtype)],
    n: Option<usize>,
) -> Result<Vec<DeviceRow>> {
    let mut rows = Vec::new();
    for bits in [32, 8] {
        for &(param, grad) in pairs {
            let case = Case::new(Isa::Scalar, bits, 1, COUNTED).types(param, grad);
            let minimum = case.bytes_per_elem();
            let (n, result) = if is_emulated() {
                let n = n.unwrap_or(COUNTED);
                (n, count(cuda, (bits, param, grad, n))?)
            } else {
                let n = n.map_or_else(timed, Ok)?;
                (n, time(bits, param, grad, n, minimum)?)
            };
            rows.push(DeviceRow {
                backend,
                bits,
                param,
                grad,
                n,
                minimum,
                result,
            });
        }
    }
    Ok(rows)
}

/// One parameter on a device.
struct Model {
    lion: Lion,
    handle: Handle,
    param: DeviceArray,
    grad: DeviceArray,
}

impl Model {
    fn new(
        backend: impl Backend + 'static,
        array: impl Fn(&Tensor) -> Result<DeviceArray>,
        (bits, param, grad, n): (u32, Dtype, Dtype, usize),
    ) -> Result<Self> {
        let mut lion = Lion::builder()
            .optim_bits(bits)
            .weight_decay(0.1)
            .backend(backend)
            .build()?;
        let handle = lion.register(ParamSpec::new("p", n, param))?;
        let mut rng = Rng::new(1);
        Ok(Model {
            lion,
            handle,
            param: array(&Tensor::from_f32(param, &rng.spread(n, 2.0)))?,
            grad: array(&Tensor::from_f32(grad, &rng.spread(n, 2.0)))?,
        })
    }

    fn step(&mut self) -> Result<()> {
        let all = 0..self.param.len();
        let update = update(
            self.handle,
            self.param.slice_mut(all.clone()),
            self.grad.slice(all),
        );
        self.lion.step([update])?;
        Ok(())
    }
}

/// Returns the number of elements of the tensor for timing. At most half of the free memory is
/// used, including a 32-bit state, and 32-bit parameters, gradients and a copy of the parameters.
fn timed() -> Result<usize> {
    const BYTES: usize = 16;
    let _context = cust::context::Context::new(cust::device::Device::get_device(0)?)?;
    let (free, _) = cust::memory::mem_get_info()?;
    let fitting = free / 2 / BYTES;
    ensure!(fitting > 0, "the device has {free} bytes free");
    Ok(TIMED.min(1 << fitting.ilog2()))
}

/// Counts the second step. The momentum of the first step is 0.
fn count(cuda: &Arc<Cuda>, tensor: (u32, Dtype, Dtype, usize)) -> Result<Measured> {
    let array = |tensor: &Tensor| Ok(cuda.array(tensor.slice())?);
    let n = tensor.3 as f64;
    let mut model = Model::new(Arc::clone(cuda), array, tensor)?;
    model.step()?;
    model.lion.synchronize()?;
    let _ = emulator_counts();
    model.step()?;
    model.lion.synchronize()?;
    let counts = emulator_counts().context("the emulator counts its launches")?;
    let mut sum = [0.0; 5];
    for line in counts.lines() {
        let launch: Value = serde_json::from_str(line)?;
        let fields = [
            "instructions",
            "loaded_bytes",
            "stored_bytes",
            "sectors_touched",
            "sectors_needed",
        ];
        for (sum, field) in sum.iter_mut().zip(fields) {
            *sum += launch[field]
                .as_f64()
                .with_context(|| format!("`{field}` in {line}"))?;
        }
    }
    let [instructions, loaded, stored, touched, needed] = sum;
    ensure!(needed > 0.0, "the step has launched nothing");
    Ok(Measured::Counts {
        bytes: (loaded + stored) / n,
        sectors: touched / needed,
        instructions: instructions / n,
    })
}

/// Times a step, and a copy of the same number of elements, with events on one stream.
fn time(bits: u32, param: Dtype, grad: Dtype, n: usize, bytes: f64) -> Result<Measured> {
    use cust::event::{Event, EventFlags};
    use cust::stream::{Stream, StreamFlags};
    let context = Arc::new(cust::quick_init()?);
    let stream = Arc::new(Stream::new(StreamFlags::NON_BLOCKING, None)?);
    let cuda = Arc::new(Cuda::with_stream(context, Arc::clone(&stream))?);
    let array = |tensor: &Tensor| Ok(cuda.array(tensor.slice())?);
    let mut model = Model::new(Arc::clone(&cuda), array, (bits, param, grad, n))?;
    let mut copy = cuda.array(Tensor::from_f32(param, &vec![0.0; n]).slice())?;
    let measure = |work: &mut dyn FnMut() -> Result<()>| -> Result<Duration> {
        work()?;
        let [start, end] = [
            Event::new(EventFlags::DEFAULT)?,
            Event::new(EventFlags::DEFAULT)?,
        ];
        start.record(&stream)?;
        for _ in 0..STEPS {
            work()?;
        }
        end.record(&stream)?;
        end.synchronize()?;
        Ok(end.elapsed(&start)? / STEPS)
    };
    let step = measure(&mut || model.step())?.as_secs_f64();
    let copied = measure(&mut || Ok(copy.copy_from(&model.param)?))?.as_secs_f64();
    // A copy reads and writes.
    let copy_bytes = 2.0 * param.bytes() as f64;
    Ok(Measured::Times {
        gelem_s: n as f64 / step / 1e9,
        ratio: (bytes / step) / (copy_bytes / copied),
    })
}

/// Prints the rows, each as a JSON object or all as a table.
pub(super) fn print(json: bool, device: &str, rows: &[DeviceRow]) {
    if json {
        rows.iter().for_each(|row| println!("{}", row.json()));
        return;
    }
    let Some(first) = rows.first() else { return };
    match first.result {
        Measured::Counts { .. } => {
            println!("\n{device}: counts of PTX as executed, no times");
            println!(
                "kernel  isa            param/grad           n  bytes/elem  minimum  sectors used/needed  instructions/elem"
            );
        }
        Measured::Times { .. } => {
            println!("\n{device}");
            println!(
                "kernel  isa            param/grad           n  bytes/elem  Gelem/s  ratio to a copy"
            );
        }
    }
    for row in rows {
        let (kernel, types) = (
            format!("lion{}", row.bits),
            format!("{}/{}", row.param, row.grad),
        );
        print!("{kernel:<7} {:<14} {types:<11} {:>10}", row.backend, row.n);
        match row.result {
            Measured::Counts {
                bytes,
                sectors,
                instructions,
            } => println!(
                "  {bytes:>10.3}  {:>7.3}  {sectors:>19.3}  {instructions:>17.1}",
                row.minimum
            ),
            Measured::Times { gelem_s, ratio } => {
                println!("  {:>10.3}  {gelem_s:>7.1}  {ratio:>15.2}", row.minimum);
            }
        }
    }
}

impl DeviceRow {
    fn json(&self) -> Value {
        let rounded = |x: f64| (x * 1e4).round() / 1e4;
        let mut row = json!({
            "kernel": format!("lion{}", self.bits),
            "isa": self.backend,
            "param": self.param.name(),
            "grad": self.grad.name(),
            "n": self.n,
        });
        match self.result {
            Measured::Counts {
                bytes,
                sectors,
                instructions,
            } => {
                row["bytes_per_elem"] = json!(rounded(bytes));
                row["minimum_bytes_per_elem"] = json!(rounded(self.minimum));
                row["sectors_per_needed"] = json!(rounded(sectors));
                row["instructions_per_elem"] = json!(rounded(instructions));
            }
            Measured::Times { gelem_s, ratio } => {
                row["bytes_per_elem"] = json!(rounded(self.minimum));
                row["gelem_s"] = json!(rounded(gelem_s));
                row["ratio"] = json!(rounded(ratio));
            }
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emulator() -> Arc<Cuda> {
        find(Some("cuda-emulated")).unwrap().1
    }

    #[test]
    fn kernels_move_no_more_bytes_than_they_must() {
        let cuda = emulator();
        for (bits, dtype, minimum) in [
            (32, Dtype::F32, 20.0),
            (8, Dtype::F32, 14.0 + 8.0 / 256.0),
            (32, Dtype::Bf16, 14.0),
            (8, Dtype::Bf16, 8.0 + 8.0 / 256.0),
        ] {
            let Measured::Counts {
                bytes,
                sectors,
                instructions,
            } = count(&cuda, (bits, dtype, dtype, COUNTED)).unwrap()
            else {
                panic!("an emulator counts");
            };
            assert!(
                bytes >= minimum && bytes <= 1.02 * minimum,
                "{bits} {dtype}: {bytes}"
            );
            assert!(sectors < 1.001, "{bits} {dtype}: {sectors}");
            assert!(instructions < 79.0, "{bits} {dtype}: {instructions}");
        }
    }

    #[test]
    fn times_are_taken_on_the_stream_of_the_step() {
        let _driver = emulator();
        let result = time(8, Dtype::Bf16, Dtype::Bf16, 5000, 8.03).unwrap();
        assert!(
            matches!(result, Measured::Times { gelem_s, ratio } if gelem_s > 0.0 && ratio > 0.0)
        );
    }
}
