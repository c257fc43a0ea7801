//! The step of the optimizer: check everything, then change everything.

use crate::entry::{Entry, skipped};
use crate::{Error, OnNonFinite, Optimizer, StepArgs, StepReport, Update};

impl Optimizer {
    /// Steps some or all parameters, in any order.
    ///
    /// The updates may come from any iterator. Everything is checked before anything changes.
    ///
    /// # Errors
    /// [`Error::InvalidHyper`], [`Error::UnknownHandle`], [`Error::RepeatedParameter`],
    /// [`Error::MissingGradient`], [`Error::WrongLength`], [`Error::WrongDtype`],
    /// [`Error::NotContiguous`], [`Error::LayoutMismatch`]; under
    /// [`OnNonFinite::RejectStep`] also [`Error::NonFinite`]; [`Error::Backend`].
    pub fn step<'a>(
        &mut self,
        args: StepArgs,
        updates: impl IntoIterator<Item = Update<'a>>,
    ) -> Result<StepReport, Error> {
        args.check()?;
        let mut report = StepReport::default();
        let mut seen = vec![false; self.params.len()];
        let mut checked = Vec::new();
        for update in updates {
            let handle = update.handle;
            let index = self.index(handle)?;
            let entry = &self.params[index];
            if std::mem::replace(&mut seen[index], true) {
                return Err(Error::RepeatedParameter {
                    parameter: entry.name(),
                });
            }
            checked.push((index, entry.check(&args, update)?));
            report.updated.push(handle);
            report.elements += entry.len as u64;
        }

        let mut entries: Vec<Option<&mut Entry>> = self.params.iter_mut().map(Some).collect();
        let (mut tensors, progress): (Vec<_>, Vec<_>) = checked
            .into_iter()
            .filter_map(|(index, update)| Some((entries[index].take()?, update)))
            .map(|(entry, update)| entry.tensor_step(args.get_grad_scale(), update))
            .unzip();
        if self.on_non_finite == OnNonFinite::RejectStep {
            self.backend.count_non_finite(&mut tensors)?;
            let parameters = skipped(&tensors, &progress);
            if !parameters.is_empty() {
                return Err(Error::NonFinite { parameters });
            }
        }
        self.backend.step(&mut tensors)?;
        report.skipped = skipped(&tensors, &progress);
        for counters in progress {
            counters.commit();
        }
        Ok(report)
    }
}
