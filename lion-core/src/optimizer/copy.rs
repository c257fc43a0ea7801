//! Copies of an optimizer.

use super::parameter::Parameter;
use crate::{BackendError, Error, Optimizer, PlaneSpec, State, StateRequest};
use std::sync::Arc;

impl Optimizer {
    /// Returns an independent copy with the same parameters, hyper-parameters and states, on the
    /// same backend. The handles of this optimizer are also valid for the copy.
    ///
    /// The copy needs as much memory as the states of this optimizer. States that are paged here
    /// are paged in the copy.
    ///
    /// ```
    /// use lion::{Dtype, Lion, ParamSpec};
    /// let mut lion = Lion::builder().build()?;
    /// let w = lion.register(ParamSpec::new("w", 1, Dtype::F32))?;
    /// let copy = lion.try_clone()?;
    /// lion.step([(w, &mut [0.0f32], &[1.0f32])])?;
    /// assert_eq!((lion.info(w)?.steps, copy.info(w)?.steps), (1, 0));
    /// # Ok::<(), lion::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Backend`] if a state cannot be read or a second one cannot be allocated;
    /// [`Error::Damaged`].
    pub fn try_clone(&self) -> Result<Self, Error> {
        if self.params.iter().any(|entry| entry.damaged) {
            return Err(self.damaged(None));
        }
        let copy = |entry: &Parameter| {
            let state = self.copy_of(entry).map_err(|e| entry.backend_error(e))?;
            Ok(Parameter {
                name: Arc::clone(&entry.name),
                order: entry.order.clone(),
                state,
                ..*entry
            })
        };
        let params: Result<Vec<Parameter>, Error> = self.params.iter().map(copy).collect();
        Ok(Optimizer {
            backend: Arc::clone(&self.backend),
            groups: self.groups.clone(),
            choices: self.choices.clone(),
            params: params?,
            by_name: self.by_name.clone(),
            ..*self
        })
    }

    fn copy_of(&self, entry: &Parameter) -> Result<Box<dyn State>, BackendError> {
        let bits = entry.state.layout().bits();
        let request = StateRequest::new(&entry.name, bits, entry.len)
            .paged(entry.paged)
            .shard(entry.shard);
        let mut state = self.allocate(&request)?;
        if !entry.fresh {
            copy(&*entry.state, &mut *state)?;
        }
        Ok(state)
    }
}

/// Copies all planes, in chunks.
fn copy(from: &dyn State, to: &mut dyn State) -> Result<(), BackendError> {
    const PART: usize = 64 << 10;
    let mut buffer = vec![0; PART];
    for (plane, spec) in from.layout().planes().iter().enumerate() {
        let bytes = PlaneSpec::bytes(spec, from.len());
        for offset in (0..bytes).step_by(PART) {
            let part = &mut buffer[..PART.min(bytes - offset)];
            from.read(plane, offset, part)?;
            to.write(plane, offset, part)?;
        }
    }
    Ok(())
}
