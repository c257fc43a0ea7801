//! `cargo xtask inspect --diff A B`: compares two checkpoints: the records and the elements of the states and values,
//! the sections, the score, and the hyper-parameters and groups.

mod elements;
mod properties;

use super::{Contents, NAME, TEXT, cut, open_one, visible, visible_json};
use anyhow::Result;
use elements::{Compared, Source};
use lion::checkpoint::{Checkpoint, SavedSection};
use properties::{Property, as_json, as_text};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

/// Prints the differences, and returns whether there are none.
pub(super) fn run(a: &Path, b: &Path, as_json: bool) -> Result<bool> {
    let (mut file_a, contents_a) = open_one(a)?;
    let (mut file_b, contents_b) = open_one(b)?;
    let mut report = Report {
        as_json,
        rows: Vec::new(),
        equal: true,
    };
    let (of_a, of_b) = (by_name(&contents_a), by_name(&contents_b));
    let names: BTreeSet<_> = of_a.keys().chain(of_b.keys()).collect();
    for &(what, name) in names {
        match (of_a.get(&(what, name)), of_b.get(&(what, name))) {
            (Some(x), Some(y)) => {
                let groups = [&file_a, &file_b].map(|file| &file.settings().groups[..]);
                let properties = x.properties(groups[0], y, groups[1]);
                let compared = if x.comparable(y) {
                    Some(elements::compare(&mut file_a, x, &mut file_b, y)?)
                } else {
                    None
                };
                let equal = compared.as_ref().is_some_and(Compared::is_equal);
                if !(equal && properties.is_empty()) {
                    report.record(what, name, compared.as_ref(), &properties);
                }
            }
            (one, _) => report.note(what, name, only(one.is_some())),
        }
    }
    sections(
        &mut report,
        (&mut file_a, &contents_a),
        (&mut file_b, &contents_b),
    )?;
    let score = properties::score(file_a.score(), file_b.score());
    if let Some(score) = score {
        report.score(&score);
    }
    report.settings(&file_a, &file_b);
    Ok(report.equal)
}

/// Returns the note on something that is in one file only.
fn only(in_first: bool) -> &'static str {
    if in_first {
        "only in the first file"
    } else {
        "only in the second file"
    }
}

/// Compares the sections by their bytes.
fn sections(
    report: &mut Report,
    (file_a, contents_a): (&mut Checkpoint<File>, &Contents),
    (file_b, contents_b): (&mut Checkpoint<File>, &Contents),
) -> Result<()> {
    let named = |contents| {
        let Contents { sections, .. }: &Contents = contents;
        let pairs = sections.iter().map(|it| (it.name.as_str(), it));
        pairs.collect::<BTreeMap<&str, &SavedSection>>()
    };
    let (of_a, of_b) = (named(contents_a), named(contents_b));
    let names: BTreeSet<_> = of_a.keys().chain(of_b.keys()).collect();
    for &name in names {
        let note = match (of_a.get(name), of_b.get(name)) {
            (Some(x), Some(y)) => {
                if elements::same_bytes(file_a, x, file_b, y)? {
                    continue;
                }
                "differs"
            }
            (one, _) => only(one.is_some()),
        };
        report.note("section", name, note);
    }
    Ok(())
}

/// Prints each difference as text, or collects it for the JSON output.
struct Report {
    as_json: bool,
    rows: Vec<Value>,
    equal: bool,
}

impl Report {
    /// Reports a difference that has no details.
    fn note(&mut self, what: &str, name: &str, note: &str) {
        self.equal = false;
        if self.as_json {
            let name = cut(name, TEXT);
            self.rows
                .push(json!({ "what": what, "name": name, "note": note }));
        } else {
            println!("{what} {}: {note}", visible(name, NAME));
        }
    }

    /// Reports a state or the values of a parameter. `compared` is `None` if the elements were not compared.
    fn record(
        &mut self,
        what: &str,
        name: &str,
        compared: Option<&Compared>,
        properties: &[Property],
    ) {
        self.equal = false;
        if self.as_json {
            self.rows.push(json!({
                "what": what,
                "name": cut(name, TEXT),
                "elements": compared.map(|it| it.elements),
                "differ": compared.map(|it| it.differ),
                "largest": compared.map(|it| it.largest),
                "absmax_differ": compared.map(|it| it.absmax_differ),
                "properties": as_json(properties),
            }));
            return;
        }
        let mut text = match compared {
            None => "elements not compared".to_owned(),
            Some(it) if it.differ == 0 => format!("all {} elements are equal", it.elements),
            Some(it) => format!(
                "{} of {} elements differ, by at most {:e}",
                it.differ, it.elements, it.largest
            ),
        };
        if let Some(it) = compared.filter(|it| it.absmax_differ > 0) {
            text += &format!("; blocks with another absmax: {}", it.absmax_differ);
        }
        if !properties.is_empty() {
            text += &format!("; differs in {}", as_text(properties));
        }
        println!("{what} {}: {text}", visible(name, NAME));
    }

    fn score(&mut self, score: &Property) {
        self.equal = false;
        if self.as_json {
            let properties = as_json(std::slice::from_ref(score));
            self.rows
                .push(json!({ "what": "score", "properties": properties }));
        } else {
            println!("the score differs: {} and {}", score.a, score.b);
        }
    }

    /// Reports the hyper-parameters and groups, and prints the JSON object.
    fn settings(&mut self, a: &Checkpoint<File>, b: &Checkpoint<File>) {
        let properties = properties::settings(a.settings(), b.settings());
        let equal = properties.is_empty() && a.settings() == b.settings();
        self.equal &= equal;
        if self.as_json {
            let value = json!({
                "equal": self.equal,
                "settings_equal": equal,
                "settings": as_json(&properties),
                "differences": self.rows,
            });
            println!("{}", visible_json(&value));
        } else if !equal {
            let properties = as_text(&properties);
            println!("the hyper-parameters or groups differ: {properties}");
        }
    }
}

/// The states and values of a file by kind and name.
fn by_name(contents: &Contents) -> BTreeMap<(&'static str, &str), Source<'_>> {
    let states = contents.tensors.iter();
    let states = states.map(|it| (("state", it.name.as_str()), Source::Momenta(it)));
    let values = contents.params.iter();
    let values = values.map(|it| (("values", it.name.as_str()), Source::Values(it)));
    states.chain(values).collect()
}
