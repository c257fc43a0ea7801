//! The settings of an optimizer before and after a load, and how they differ.

use lion_core::{Optimizer, Overrides, Scope};
use std::collections::HashMap;
use std::fmt;

/// A setting that a load has changed.
///
/// ```
/// # use lion::{Lion, Overrides};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("run.lion");
/// Lion::builder().lr(0.5).build()?.save(&path)?;
/// let report = Lion::builder().lr(0.25).build()?.load(&path)?;
/// let [change] = &report.settings[..] else { unreachable!() };
/// assert_eq!(change.to_string(), "the optimizer's defaults: lr was 0.25, is 0.5");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SettingChange {
    /// What it is set for: the defaults, a group or a parameter.
    pub scope: Scope,
    /// The name of the hyper-parameter, as in [`Overrides`]; or `group`, with the name of the group that a
    /// parameter is in, or of a group that the optimizer did not have. The settings of such a group are not
    /// listed: they are in [`Optimizer::groups`].
    pub setting: &'static str,
    /// Its value before the load; `None` where it was not set.
    pub before: Option<String>,
    /// Its value now; `None` where it is not set.
    pub after: Option<String>,
}

impl fmt::Display for SettingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let say = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
        let (scope, setting) = (&self.scope, self.setting);
        let (before, after) = (say(&self.before), say(&self.after));
        write!(f, "{scope}: {setting} was {before}, is {after}")
    }
}

/// The setting that says which group there is, or a parameter is in.
const GROUP: &str = "group";

/// All settings of an optimizer.
pub(super) struct Snapshot {
    defaults: Overrides,
    groups: Vec<(String, Overrides)>,
    /// Of each parameter the name, the group and the overrides.
    parameters: Vec<(String, Option<String>, Overrides)>,
}

impl Snapshot {
    pub(super) fn of(optimizer: &Optimizer) -> Self {
        let groups = optimizer.groups().iter();
        let parameters = optimizer.parameters().map(|info| {
            let group = info.group.map(str::to_owned);
            (info.name.to_owned(), group, info.overrides)
        });
        Snapshot {
            defaults: *optimizer.defaults(),
            groups: groups.map(|g| (g.name.clone(), g.overrides)).collect(),
            parameters: parameters.collect(),
        }
    }

    /// What has changed in an optimizer since, which has the same parameters and no fewer groups.
    pub(super) fn changes(&self, optimizer: &Optimizer) -> Vec<SettingChange> {
        let mut changes = Vec::new();
        compare(
            &mut changes,
            || Scope::Defaults,
            &self.defaults,
            optimizer.defaults(),
        );
        let groups: HashMap<&str, &Overrides> = self
            .groups
            .iter()
            .map(|(name, it)| (name.as_str(), it))
            .collect();
        for lion_core::Group { name, overrides } in optimizer.groups() {
            let scope = || Scope::Group(name.clone());
            match groups.get(name.as_str()) {
                Some(before) => compare(&mut changes, scope, before, overrides),
                None => push(&mut changes, scope, GROUP, None, Some(name.clone())),
            }
        }
        for ((name, group, before), now) in self.parameters.iter().zip(optimizer.parameters()) {
            let scope = || Scope::Parameter(name.clone());
            let now_group = now.group.map(str::to_owned);
            push(&mut changes, scope, GROUP, group.clone(), now_group);
            compare(&mut changes, scope, before, &now.overrides);
        }
        changes
    }
}

fn compare(
    changes: &mut Vec<SettingChange>,
    scope: impl Fn() -> Scope,
    before: &Overrides,
    after: &Overrides,
) {
    if before != after {
        for ((setting, before), (_, after)) in before.settings().zip(after.settings()) {
            push(changes, &scope, setting, before, after);
        }
    }
}

fn push(
    changes: &mut Vec<SettingChange>,
    scope: impl Fn() -> Scope,
    setting: &'static str,
    before: Option<String>,
    after: Option<String>,
) {
    if before != after {
        changes.push(SettingChange {
            scope: scope(),
            setting,
            before,
            after,
        });
    }
}
