//! Backends that fail: their results are checked, and partly written states are reported.
#![allow(clippy::unwrap_used)]

use lion::cpu::Cpu;
use lion::{
    Dtype, Error, Handle, Lion, Overrides, ParamSpec,
    backend::{
        Backend, BackendError, Bits, Outcome, ParamRecord, Planes, State, StateRecord,
        StateRequest, TensorStep,
    },
    tensor::{DeviceMemory, DeviceSlice, MemoryOrder, Update},
    update,
};
use lion_test_support::FailingWrites;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Allocates states of another length or width than requested.
#[derive(Debug)]
struct Wrong {
    cpu: Cpu,
    /// 0: as requested; 1: fewer elements; 2: the other width.
    how: Arc<AtomicUsize>,
}

impl Backend for Wrong {
    fn name(&self) -> &str {
        "wrong"
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        let mut request = *request;
        match self.how.load(Ordering::Relaxed) {
            1 => request.len = 344,
            2 => request.bits = Bits::ThirtyTwo,
            _ => {}
        }
        self.cpu.allocate(&request)
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        self.cpu.step(tensors)
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        self.cpu.count_non_finite(tensors)
    }
}

#[test]
fn registration_rejects_a_state_of_another_length_or_width() {
    let how = Arc::new(AtomicUsize::new(0));
    let cpu = Cpu::new().unwrap();
    let backend = Wrong {
        cpu,
        how: Arc::clone(&how),
    };
    let builder = Lion::builder().optim_bits(8).min_8bit_size(0);
    let mut lion = builder.backend(backend).build().unwrap();
    let spec = || ParamSpec::new("w", 600, Dtype::F32);
    for (way, given) in [
        (1, "344 elements of 8 bits"),
        (2, "600 elements of 32 bits"),
    ] {
        how.store(way, Ordering::Relaxed);
        let error = lion.register(spec()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the state of parameter `w` from the backend `wrong` has {given}, \
                 wanted 600 of 8 bits"
            )
        );
        assert_eq!(lion.parameters().len(), 0);
        assert!(lion.handle("w").is_err());
    }
    how.store(0, Ordering::Relaxed);
    lion.register(spec()).unwrap();
}

/// Steps and then returns an error, or returns an error at once that says that nothing has changed.
#[derive(Debug)]
struct Late {
    cpu: Cpu,
    begins: bool,
}

impl Backend for Late {
    fn name(&self) -> &str {
        "late"
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        self.cpu.allocate(request)
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        let error = BackendError::Other("it failed".into());
        if !self.begins {
            return Err(error.not_begun());
        }
        self.cpu.step(tensors)?;
        Err(error)
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        self.cpu.count_non_finite(tensors)
    }
}

/// An update of 2 x 3 elements in row-major or column-major order.
fn ordered<'a>(w: Handle, p: &'a mut [f32], g: &'a [f32], columns: bool) -> Update<'a> {
    let mut update = update(w, p, g);
    if columns {
        let order = MemoryOrder::Permuted(Box::new([(2, 1), (3, 2)]));
        update.param.order = order.clone();
        update.grad.as_mut().unwrap().order = order;
    }
    update
}

fn zero_momentum(lion: &Lion, w: Handle) -> bool {
    match lion.export_state(w).unwrap().planes {
        Planes::Momentum32 { momentum } => momentum.iter().all(|&m| m == 0.0),
        _ => false,
    }
}

