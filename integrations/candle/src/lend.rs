//! Takes the vectors of variables out of their storages, and puts them back.
//!
//! A step needs all variables mutably at once. candle lends one storage at a time, to an operation in place. Such an
//! operation could call the next one, but then each variable would take a frame of the stack, and a model of many thousand
//! variables would overflow it. So an operation takes the vector, which copies nothing, and another puts it back.

use crate::Error;
use crate::variable::Variable;
use candle_core::{CpuStorage, InplaceOp1, Layout};
use lion::tensor::SliceMut;
use std::cell::Cell;
use std::mem::replace;

/// What a storage holds while its vector is taken. No variable of the optimizer has this type.
const TAKEN: CpuStorage = CpuStorage::U8(Vec::new());

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
        if !matches!(storage, CpuStorage::U8(_)) {
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
mod tests {
    use super::*;
    use crate::LionCandle;
    use candle_core::{Device, Var};
    use candle_nn::Optimizer;
    use lion::Lion;

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
        let second = optimizer(&var);
        let lent = Lent::take(&second.variables).unwrap();
        let error = first.step(&grads).unwrap_err().to_string();
        assert!(error.contains("variable `w` is being stepped"), "{error}");
        let error = first.save(std::env::temp_dir().join("not-written.lion"));
        assert!(matches!(error, Err(Error::InUse { .. })));
        drop(lent);
        assert_eq!(var.to_vec1::<f32>().unwrap(), [1.0, 2.0]);
        first.step(&grads).unwrap();
        assert_eq!(var.to_vec1::<f32>().unwrap(), [0.5, 1.5]);
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
