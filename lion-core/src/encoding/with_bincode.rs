//! bincode's `Encode` and `Decode`. The bytes do not depend on bincode's configuration: numbers are little-endian and
//! have their full width.

use super::*;
use bincode::de::{Decoder, read::Reader};
use bincode::enc::{Encoder, write::Writer};
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode, impl_borrow_decode};

/// Bytes per part in which a plane or a name is read or written.
const PART: usize = 16 << 10;

impl From<Invalid> for EncodeError {
    fn from(invalid: Invalid) -> Self {
        EncodeError::OtherString(invalid.0)
    }
}

impl From<Invalid> for DecodeError {
    fn from(invalid: Invalid) -> Self {
        DecodeError::OtherString(invalid.0)
    }
}

/// A value with a fixed encoding.
trait Fixed: Sized {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError>;

    /// Reads and checks a value. `field` names it in errors.
    fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError>;
}

/// Fills `bytes` from the input. They count towards the limit of bincode's configuration.
fn read<D: Decoder>(decoder: &mut D, bytes: &mut [u8]) -> Result<(), DecodeError> {
    decoder.claim_bytes_read(bytes.len())?;
    decoder.reader().read(bytes)
}

/// Makes room for `more` elements of a plane of `len` elements, but only for as many as have been read already: `len`
/// comes from the input, which may not have as many.
fn grow<T>(plane: &mut Vec<T>, more: usize, len: usize) -> Result<(), DecodeError> {
    let have = plane.len();
    if plane.capacity() - have >= more {
        return Ok(());
    }
    let room = more.max(have).min(len - have);
    plane.try_reserve_exact(room).map_err(|_| {
        let bytes = (have + room).saturating_mul(size_of::<T>());
        DecodeError::OtherString(format!("cannot allocate {bytes} bytes"))
    })
}

fn take_bytes<D: Decoder>(decoder: &mut D, len: usize) -> Result<Vec<u8>, DecodeError> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let (start, more) = (bytes.len(), (len - bytes.len()).min(PART));
        grow(&mut bytes, more, len)?;
        bytes.resize(start + more, 0);
        read(decoder, &mut bytes[start..])?;
    }
    Ok(bytes)
}

fn take_floats<D: Decoder>(decoder: &mut D, len: usize) -> Result<Vec<f32>, DecodeError> {
    let mut floats = Vec::new();
    let mut buffer = [0; PART];
    while floats.len() < len {
        let more = (len - floats.len()).min(PART / 4);
        grow(&mut floats, more, len)?;
        let part = &mut buffer[..4 * more];
        read(decoder, part)?;
        let (words, _) = part.as_chunks::<4>();
        floats.extend(words.iter().map(|&word| f32::from_le_bytes(word)));
    }
    Ok(floats)
}

fn put_floats<E: Encoder>(encoder: &mut E, floats: &[f32]) -> Result<(), EncodeError> {
    let mut buffer = [0; PART];
    for part in floats.chunks(PART / 4) {
        let bytes = &mut buffer[..4 * part.len()];
        let (words, _) = bytes.as_chunks_mut::<4>();
        for (word, x) in words.iter_mut().zip(part) {
            *word = x.to_le_bytes();
        }
        encoder.writer().write(bytes)?;
    }
    Ok(())
}

macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl Fixed for $number {
            fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                encoder.writer().write(&self.to_le_bytes())
            }

            fn take<D: Decoder>(decoder: &mut D, _: &'static str) -> Result<Self, DecodeError> {
                let mut bytes = [0; size_of::<$number>()];
                read(decoder, &mut bytes)?;
                Ok(<$number>::from_le_bytes(bytes))
            }
        }
    )*};
}

numbers!(u8 u32 u64 i64 f64);

/// Reads a byte that is 0 or 1.
fn take_bool<D: Decoder>(
    decoder: &mut D,
    field: &'static str,
    wanted: &str,
) -> Result<bool, DecodeError> {
    match u8::take(decoder, field)? {
        0 => Ok(false),
        1 => Ok(true),
        given => Err(Invalid::new(field, given, wanted).into()),
    }
}

impl Fixed for bool {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        u8::from(*self).put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError> {
        take_bool(decoder, field, "0 (false) or 1 (true)")
    }
}

impl<T: Fixed> Fixed for Option<T> {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.is_some().put(encoder)?;
        self.as_ref().map_or(Ok(()), |value| value.put(encoder))
    }

    fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError> {
        match take_bool(decoder, field, "0 (absent) or 1 (present)")? {
            true => T::take(decoder, field).map(Some),
            false => Ok(None),
        }
    }
}

impl<T: Fixed, U: Fixed> Fixed for (T, U) {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.put(encoder)?;
        self.1.put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError> {
        Ok((T::take(decoder, field)?, U::take(decoder, field)?))
    }
}

impl<T: Fixed, const MOST: usize> Fixed for List<T, MOST> {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        (self.0.len() as u64).put(encoder)?;
        self.0.iter().try_for_each(|element| element.put(encoder))
    }

    fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError> {
        let len = u64::take(decoder, field)?;
        Self::check(len, field)?;
        let elements = (0..len).map(|_| T::take(decoder, field));
        elements.collect::<Result<_, _>>().map(List)
    }
}

