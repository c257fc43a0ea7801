//! Each misuse of paging returns a typed error, and no state is lost.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use lion::cpu::Cpu;
use lion::{
    Device, Dtype, Error, Lion, Overrides, PagedLion, PagedLion8bit, Paging, ParamSpec,
    backend::BackendError, paging::PagingError, update,
};
use std::error::Error as _;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Builds a paged optimizer on the CPU.
fn build(paging: Paging) -> Result<Lion, PagingError> {
    let builder = PagedLion8bit::builder().paging(paging).min_paged_size(1);
    builder.device(Device::Cpu).build().map_err(paging_error)
}

fn paging_error(error: Error) -> PagingError {
    match error {
        Error::Backend {
            source: BackendError::Paging(error),
            ..
        } => error,
        other => panic!("{other:?}"),
    }
}

fn message(paging: Paging) -> String {
    build(paging).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn budget_below_one_page_is_rejected() {
    let folder = std::env::temp_dir();
    let paging = || Paging::in_folder(&folder);
    assert!(matches!(
        build(paging()).unwrap_err(),
        PagingError::NoBudget
    ));
    for budget in [0, 1, 1023, 4095] {
        let error = build(paging().budget(budget)).unwrap_err();
        assert!(
            matches!(error, PagingError::BudgetTooSmall { given, wanted: 4096 } if given == budget),
            "{error:?}"
        );
        assert_eq!(
            error.to_string(),
            format!(
                "the budget of paged states is {budget} bytes, wanted at least one page of 4096 bytes"
            )
        );
    }
    assert_eq!(
        message(paging().budget(8192).window(8193)),
        "the window of paged states is 8193 bytes, wanted at least one page of 4096 bytes and at most the budget of 8192 bytes"
    );
    // One page is enough: its pieces are stepped one by one.
    let mut lion = build(paging().budget(4096)).unwrap();
    let w = lion
        .register(ParamSpec::new("w", 50_000, Dtype::F32))
        .unwrap();
    let (mut param, grad) = (vec![1.0f32; 50_000], vec![1.0f32; 50_000]);
    lion.step([(w, &mut param, &grad)]).unwrap();
    assert_eq!(param[49_999], 1.0 - 1e-4);
    assert!(lion.paging().unwrap().totals.resident <= 4096);
}

#[test]
fn folder_must_exist_and_be_writable() {
    assert_eq!(
        message(Paging::on_device().budget(1 << 20)),
        "no folder is set for paged states on the CPU, wanted one on a fast disk"
    );
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let error = build(Paging::in_folder(&missing).budget(1 << 20)).unwrap_err();
    assert!(
        matches!(&error, PagingError::Folder { folder, .. } if *folder == missing),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("missing`: No such file"),
        "{error}"
    );
    let file = folder.path().join("file");
    File::create(&file).unwrap();
    assert!(message(Paging::in_folder(&file).budget(1 << 20)).contains("Not a directory"));

    // The superuser can write to every folder that is not mounted read-only.
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o500)).unwrap();
    let closed = match File::create(closed.join("file")) {
        Err(_) => closed,
        Ok(_) => "/proc/self".into(),
    };
    let error = build(Paging::in_folder(&closed).budget(1 << 20)).unwrap_err();
    assert!(matches!(error, PagingError::Folder { .. }), "{error:?}");
}

