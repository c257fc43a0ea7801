//! `cargo xtask inspect --diff A B`: compares the states and the values of two checkpoints, element by element.

use super::{Contents, NAME, open, visible, visible_json};
use anyhow::{Context, Result};
use lion::backend::Bits;
use lion::checkpoint::{Checkpoint, Plane, SavedParam, Tensor};
use lion::{Dtype, bf16, f16, quant};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

/// The number of elements that are compared at a time: whole blocks.
const PART: u64 = 1 << 20;

/// The elements of a state or of a parameter, as `f32`.
enum Source<'a> {
    Momenta(&'a Tensor),
    Values(&'a SavedParam),
}

/// The result of a comparison.
struct Compared {
    elements: u64,
    /// The number of elements that differ.
    differ: u64,
    /// The largest magnitude of a difference. NaN if a value of a parameter is NaN in one of the files only.
    largest: f64,
}

/// Prints the differences, and returns whether there are none.
pub(super) fn run(a: &Path, b: &Path, as_json: bool) -> Result<bool> {
    let (mut file_a, contents_a) = open(a)?;
    let (mut file_b, contents_b) = open(b)?;
    let mut rows = Vec::new();
    let mut equal = true;
    let (of_a, of_b) = (by_name(&contents_a), by_name(&contents_b));
    let names: BTreeSet<_> = of_a.keys().chain(of_b.keys()).collect();
    for key @ (what, name) in names {
        let note = match (of_a.get(key), of_b.get(key)) {
            (Some(x), Some(y)) if x.len() != y.len() => {
                format!("{} and {} elements", x.len(), y.len())
            }
            (Some(x), Some(y)) => {
                let compared = compare(&mut file_a, x, &mut file_b, y)?;
                if compared.differ == 0 && x.describe() == y.describe() {
                    continue;
                }
                let Compared {
                    elements,
                    differ,
                    largest,
                } = compared;
                equal = false;
                let (x, y) = (x.describe(), y.describe());
                let properties = if x == y {
                    String::new()
                } else {
                    format!(" ({x} and {y})")
                };
                if as_json {
                    rows.push(json!({
                        "what": what, "name": name, "elements": elements, "differ": differ,
                        "largest": largest, "a": x, "b": y,
                    }));
                } else {
                    let name = visible(name, NAME);
                    println!(
                        "{what} {name}: {differ} of {elements} elements differ, by at most {largest:e}{properties}"
                    );
                }
                continue;
            }
            (Some(_), None) => "only in the first file".to_owned(),
            (None, _) => "only in the second file".to_owned(),
        };
        equal = false;
        if as_json {
            rows.push(json!({ "what": what, "name": name, "note": note }));
        } else {
            println!("{what} {}: {note}", visible(name, NAME));
        }
    }
    for name in sections_that_differ(&contents_a, &contents_b) {
        equal = false;
        if as_json {
            rows.push(json!({ "what": "section", "name": name, "note": "differs" }));
        } else {
            println!("section {}: differs", visible(name, NAME));
        }
    }
    let settings = file_a.settings() == file_b.settings();
    if as_json {
        let value =
            json!({ "equal": equal && settings, "settings_equal": settings, "differences": rows });
        println!("{}", visible_json(&value));
    } else if !settings {
        println!("the hyper-parameters or groups differ");
    }
    Ok(equal && settings)
}

/// Returns the names of the sections that are in one file only, or have another size or other checksums.
fn sections_that_differ<'a>(a: &'a Contents, b: &'a Contents) -> BTreeSet<&'a str> {
    let sections = |contents: &'a Contents| {
        let sections = contents.sections.iter();
        let keys = sections.map(|it| (it.name.as_str(), it.plane.bytes, &it.plane.checksums));
        BTreeSet::from_iter(keys)
    };
    let (a, b) = (sections(a), sections(b));
    a.symmetric_difference(&b).map(|(name, ..)| *name).collect()
}

