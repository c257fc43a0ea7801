//! Steps on an NVIDIA GPU, with arrays in its memory. Without a GPU it prints the reason.
//!
//! `cargo run --example 06-cuda --features cuda` prints `no CUDA device: no CUDA driver: ...` on a machine
//! without a driver.

use lion::{Device, Dtype, Lion8bit, ParamSpec, update};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The driver is opened here, so the program also starts where there is none. `Device::auto()`
    // falls back to the CPU, which returns the same bits.
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(error) => {
            println!("no CUDA device: {error}");
            return Ok(());
        }
    };
    let mut lion = Lion8bit::builder().device(device.clone()).lr(0.5).build()?;
    let w = lion.register(ParamSpec::new("weight", 8192, Dtype::F32))?;

    // Arrays on the host are copied to the device and back, and the step waits for the copies.
    let (mut weight, grad) = (vec![1.0f32; 8192], vec![1.0f32; 8192]);
    lion.step([(w, &mut weight, &grad)])?;
    println!("weight[0] = {}", weight[0]);

    // Arrays on the device are stepped in place. The step is queued on a stream, without waiting.
    let Device::Cuda(cuda) = device else {
        return Ok(());
    };
    println!("stepping on {}", cuda.device_name());
    let mut weight = cuda.array(&weight[..])?;
    let grad = cuda.array(&grad[..])?;
    let all = 0..8192;
    let report = lion.step([update(w, weight.slice_mut(all.clone()), grad.slice(all))])?;
    println!("pending: {}", report.pending);
    let skipped = lion.synchronize()?; // waits, and returns the skipped blocks
    println!("done, {} parameters with skipped blocks", skipped.len());
    let mut back = vec![0.0f32; 8192];
    weight.read(back.as_mut_slice().into())?;
    println!("weight[0] = {}", back[0]);
    Ok(())
}
