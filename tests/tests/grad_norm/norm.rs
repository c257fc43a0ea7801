//! The global norm of gradients.

use crate::{Values, each_backend, register};
use lion::cuda::Cuda;
use lion::{
    Dtype, Error, Handle, Lion, ParamSpec, StepArgs,
    backend::{Backend, BackendError},
};
use lion_test_support::{Rng, reference_norm};
use std::sync::Arc;

#[test]
fn norm_matches_its_definition_on_every_backend() {
    each_backend(|name, backend, device| {
        for seed in 0..4 {
            let rng = &mut Rng::new(seed);
            let lens = [0, 1, 255, 256, 257, 2048, 2049, 5000, 33_000, 70_001];
            let non_finite = rng.below(2) == 0;
            let gradients: Vec<(String, Values)> = lens
                .iter()
                .enumerate()
                .map(|(i, &n)| {
                    let name = format!("p{}", (i * 7) % 10);
                    (name, Values::random(rng, n, non_finite && i % 3 == 0))
                })
                .collect();
            let widened: Vec<(String, Vec<f32>)> = gradients
                .iter()
                .map(|(name, values)| (name.clone(), values.widened()))
                .collect();
            let (norm, bad) = reference_norm(&widened);
            let mut lion = Lion::builder()
                .backend(Arc::clone(backend))
                .build()
                .unwrap();
            let handles = register(&mut lion, &gradients);
            let on_host = handles.iter().zip(&gradients).rev();
            let found = lion
                .grad_norm(on_host.map(|(&handle, (_, values))| (handle, values.slice())))
                .unwrap();
            assert_eq!(
                found.norm.to_bits(),
                norm.to_bits(),
                "{name}, seed {seed}: {found:?}, {norm}"
            );
            let counted: u64 = found.non_finite.iter().map(|it| it.skipped).sum();
            assert_eq!(counted, bad, "{name}, seed {seed}");
            let Some(cuda) = device else { continue };
            // In device memory, except for the first two.
            let arrays: Vec<_> = gradients
                .iter()
                .map(|(_, values)| cuda.array(values.slice()).unwrap())
                .collect();
            let updates = handles.iter().zip(&gradients).zip(&arrays).enumerate();
            let on_device = lion.grad_norm(updates.map(|(i, ((&handle, (_, values)), array))| {
                let all = 0..values.slice().len();
                match i {
                    0 | 3 => (handle, Some(lion::tensor::GradRef::from(values.slice()))),
                    _ => (handle, Some(array.slice(all).into())),
                }
            }));
            let on_device = on_device.unwrap();
            assert_eq!(on_device, found, "{name}, seed {seed}");
        }
    });
}

/// Enough elements to be shared between threads.
#[test]
fn number_of_threads_does_not_change_the_norm() {
    let mut rng = Rng::new(3);
    let lens = [500_001, 700, 299_999, 32_768];
    let gradients: Vec<(String, Vec<f32>)> = lens
        .iter()
        .map(|&n| (format!("p{n}"), rng.spread(n, 6.0)))
        .collect();
    let (norm, _) = reference_norm(&gradients);
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = Arc::new(pool.build().unwrap());
        let backend = lion::cpu::Cpu::new().unwrap().pool(pool);
        let mut lion = Lion::builder().backend(backend).build().unwrap();
        let pairs: Vec<(Handle, &Vec<f32>)> = gradients
            .iter()
            .map(|(name, g)| {
                let spec = ParamSpec::new(name, g.len(), Dtype::F32);
                (lion.register(spec).unwrap(), g)
            })
            .collect();
        let found = lion.grad_norm(pairs).unwrap();
        assert_eq!(found.norm.to_bits(), norm.to_bits(), "{threads} threads");
        assert_eq!(found.non_finite, []);
    }
}

/// 1/4 and integers, whose sums of squares are exact.
#[test]
fn small_norms_are_exact() {
    let mut lion = Lion::builder().build().unwrap();
    let [a, b] = ["a", "b"].map(|name| lion.register(ParamSpec::new(name, 2, Dtype::F32)).unwrap());
    let norm = lion
        .grad_norm([(a, &[3.0f32, 0.0]), (b, &[0.0, -4.0])])
        .unwrap();
    assert_eq!((norm.norm, norm.clip_factor(2.5)), (5.0, 0.5));
    assert_eq!((norm.clip_factor(5.0), norm.clip_factor(1e9)), (1.0, 1.0));
    // 1/16 + 1/16 + 1/8 = 1/4
    let norm = lion
        .grad_norm([(a, &[0.25f32, -0.25]), (b, &[0.25, 0.25])])
        .unwrap();
    assert_eq!(norm.norm, 0.5);
    let none: [(Handle, &[f32]); 0] = [];
    assert_eq!(lion.grad_norm(none).unwrap().norm, 0.0);
    assert_eq!(lion.grad_norm([(a, None::<&[f32]>)]).unwrap().norm, 0.0);
    let norm = lion.grad_norm([(a, &[0.0f32, 0.0])]).unwrap();
    assert_eq!((norm.norm, norm.clip_factor(0.0)), (0.0, 1.0));
}

