//! The report of a load or an import.

use super::error::{CheckpointError, Difference, list};
use super::load::LoadPolicy;
use super::settings::{SettingChange, SettingChanges};
use lion_core::NUMBERS_VERSION;
use std::fmt;
use std::path::Path;

/// The result of a load. Parameters are listed by name. [`Display`](fmt::Display) summarizes it in one line.
///
/// ```
/// # use lion::{Dtype, Lion, ParamSpec};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("run.lion");
/// let mut lion = Lion::builder().build()?;
/// lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
/// lion.save(&path)?;
/// let report = lion.load(&path)?;
/// assert_eq!(report.numbers, Some(lion::arithmetic::NUMBERS_VERSION));
/// assert_eq!(report.to_string(), "1 parameter loaded");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LoadReport {
    /// The parameters whose states were loaded, by their names in the optimizer.
    pub loaded: Vec<String>,
    /// The parameters of the optimizer that are not in the file. Their states are unchanged.
    pub missing: Vec<String>,
    /// The parameters of the file that are not in the optimizer, by their names in the file.
    pub unexpected: Vec<String>,
    /// The parameters that are in both but differ. They were not loaded; their states are unchanged.
    pub different: Vec<Difference>,
    /// The parameters that were loaded although their type differs.
    pub dtype_changed: Vec<Difference>,
    /// The loaded parameters that have another name in the optimizer than in the file
    /// ([`Load::rename`](super::Load::rename)): the name in the file, and that in the optimizer.
    pub renamed: Vec<(String, String)>,
    /// The loaded parameters whose states were converted to the width of the optimizer's state
    /// ([`Load::convert_states`](super::Load::convert_states)), each with both widths.
    pub converted: Vec<Difference>,
    /// The loaded parameters whose states were requantized from blocks of 2,048 elements to blocks of 256, with a small
    /// loss of precision. Always empty except after an import with the option `requantize` of the module `interop`.
    pub requantized: Vec<String>,
    /// The settings of the optimizer that the load changed: defaults, groups, and the groups and overrides
    /// of parameters.
    pub settings: SettingChanges,
    /// The version of the numbers of the file. `None` after an import, because safetensors files have none.
    pub numbers: Option<u32>,
    /// The loaded parameters that are rounded stochastically before and after the load, with other draws than
    /// before. A run with such parameters does not return the bits that the version of the library that saved it
    /// would have returned.
    ///
    /// Empty unless [`numbers`](LoadReport::numbers) is 1: version 2 changed the draws. A parameter is rounded
    /// stochastically if it has [`stochastic_param`](lion_core::Overrides::stochastic_param) and is `bf16`, or
    /// has [`stochastic_state`](lion_core::Overrides::stochastic_state) and an 8-bit state. Before the load,
    /// the settings of the file decide; after it, those of the optimizer.
    pub draws_changed: Vec<String>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |f: &mut fmt::Formatter<'_>, name: &String| write!(f, "`{name}`");
        let loaded = self.loaded.len();
        let plural = if loaded == 1 { "" } else { "s" };
        write!(f, "{loaded} parameter{plural} loaded")?;
        list(f, "not in the file: ", &self.missing, quoted)?;
        list(f, "only in the file: ", &self.unexpected, quoted)?;
        let differ = |f: &mut fmt::Formatter<'_>, it: &Difference| write!(f, "{it}");
        list(f, "not loaded: ", &self.different, differ)?;
        list(f, "loaded as another type: ", &self.dtype_changed, differ)?;
        let renamed = |f: &mut fmt::Formatter<'_>, (from, to): &(String, String)| {
            write!(f, "`{from}` to `{to}`")
        };
        list(f, "renamed: ", &self.renamed, renamed)?;
        list(f, "converted to another width: ", &self.converted, differ)?;
        let requantized = "requantized from blocks of 2048 elements to blocks of 256, with a small loss of precision: ";
        list(f, requantized, &self.requantized, quoted)?;
        let settings: Vec<_> = self.settings.iter().collect();
        let setting = |f: &mut fmt::Formatter<'_>, it: &SettingChange| write!(f, "{it}");
        list(f, "settings changed: ", &settings, setting)?;
        let draws = format!(
            "the file has version {} of the numbers, and stochastic rounding continues with the draws \
             of version {NUMBERS_VERSION} for ",
            self.numbers.unwrap_or(NUMBERS_VERSION),
        );
        list(f, &draws, &self.draws_changed, quoted)
    }
}

impl LoadReport {
    /// Returns [`CheckpointError::Mismatch`] if the policy is [`LoadPolicy::Strict`] and a parameter
    /// cannot be loaded.
    pub(crate) fn refuse(
        &mut self,
        policy: LoadPolicy,
        path: &Path,
    ) -> Result<(), CheckpointError> {
        let all =
            self.missing.is_empty() && self.unexpected.is_empty() && self.different.is_empty();
        if all || policy == LoadPolicy::NonStrict {
            return Ok(());
        }
        Err(CheckpointError::Mismatch {
            path: path.to_owned(),
            missing: std::mem::take(&mut self.missing),
            unexpected: std::mem::take(&mut self.unexpected),
            different: std::mem::take(&mut self.different),
        })
    }
}
