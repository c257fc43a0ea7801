//! serde's `Serialize` and `Deserialize`.

use super::*;
use serde::de::{
    DeserializeSeed, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::ser::{Error as _, SerializeStruct};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::marker::PhantomData;

/// A field of a structure.
trait Field: Sized {
    /// Whether formats for people leave the field out.
    fn is_absent(&self) -> bool {
        false
    }

    /// Returns the value of a field that is left out, or `None` if it must not be.
    fn absent() -> Option<Self> {
        None
    }
}

impl<T> Field for Option<T> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl Field for Version {
    fn absent() -> Option<Self> {
        Some(Version)
    }
}

macro_rules! always_present {
    ($($kind:ty)*) => {
        $(impl Field for $kind {})*
    };
}

always_present!(Numbers bool u64 f64 Shard Cow<'_, Planes> Bits Name Overrides);

impl<T, const MOST: usize> Field for List<T, MOST> {}

/// One of the names of fields or of variants. Its value is the index.
struct Identifier {
    record: &'static str,
    names: &'static [&'static str],
}

impl<'de> DeserializeSeed<'de> for Identifier {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<usize, D::Error> {
        from.deserialize_identifier(self)
    }
}

impl<'de> Visitor<'de> for Identifier {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: one of {}", self.record, self.names.join(", "))
    }

    fn visit_u64<E: serde::de::Error>(self, index: u64) -> Result<usize, E> {
        match usize::try_from(index) {
            Ok(index) if index < self.names.len() => Ok(index),
            _ => {
                let field = format_args!("the index of a name of {}", self.record);
                let wanted = format_args!("below {}: {}", self.names.len(), self.names.join(", "));
                Err(E::custom(Invalid::new(field, index, wanted)))
            }
        }
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<usize, E> {
        self.visit_bytes(name.as_bytes())
    }

    fn visit_bytes<E: serde::de::Error>(self, name: &[u8]) -> Result<usize, E> {
        let found = self.names.iter().position(|known| known.as_bytes() == name);
        found.ok_or_else(|| {
            // A damaged name may be long.
            let given = String::from_utf8_lossy(&name[..name.len().min(64)]);
            let field = format_args!("a name of {}", self.record);
            let wanted = format_args!("one of {}", self.names.join(", "));
            E::custom(Invalid::new(field, format_args!("`{given}`"), wanted))
        })
    }
}

/// Implements both traits for a structure. A format stores the fields by name or in their order.
macro_rules! structs {
    ($($fields:ident $(<$life:lifetime>)?, $record:literal { $($field:ident: $kind:ty,)* })*) => {$(
        impl $(<$life>)? Serialize for $fields $(<$life>)? {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let brief = to.is_human_readable();
                let absent = [$(brief && self.$field.is_absent()),*];
                let present = absent.iter().filter(|absent| !**absent).count();
                let mut to = to.serialize_struct($record, present)?;
                $(if brief && self.$field.is_absent() {
                    to.skip_field(stringify!($field))?;
                } else {
                    to.serialize_field(stringify!($field), &self.$field)?;
                })*
                to.end()
            }
        }

        impl<'de $(, $life)?> Deserialize<'de> for $fields $(<$life>)? {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                const NAMES: &[&str] = &[$(stringify!($field)),*];

                struct Fields $(<$life>)? (PhantomData<$fields $(<$life>)?>);

                impl<'de $(, $life)?> Visitor<'de> for Fields $(<$life>)? {
                    type Value = $fields $(<$life>)?;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("the fields of ", $record))
                    }

                    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
                        Ok($fields {
                            $($field: match from.next_element()? {
                                Some(value) => value,
                                None => return Err(A::Error::missing_field(stringify!($field))),
                            },)*
                        })
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
                        $(let mut $field: Option<$kind> = None;)*
                        let identifier = || Identifier { record: $record, names: NAMES };
                        while let Some(index) = from.next_key_seed(identifier())? {
                            let name = NAMES[index];
                            $(if name == stringify!($field) {
                                if $field.is_some() {
                                    return Err(A::Error::duplicate_field(stringify!($field)));
                                }
                                $field = Some(from.next_value()?);
                                continue;
                            })*
                        }
                        Ok($fields {
                            $($field: match $field.or_else(Field::absent) {
                                Some(value) => value,
                                None => return Err(A::Error::missing_field(stringify!($field))),
                            },)*
                        })
                    }
                }

                from.deserialize_struct($record, NAMES, Fields(PhantomData))
            }
        }
    )*};
}

