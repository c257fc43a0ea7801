//! The floating-point mode of the calling thread does not change bits. Programs in other languages may flush subnormal
//! numbers to zero or set another rounding mode. Tested for every instruction set by name, and for CUDA.
#![allow(clippy::unwrap_used)]
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

use lion::arithmetic::philox::PhiloxKey;
use lion::{
    Dtype, Error, Lion, OnNonFinite, Overrides, ParamSpec, StepArgs,
    backend::{Backend, Planes, StateRecord},
    update,
};
use lion_test_support::{Rng, Tensor, cpus, cuda};
use std::sync::Arc;

#[cfg(target_arch = "x86_64")]
mod register {
    use std::arch::asm;

    /// Flush to zero, and read subnormal operands as zero.
    pub(crate) const FLUSH: u64 = 0x8040;
    pub(crate) const TOWARD_ZERO: u64 = 0x6000;

    /// Returns the control bits of the mode, without the exception flags.
    pub(crate) fn read() -> u64 {
        let mut word = 0u32;
        // SAFETY: stores MXCSR into `word`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack)) };
        u64::from(word & 0xFFC0)
    }

    pub(crate) fn write(word: u64) {
        let word = word as u32;
        // SAFETY: sets bits that every processor has. A caller in another language could run the same code in
        // this mode until the bits are restored.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack)) };
    }
}

#[cfg(target_arch = "aarch64")]
mod register {
    use std::arch::asm;

    /// Flush to zero.
    pub(crate) const FLUSH: u64 = 1 << 24;
    pub(crate) const TOWARD_ZERO: u64 = 3 << 22;

    /// Returns the control bits of the mode.
    pub(crate) fn read() -> u64 {
        let word;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, fpcr", out(reg) word, options(nostack)) };
        word
    }

    pub(crate) fn write(word: u64) {
        // SAFETY: sets bits that every processor has. A caller in another language could run the same code in
        // this mode until the bits are restored.
        unsafe { asm!("msr fpcr, {}", in(reg) word, options(nostack)) };
    }
}

const MODES: [u64; 3] = [
    register::FLUSH,
    register::TOWARD_ZERO,
    register::FLUSH | register::TOWARD_ZERO,
];

/// Returns the result of `call` on a thread in this mode. `call` must restore the mode.
fn in_mode<R>(mode: u64, call: impl FnOnce() -> R) -> R {
    #[inline(never)]
    fn without_inlining<R>(call: impl FnOnce() -> R) -> R {
        call()
    }

    let before = register::read();
    register::write(before | mode);
    let result = without_inlining(call);
    let after = register::read();
    register::write(before);
    assert_eq!(after, before | mode, "the mode is not restored");
    result
}

/// The modes have an effect, so that the other tests here can fail.
#[test]
fn modes_change_the_results_of_a_thread() {
    let [tiny, third] = [f32::MIN_POSITIVE, 3.0].map(std::hint::black_box);
    let halved = |mode| in_mode(mode, || std::hint::black_box(tiny) * 0.5);
    let divided = |mode| in_mode(mode, || (-2.0 / std::hint::black_box(third)).to_bits());
    assert!(halved(0) > 0.0 && halved(register::FLUSH) == 0.0);
    assert_eq!(divided(0) - 1, divided(register::TOWARD_ZERO));
}

/// Returns `n` numbers, many of them subnormal.
fn tiny(rng: &mut Rng, n: usize) -> Vec<f32> {
    let mut numbers = rng.spread(n, 8.0);
    for block in numbers.chunks_mut(256).step_by(2) {
        for x in block {
            *x = rng.signed_unit() * 4.0 * f32::MIN_POSITIVE;
        }
    }
    numbers
}

/// One parameter with its gradient and momentum.
struct Case {
    param: Tensor,
    grad: Tensor,
    planes: Planes,
    overrides: Overrides,
}

