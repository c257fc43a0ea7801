//! The visitors that parse the JSON of a header into a [`Parser`].

use super::{Key, MAX_AXES, Parser, TensorInfo};
use safetensors::Dtype;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use std::fmt;

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

/// Implements `Deserialize` for a type by a visitor with this expectation and these methods.
macro_rules! deserialize {
    ($name:ident, $expecting:literal; $($methods:item)*) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct ValueVisitor;

                impl<'de> Visitor<'de> for ValueVisitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    $($methods)*
                }

                from.deserialize_any(ValueVisitor)
            }
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

/// Parses a whole header.
pub(super) struct HeaderVisitor<'a, F>(pub(super) &'a mut Parser<F>);

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

deserialize! {
    Metadata, "a map from strings to strings";

    no_text!();

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
        while map.next_entry::<Text, Text>()?.is_some() {}
        Ok(Metadata)
    }
}

/// A string. Its content is ignored.
struct Text;

deserialize! {
    Text, "a string";

    fn visit_str<E: Error>(self, _: &str) -> Result<Text, E> {
        Ok(Text)
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

deserialize! {
    Field, "the name of a field";

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

/// The type of a tensor.
struct Type(Dtype);

deserialize! {
    Type, "the name of a type";

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

deserialize! {
    Number, "an unsigned 64-bit integer";

    no_text!();

    fn visit_u64<E: Error>(self, number: u64) -> Result<Number, E> {
        Ok(Number(number))
    }
}
