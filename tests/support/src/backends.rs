//! All backends by name, including those that are not available on this machine.

use crate::driver;
use lion::arithmetic::norm::ShardNorm;
use lion::cpu::{Cpu, Isa};
use lion::cuda::{Cuda, cust, is_emulated, use_library};
use lion::{
    Paging,
    backend::{
        Backend, BackendError, Gradient, Outcome, State, StateRequest, SumSquares, TensorStep,
    },
    paging::PagingTotals,
};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// A backend that may not be available.
#[derive(Debug)]
pub struct Candidate {
    /// Its name.
    pub name: &'static str,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Cpu(Isa),
    PagedCpu(Isa),
    Cuda { emulated: bool, paged: bool },
}

impl Candidate {
    /// Opens the backend.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] with the reason.
    pub fn open(&self) -> Result<Box<dyn Backend>, BackendError> {
        match self.kind {
            Kind::Cpu(isa) => Ok(Box::new(Cpu::with_isa(isa)?)),
            Kind::PagedCpu(isa) => {
                let paging = Paging::in_folder(std::env::temp_dir()).budget(TEST_BUDGET);
                Ok(Box::new(AllPaged(Cpu::with_isa(isa)?.paging(&paging)?)))
            }
            Kind::Cuda { emulated, paged } => {
                let unavailable = |reason| BackendError::Unavailable {
                    backend: self.name.to_owned(),
                    reason,
                };
                let cuda = open_cuda(Some(emulated)).map_err(unavailable)?;
                if !paged {
                    return Ok(Box::new(cuda));
                }
                managed_room().map_err(unavailable)?;
                let paging = Paging::on_device().budget(TEST_DEVICE_BUDGET);
                Ok(Box::new(AllPaged(cuda.paging(&paging)?)))
            }
        }
    }
}

/// Upper bound of the managed memory of a test, in bytes.
const MANAGED: usize = 16 << 20;

/// Checks that the device of the open driver has free memory for all managed memory of a test. A
/// GPU can hang when more memory is requested than it has.
///
/// # Errors
/// Returns the amount of free memory.
pub fn managed_room() -> Result<(), String> {
    let free = || {
        let device = cust::device::Device::get_device(0)?;
        let _context = cust::context::Context::new(device)?;
        Ok(cust::memory::mem_get_info()?.0)
    };
    let free = free().map_err(|error: cust::error::CudaError| error.to_string())?;
    if free < MANAGED {
        return Err(format!(
            "the device has {free} bytes free, wanted {MANAGED}"
        ));
    }
    Ok(())
}

impl Candidate {
    /// Opens the backend, or prints SKIPPED with its name and the reason.
    pub fn open_or_skip(&self) -> Option<Box<dyn Backend>> {
        let opened = self.open();
        if let Err(reason) = &opened {
            println!("SKIPPED backend {}: {reason}", self.name);
        }
        opened.ok()
    }

    /// Returns whether each state uses at least one page of a device's managed memory.
    pub fn is_paged_on_device(&self) -> bool {
        matches!(self.kind, Kind::Cuda { paged: true, .. })
    }

    /// Returns the device, if this is a CUDA backend, for creating arrays in its memory.
    ///
    /// # Errors
    /// The reason why the device is not available.
    pub fn cuda(&self) -> Option<Result<Arc<Cuda>, String>> {
        match self.kind {
            Kind::Cpu(_) | Kind::PagedCpu(_) => None,
            Kind::Cuda { emulated, .. } => Some(open_cuda(Some(emulated))),
        }
    }
}

/// Budget in bytes for backends that page. It is a few pages, so that tests move pages.
const TEST_BUDGET: usize = 4 * 4096;

/// Two pages of a device.
const TEST_DEVICE_BUDGET: usize = 2 << 16;

/// A backend that pages every state, whatever is requested.
#[derive(Debug)]
pub struct AllPaged<B>(pub B);

