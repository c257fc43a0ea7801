//! Steps on a CUDA device of arrays that are aligned only to the size of an element: the bits, the bytes that the kernels access,
//! and the vectors that they use.
#![allow(clippy::unwrap_used)]

use lion::cpu::{Cpu, Isa};
use lion::cuda::{Cuda, DeviceArray, emulator_counts};
use lion::{
    Dtype, Handle, Lion, Overrides, ParamSpec, StepArgs, backend::Planes, tensor::Update, update,
};
use lion_test_support::{Rng, Tensor, compare_params};
use serde_json::Value;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The lengths lie around the boundaries between blocks, and end in a long, a short or no part of a block.
const LENGTHS: [usize; 6] = [1, 255, 256, 257, 511, 1000];

/// The value of the elements of an allocation before a tensor.
const GUARD: f32 = 7.0;

/// Runs one test at a time, because the emulator counts the launches of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A tensor, and the number of elements before it in the allocations of its parameter and of its gradient. Both
/// allocations end with the tensor.
struct Case {
    before_param: usize,
    before_grad: usize,
    param: Tensor,
    grad: Tensor,
}

impl Case {
    fn new(rng: &mut Rng, (pdt, gdt): (Dtype, Dtype), before: (usize, usize), len: usize) -> Self {
        let mut grad = rng.spread(len, 5.0);
        if len == 1000 {
            grad[300] = f32::NAN;
        }
        Case {
            before_param: before.0,
            before_grad: before.1,
            param: Tensor::from_f32(pdt, &rng.spread(len, 5.0)),
            grad: Tensor::from_f32(gdt, &grad),
        }
    }

    fn len(&self) -> usize {
        self.param.len()
    }

    fn register(&self, lion: &mut Lion, index: usize) -> Handle {
        let spec = ParamSpec::new(format!("p{index}"), self.len(), self.param.dtype());
        lion.register(spec).unwrap()
    }
}

/// Returns the cases of every misalignment of up to 16 bytes and every length.
fn cases(rng: &mut Rng, types: (Dtype, Dtype)) -> Vec<Case> {
    let offsets = |dtype: Dtype| 0..=16 / dtype.bytes();
    let mut cases = Vec::new();
    for before_param in offsets(types.0) {
        for before_grad in offsets(types.1) {
            for len in LENGTHS {
                cases.push(Case::new(rng, types, (before_param, before_grad), len));
            }
        }
    }
    cases
}

fn behind_guard(cuda: &Cuda, before: usize, value: &Tensor) -> DeviceArray {
    let guard = Tensor::from_f32(value.dtype(), &vec![GUARD; before]);
    cuda.array(Tensor::concat([&guard, value]).slice()).unwrap()
}

/// The arrays of the cases on the device.
struct OnDevice {
    params: Vec<DeviceArray>,
    grads: Vec<DeviceArray>,
}

impl OnDevice {
    fn new(cuda: &Cuda, cases: &[Case]) -> Self {
        let param = |case: &Case| behind_guard(cuda, case.before_param, &case.param);
        let grad = |case: &Case| behind_guard(cuda, case.before_grad, &case.grad);
        OnDevice {
            params: cases.iter().map(param).collect(),
            grads: cases.iter().map(grad).collect(),
        }
    }

    fn updates<'a>(&'a mut self, cases: &'a [Case], handles: &'a [Handle]) -> Vec<Update<'a>> {
        let arrays = self.params.iter_mut().zip(&self.grads);
        let update_of = |((case, &handle), (param, grad)): (
            (&Case, _),
            (&'a mut DeviceArray, &'a DeviceArray),
        )| {
            let (param_len, grad_len) = (param.len(), grad.len());
            update(
                handle,
                param.slice_mut(case.before_param..param_len),
                grad.slice(case.before_grad..grad_len),
            )
        };
        cases
            .iter()
            .zip(handles)
            .zip(arrays)
            .map(update_of)
            .collect()
    }

    /// Returns the parameters, with the elements before them.
    fn read(&self) -> Vec<Tensor> {
        let read = |array: &DeviceArray| {
            let mut value = Tensor::from_f32(array.dtype(), &vec![0.0; array.len()]);
            array.read(value.slice_mut()).unwrap();
            value
        };
        self.params.iter().map(read).collect()
    }
}

fn states(lion: &Lion, handles: &[Handle]) -> Vec<Planes> {
    let export = |&handle| lion.export_state(handle).unwrap().planes;
    handles.iter().map(export).collect()
}

