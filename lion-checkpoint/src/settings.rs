//! The differences between the settings of an optimizer before and after a load.

use lion_core::{Group, OnNonFinite, Optimizer, Overrides, Scope};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// A setting that a load changed. [`SettingChanges::iter`] returns these.
///
/// ```
/// # use lion::Lion;
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("run.lion");
/// Lion::builder().lr(0.5).build()?.save(&path)?;
/// let report = Lion::builder().lr(0.25).build()?.load(&path)?;
/// let change = report.settings.iter().next().expect("a change");
/// assert_eq!(change.to_string(), "the optimizer's defaults: lr was 0.25, is 0.5");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SettingChange {
    /// The scope of the setting: the defaults, a group or a parameter.
    pub scope: Scope,
    /// The name of the hyper-parameter, as in [`Overrides`], `on_non_finite`, or `group`. The value of `group` is the name
    /// of a parameter's group. In the scope of a group, it is the name of a group that the load added.
    pub setting: &'static str,
    /// The value before the load. `None` if it was not set.
    pub before: Option<String>,
    /// The value after the load. `None` if it is not set.
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

/// The settings that a load changed: those of the defaults, then of the groups, then of the parameters.
///
/// If the load added a group, all settings of the group are listed.
///
/// ```
/// # use lion::{Lion, Overrides};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("run.lion");
/// let mut saved = Lion::builder().build()?;
/// saved.add_group("no_decay", Overrides::new().weight_decay(0.0))?;
/// saved.save(&path)?;
/// let report = Lion::builder().build()?.load(&path)?;
/// let lines: Vec<String> = report.settings.iter().map(|change| change.to_string()).collect();
/// assert_eq!(
///     lines,
///     [
///         "group `no_decay`: group was not set, is no_decay",
///         "group `no_decay`: weight_decay was not set, is 0.0",
///     ]
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default, PartialEq)]
pub struct SettingChanges {
    /// What a step does if a momentum is not finite, before and after the load, if it changed.
    on_non_finite: Option<[OnNonFinite; 2]>,
    scopes: Vec<Scoped>,
}

/// The changes in one scope.
///
/// A file may have thousands of groups, and one group with a long name may have many parameters. To limit
/// the memory, names are shared, and settings are stored as [`Overrides`] and formatted only when they are
/// iterated over.
#[derive(Clone, PartialEq)]
struct Scoped {
    place: Place,
    /// The group of a parameter before and after the load.
    groups: [Option<Arc<str>>; 2],
    /// `None` for a group that the load added.
    before: Option<Box<Overrides>>,
    after: Box<Overrides>,
}

/// A [`Scope`] with a shared name.
#[derive(Clone, PartialEq)]
enum Place {
    Defaults,
    Group(Arc<str>),
    Parameter(Arc<str>),
}

impl SettingChanges {
    /// Returns an iterator over the changes, one per setting.
    pub fn iter(&self) -> impl Iterator<Item = SettingChange> + '_ {
        let on_non_finite = self.on_non_finite.map(|changed| {
            let [before, after] = changed.map(|it| Some(format!("{it:?}")));
            SettingChange {
                scope: Scope::Defaults,
                setting: "on_non_finite",
                before,
                after,
            }
        });
        let scopes = self.scopes.iter().flat_map(Scoped::changes);
        on_non_finite.into_iter().chain(scopes)
    }

    /// Returns `true` if no setting changed.
    pub fn is_empty(&self) -> bool {
        self.on_non_finite.is_none() && self.scopes.is_empty()
    }
}

impl fmt::Debug for SettingChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Scoped {
    /// Returns the changes in one scope, or `None` if nothing changed.
    fn of(
        place: Place,
        groups: [Option<Arc<str>>; 2],
        before: Option<Overrides>,
        after: Overrides,
    ) -> Option<Self> {
        let same = groups[0] == groups[1] && before == Some(after);
        (!same).then(|| Scoped {
            place,
            groups,
            before: before.map(Box::new),
            after: Box::new(after),
        })
    }