impl Case {
    fn new(n: usize, (param, grad): (Dtype, Dtype), overrides: Overrides) -> Self {
        let mut rng = Rng::new(n as u64);
        let mut values = tiny(&mut rng, n);
        if overrides.max_unorm.is_some() {
            // The norm is 0 for a thread that reads subnormal numbers as zero.
            values.fill(f32::MIN_POSITIVE / 8.0);
        }
        let mut gradient = tiny(&mut rng, n);
        // The product with the scale is infinite, or the largest number if rounded toward zero.
        gradient[n / 2] = f32::MAX;
        let m = tiny(&mut rng, n);
        let planes = if overrides.optim_bits == Some(8) {
            let (mut codes, mut absmax) = (vec![0; n], vec![0.0; n.div_ceil(256)]);
            lion::quant::quantize(&m, &mut codes, &mut absmax, None).unwrap();
            Planes::Blockwise8 { codes, absmax }
        } else {
            Planes::Momentum32 { momentum: m }
        };
        Case {
            param: Tensor::from_f32(param, &values),
            grad: Tensor::from_f32(grad, &gradient),
            planes,
            overrides: overrides.min_8bit_size(0),
        }
    }

    /// Returns all bits after two steps, and how many blocks the second one skipped or was rejected for.
    fn run(
        &self,
        backend: impl Backend + 'static,
        reject: bool,
    ) -> (Vec<(u32, f32)>, Planes, Result<u64, u64>) {
        let (mut param, n) = (self.param.clone(), self.param.len());
        let mut builder = Lion::builder().lr(0.1).weight_decay(0.3).backend(backend);
        if reject {
            builder = builder.on_non_finite(OnNonFinite::RejectStep);
        }
        let mut lion = builder.build().unwrap();
        // Products that are inexact.
        lion.add_group("group", Overrides::new().lr_multiplier(0.7))
            .unwrap();
        let spec = ParamSpec::new("w", n, self.param.dtype()).group("group");
        let spec = spec.overrides(self.overrides.lr_multiplier(0.3));
        let w = lion.register(spec).unwrap();
        let record = StateRecord::new(1, self.planes.clone()).seed(1).order(None);
        lion.import_state(w, &record).unwrap();
        let mut skipped = Ok(0);
        for scale in [0.7, 1.5] {
            let args = StepArgs::new().grad_scale(scale);
            let updates = [update(w, param.slice_mut(), self.grad.slice())];
            skipped = match lion.step_with(args, updates) {
                Ok(report) => Ok(report.skipped_blocks()),
                Err(Error::NonFinite { parameters }) => Err(parameters[0].skipped),
                Err(error) => panic!("{error}"),
            };
        }
        let planes = lion.export_state(w).unwrap().planes;
        (param.bits(), planes, skipped)
    }
}

#[test]
fn step_returns_the_same_bits_in_any_mode() {
    let plain = Overrides::new();
    let drawn = plain.stochastic_state(true).skip_zeros(true);
    let cases = [
        ((Dtype::F32, Dtype::F32), plain, false),
        ((Dtype::F32, Dtype::F32), drawn.max_unorm(0.01), false),
        (
            (Dtype::Bf16, Dtype::F32),
            drawn.stochastic_param(true),
            true,
        ),
        ((Dtype::F16, Dtype::Bf16), plain.max_unorm(0.3), true),
    ];
    for (isa, cpu) in cpus() {
        for (dtypes, overrides, reject) in cases {
            for bits in [8, 32] {
                let case = Case::new(3001, dtypes, overrides.optim_bits(bits));
                let expected = case.run(cpu.clone(), reject);
                assert_eq!(expected.2, if reject { Err(1) } else { Ok(1) });
                for mode in MODES {
                    let found = in_mode(mode, || case.run(cpu.clone(), reject));
                    assert!(
                        found == expected,
                        "{isa}, mode {mode:#x}, {bits} bits, {dtypes:?}, {overrides:?}"
                    );
                }
            }
        }
    }
}