/// The states and values of a file by kind and name.
fn by_name(contents: &Contents) -> BTreeMap<(&'static str, &str), Source<'_>> {
    let states = contents.tensors.iter();
    let states = states.map(|it| (("state", it.name.as_str()), Source::Momenta(it)));
    let values = contents.params.iter();
    let values = values.map(|it| (("values", it.name.as_str()), Source::Values(it)));
    states.chain(values).collect()
}

impl Source<'_> {
    fn len(&self) -> u64 {
        match self {
            Source::Momenta(tensor) => tensor.len,
            Source::Values(param) => param.len,
        }
    }

    /// Returns the properties that are compared beside the elements.
    fn describe(&self) -> String {
        match self {
            Source::Momenta(tensor) => {
                let (bits, steps, seed) = (tensor.bits.get(), tensor.steps, tensor.seed);
                format!("{bits} bits, step {steps}, seed {seed:016x}")
            }
            Source::Values(param) => param.dtype.name().to_owned(),
        }
    }

    /// Reads elements from `first` on, which begins a block, as `f32`.
    fn read(&self, file: &mut Checkpoint<File>, first: u64, count: u64) -> Result<Vec<f32>> {
        match self {
            Source::Values(param) => {
                let size = param.dtype.bytes() as u64;
                let bytes = bytes(file, &param.name, &param.plane, first * size, count * size)?;
                Ok(match param.dtype {
                    Dtype::F16 => numbers(&bytes, |it| f16::from_le_bytes(it).to_f32()),
                    Dtype::Bf16 => numbers(&bytes, |it| bf16::from_le_bytes(it).to_f32()),
                    _ => numbers(&bytes, f32::from_le_bytes),
                })
            }
            Source::Momenta(tensor) => {
                let name = &tensor.name;
                let plane = |i: usize| tensor.planes.get(i).context("a state lacks a plane");
                if tensor.bits == Bits::ThirtyTwo {
                    let bytes = bytes(file, name, plane(0)?, 4 * first, 4 * count)?;
                    return Ok(numbers(&bytes, f32::from_le_bytes));
                }
                let block = u64::from(tensor.block);
                let codes = bytes(file, name, plane(0)?, first, count)?;
                let blocks = count.div_ceil(block);
                let absmax = bytes(file, name, plane(1)?, 4 * (first / block), 4 * blocks)?;
                let absmax = numbers(&absmax, f32::from_le_bytes);
                let mut momenta = vec![0.0; codes.len()];
                quant::dequantize(&codes, &absmax, &mut momenta)?;
                Ok(momenta)
            }
        }
    }
}

fn bytes(
    file: &mut Checkpoint<File>,
    name: &str,
    plane: &Plane,
    offset: u64,
    count: u64,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(count)?];
    file.read_plane(name, plane, offset, &mut bytes)?;
    Ok(bytes)
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&it| number(it)).collect()
}

/// Compares all elements. Both have the same number of elements.
fn compare(
    file_a: &mut Checkpoint<File>,
    a: &Source<'_>,
    file_b: &mut Checkpoint<File>,
    b: &Source<'_>,
) -> Result<Compared> {
    let mut compared = Compared {
        elements: a.len(),
        differ: 0,
        largest: 0.0,
    };
    // A plane of version 1 of the format has one checksum, so that it is read as a whole.
    let versions = [file_a.version(), file_b.version()];
    let part = if versions.contains(&1) {
        a.len().max(1)
    } else {
        PART
    };
    let mut first = 0;
    while first < a.len() {
        let count = part.min(a.len() - first);
        let (x, y) = (a.read(file_a, first, count)?, b.read(file_b, first, count)?);
        for (x, y) in x.into_iter().zip(y) {
            if x.to_bits() != y.to_bits() && (x != y || x.is_nan()) {
                compared.differ += 1;
                let difference = (f64::from(x) - f64::from(y)).abs();
                // A NaN stays.
                if difference.is_nan() || difference > compared.largest {
                    compared.largest = difference;
                }
            }
        }
        first += count;
    }
    Ok(compared)
}
