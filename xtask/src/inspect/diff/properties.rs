//! The properties of records and settings that differ between two checkpoints.

use super::elements::Source;
use crate::inspect::{NAME, TEXT, cut, visible};
use lion::Overrides;
use lion::backend::{Group, OptimizerConfig};
use lion::checkpoint::{SavedParam, Tensor};
use lion::tensor::MemoryOrder;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const NOT_SET: &str = "not set";

/// A property that differs, with its values in the two files as text.
pub(super) struct Property {
    name: String,
    pub(super) a: String,
    pub(super) b: String,
}

/// Returns the properties as text, separated by commas.
pub(super) fn as_text(properties: &[Property]) -> String {
    let words = properties.iter().map(|Property { name, a, b }| {
        let [name, a, b] = [name, a, b].map(|it| visible(it, NAME));
        format!("{name} ({a} and {b})")
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Returns the properties as a JSON list.
pub(super) fn as_json(properties: &[Property]) -> Vec<Value> {
    let values = properties.iter().map(|Property { name, a, b }| {
        let [name, a, b] = [name, a, b].map(|it| cut(it, TEXT));
        json!({ "name": name, "a": a, "b": b })
    });
    values.collect()
}

/// Collects the properties whose texts differ. The texts of different values must be different; those of `f64` are, as
/// each has the digits that identify it.
#[derive(Default)]
struct Differences(Vec<Property>);

impl Differences {
    fn check(&mut self, name: impl Into<String>, a: impl ToString, b: impl ToString) {
        let (a, b) = (a.to_string(), b.to_string());
        if a != b {
            let name = name.into();
            self.0.push(Property { name, a, b });
        }
    }

    /// Compares hyper-parameters. `scope` says whose they are, as "among the defaults".
    fn overrides(&mut self, scope: &str, a: &Overrides, b: &Overrides) {
        for ((name, a), (_, b)) in a.settings().zip(b.settings()) {
            let [a, b] = [a, b].map(|it| it.unwrap_or_else(|| NOT_SET.to_owned()));
            self.check(format!("{name} {scope}"), a, b);
        }
    }

    fn tensor(&mut self, (a, groups_a): (&Tensor, &[Group]), (b, groups_b): (&Tensor, &[Group])) {
        self.check("number of elements", a.len, b.len);
        self.check("type", a.dtype.name(), b.dtype.name());
        self.check("bits", a.bits.get(), b.bits.get());
        self.check("memory order", order(&a.order), order(&b.order));
        self.check("shard offset", a.offset, b.offset);
        self.check("length of the whole tensor", a.whole_len, b.whole_len);
        self.check("group", group(a, groups_a), group(b, groups_b));
        self.check("steps", a.steps, b.steps);
        let [seed_a, seed_b] = [a.seed, b.seed].map(|it| format!("{it:016x}"));
        self.check("seed", seed_a, seed_b);
        self.overrides("among the overrides", &a.overrides, &b.overrides);
    }

    fn values(&mut self, a: &SavedParam, b: &SavedParam) {
        self.check("number of elements", a.len, b.len);
        self.check("type", a.dtype.name(), b.dtype.name());
        self.check("memory order", &a.order, &b.order);
    }
}

fn order(order: &Option<MemoryOrder>) -> String {
    let order = order.as_ref().map(ToString::to_string);
    order.unwrap_or_else(|| NOT_SET.to_owned())
}

/// Returns the group's name in quotes, so that no name reads as a missing one.
fn group(tensor: &Tensor, groups: &[Group]) -> String {
    match tensor.group {
        None => "none".to_owned(),
        Some(group) => format!("`{}`", groups[group].name),
    }
}

impl Source<'_> {
    /// Returns the properties of the records that differ. Groups are compared by name.
    pub(super) fn properties(
        &self,
        groups: &[Group],
        other: &Source<'_>,
        groups_of_other: &[Group],
    ) -> Vec<Property> {
        let mut differences = Differences::default();
        match (self, other) {
            (Source::Momenta(a), Source::Momenta(b)) => {
                differences.tensor((a, groups), (b, groups_of_other));
            }
            (Source::Values(a), Source::Values(b)) => differences.values(a, b),
            // Only records of one kind are compared.
            _ => {}
        }
        differences.0
    }
}

/// Compares the scores of two files.
pub(super) fn score(a: Option<f64>, b: Option<f64>) -> Option<Property> {
    let mut differences = Differences::default();
    let [a, b] = [a, b].map(|it| it.map_or(NOT_SET.to_owned(), |it| format!("{it:?}")));
    differences.check("score", a, b);
    differences.0.pop()
}

/// Compares the hyper-parameters and groups of two files.
pub(super) fn settings(a: &OptimizerConfig, b: &OptimizerConfig) -> Vec<Property> {
    let mut differences = Differences::default();
    let [of_a, of_b] = [a.on_non_finite, b.on_non_finite]
        .map(|it| it.map_or(NOT_SET.to_owned(), |it| format!("{it:?}")));
    differences.check("on_non_finite", of_a, of_b);
    differences.overrides("among the defaults", &a.defaults, &b.defaults);
    let names =
        |groups: &[Group]| -> Vec<String> { groups.iter().map(|g| g.name.clone()).collect() };
    let (names_a, names_b) = (names(&a.groups), names(&b.groups));
    for name in BTreeSet::from_iter(names_a.iter().chain(&names_b)) {
        let find = |groups: &[Group]| groups.iter().position(|group| group.name == *name);
        match (find(&a.groups), find(&b.groups)) {
            (Some(x), Some(y)) => {
                let (x, y) = (&a.groups[x].overrides, &b.groups[y].overrides);
                differences.overrides(&format!("of group `{name}`"), x, y);
            }
            (x, y) => {
                let [x, y] = [x, y].map(|it| if it.is_some() { "present" } else { "missing" });
                differences.check(format!("group `{name}`"), x, y);
            }
        }
    }
    if BTreeSet::from_iter(&names_a) == BTreeSet::from_iter(&names_b) {
        let [x, y] = [names_a, names_b].map(|names| format!("{names:?}"));
        differences.check("order of the groups", x, y);
    }
    differences.0
}
