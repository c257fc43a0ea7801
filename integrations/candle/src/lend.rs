//! Takes the vectors of variables out of their storages, and puts them back.
//!
//! A step needs all variables mutably at once. candle lends one storage at a time, to an operation in place. Such an
//! operation could call the next one, but then each variable would take a frame of the stack, and a model of many thousand
//! variables would overflow it. So an operation takes the vector, which copies nothing, and another puts it back.
//!
//! # Other threads
//! In between, another thread can use the variable, whose layout then has more elements than its storage. Some functions
//! of candle read by the layout without a check of the index: `cpu_backend::unary_map` does for strided tensors. They would
//! read out of bounds, had the storage a type that they read.
//!
//! Therefore an empty storage of [`CpuStorage::F4`] takes the place of the vector. candle has this type only to carry bytes
//! from one safetensors file to another, and cannot compute with it. That no function reads its elements without a check
//! has been verified by reading candle-core and candle-nn 0.11.1. Earlier versions are excluded by `Cargo.toml`. Later ones
//! of the series 0.11 have not been read; only the tests in `other_threads.rs` cover them. A test compares the versions
//! of `Cargo.lock` with the one that is named here, so whoever updates it reads again. The result:
//!
//! - `Map1`, `Map1Any`, `Map2`, `Map2InPlace` and `Map2U8`, and with them affine functions, reductions, comparisons,
//!   poolings, upsamplings, convolutions, products of matrices, `gather`, `index_select`, `scatter` and `where_cond`, match
//!   on the type of the storage and return an error for `F4`, also if only one of two operands has it. `to_dtype`, `powf`,
//!   `elu`, unary and binary functions, `argsort` and `const_set` do so too.
//! - `to_vec`, `to_scalar`, `write_bytes`, quantization, the products with quantized matrices and attention ask for a slice
//!   of a type (`as_slice`, `cpu_storage_as_slice`). No type of Rust gets one of `F4`.
//! - The saving of safetensors calls `to_vec` too, and unwraps the error (`View::data`), so it panics. In `VarMap::save`, it
//!   does so while it holds the `Mutex` of the map, which is poisoned from then on.
//! - `Debug` and `Display` call `to_vec` or `cat`, and print no elements if these return an error.
//! - `copy2d` and `copy_strided_src` copy between two storages of `F4`, as from one taken variable to another, but by slices
//!   with checks. They panic. The locks of the storages are those of `parking_lot`, which are not poisoned; that of a
//!   `VarMap` is, if `set` or `set_one` is the caller. Between `F4` and another type they return an error.
//! - Functions that allocate a result of the type of a storage return an error, because `alloc_uninit` and `zeros` have no
//!   `F4`.
//! - `copy` succeeds and returns a tensor that is as empty. A copy to a GPU is an error.
//! - The operations of candle-nn (softmax, norms, rotary embeddings, sigmoid) match on the types of the storages.
//!
//! The tests in `other_threads.rs` call most of them.

use crate::Error;
use crate::variable::Variable;
use candle_core::{CpuStorage, InplaceOp1, Layout};
use lion::tensor::SliceMut;
use std::cell::Cell;
use std::mem::replace;

/// What a storage holds while its vector is taken. It must be of a type that candle does not read, as the documentation of
/// this module explains. No variable of the optimizer has this type.
const TAKEN: CpuStorage = CpuStorage::F4(Vec::new());

/// The vectors of variables. They are put back when this is dropped, also while a panic unwinds.
#[derive(Debug)]
pub(crate) struct Lent<'v> {
    list: Vec<(&'v Variable, CpuStorage)>,
}

impl<'v> Lent<'v> {
    /// Takes the vectors of variables.
    pub(crate) fn take(variables: &'v [Variable]) -> Result<Self, Error> {
        let mut lent = Lent {
            list: Vec::with_capacity(variables.len()),
        };
        for variable in variables {
            // candle refuses operations in place on a tensor without elements.
            let storage = match variable.range.is_empty() {
                true => TAKEN,
                false => take(variable)?,
            };
            lent.list.push((variable, storage));
        }
        Ok(lent)
    }

    /// Returns the elements of each variable.
    pub(crate) fn elements(
        &mut self,
    ) -> impl Iterator<Item = Result<(&'v Variable, SliceMut<'_>), Error>> {
        self.list.iter_mut().map(|(variable, storage)| {
            let range = variable.range.clone();
            let slice = match storage {
                CpuStorage::F32(all) => all.get_mut(range).map(SliceMut::F32),
                CpuStorage::F16(all) => all.get_mut(range).map(SliceMut::F16),
                CpuStorage::BF16(all) => all.get_mut(range).map(SliceMut::Bf16),
                _ => empty(variable),
            };
            let name = || variable.name.clone();
            let slice = slice.ok_or_else(|| Error::InUse { variable: name() })?;
            Ok((*variable, slice))
        })
    }
}

