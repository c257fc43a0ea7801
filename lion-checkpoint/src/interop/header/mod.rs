//! A streaming parser for the header of a safetensors file.
//!
//! The parser of the crate `safetensors` needs up to 34 times the size of the header in memory. This one
//! stores a full record only for the tensors of registered parameters. For all others it stores the name
//! of the parameter and the offsets. `visitors.rs` parses the JSON.

mod visitors;

use self::visitors::HeaderVisitor;
use super::{QMAP, STEP};
use safetensors::Dtype;
use serde::de::{Deserializer, Error};
use std::collections::BTreeMap;
use std::io::{BufReader, Read};

/// The maximum length of a header in bytes, the same as in the crate `safetensors`.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// The maximum number of axes of a tensor.
const MAX_AXES: usize = 16;

/// The keys: a tensor is named `PARAMETER.KEY`.
const KEYS: [&str; 4] = ["state1", "absmax1", QMAP, STEP];

/// The maximum length of a tensor's name in bytes: the name of a parameter, a dot, and the longest key.
const MAX_NAME: usize = crate::MAX_NAME + ".absmax1".len();

/// The maximum length of an error message in bytes.
const MAX_MESSAGE: usize = 1000;

/// The header entry of one tensor.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    /// The product of `shape`.
    pub(super) elements: u64,
    /// The byte range `start..end`, relative to the end of the header.
    pub(super) start: u64,
    pub(super) end: u64,
}

/// The tensors of one parameter, in the order of [`KEYS`].
#[derive(Clone, Debug, Default)]
pub(super) struct Tensors([Option<TensorInfo>; KEYS.len()]);

impl Tensors {
    /// Returns the tensor with this key.
    pub(super) fn get(&self, key: &str) -> Option<&TensorInfo> {
        self.iter().find(|(k, _)| *k == key).map(|(_, info)| info)
    }

    /// Returns an iterator over the tensors that exist, each with its key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &TensorInfo)> {
        let infos = KEYS.into_iter().zip(&self.0);
        infos.filter_map(|(key, info)| Some((key, info.as_ref()?)))
    }
}

/// The content of a header.
#[derive(Debug, Default)]
pub(super) struct Header {
    /// The tensors of registered parameters.
    pub(super) known: BTreeMap<String, Tensors>,
    /// For each other parameter, a bit set of the [`KEYS`] that exist.
    unknown: BTreeMap<String, u8>,
    /// The first tensor whose name ends in none of [`KEYS`].
    pub(super) unrecognized: Option<String>,
}

impl Header {
    /// Returns the full name of a missing tensor: one with this key, of the first parameter in the file
    /// that has none. Returns `None` if every parameter has one.
    pub(super) fn missing(&self, key: &str) -> Option<String> {
        let bit = KEYS.iter().position(|k| *k == key)?;
        let known = self.known.iter();
        let mut known = known.filter(|(_, tensors)| tensors.get(key).is_none());
        let unknown = self.unknown.iter();
        let mut unknown = unknown.filter(|(_, bits)| *bits & 1 << bit == 0);
        let name = known.next().map(|(name, _)| name);
        let name = name.or_else(|| unknown.next().map(|(name, _)| name))?;
        Some(format!("{name}.{key}"))
    }

    /// Returns the names of all parameters in the file.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let names = self.known.keys().chain(self.unknown.keys());
        names.map(String::as_str)
    }

    /// Returns the names of the parameters that are not registered, sorted.
    pub(super) fn into_unknown(self) -> impl Iterator<Item = String> {
        self.unknown.into_keys()
    }
}

/// Reads a header to its end. `data` is the number of bytes that follow the header in the file.
/// `registered` returns whether a parameter is registered with the optimizer.
pub(super) fn read(
    reader: impl Read,
    data: u64,
    registered: impl Fn(&str) -> bool,
) -> Result<Header, serde_json::Error> {
    let mut parser = Parser {
        header: Header::default(),
        places: Vec::new(),
        data,
        registered,
    };
    // serde_json reads byte by byte, so it needs a `BufReader` directly below it.
    let reader = BufReader::new(reader);
    let mut json = serde_json::Deserializer::from_reader(reader);
    json.deserialize_any(HeaderVisitor(&mut parser))?;
    json.end()?;
    parser.check_places()?;
    Ok(parser.header)
}

/// Returns the message of an error, truncated, because it may repeat a long part of the file.
pub(super) fn message(error: &serde_json::Error) -> String {
    let mut text = error.to_string();
    if text.len() > MAX_MESSAGE {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE));
        text.push_str(" ...");
    }
    text
}

struct Parser<F> {
    header: Header,
    /// The start and the end of each tensor.
    places: Vec<(u64, u64)>,
    data: u64,
    registered: F,
}

/// The kind of a key in the header. It determines how its value is parsed.
enum Key {
    Metadata,
    Known { parameter: String, key: usize },
    Other,
}

impl<F: Fn(&str) -> bool> Parser<F> {
    /// Checks and classifies a key of the header.
    fn key<E: Error>(&mut self, tensor: &str) -> Result<Key, E> {
        if tensor == "__metadata__" {
            return Ok(Key::Metadata);
        }
        if tensor.len() > MAX_NAME {
            let len = tensor.len();
            return Err(E::custom(format_args!(
                "the name of a tensor has {len} bytes, wanted at most {MAX_NAME}"
            )));
        }
        let split = KEYS.iter().enumerate().find_map(|(index, key)| {
            let name = tensor.strip_suffix(key)?.strip_suffix('.')?;
            (!name.is_empty()).then_some((name, index))
        });
        let Some((name, key)) = split else {
            if self.header.unrecognized.is_none() {
                self.header.unrecognized = Some(tensor.to_owned());
            }
            return Ok(Key::Other);
        };
        let twice = || E::custom(format_args!("tensor `{tensor}` occurs twice"));
        if (self.registered)(name) {
            let tensors = self.header.known.get(name);
            if tensors.is_some_and(|tensors| tensors.0[key].is_some()) {
                return Err(twice());
            }
            let parameter = name.to_owned();
            return Ok(Key::Known { parameter, key });
        }
        let bit = 1 << key;
        match self.header.unknown.get_mut(name) {
            Some(bits) if *bits & bit != 0 => return Err(twice()),
            Some(bits) => *bits |= bit,
            None => drop(self.header.unknown.insert(name.to_owned(), bit)),
        }
        Ok(Key::Other)
    }

    /// Checks that each byte of the data belongs to exactly one tensor.
    fn check_places(&mut self) -> Result<(), serde_json::Error> {
        self.places.sort_unstable();
        let mut end = 0;
        for &(start, next) in &self.places {
            if start != end {
                let (from, to) = (start.min(end), start.max(end));
                let whose = if start < end {
                    "two tensors"
                } else {
                    "no tensor"
                };
                return Err(Error::custom(format_args!(
                    "bytes {from} to {to} after the header belong to {whose}"
                )));
            }
            end = next;
        }
        if end != self.data {
            return Err(Error::custom(format_args!(
                "its tensors have {end} bytes, but {} bytes follow the header",
                self.data
            )));
        }
        Ok(())
    }
}