impl<B: Backend> Backend for AllPaged<B> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn allocate(&self, request: &StateRequest<'_>) -> Result<Box<dyn State>, BackendError> {
        self.0.allocate(&request.paged(true))
    }

    fn step(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<Outcome>, BackendError> {
        self.0.step(tensors)
    }

    fn shard_norms(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<ShardNorm>, BackendError> {
        self.0.shard_norms(tensors)
    }

    fn count_non_finite(&self, tensors: &mut [TensorStep<'_>]) -> Result<Vec<u64>, BackendError> {
        self.0.count_non_finite(tensors)
    }

    fn sum_squares(&self, gradients: &[Gradient<'_>]) -> Result<Vec<SumSquares>, BackendError> {
        self.0.sum_squares(gradients)
    }

    fn synchronize(
        &self,
        states: &mut [&mut (dyn State + 'static)],
    ) -> Result<Vec<u64>, BackendError> {
        self.0.synchronize(states)
    }

    fn paging_totals(&self) -> Option<PagingTotals> {
        self.0.paging_totals()
    }
}

/// Returns all backends of this project. A process has one CUDA driver, so only the one of `cuda`
/// and `cuda-emulated` that is opened first is available; the same applies to the `-paged` ones.
pub fn backends() -> Vec<Candidate> {
    let cpu = Isa::ALL.iter().map(|&isa| Candidate {
        name: isa.name(),
        kind: Kind::Cpu(isa),
    });
    let paged = Isa::ALL.iter().filter_map(|&isa| {
        let name = match isa {
            Isa::Scalar => "scalar-paged",
            Isa::Neon => "neon-paged",
            Isa::Avx2 => "avx2-paged",
            Isa::Avx512 => "avx512-paged",
            Isa::Avx512Vbmi => "avx512vbmi-paged",
            Isa::Avx512Bf16 => "avx512bf16-paged",
            _ => return None,
        };
        Some(Candidate {
            name,
            kind: Kind::PagedCpu(isa),
        })
    });
    let cuda = [
        ("cuda", false, false),
        ("cuda-paged", false, true),
        ("cuda-emulated", true, false),
        ("cuda-emulated-paged", true, true),
    ];
    let cuda = cuda.map(|(name, emulated, paged)| Candidate {
        name,
        kind: Kind::Cuda { emulated, paged },
    });
    cpu.chain(paged).chain(cuda).collect()
}

/// Returns the kernels of this CPU with their names, and prints SKIPPED for each of the others.
pub fn cpus() -> Vec<(Isa, Cpu)> {
    let cpus = Isa::ALL.iter().filter_map(|&isa| {
        let cpu = Cpu::with_isa(isa);
        if let Err(reason) = &cpu {
            println!("SKIPPED {isa}: {reason}");
        }
        Some((isa, cpu.ok()?))
    });
    cpus.collect()
}

/// Returns the device for tests, which is opened once per process: the device of the driver that
/// `LION_CUDA_DRIVER` names, otherwise the device of the system's driver if lion can use it,
/// otherwise the emulated device.
///
/// # Errors
/// The reason why there is no device.
pub fn cuda() -> Result<Arc<Cuda>, String> {
    open_cuda(None)
}

/// Opens the device. `emulated` requires or excludes the emulated driver.
fn open_cuda(emulated: Option<bool>) -> Result<Arc<Cuda>, String> {
    static DEVICE: Mutex<Option<Arc<Cuda>>> = Mutex::new(None);
    let mut device = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let cuda = match &*device {
        Some(cuda) => Arc::clone(cuda),
        None => {
            if !driver::is_named() {
                match (emulated, driver::system()) {
                    (Some(false), Err(reason)) => return Err(reason),
                    (Some(true), _) | (None, Err(_)) => match use_library(emulator()) {
                        // If another driver is already open, it may be the right one. This is
                        // checked below.
                        Ok(_) => {}
                        Err(error) => return Err(error.to_string()),
                    },
                    (Some(false) | None, Ok(())) => {}
                }
            }
            let cuda = Cuda::new(0).map_err(|error| error.to_string())?;
            Arc::clone(device.insert(Arc::new(cuda)))
        }
    };
    match (emulated, is_emulated()) {
        (Some(true), false) => Err("the driver that is open is not emulated".to_owned()),
        (Some(false), true) => Err("the driver that is open is emulated".to_owned()),
        _ => Ok(cuda),
    }
}

/// Returns the path of the emulated driver, which cargo builds into the target directory of this
/// program.
pub fn emulator() -> PathBuf {
    const NAME: &str = "libcuda_emulator.so";
    let program = std::env::current_exe().unwrap_or_default();
    let folders = program.ancestors().skip(1).take(3);
    let mut places = folders.flat_map(|folder| [folder.join(NAME), folder.join("deps").join(NAME)]);
    places
        .find(|place| place.exists())
        .unwrap_or_else(|| NAME.into())
}