/// Returns the elements of a variable without elements, in its type.
fn empty(variable: &Variable) -> Option<SliceMut<'static>> {
    use candle_core::DType;
    if !variable.range.is_empty() {
        return None;
    }
    match variable.var.dtype() {
        DType::F32 => Some(SliceMut::F32(&mut [])),
        DType::F16 => Some(SliceMut::F16(&mut [])),
        DType::BF16 => Some(SliceMut::Bf16(&mut [])),
        _ => None,
    }
}

fn take(variable: &Variable) -> Result<CpuStorage, Error> {
    let taken = Take(Cell::new(None));
    let result = variable.var.inplace_op1(&taken);
    let failed = |source| Error::Candle {
        variable: variable.name.clone(),
        action: "lend its elements",
        source,
    };
    result.map_err(failed)?;
    taken.0.into_inner().ok_or_else(|| Error::InUse {
        variable: variable.name.clone(),
    })
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        for (variable, storage) in self.list.drain(..) {
            if !variable.range.is_empty() {
                // It fails for other devices and layouts than the operation that has taken the vector: never.
                let _ = variable.var.inplace_op1(&Put(Cell::new(storage)));
            }
        }
    }
}

/// Takes the vector of a storage, unless it is taken.
struct Take(Cell<Option<CpuStorage>>);

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "lion-take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        if !matches!(storage, CpuStorage::F4(_)) {
            self.0.set(Some(replace(storage, TAKEN)));
        }
        Ok(())
    }
}

/// Puts a vector back.
struct Put(Cell<CpuStorage>);

impl InplaceOp1 for Put {
    fn name(&self) -> &'static str {
        "lion-put"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        *storage = self.0.replace(TAKEN);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod other_threads;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::LionCandle;
    use candle_core::{Device, Var};
    use candle_nn::Optimizer;
    use lion::backend::Operand;
    use lion::{Lion, StepArgs};

    fn optimizer(var: &Var) -> LionCandle {
        let mut optimizer = LionCandle::empty(Lion::builder().lr(0.5)).unwrap();
        optimizer.add("w", var).unwrap();
        optimizer
    }

    #[test]
    fn what_is_taken_cannot_be_taken_again_and_comes_back() {
        let var = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let mut first = optimizer(&var);
        let grads = var.sum_all().unwrap().backward().unwrap();
        let mut second = LionCandle::empty(Lion::builder().lr(0.25)).unwrap();
        second.add("w", &var).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.lion");
        second.save(&path).unwrap();
        let lent = Lent::take(&second.variables).unwrap();
        let error = first.step(&grads).unwrap_err().to_string();
        assert!(error.contains("variable `w` is being stepped"), "{error}");
        let error = first.save(folder.path().join("not-written.lion"));
        assert!(matches!(error, Err(Error::InUse { .. })));
        let error = first.load(&path);
        assert!(matches!(error, Err(Error::InUse { .. })));
        // The settings and states are loaded when nothing else can fail.
        assert_eq!(first.learning_rate(), 0.5);
        drop(lent);
        assert_eq!(var.to_vec1::<f32>().unwrap(), [1.0, 2.0]);
        first.step(&grads).unwrap();
        assert_eq!(var.to_vec1::<f32>().unwrap(), [0.5, 1.5]);
    }

    #[test]
    fn a_gradient_that_was_copied_during_a_step_is_unsupported() {
        let var = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let mut optimizer = optimizer(&var);
        let lent = Lent::take(&optimizer.variables).unwrap();
        let copy = var.copy().unwrap();
        drop(lent);
        let mut grads = candle_core::backprop::GradStore::default();
        grads.insert(&var, copy);
        let error = optimizer.step_with(StepArgs::new(), &grads).unwrap_err();
        let Error::Unsupported {
            operand: Operand::Gradient,
            what: "memory",
            ..
        } = error
        else {
            panic!("{error}")
        };
        let message = "the gradient of variable `w`: its memory is without elements";
        assert!(error.to_string().starts_with(message), "{error}");
        assert!(error.to_string().ends_with("wanted 2 elements"), "{error}");
        assert_eq!(var.to_vec1::<f32>().unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn the_versions_in_the_lock_file_are_those_that_were_read() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock");
        let lock = std::fs::read_to_string(lock).unwrap();
        let read = include_str!("lend.rs");
        for name in ["candle-core", "candle-nn"] {
            let head = format!("name = \"{name}\"\nversion = \"");
            let versions = lock.split(&head).skip(1);
            let versions: Vec<_> = versions.filter_map(|it| it.split('"').next()).collect();
            let [version] = versions[..] else {
                panic!("{name} {versions:?}, wanted one version")
            };
            let named = format!("reading candle-core and candle-nn {version}. ");
            assert!(
                read.contains(&named),
                "{name} {version} is in Cargo.lock, and the documentation of this module is about another version: read \
                 what it lists in the sources of {version}, then name that version there and in Cargo.toml"
            );
        }
    }

    #[test]
    fn a_panic_puts_the_vectors_back() {
        let var = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let optimizer = optimizer(&var);
        let panics = std::panic::AssertUnwindSafe(|| {
            let _lent = Lent::take(&optimizer.variables).unwrap();
            panic!("as in a step");
        });
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!(var.to_vec1::<f32>().unwrap(), [1.0, 2.0]);
    }
}
