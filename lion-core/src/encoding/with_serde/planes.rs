//! The planes of a state: floats and codes, which formats for machines store as bytes.

use super::*;
use lion_float_mode::in_default_mode;
use serde::ser::SerializeSeq;

impl Field for Codes<'_> {}

impl Field for Floats<'_> {}

/// The most elements for which room is made before they are read, whatever a format says about their number.
const ROOM: usize = 1024;

/// Returns room for the elements that a format announces.
fn room<T>(announced: Option<usize>) -> Vec<T> {
    Vec::with_capacity(announced.unwrap_or(0).min(ROOM))
}

/// The planes of an 8-bit state.
struct Blockwise8<'a> {
    codes: Codes<'a>,
    absmax: Floats<'a>,
}

structs! {
    Blockwise8<'a>, "Planes" {
        codes: Codes<'a>,
        absmax: Floats<'a>,
    }
}

/// The codes of an 8-bit state.
struct Codes<'a>(Cow<'a, [u8]>);

impl Serialize for Codes<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Codes<'_> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let bytes = from.deserialize_bytes(Bytes)?;
        Ok(Codes(Cow::Owned(bytes)))
    }
}

/// Reads bytes, which some formats store as a list of numbers.
struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(bytes)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<u8>, A::Error> {
        let mut bytes = room(from.size_hint());
        while let Some(byte) = from.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes)
    }
}

/// A plane of floats: a list of numbers in formats for people, and bytes in others.
struct Floats<'a>(Cow<'a, [f32]>);

impl Serialize for Floats<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            // A thread may be in a mode that converts subnormal numbers to zero.
            return in_default_mode(|| {
                let mut list = to.serialize_seq(Some(self.0.len()))?;
                for &x in &*self.0 {
                    // With the digits of an f64, a parser whose last digit is not exact still returns this f32.
                    list.serialize_element(&f64::from(x))?;
                }
                list.end()
            });
        }
        let mut bytes = vec![0; size_of_val(&*self.0)];
        let (words, _) = bytes.as_chunks_mut::<4>();
        for (word, x) in words.iter_mut().zip(&*self.0) {
            *word = x.to_le_bytes();
        }
        to.serialize_bytes(&bytes)
    }
}

impl<'de> Deserialize<'de> for Floats<'_> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() {
            return in_default_mode(|| from.deserialize_seq(Numbers32));
        }
        let bytes = from.deserialize_bytes(Bytes)?;
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            let (field, wanted) = ("the length of a plane in bytes", "a multiple of 4");
            return Err(D::Error::custom(Invalid::new(field, bytes.len(), wanted)));
        }
        let floats = words.iter().map(|&word| f32::from_le_bytes(word));
        Ok(Floats(floats.collect()))
    }
}

/// Reads a list of numbers as floats. The checks of the planes refuse numbers that are beyond `f32`.
struct Numbers32;

impl<'de> Visitor<'de> for Numbers32 {
    type Value = Floats<'static>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut floats: Vec<f32> = room(from.size_hint());
        while let Some(x) = from.next_element::<f64>()? {
            floats.push(x as f32);
        }
        Ok(Floats(floats.into()))
    }
}

/// The names of the variants of [`Planes`].
const PLANES: &[&str] = &["momentum32", "blockwise8"];

impl Serialize for Planes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        check_planes(self).map_err(S::Error::custom)?;
        match self {
            Planes::Momentum32 { momentum } => {
                let momentum = Floats(Cow::Borrowed(momentum));
                to.serialize_newtype_variant("Planes", 0, PLANES[0], &momentum)
            }
            Planes::Blockwise8 { codes, absmax } => {
                let planes = Blockwise8 {
                    codes: Codes(Cow::Borrowed(codes)),
                    absmax: Floats(Cow::Borrowed(absmax)),
                };
                to.serialize_newtype_variant("Planes", 1, PLANES[1], &planes)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Planes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Variants;

        impl<'de> Visitor<'de> for Variants {
            type Value = Planes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the planes of a state")
            }

            fn visit_enum<A: EnumAccess<'de>>(self, from: A) -> Result<Planes, A::Error> {
                let (record, names) = ("Planes", PLANES);
                let planes = match from.variant_seed(Identifier { record, names })? {
                    (0, variant) => Planes::Momentum32 {
                        momentum: variant.newtype_variant::<Floats<'_>>()?.0.into_owned(),
                    },
                    (_, variant) => {
                        let Blockwise8 { codes, absmax } = variant.newtype_variant()?;
                        let (codes, absmax) = (codes.0.into_owned(), absmax.0.into_owned());
                        Planes::Blockwise8 { codes, absmax }
                    }
                };
                check_planes(&planes).map_err(A::Error::custom)?;
                Ok(planes)
            }
        }

        from.deserialize_enum("Planes", PLANES, Variants)
    }
}
