//! A streaming parser for the header of a safetensors file.
//!
//! The parser of the crate `safetensors` needs up to 34 times the size of the header in memory. This one
//! stores a full record only for the tensors of registered parameters. For all others it stores the name
//! of the parameter and the offsets.

use super::{QMAP, STEP};
use safetensors::Dtype;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use std::collections::BTreeMap;
use std::fmt;
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

/// A `Visitor` method that refuses a string where another type is expected. serde's default error repeats
/// the whole string, which may be as long as the header. All values are read with `deserialize_any`, which
/// calls this method for a string.
macro_rules! no_text {
    () => {
        fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
            Err(E::custom(format_args!(
                "found a string, wanted {}",
                Wanted(&self)
            )))
        }
    };
}

/// Displays what a visitor expects.
struct Wanted<'a, V>(&'a V);

impl<'de, V: Visitor<'de>> fmt::Display for Wanted<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }
}

struct HeaderVisitor<'a, F>(&'a mut Parser<F>);

impl<'de, F: Fn(&str) -> bool> Visitor<'de> for HeaderVisitor<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from names to tensors")
    }

    no_text!();

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut metadata = false;
        while let Some(key) = map.next_key_seed(KeySeed(self.0))? {
            if matches!(key, Key::Metadata) {
                map.next_value::<Metadata>()?;
                if std::mem::replace(&mut metadata, true) {
                    return Err(Error::custom("`__metadata__` occurs twice"));
                }
                continue;
            }
            let info = map.next_value_seed(InfoSeed { data: self.0.data })?;
            self.0.places.push((info.start, info.end));
            if let Key::Known { parameter, key } = key {
                let tensors = self.0.header.known.entry(parameter).or_default();
                tensors.0[key] = Some(info);
            }
        }
        Ok(())
    }
}

struct KeySeed<'a, F>(&'a mut Parser<F>);

impl<'de, F: Fn(&str) -> bool> DeserializeSeed<'de> for KeySeed<'_, F> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Key, D::Error> {
        from.deserialize_any(self)
    }
}

impl<F: Fn(&str) -> bool> Visitor<'_> for KeySeed<'_, F> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a tensor")
    }

    fn visit_str<E: Error>(self, tensor: &str) -> Result<Key, E> {
        self.0.key(tensor)
    }
}

/// A map from strings to strings. Its content is ignored.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct MetadataVisitor;

        impl<'de> Visitor<'de> for MetadataVisitor {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from strings to strings")
            }

            no_text!();

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                while map.next_entry::<Text, Text>()?.is_some() {}
                Ok(Metadata)
            }
        }

        from.deserialize_any(MetadataVisitor)
    }
}

/// A string. Its content is ignored.
struct Text;

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl Visitor<'_> for TextVisitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, _: &str) -> Result<Text, E> {
                Ok(Text)
            }
        }

        from.deserialize_any(TextVisitor)
    }
}

/// Reads and checks the header entry of one tensor.
struct InfoSeed {
    /// The number of bytes that follow the header.
    data: u64,
}

impl<'de> DeserializeSeed<'de> for InfoSeed {
    type Value = TensorInfo;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<TensorInfo, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for InfoSeed {
    type Value = TensorInfo;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of dtype, shape and data_offsets")
    }

    no_text!();

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TensorInfo, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key::<Field>()? {
            let twice = match field {
                Field::Dtype => dtype.replace(map.next_value::<Type>()?.0).is_some(),
                Field::Shape => shape
                    .replace(map.next_value::<List<MAX_AXES>>()?.0)
                    .is_some(),
                Field::Offsets => offsets.replace(map.next_value::<List<2>>()?.0).is_some(),
            };
            if twice {
                return Err(Error::custom("a field of a tensor occurs twice"));
            }
        }
        let dtype = dtype.ok_or_else(|| Error::missing_field("dtype"))?;
        let shape = shape.ok_or_else(|| Error::missing_field("shape"))?;
        let offsets = offsets.ok_or_else(|| Error::missing_field("data_offsets"))?;
        let &[start, end] = offsets.as_slice() else {
            return Err(Error::invalid_length(offsets.len(), &"two data_offsets"));
        };
        if start > end || end > self.data {
            let data = self.data;
            return Err(Error::custom(format_args!(
                "data_offsets are {start} and {end}, wanted start <= end <= {data}"
            )));
        }
        let product = |a: u64, b: &u64| a.checked_mul(*b);
        let elements = shape.iter().try_fold(1, product);
        let bits = elements.and_then(|elements| elements.checked_mul(dtype.bitsize() as u64));
        let (Some(elements), Some(bits)) = (elements, bits) else {
            return Err(Error::custom(format_args!(
                "the size of a tensor of shape {shape:?} overflows 64 bits"
            )));
        };
        if bits % 8 != 0 || bits / 8 != end - start {
            return Err(Error::custom(format_args!(
                "a tensor has {} bytes, wanted {bits} bits for {dtype:?} of shape {shape:?}",
                end - start
            )));
        }
        Ok(TensorInfo {
            dtype,
            shape,
            elements,
            start,
            end,
        })
    }
}

/// A field of a header entry.
enum Field {
    Dtype,
    Shape,
    Offsets,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct FieldVisitor;

        impl Visitor<'_> for FieldVisitor {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a field")
            }

            fn visit_str<E: Error>(self, field: &str) -> Result<Field, E> {
                match field {
                    "dtype" => Ok(Field::Dtype),
                    "shape" => Ok(Field::Shape),
                    "data_offsets" => Ok(Field::Offsets),
                    _ => Err(E::custom(
                        "found an unknown field, wanted dtype, shape or data_offsets",
                    )),
                }
            }
        }

        from.deserialize_any(FieldVisitor)
    }
}

/// The type of a tensor.
struct Type(Dtype);

impl<'de> Deserialize<'de> for Type {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TypeVisitor;

        impl Visitor<'_> for TypeVisitor {
            type Value = Type;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a type")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Type, E> {
                if name.len() > 16 {
                    let len = name.len();
                    return Err(E::custom(format_args!(
                        "the name of a type has {len} bytes, wanted at most 16"
                    )));
                }
                Dtype::deserialize(name.into_deserializer()).map(Type)
            }
        }

        from.deserialize_any(TypeVisitor)
    }
}

/// A list of at most `N` numbers.
struct List<const N: usize>(Vec<u64>);

impl<'de, const N: usize> Deserialize<'de> for List<N> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ListVisitor<const N: usize>;

        impl<'de, const N: usize> Visitor<'de> for ListVisitor<N> {
            type Value = List<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {N} numbers")
            }

            no_text!();

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List<N>, A::Error> {
                let mut numbers = Vec::new();
                while let Some(Number(number)) = list.next_element()? {
                    if numbers.len() == N {
                        return Err(Error::custom(format_args!(
                            "a list has more than {N} numbers"
                        )));
                    }
                    numbers.push(number);
                }
                Ok(List(numbers))
            }
        }

        from.deserialize_any(ListVisitor)
    }
}

/// An unsigned integer.
struct Number(u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct NumberVisitor;

        impl Visitor<'_> for NumberVisitor {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an unsigned 64-bit integer")
            }

            no_text!();

            fn visit_u64<E: Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number))
            }
        }

        from.deserialize_any(NumberVisitor)
    }
}