impl Fixed for Name {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        (self.0.len() as u64).put(encoder)?;
        encoder.writer().write(self.0.as_bytes())
    }

    fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError> {
        let len = length(field, u64::take(decoder, field)?)?;
        let bytes = take_bytes(decoder, len)?;
        let name = String::from_utf8(bytes);
        name.map(Name)
            .map_err(|e| Invalid::new(field, e.utf8_error(), "UTF-8").into())
    }
}

impl Fixed for Version {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        VERSION.put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError> {
        Ok(Version::check(u8::take(decoder, field)?, field)?)
    }
}

impl Fixed for Numbers {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        NUMBERS_VERSION.put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError> {
        Ok(Numbers::check(u32::take(decoder, field)?)?)
    }
}

impl Fixed for Cow<'_, Planes> {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        (**self).put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError> {
        Planes::take(decoder, field).map(Cow::Owned)
    }
}

impl Fixed for Planes {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        check_planes(self)?;
        let tag: u8 = match self {
            Planes::Momentum32 { .. } => 0,
            Planes::Blockwise8 { .. } => 1,
        };
        tag.put(encoder)?;
        (self.len() as u64).put(encoder)?;
        match self {
            Planes::Momentum32 { momentum } => put_floats(encoder, momentum),
            Planes::Blockwise8 { codes, absmax } => {
                encoder.writer().write(codes)?;
                put_floats(encoder, absmax)
            }
        }
    }

    fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError> {
        let tag = u8::take(decoder, field)?;
        if tag > 1 {
            let wanted = "0 (momentum32) or 1 (blockwise8)";
            return Err(Invalid::new("the tag of Planes", tag, wanted).into());
        }
        let len = length("the length of Planes", u64::take(decoder, field)?)?;
        let planes = match tag {
            0 => Planes::Momentum32 {
                momentum: take_floats(decoder, len)?,
            },
            _ => Planes::Blockwise8 {
                codes: take_bytes(decoder, len)?,
                absmax: take_floats(decoder, len.div_ceil(BLOCK))?,
            },
        };
        check_planes(&planes)?;
        Ok(planes)
    }
}

impl Fixed for MemoryOrder {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        // The tag is 1 if axes follow, and 0 if the order is row-major.
        axes_of(self)?.put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D, _: &'static str) -> Result<Self, DecodeError> {
        let wanted = "0 (row-major) or 1 (permuted)";
        match take_bool(decoder, "the tag of MemoryOrder", wanted)? {
            true => Ok(order_of(&Axes::take(decoder, "MemoryOrder")?)?),
            false => Ok(MemoryOrder::RowMajor),
        }
    }
}

impl Fixed for Bits {
    fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let bits: u8 = match self {
            Bits::Eight => 8,
            Bits::ThirtyTwo => 32,
        };
        bits.put(encoder)
    }

    fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError> {
        Ok(bits(u8::take(decoder, field)?.into())?)
    }
}

/// Writes the fields of a record in their order.
macro_rules! fixed_records {
    ($($fields:ident $(<$life:lifetime>)?, $record:literal { $($field:ident: $kind:ty,)* })*) => {$(
        impl $(<$life>)? Fixed for $fields $(<$life>)? {
            fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                $(self.$field.put(encoder)?;)*
                Ok(())
            }

            fn take<D: Decoder>(decoder: &mut D, _: &'static str) -> Result<Self, DecodeError> {
                Ok($fields {
                    $($field: Fixed::take(decoder, concat!($record, ".", stringify!($field)))?,)*
                })
            }
        }
    )*};
}

records!(fixed_records);

/// Writes a type as the record of its fields.
macro_rules! as_fields {
    ($($kind:ident: $fields:ident,)*) => {$(
        impl Fixed for $kind {
            fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                $fields::of(self)?.put(encoder)
            }

            fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError> {
                Ok($fields::take(decoder, field)?.record()?)
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

fn take_tag<T: Unit, D: Decoder>(decoder: &mut D, field: &'static str) -> Result<T, DecodeError> {
    let tag = u8::take(decoder, field)?;
    T::ALL.get(usize::from(tag)).copied().ok_or_else(|| {
        let field = format_args!("the tag of {}", T::NAME);
        let wanted = format!("below {}: {}", T::ALL.len(), T::NAMES.join(", "));
        Invalid::new(field, tag, wanted).into()
    })
}

/// Writes an enum as its tag.
macro_rules! as_tag {
    ($($kind:ident)*) => {$(
        impl Fixed for $kind {
            fn put<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                self.tag().put(encoder)
            }

            fn take<D: Decoder>(decoder: &mut D, field: &'static str) -> Result<Self, DecodeError> {
                take_tag(decoder, field)
            }
        }
    )*};
}

as_tag!(Dtype OnNonFinite);

macro_rules! public {
    ($($kind:ident)*) => {$(
        impl Encode for $kind {
            fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
                self.put(encoder)
            }
        }

        impl<Context> Decode<Context> for $kind {
            fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
                Fixed::take(decoder, stringify!($kind))
            }
        }

        impl_borrow_decode!($kind);
    )*};
}

public! {
    StateRecord Planes MemoryOrder Shard
    Overrides Hyper Group OptimizerConfig
    Bits Dtype OnNonFinite
}