/// A step on several threads that all have the mode.
#[test]
fn helper_threads_return_the_same_bits_in_any_mode() {
    let overrides = Overrides::new().max_unorm(0.01).optim_bits(8);
    let case = Case::new(1_000_001, (Dtype::F32, Dtype::F32), overrides);
    for (isa, cpu) in cpus() {
        let expected = case.run(cpu.clone(), false);
        assert_eq!(expected.2, Ok(1));
        for mode in MODES {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(4)
                .start_handler(move |_| register::write(register::read() | mode))
                .build();
            let cpu = cpu.clone().pool(Arc::new(pool.unwrap()));
            for caller in [0, mode] {
                let found = in_mode(caller, || case.run(cpu.clone(), false));
                assert!(found == expected, "{isa}, mode {mode:#x}");
            }
        }
    }
}

/// Runs on the device of the CUDA driver or on the emulated one. The constants of a step are computed on the calling
/// thread.
#[test]
fn step_on_a_device_returns_the_same_bits_in_any_mode() {
    let cuda = cuda().unwrap();
    let plain = Overrides::new();
    let cases = [
        // A learning rate that is subnormal in f32.
        (plain.lr(1e-38), false),
        (plain.max_unorm(0.01).lr(1e-38), false),
        // Constants that are inexact.
        (plain.skip_zeros(true), false),
        (plain, true),
    ];
    for (overrides, reject) in cases {
        for bits in [8, 32] {
            let overrides = overrides.optim_bits(bits);
            let case = Case::new(3001, (Dtype::F32, Dtype::F32), overrides);
            let expected = case.run(cuda.clone(), reject);
            assert_eq!(expected.2, if reject { Err(1) } else { Ok(1) });
            for mode in MODES {
                let found = in_mode(mode, || case.run(cuda.clone(), reject));
                assert!(
                    found == expected,
                    "mode {mode:#x}, {bits} bits, {overrides:?}"
                );
            }
        }
    }
}

/// A queued step that runs when a thread with the mode waits for it.
#[test]
fn step_of_device_memory_returns_the_same_bits_in_any_mode() {
    let (cuda, n) = (cuda().unwrap(), 3001);
    let mut rng = Rng::new(4);
    let (values, gradient) = (tiny(&mut rng, n), tiny(&mut rng, n));
    let run = || {
        let builder = Lion::builder().lr(2e-39).weight_decay(0.3);
        let mut lion = builder.backend(cuda.clone()).build().unwrap();
        let w = lion.register(ParamSpec::new("w", n, Dtype::F32)).unwrap();
        let mut param = cuda.array(&values[..]).unwrap();
        let grad = cuda.array(&gradient[..]).unwrap();
        let updates = [update(w, param.slice_mut(0..n), grad.slice(0..n))];
        assert!(lion.step(updates).unwrap().pending);
        let mut result = vec![0.0f32; n];
        param.read((&mut result[..]).into()).unwrap();
        let bits: Vec<u32> = result.iter().map(|x| x.to_bits()).collect();
        (bits, lion.export_state(w).unwrap().planes)
    };
    let expected = run();
    let before = values.iter().map(|x| x.to_bits());
    assert!(
        before
            .zip(&expected.0)
            .any(|(before, after)| before != *after)
    );
    for mode in MODES {
        assert!(in_mode(mode, run) == expected, "mode {mode:#x}");
    }
}

#[test]
fn norm_of_gradients_has_the_same_bits_in_any_mode() {
    let gradient = vec![f32::MIN_POSITIVE / 8.0; 1001];
    let cuda = cuda().unwrap();
    let on_device = cuda.array(&gradient[..]).unwrap();
    let norm = |backend: Arc<dyn Backend>, device: bool| {
        let mut lion = Lion::builder().backend(backend).build().unwrap();
        let w = lion
            .register(ParamSpec::new("w", 1001, Dtype::F32))
            .unwrap();
        let norm = match device {
            true => lion.grad_norm([(w, on_device.slice(0..1001))]),
            false => lion.grad_norm([(w, &gradient)]),
        };
        norm.unwrap().norm.to_bits()
    };
    let mut backends: Vec<(Arc<dyn Backend>, bool)> =
        vec![(cuda.clone(), false), (cuda.clone(), true)];
    for (_, cpu) in cpus() {
        backends.push((Arc::new(cpu), false));
    }
    for (backend, device) in backends {
        let expected = norm(backend.clone(), device);
        assert_ne!(expected, 0);
        for mode in MODES {
            let found = in_mode(mode, || norm(backend.clone(), device));
            assert_eq!(found, expected, "{}, mode {mode:#x}", backend.name());
        }
    }
}