    fn scope(&self) -> Scope {
        match &self.place {
            Place::Defaults => Scope::Defaults,
            Place::Group(name) => Scope::Group(name.to_string()),
            Place::Parameter(name) => Scope::Parameter(name.to_string()),
        }
    }

    fn changes(&self) -> impl Iterator<Item = SettingChange> + '_ {
        let groups = match (&self.place, &self.before) {
            (Place::Group(name), None) => [None, Some(name)],
            _ => self.groups.each_ref().map(Option::as_ref),
        };
        let [was, is] = groups.map(|group| group.map(|name| name.to_string()));
        let before = self.before.as_deref().copied().unwrap_or_default();
        let settings = before.settings().zip(self.after.settings());
        let settings = settings.map(|((setting, before), (_, after))| (setting, before, after));
        let all = std::iter::once((GROUP, was, is)).chain(settings);
        let changed = all.filter(|(_, before, after)| before != after);
        changed.map(|(setting, before, after)| SettingChange {
            scope: self.scope(),
            setting,
            before,
            after,
        })
    }
}

/// The value of [`SettingChange::setting`] for the group of a parameter, or for an added group.
const GROUP: &str = "group";

/// A copy of all settings of an optimizer.
pub(super) struct Snapshot {
    on_non_finite: OnNonFinite,
    defaults: Overrides,
    groups: HashMap<Arc<str>, Overrides>,
    /// The name, the group and the overrides of each parameter. `None` for one that is not compared.
    parameters: Vec<Option<ParamSettings>>,
}

/// The name, the group and the overrides of a parameter.
type ParamSettings = (Arc<str>, Option<Arc<str>>, Overrides);

impl Snapshot {
    /// Copies the settings. Those of parameters for which `compares` returns `false` are not compared later.
    pub(super) fn of(optimizer: &Optimizer, compares: impl Fn(&str) -> bool) -> Self {
        let groups = optimizer.groups().iter();
        let groups: HashMap<Arc<str>, Overrides> = groups
            .map(|group| (group.name.as_str().into(), group.overrides))
            .collect();
        let parameters = optimizer.parameters().map(|info| {
            let group = info.group.and_then(|name| groups.get_key_value(name));
            let group = group.map(|(name, _)| name.clone());
            compares(info.name).then(|| (info.name.into(), group, info.overrides))
        });
        Snapshot {
            on_non_finite: optimizer.on_non_finite(),
            defaults: *optimizer.defaults(),
            parameters: parameters.collect(),
            groups,
        }
    }

    /// Returns the changes since the snapshot. The optimizer must have the same parameters as then, and at
    /// least the same groups.
    pub(super) fn changes(mut self, optimizer: &Optimizer) -> SettingChanges {
        let mut changes = Vec::new();
        let none = [None, None];
        let defaults = Some(self.defaults);
        changes.extend(Scoped::of(
            Place::Defaults,
            none.clone(),
            defaults,
            *optimizer.defaults(),
        ));
        let mut names: HashSet<Arc<str>> = HashSet::new();
        for Group {
            name, overrides, ..
        } in optimizer.groups()
        {
            let (name, before) = match self.groups.remove_entry(name.as_str()) {
                Some((name, before)) => (name, Some(before)),
                None => (name.as_str().into(), None),
            };
            names.insert(name.clone());
            let place = Place::Group(name);
            changes.extend(Scoped::of(place, none.clone(), before, *overrides));
        }
        for (before, now) in self.parameters.into_iter().zip(optimizer.parameters()) {
            let Some((name, group, before)) = before else {
                continue;
            };
            let now_in = now.group.and_then(|name| names.get(name)).cloned();
            let place = Place::Parameter(name);
            let groups = [group, now_in];
            changes.extend(Scoped::of(place, groups, Some(before), now.overrides));
        }
        let on_non_finite = [self.on_non_finite, optimizer.on_non_finite()];
        SettingChanges {
            on_non_finite: (on_non_finite[0] != on_non_finite[1]).then_some(on_non_finite),
            scopes: changes,
        }
    }
}