#[test]
fn invalid_calls_of_grad_norm_return_typed_errors() {
    let mut lion = Lion::builder().build().unwrap();
    let [a, b] = ["a", "b"].map(|name| lion.register(ParamSpec::new(name, 2, Dtype::F32)).unwrap());
    let error = lion.grad_norm([(a, &[1.0f32; 3])]).unwrap_err();
    assert!(matches!(
        error,
        Error::WrongLength {
            given: 3,
            wanted: 2,
            ..
        }
    ));
    let twice = [(a, &[1.0f32; 2]), (b, &[1.0; 2]), (a, &[1.0; 2])];
    let error = lion.grad_norm(twice).unwrap_err();
    assert!(matches!(error, Error::RepeatedParameter { parameter } if parameter == "a"));
    lion.remove(b).unwrap();
    let error = lion.grad_norm([(b, &[1.0f32; 2])]).unwrap_err();
    assert!(matches!(error, Error::UnknownHandle { .. }));
    for bad in [-1.0, f64::NAN] {
        let args = StepArgs::new().max_grad_norm(bad);
        let error = lion.step_with(args, [(a, &mut [1.0f32; 2], &[1.0f32; 2])]);
        let error = error.unwrap_err();
        assert!(
            matches!(
                &error,
                Error::InvalidHyper {
                    name: "max_grad_norm",
                    ..
                }
            ),
            "{error}"
        );
    }
}

/// A resumed run may register its parameters in another order. The sums are added in the order of the names. The order
/// matters for one sum of 1 and four of 2^-53: 1 + 2^-53 is 1, but 2^-51 + 1 is not.
#[test]
fn norm_does_not_depend_on_the_order_of_registration() {
    let small = [2f32.powi(-27); 2];
    let norm = |names: [&str; 5], one: &str, updates: [usize; 5]| {
        let mut lion = Lion::builder().build().unwrap();
        let pairs = names.map(|name| {
            let spec = ParamSpec::new(name, 2, Dtype::F32);
            let grad = if name == one { [1.0, 0.0] } else { small };
            (lion.register(spec).unwrap(), grad)
        });
        let pairs = updates.map(|i| &pairs[i]);
        let gradients = pairs.iter().map(|(handle, grad)| (*handle, grad));
        lion.grad_norm(gradients).unwrap().norm
    };
    let orders = [["a", "b", "c", "d", "e"], ["d", "c", "e", "b", "a"]];
    for (names, updates) in [(orders[0], [0, 1, 2, 3, 4]), (orders[1], [4, 0, 3, 1, 2])] {
        assert_eq!(norm(names, "a", updates), 1.0);
        assert_eq!(norm(names, "e", updates), 1.0 + f64::EPSILON);
    }
}

/// The default `sum_squares` of a backend supports host arrays, and returns an error for device arrays.
#[test]
fn default_sum_squares_supports_host_arrays_only() {
    #[derive(Debug)]
    struct Own(lion::cpu::Cpu);

    impl Backend for Own {
        fn name(&self) -> &str {
            "own"
        }

        fn allocate(
            &self,
            request: &lion::backend::StateRequest<'_>,
        ) -> Result<Box<dyn lion::backend::State>, BackendError> {
            self.0.allocate(request)
        }

        fn step(
            &self,
            tensors: &mut [lion::backend::TensorStep<'_>],
        ) -> Result<Vec<lion::backend::Outcome>, BackendError> {
            self.0.step(tensors)
        }

        fn count_non_finite(
            &self,
            tensors: &mut [lion::backend::TensorStep<'_>],
        ) -> Result<Vec<u64>, BackendError> {
            self.0.count_non_finite(tensors)
        }
    }

    #[derive(Debug)]
    struct Elsewhere;

    impl lion::tensor::DeviceMemory for Elsewhere {
        fn len(&self) -> usize {
            2
        }

        fn dtype(&self) -> Dtype {
            Dtype::F32
        }
    }

    let backend = Own(lion::cpu::Cpu::new().unwrap());
    let mut lion = Lion::builder().backend(backend).build().unwrap();
    let w = lion.register(ParamSpec::new("w", 2, Dtype::F32)).unwrap();
    assert_eq!(lion.grad_norm([(w, &[3.0f32, 4.0])]).unwrap().norm, 5.0);
    let far = lion::tensor::DeviceSlice::new(Arc::new(Elsewhere));
    let error = lion.grad_norm([(w, far.clone())]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "parameter `w`: the backend `own` does not support the norm of a gradient in the memory of a device"
    );
    // The CPU cannot access device memory.
    let cpu = lion::cpu::Cpu::new().unwrap();
    let mut lion = Lion::builder().backend(cpu).build().unwrap();
    let w = lion.register(ParamSpec::new("w", 2, Dtype::F32)).unwrap();
    let error = lion.grad_norm([(w, far)]).unwrap_err();
    assert!(
        matches!(&error, Error::Backend { source: BackendError::WrongDevice { parameter, .. }, .. }
            if parameter == "w"),
        "{error}"
    );
}

#[test]
fn gradient_of_another_cuda_context_is_rejected() {
    each_backend(|_, backend, device| {
        if device.is_none() {
            return;
        }
        // Another context of the same device, whose work is not ordered with that of this backend.
        let other = Cuda::new(0).unwrap();
        let mut lion = Lion::builder()
            .backend(Arc::clone(backend))
            .build()
            .unwrap();
        let w = lion.register(ParamSpec::new("w", 2, Dtype::F32)).unwrap();
        let grad = other.array(&[3.0f32, 4.0][..]).unwrap();
        let error = lion.grad_norm([(w, grad.slice(0..2))]).unwrap_err();
        assert!(
            matches!(&error, Error::Backend { source: BackendError::WrongDevice { parameter, .. }, .. }
                if parameter == "w"),
            "{error}"
        );
    });
}