/// Values that a step would round to 1 or to infinity are rejected in any rounding mode of the calling thread.
#[test]
fn invalid_hyper_parameters_are_rejected_in_any_mode() {
    let refused = [
        Overrides::new().betas((0.9, 0.999_999_99)),
        Overrides::new().lr(3.5e38),
        Overrides::new().lr(1e38).lr_multiplier(3.5),
    ];
    let mut lion = Lion::builder().build().unwrap();
    for overrides in refused {
        for mode in [0].into_iter().chain(MODES) {
            let spec = ParamSpec::new("w", 1, Dtype::F32).overrides(overrides);
            let registered = in_mode(mode, || lion.register(spec));
            assert!(
                matches!(registered, Err(Error::InvalidHyper { .. })),
                "mode {mode:#x}, {overrides:?}"
            );
        }
    }
}

#[test]
fn quantization_returns_the_same_bits_in_any_mode() {
    let mut rng = Rng::new(3);
    let m = tiny(&mut rng, 2000);
    let key = PhiloxKey::new(1, 1);
    for key in [None, Some(key)] {
        let run = || {
            let (mut codes, mut absmax) = (vec![0; m.len()], vec![0.0; m.len().div_ceil(256)]);
            lion::quant::quantize(&m, &mut codes, &mut absmax, key).unwrap();
            let mut back = vec![0.0f32; m.len()];
            lion::quant::dequantize(&codes, &absmax, &mut back).unwrap();
            let back: Vec<u32> = back.iter().map(|x| x.to_bits()).collect();
            (codes, absmax, back)
        };
        let expected = run();
        for mode in MODES {
            assert!(in_mode(mode, run) == expected, "mode {mode:#x}");
        }
    }
    for (isa, cpu) in cpus() {
        for key in [None, Some(key)] {
            let run = || {
                let (mut codes, mut absmax) = (vec![0; m.len()], vec![0.0; m.len().div_ceil(256)]);
                cpu.quantize(&m, &mut codes, &mut absmax, key).unwrap();
                let mut back = vec![0.0f32; m.len()];
                cpu.dequantize(&codes, &absmax, &mut back).unwrap();
                let back: Vec<u32> = back.iter().map(|x| x.to_bits()).collect();
                (codes, absmax, back)
            };
            let expected = run();
            for mode in MODES {
                assert!(in_mode(mode, run) == expected, "{isa}, mode {mode:#x}");
            }
        }
    }
}

/// Records in a trainer's file have the same bits, and a subnormal negative absmax is refused, in every mode.
#[test]
fn records_do_not_depend_on_the_mode() {
    use bincode::config;

    let momentum = tiny(&mut Rng::new(5), 600);
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let wanted = bits(&momentum);
    let planes = Planes::Momentum32 { momentum };
    let text = serde_json::to_string(&planes).unwrap();
    let bytes = bincode::encode_to_vec(&planes, config::standard()).unwrap();

    let absmax = vec![-f32::MIN_POSITIVE / 2.0];
    let codes = vec![0];
    let negative = Planes::Blockwise8 { codes, absmax };
    for mode in MODES {
        let written = in_mode(mode, || serde_json::to_string(&planes).unwrap());
        assert!(written == text, "{mode:#x}");
        let read: Planes = in_mode(mode, || serde_json::from_str(&text).unwrap());
        let (decoded, _): (Planes, usize) = in_mode(mode, || {
            bincode::decode_from_slice(&bytes, config::standard()).unwrap()
        });
        for planes in [read, decoded] {
            let Planes::Momentum32 { momentum } = planes else {
                panic!("other planes");
            };
            assert!(bits(&momentum) == wanted, "{mode:#x}");
        }
        let refused = in_mode(mode, || {
            bincode::encode_to_vec(&negative, config::standard())
        });
        assert!(refused.is_err(), "{mode:#x}");
    }
}
