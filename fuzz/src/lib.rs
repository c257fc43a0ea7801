//! Code shared by the fuzz targets: an optimizer for loading inputs, and a description of everything that a load can
//! change.

use lion::cpu::Cpu;
use lion::{Dtype, Lion, Overrides, ParamSpec};

/// Returns an optimizer with some of the parameters of the seeds, fresh or used.
pub fn optimizer(used: bool) -> Lion {
    let cpu = Cpu::new().expect("a CPU");
    let mut lion = Lion::builder()
        .backend(cpu)
        .build()
        .expect("the defaults are valid");
    let eight = Overrides::new().optim_bits(8).min_8bit_size(1);
    let eight_bits = ParamSpec::new("w", 5, Dtype::Bf16).overrides(eight);
    for spec in [eight_bits, ParamSpec::new("m", 6, Dtype::F32)] {
        let handle = lion.register(spec).expect("both fit");
        if used {
            let mut record = lion.export_state(handle).expect("states are in memory");
            record.steps = 7;
            lion.import_state(handle, &record)
                .expect("the state is its own export");
        }
    }
    lion
}

/// Returns everything that a load can change.
pub fn state(lion: &Lion) -> String {
    let infos: Vec<_> = lion.parameters().collect();
    let records = infos.iter().map(|info| lion.export_state(info.handle).ok());
    let records: Vec<_> = records.collect();
    format!(
        "{:?} {:?} {infos:?} {records:?}",
        lion.defaults(),
        lion.groups()
    )
}