#[test]
fn failed_first_step_keeps_the_memory_order_of_its_momentum() {
    let cpu = Cpu::new().unwrap();
    let backend = Late { cpu, begins: true };
    let mut lion = Lion::builder().backend(backend).build().unwrap();
    let w = lion.register(ParamSpec::new("w", 6, Dtype::F32)).unwrap();
    let (mut p, g) = ([0.0f32; 6], [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let error = lion.step([ordered(w, &mut p, &g, false)]).unwrap_err();
    assert!(matches!(&error, Error::Backend { source, .. } if source.has_begun()));
    assert!(!zero_momentum(&lion, w));
    // The momentum is row-major: elements in another order would be stepped with the momenta of other elements.
    let error = lion.step([ordered(w, &mut p, &g, true)]).unwrap_err();
    assert!(matches!(error, Error::OrderMismatch { .. }), "{error}");
    assert_eq!(lion.info(w).unwrap().steps, 0);
    assert!(!restore_is_fresh(&mut lion, w));
}

#[test]
fn failed_step_that_has_not_begun_changes_nothing() {
    let cpu = Cpu::new().unwrap();
    let backend = Late { cpu, begins: false };
    let mut lion = Lion::builder().backend(backend).build().unwrap();
    let w = lion.register(ParamSpec::new("w", 6, Dtype::F32)).unwrap();
    let (mut p, g) = ([0.0f32; 6], [1.0f32; 6]);
    let error = lion.step([ordered(w, &mut p, &g, false)]).unwrap_err();
    assert!(matches!(&error, Error::Backend { source, .. } if !source.has_begun()));
    assert!(error.to_string().ends_with("; nothing was changed"));
    assert_eq!(
        std::error::Error::source(&error).unwrap().to_string(),
        "it failed"
    );
    assert!(zero_momentum(&lion, w));
    assert!(lion.info(w).unwrap().order.is_none());
    assert!(restore_is_fresh(&mut lion, w));
}

/// Device memory that no backend can access.
#[derive(Debug)]
struct Elsewhere;

impl DeviceMemory for Elsewhere {
    fn len(&self) -> usize {
        6
    }

    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
}

fn record(handle: Handle) -> ParamRecord {
    {
        let mut record = ParamRecord::new(handle);
        record.group = None;
        record.overrides = Overrides::new();
        record.steps = 3;
        record.seed = 4;
        record.order = Some(MemoryOrder::RowMajor);
        record
    }
}

fn restore_is_fresh(lion: &mut Lion, w: Handle) -> bool {
    lion.restore(None, vec![record(w)]).unwrap().is_fresh()
}

#[test]
fn step_rejected_for_device_memory_leaves_states_fresh() {
    let builder = Lion::builder().backend(Cpu::new().unwrap());
    let mut lion = builder.build().unwrap();
    let w = lion.register(ParamSpec::new("w", 6, Dtype::F32)).unwrap();
    let (mut p, g) = ([0.0f32; 6], [1.0f32; 6]);
    let far = DeviceSlice::new(Arc::new(Elsewhere));
    lion.step([update(w, &mut p, far)]).unwrap_err();
    assert!(restore_is_fresh(&mut lion, w));
    // A failed load is rolled back.
    let mut restore = lion.restore(None, vec![record(w)]).unwrap();
    restore.state(0).write(0, 0, &1f32.to_le_bytes()).unwrap();
    restore.abandon().unwrap();
    assert!(zero_momentum(&lion, w));
    lion.step([ordered(w, &mut p, &g, true)]).unwrap();
}

/// Returns an optimizer with an 8-bit parameter and another one, and the switch that makes a write fail.
fn broken() -> (Lion, Handle, Handle, FailingWrites) {
    let writes = FailingWrites::once(Cpu::new().unwrap());
    let builder = Lion::builder().optim_bits(8).min_8bit_size(0);
    let mut lion = builder.backend(writes.clone()).build().unwrap();
    let [w, v] = ["w", "v"].map(|name| {
        let spec = ParamSpec::new(name, 300, Dtype::F32);
        lion.register(spec).unwrap()
    });
    (lion, w, v, writes)
}

fn filled(code: u8) -> StateRecord {
    StateRecord::new(
        3,
        Planes::Blockwise8 {
            codes: vec![code; 300],
            absmax: vec![f32::from(code); 2],
        },
    )
    .seed(4)
}

#[test]
fn failed_import_into_a_fresh_state_is_undone() {
    let (mut lion, w, _, writes) = broken();
    let before = lion.export_state(w).unwrap();
    writes.set(1); // codes are written, absmax is not
    let error = lion.import_state(w, &filled(9)).unwrap_err();
    assert_eq!(error.to_string(), "parameter `w`: the backend failed");
    assert_eq!(lion.export_state(w).unwrap(), before);
    assert!(restore_is_fresh(&mut lion, w));
}

fn damaged(error: &Error, names: &[&str]) {
    let found = matches!(error, Error::Damaged { parameters, .. } if parameters == names);
    assert!(found, "{error}");
}

#[test]
fn failed_import_into_a_used_state_marks_it_damaged() {
    let (mut lion, w, v, writes) = broken();
    lion.import_state(w, &filled(9)).unwrap();
    writes.set(1);
    let error = lion.import_state(w, &filled(8)).unwrap_err();
    damaged(&error, &["w"]);
    assert_eq!(
        error.to_string(),
        "the states of these parameters are partly overwritten: `w`: the backend failed"
    );
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "the write fails");

    assert!(lion.info(w).unwrap().damaged && !lion.info(v).unwrap().damaged);
    damaged(&lion.export_state(w).unwrap_err(), &["w"]);
    damaged(&lion.state(w).unwrap_err(), &["w"]);
    lion.export_state(v).unwrap();
    let (mut p, g) = ([0.0f32; 300], [1.0f32; 300]);
    let error = lion.step([(v, &mut p, &g)]).unwrap_err();
    damaged(&error, &["w"]);
    assert_eq!(lion.info(w).unwrap().steps, 3);

    // Writing the complete state repairs it.
    lion.import_state(w, &filled(8)).unwrap();
    lion.step([(w, &mut p, &g)]).unwrap();
    assert_eq!(lion.export_state(w).unwrap().planes, filled(8).planes);
}

/// Writes a part of the states of two parameters, and then calls `abandon` or only drops the `Restore`.
fn drop_a_change(lion: &mut Lion, handles: [Handle; 2], abandon: bool) -> Result<(), Error> {
    let records = handles.map(record).to_vec();
    let mut restore = lion.restore(None, records).unwrap();
    restore.state(0).write(0, 7, &[1, 2, 3]).unwrap();
    restore.state(1).write(0, 7, &[1, 2, 3]).unwrap();
    if abandon { restore.abandon() } else { Ok(()) }
}

#[test]
fn dropped_restore_is_abandoned() {
    for abandon in [false, true] {
        let (mut lion, w, v, _) = broken();
        let before = [w, v].map(|h| lion.export_state(h).unwrap());
        drop_a_change(&mut lion, [w, v], abandon).unwrap();
        assert_eq!([w, v].map(|h| lion.export_state(h).unwrap()), before);
        assert!(restore_is_fresh(&mut lion, w));

        // The old state of `w` was used and is lost; `v` was fresh and is zeroed again.
        lion.import_state(w, &filled(9)).unwrap();
        let result = drop_a_change(&mut lion, [w, v], abandon);
        if abandon {
            damaged(&result.unwrap_err(), &["w"]);
        }
        damaged(&lion.export_state(w).unwrap_err(), &["w"]);
        assert_eq!(lion.export_state(v).unwrap(), before[1]);
        let (mut p, g) = ([0.0f32; 300], [1.0f32; 300]);
        damaged(&lion.step([(w, &mut p, &g)]).unwrap_err(), &["w"]);

        // A successful restore repairs it.
        let mut restore = lion.restore(None, vec![record(w)]).unwrap();
        restore.state(0).import(&filled(5).planes).unwrap();
        restore.commit();
        assert_eq!(lion.export_state(w).unwrap(), filled(5));
        lion.step([(w, &mut p, &g)]).unwrap();
    }
}

/// A restore that is neither finished nor dropped, as by `mem::forget`.
#[test]
fn forgotten_restore_marks_the_states_damaged() {
    let (mut lion, w, _, _) = broken();
    let mut restore = lion.restore(None, vec![record(w)]).unwrap();
    restore.state(0).write(0, 7, &[1]).unwrap();
    std::mem::forget(restore);
    let (mut p, g) = ([0.0f32; 300], [1.0f32; 300]);
    damaged(&lion.step([(w, &mut p, &g)]).unwrap_err(), &["w"]);
}