/// Steps the cases twice on the device and with the scalar kernel of the CPU, and compares everything.
fn compare(cuda: &Arc<Cuda>, cases: &[Case], overrides: Overrides, name: &str) {
    let builder = || Lion::builder().lr(0.01).seed(3).overrides(overrides);
    let mut on_cpu = builder()
        .backend(Cpu::with_isa(Isa::Scalar).unwrap())
        .build()
        .unwrap();
    let mut on_cuda = builder().backend(Arc::clone(cuda)).build().unwrap();
    let register = |lion: &mut Lion| -> Vec<Handle> {
        let cases = cases.iter().enumerate();
        cases.map(|(i, case)| case.register(lion, i)).collect()
    };
    let (cpu_handles, cuda_handles) = (register(&mut on_cpu), register(&mut on_cuda));
    let mut params: Vec<Tensor> = cases.iter().map(|case| case.param.clone()).collect();
    let mut device = OnDevice::new(cuda, cases);

    let args = StepArgs::new;
    let updates = device.updates(cases, &cuda_handles);
    let found = on_cuda.non_finite_blocks(args(), updates).unwrap();
    let with_nan = cases.iter().filter(|case| case.len() == 1000).count();
    assert_eq!(found.len(), with_nan, "{name}");
    assert!(found.iter().all(|found| found.skipped == 1), "{name}");

    for _ in 0..2 {
        let updates = params.iter_mut().zip(cases).zip(&cpu_handles);
        let updates = updates
            .map(|((param, case), &handle)| update(handle, param.slice_mut(), case.grad.slice()));
        on_cpu.step(updates).unwrap();
        on_cuda.step(device.updates(cases, &cuda_handles)).unwrap();
    }
    on_cuda.synchronize().unwrap();
    let states = states(&on_cpu, &cpu_handles)
        .into_iter()
        .zip(self::states(&on_cuda, &cuda_handles));
    let params = params.iter().zip(device.read());
    for ((case, (expected, found)), (cpu_state, cuda_state)) in cases.iter().zip(params).zip(states)
    {
        let (before, len) = ((case.before_param, case.before_grad), case.len());
        let place = format!("{name}, length {len}, {before:?} elements before it");
        let guards = found.range(0..case.before_param).bits();
        assert!(guards.iter().all(|&(_, x)| x == GUARD), "{place}");
        let found = found.range(case.before_param..found.len());
        assert_eq!(compare_params(&found, expected), None, "{place}");
        assert_eq!(cuda_state, cpu_state, "{place}");
    }
}

#[test]
fn unaligned_tensors_match_the_scalar_kernel() {
    let _one = alone();
    let cuda = lion_test_support::cuda().unwrap();
    let mut rng = Rng::new(17);
    for pdt in Dtype::ALL {
        for gdt in Dtype::ALL {
            let cases = cases(&mut rng, (pdt, gdt));
            for bits in [8, 32] {
                let plain = Overrides::new().optim_bits(bits).min_8bit_size(0);
                let options = plain
                    .skip_zeros(true)
                    .stochastic_param(pdt == Dtype::Bf16)
                    .stochastic_state(bits == 8);
                for (overrides, which) in [(plain, "plain"), (options, "options")] {
                    let name = format!("{pdt} {gdt} {bits} {which}");
                    compare(&cuda, &cases, overrides, &name);
                }
            }
        }
    }
}

/// What the emulated driver counts in the launch of one step.
struct Counts {
    loaded: u64,
    stored: u64,
    sectors: u64,
    instructions: u64,
}

fn counts_of_step(cuda: &Arc<Cuda>, case: Case, bits: u32) -> Counts {
    let overrides = Overrides::new().optim_bits(bits).min_8bit_size(0);
    let builder = Lion::builder().lr(0.01).overrides(overrides);
    let mut lion = builder.backend(Arc::clone(cuda)).build().unwrap();
    let handles = [case.register(&mut lion, 0)];
    let cases = [case];
    let mut device = OnDevice::new(cuda, &cases);
    let _ = emulator_counts();
    lion.step(device.updates(&cases, &handles)).unwrap();
    lion.synchronize().unwrap();
    let counts = emulator_counts().unwrap();
    let prefix = format!("lion{bits}_");
    let launches: Vec<Value> = counts
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|launch| launch["kernel"].as_str().unwrap().starts_with(&prefix))
        .collect();
    assert_eq!(launches.len(), 1, "{counts}");
    let count = |name: &str| launches[0][name].as_u64().unwrap();
    Counts {
        loaded: count("loaded_bytes"),
        stored: count("stored_bytes"),
        sectors: count("sectors_touched"),
        instructions: count("warp_instructions"),
    }
}

/// The emulated driver refuses accesses beyond the end of an allocation, where the tensors end. An access to an element before a
/// tensor would be one to more bytes.
#[test]
fn unaligned_tensors_are_accessed_by_vectors_and_nothing_else_is() {
    let _one = alone();
    let cuda = lion_test_support::cuda().unwrap();
    if !lion::cuda::is_emulated() {
        println!(
            "SKIPPED unaligned_tensors_are_accessed_by_vectors_and_nothing_else_is: only the emulated driver counts accesses"
        );
        return;
    }
    let mut rng = Rng::new(18);
    for pdt in Dtype::ALL {
        for gdt in Dtype::ALL {
            for bits in [8, 32] {
                for len in [100, 2048] {
                    let mut counts = |before| {
                        let case = Case::new(&mut rng, (pdt, gdt), before, len);
                        counts_of_step(&cuda, case, bits)
                    };
                    let aligned = counts((0, 0));
                    for before in [(1, 0), (0, 1), (3, 2)] {
                        let name = format!("{pdt} {gdt} {bits}, {len} elements, {before:?} before");
                        let found = counts(before);
                        assert_eq!(found.loaded, aligned.loaded, "{name}");
                        assert_eq!(found.stored, aligned.stored, "{name}");
                        if len < 2048 {
                            continue;
                        }
                        // Two sectors more per access of a warp: one at an end, and one for the single elements.
                        assert!(
                            found.sectors * 4 <= aligned.sectors * 5,
                            "{name}: {} sectors",
                            found.sectors
                        );
                        let more = found.instructions as f64 / aligned.instructions as f64;
                        assert!(more < 3.0, "{name}: {more} times as many instructions");
                    }
                }
            }
        }
    }
}