records!(structs);

mod planes;

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u8(VERSION)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let given = u8::deserialize(from)?;
        Version::check(given, "the version of a record").map_err(D::Error::custom)
    }
}

impl Serialize for Numbers {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(NUMBERS_VERSION)
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Numbers::check(u32::deserialize(from)?).map_err(D::Error::custom)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Name, E> {
                Ok(Name(name.to_owned()))
            }

            fn visit_string<E: serde::de::Error>(self, name: String) -> Result<Name, E> {
                Ok(Name(name))
            }
        }

        // A format may allocate a string by its length before it reads it, but not one that it lends.
        from.deserialize_str(Text)
    }
}

impl<T: Serialize, const MOST: usize> Serialize for List<T, MOST> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(&self.0)
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for List<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Elements<T, const MOST: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Elements<T, MOST> {
            type Value = List<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(element) = from.next_element()? {
                    list.push(element);
                    Self::Value::check(list.len() as u64, "a list").map_err(A::Error::custom)?;
                }
                Ok(List(list))
            }
        }

        from.deserialize_seq(Elements(PhantomData))
    }
}

/// The names of the variants of [`MemoryOrder`].
const ORDERS: &[&str] = &["row_major", "permuted"];

impl Serialize for MemoryOrder {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match axes_of(self).map_err(S::Error::custom)? {
            None => to.serialize_unit_variant("MemoryOrder", 0, ORDERS[0]),
            Some(axes) => to.serialize_newtype_variant("MemoryOrder", 1, ORDERS[1], &axes),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryOrder {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Variants;

        impl<'de> Visitor<'de> for Variants {
            type Value = MemoryOrder;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a memory order")
            }

            fn visit_enum<A: EnumAccess<'de>>(self, from: A) -> Result<MemoryOrder, A::Error> {
                let (record, names) = ("MemoryOrder", ORDERS);
                match from.variant_seed(Identifier { record, names })? {
                    (0, variant) => variant.unit_variant().map(|()| MemoryOrder::RowMajor),
                    (_, variant) => {
                        let axes: Axes = variant.newtype_variant()?;
                        order_of(&axes).map_err(A::Error::custom)
                    }
                }
            }
        }

        from.deserialize_enum("MemoryOrder", ORDERS, Variants)
    }
}

impl Serialize for Bits {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(self.get())
    }
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        bits(u32::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// Implements both traits for a type by the record of its fields.
macro_rules! as_fields {
    ($($kind:ident: $fields:ident,)*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                $fields::of(self).map_err(S::Error::custom)?.serialize(to)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                $fields::deserialize(from)?.record().map_err(D::Error::custom)
            }
        }
    )*};
}

as_fields! {
    StateRecord: StateFields,
    Shard: ShardFields,
    Overrides: OverridesFields,
    Hyper: HyperFields,
    Group: GroupFields,
    OptimizerConfig: ConfigFields,
}

/// Implements both traits for an enum by the name of the variant.
macro_rules! as_name {
    ($($kind:ident)*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let tag = self.tag();
                let name = <$kind as Unit>::NAMES[usize::from(tag)];
                to.serialize_unit_variant(<$kind as Unit>::NAME, tag.into(), name)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_enum(<$kind as Unit>::NAME, <$kind as Unit>::NAMES, Variants(PhantomData))
            }
        }
    )*};
}

as_name!(Dtype OnNonFinite);

/// Reads a variant without fields.
struct Variants<T>(PhantomData<T>);

impl<'de, T: Unit> Visitor<'de> for Variants<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: one of {}", T::NAME, T::NAMES.join(", "))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, from: A) -> Result<T, A::Error> {
        let (record, names) = (T::NAME, T::NAMES);
        let (index, variant) = from.variant_seed(Identifier { record, names })?;
        variant.unit_variant()?;
        Ok(T::ALL[index])
    }
}
