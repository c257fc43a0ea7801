//! A state larger than the memory for it: PagedLion32bit with a budget.
//!
//! `cargo run --example 04-paged` pages to a file in the folder of temporary files. An argument names another
//! folder, which should be on a fast disk. On Linux it prints
//!
//! ```text
//! weight[0] = 0.5
//! state: 16 MiB
//! resident after the step: 4 MiB
//! moved by the step: 26 MiB
//! ```

use lion::{Device, Dtype, PagedLion32bit, Paging, ParamSpec};

const MIB: usize = 1 << 20;
const ELEMENTS: usize = 4 * MIB;

fn main() -> Result<(), lion::Error> {
    let folder = std::env::args_os().nth(1);
    let folder = folder.map_or_else(std::env::temp_dir, Into::into);

    // At most 4 MiB of the state are in memory at a time. Each step streams the rest through the window,
    // 1 MiB of the budget.
    let paging = Paging::in_folder(folder).budget(4 * MIB).window(MIB);
    let builder = PagedLion32bit::builder().device(Device::Cpu).lr(0.25);
    let mut lion = match builder.paging(paging).build() {
        Ok(lion) => lion,
        Err(error) => {
            println!("cannot page: {error}");
            return Ok(());
        }
    };
    let w = lion.register(ParamSpec::new("weight", ELEMENTS, Dtype::F32))?;
    let (mut weight, grad) = (vec![1.0f32; ELEMENTS], vec![1.0f32; ELEMENTS]);
    for _ in 0..2 {
        lion.step([(w, &mut weight, &grad)])?;
    }

    println!("weight[0] = {}", weight[0]);
    if let Some(report) = lion.paging() {
        let totals = &report.totals;
        println!("state: {} MiB", totals.paged / MIB);
        println!("resident after the step: {} MiB", totals.resident / MIB);
        println!(
            "moved by the step: {} MiB",
            totals.moved.total() / MIB as u64
        );
        // `println!("{report}")` prints a table with a line per parameter.
    }
    Ok(())
}