#[test]
fn backend_without_paging_rejects_paged_states() {
    let error = PagedLion::builder()
        .device(Device::Cpu)
        .build()
        .unwrap_err();
    let error = paging_error(error);
    assert!(matches!(error, PagingError::NotSetUp { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("paging is not configured on the backend"),
        "{error}"
    );
    // A single paged parameter is rejected as well, and the optimizer is unchanged.
    let mut lion = Lion::builder()
        .backend(Cpu::new().unwrap())
        .build()
        .unwrap();
    let spec = ParamSpec::new("w", 100_000, Dtype::F32).overrides(Overrides::new().is_paged(true));
    let error = lion.register(spec).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("parameter `w`: a paged state was requested"),
        "{error}"
    );
    assert_eq!(lion.parameters().len(), 0);
    assert!(lion.paging().is_none());
}

#[test]
fn state_of_another_pager_is_rejected() {
    let paging = Paging::in_folder(std::env::temp_dir()).budget(1 << 20);
    let (a, b) = [(); 2]
        .map(|()| Cpu::new().unwrap().paging(&paging).unwrap())
        .into();
    let mut lion = Lion::builder()
        .is_paged(true)
        .backend(Swapped {
            allocates: a,
            steps: b,
        })
        .build()
        .unwrap();
    let w = lion
        .register(ParamSpec::new("w", 100_000, Dtype::F32))
        .unwrap();
    let (mut param, grad) = (vec![1.0f32; 100_000], vec![1.0f32; 100_000]);
    let error = lion.step([update(w, &mut param, &grad)]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("state of parameter `w` was not allocated by"),
        "{error}"
    );
    assert_eq!(param[0], 1.0);
}

/// Allocates with one backend and steps with another.
#[derive(Debug)]
struct Swapped {
    allocates: Cpu,
    steps: Cpu,
}

impl lion::backend::Backend for Swapped {
    fn name(&self) -> &str {
        "swapped"
    }

    fn allocate(
        &self,
        request: &lion::backend::StateRequest<'_>,
    ) -> Result<Box<dyn lion::backend::State>, BackendError> {
        self.allocates.allocate(request)
    }

    fn step(
        &self,
        tensors: &mut [lion::backend::TensorStep<'_>],
    ) -> Result<Vec<lion::backend::Outcome>, BackendError> {
        self.steps.step(tensors)
    }

    fn count_non_finite(
        &self,
        tensors: &mut [lion::backend::TensorStep<'_>],
    ) -> Result<Vec<u64>, BackendError> {
        self.steps.count_non_finite(tensors)
    }

    fn paging_totals(&self) -> Option<lion::paging::PagingTotals> {
        self.steps.paging_totals()
    }
}

/// A mounted file system of 1 MiB, if this process may mount one.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(folder: &'a Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(folder);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(SmallDisk(folder))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[test]
fn full_disk_is_reported_before_anything_changes() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path()) else {
        println!("SKIPPED a full disk: this process cannot mount a file system");
        return;
    };
    let mut lion = build(Paging::in_folder(disk.0).budget(64 << 10)).unwrap();
    let n = 700_000;
    let w = lion.register(ParamSpec::new("w", n, Dtype::F32)).unwrap();
    let (mut param, grad) = (vec![1.0f32; n], vec![1.0f32; n]);
    lion.step([(w, &mut param, &grad)]).unwrap();
    let before = lion.export_state(w).unwrap();

    let error = lion
        .register(ParamSpec::new("too much", n, Dtype::F32))
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("parameter `too much`: the folder `"),
        "{text}"
    );
    assert!(text.contains("has no space for 7"), "{text}");
    let error = paging_error(error);
    let PagingError::NoRoom { bytes, source, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(
        *bytes > n && source.kind() == std::io::ErrorKind::StorageFull,
        "{error:?}"
    );
    assert!(error.source().is_none(), "said already");

    // The existing state is unchanged, and the remaining space can still be used.
    assert_eq!(lion.export_state(w).unwrap(), before);
    lion.step([(w, &mut param, &grad)]).unwrap();
    assert!((param[n - 1] - (1.0 - 2e-4)).abs() < 1e-6);
    lion.register(ParamSpec::new("fits", 200_000, Dtype::F32))
        .unwrap();
    drop(lion);
    // The space is freed: an optimizer of the same size fits again.
    let mut lion = build(Paging::in_folder(disk.0).budget(64 << 10)).unwrap();
    lion.register(ParamSpec::new("w", n, Dtype::F32)).unwrap();
    drop(lion);
    assert_eq!(fs::read_dir(disk.0).unwrap().count(), 0);
}

#[test]
fn lengths_beyond_the_address_space_are_rejected() {
    let paging = Paging::in_folder(std::env::temp_dir()).budget(1 << 20);
    let mut lion = build(paging).unwrap();
    // Four times as many elements are 2^22 on a 64-bit machine.
    for len in [usize::MAX, usize::MAX / 4 + 1 + (1 << 20)] {
        for bits in [8, 32] {
            let of = |paged| Overrides::new().optim_bits(bits).is_paged(paged);
            let spec = ParamSpec::new("w", len, Dtype::F32);
            let error = lion.register(spec.clone().overrides(of(true))).unwrap_err();
            let error = paging_error(error);
            assert!(
                matches!(
                    error,
                    PagingError::TooLarge { .. } | PagingError::NoRoom { .. }
                ),
                "{error:?}"
            );
            let error = lion.register(spec.overrides(of(false))).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Backend {
                        source: BackendError::OutOfMemory { .. },
                        ..
                    }
                ),
                "{error:?}"
            );
        }
    }
    assert_eq!(lion.parameters().len(), 0);
}

#[test]
fn budget_above_the_memory_of_the_machine_is_a_warning() {
    let paging = Paging::in_folder(std::env::temp_dir());
    let report = |budget| {
        let lion = build(paging.clone().budget(budget)).unwrap();
        lion.paging().unwrap()
    };
    let small = report(4096);
    assert_eq!(small.totals.exceeds, None);
    assert!(!small.to_string().contains("warning"), "{small}");
    let large = report(usize::MAX / 2);
    let limit = large.totals.exceeds.unwrap();
    assert!(limit.bytes < usize::MAX as u64 / 2);
    assert!(
        large
            .to_string()
            .contains("warning: the budget is larger than"),
        "{large}"
    );
}
