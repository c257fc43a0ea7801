//! Invalid checkpoints and safetensors files cause no panic, no endless loop and no memory use beyond a bound, and
//! change nothing in the optimizer.
#![allow(clippy::unwrap_used)]

mod checkpoint;
mod safetensors;

use lion::{Dtype, Lion, Overrides, ParamSpec};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Memory that a load may use in addition to the file's size, in bytes.
const CONSTANT: usize = 512 << 10;

/// Held by each test, because the counters of allocations cover the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the result of `work` and the peak of the allocated bytes.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let _profiler = dhat::Profiler::builder().testing().build();
    let result = work();
    (result, dhat::HeapStats::get().max_bytes)
}

fn optimizer() -> Lion {
    let mut lion = Lion::builder().lr(0.5).seed(9).build().unwrap();
    let eight = Overrides::new()
        .optim_bits(8)
        .min_8bit_size(0)
        .stochastic_state(true);
    lion.add_group("eight", eight).unwrap();
    lion.add_group("other", Overrides::new().lr(0.1)).unwrap();
    for (name, n, group) in [
        ("codes", 300, "eight"),
        ("few", 5, "eight"),
        ("m", 6, "other"),
    ] {
        lion.register(ParamSpec::new(name, n, Dtype::F32).group(group))
            .unwrap();
    }
    lion
}

fn stepped() -> Lion {
    let mut lion = optimizer();
    let infos: Vec<_> = lion
        .parameters()
        .map(|info| (info.handle, info.len))
        .collect();
    for (handle, n) in infos {
        let grad: Vec<f32> = (0..n).map(|i| i as f32 - 2.5).collect();
        if n == 6 {
            let mut p = ndarray::Array2::<f32>::zeros((2, 3)).reversed_axes();
            let g = ndarray::Array2::from_shape_vec((2, 3), grad)
                .unwrap()
                .reversed_axes();
            lion.step([(handle, &mut p, &g)]).unwrap();
        } else {
            lion.step([(handle, &mut vec![0.0f32; n], &grad)]).unwrap();
        }
    }
    lion
}
