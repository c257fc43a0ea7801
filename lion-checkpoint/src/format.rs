//! What both versions of the format have in common: the preamble, the codes of types and layouts, the checks of
//! fields, and the conversion of records to the types of lion-core. docs/format.md specifies the bytes.

use super::error::Damage;
use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};
use lion_core::{Dtype, MemoryOrder, Momentum32, OnNonFinite, Overrides, StateLayout};
use lion_quant::Blockwise8;

/// The magic number: the first bytes of a file. The first byte is not ASCII, and the last three are a line
/// end and an end-of-file mark, so that a transfer in text mode is detected.
pub(super) const MAGIC: [u8; 8] = *b"\x89LION\r\n\x1A";

/// The version of the format that [`save`](crate::save) writes.
pub const VERSION: u32 = 2;

/// The first version of the format, which [`Checkpoint`](crate::Checkpoint) reads as well.
pub(super) const FIRST_VERSION: u32 = 1;

/// The size of the preamble in bytes.
pub(super) const PREAMBLE: u64 = 36;

/// The alignment of planes in bytes. In a memory-mapped file, planes are aligned for any vector register.
pub(super) const ALIGN: u64 = 64;

/// The largest number of bytes that decoding one record may allocate. No valid record needs as much.
pub(super) const LIMIT: usize = 256 << 10;

/// The maximum length of a string in bytes: of the library, or of the name of a parameter or group.
pub(crate) const MAX_NAME: usize = u16::MAX as usize;

/// The maximum number of groups. All groups are held in memory while a file is read.
pub(super) const MAX_GROUPS: usize = 4096;

/// The maximum number of axes in a memory order.
pub(super) const MAX_AXES: usize = 1024;

/// The maximum number of steps. No run comes near it, and a run that continues from it does not overflow.
pub(crate) const MAX_STEPS: u64 = 1 << 62;

/// The CRC-32 of the 1,024 bytes of the codebook.
pub(super) const CODEBOOK_ID: u32 = 0x1B13_7AEB;

/// The bincode configuration of the preamble: little-endian integers of fixed width.
pub(super) const FIXED: Configuration<LittleEndian, Fixint, Limit<LIMIT>> =
    bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<LIMIT>();

/// The first [`PREAMBLE`] bytes of a file.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct Preamble {
    pub(super) magic: [u8; 8],
    pub(super) version: u32,
    /// In version 1, the checksum of the header. In version 2, the size of a chunk in bytes.
    pub(super) word: u32,
    /// The size in bytes of the header of version 1, or of the index of version 2.
    pub(super) records_bytes: u64,
    pub(super) file_bytes: u64,
    /// The CRC-32 of the 32 bytes before it.
    pub(super) checksum: u32,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct GroupRecord {
    pub(super) name: String,
    pub(super) overrides: OverridesRecord,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct OverridesRecord {
    lr: Option<f64>,
    lr_multiplier: Option<f64>,
    betas: Option<(f64, f64)>,
    weight_decay: Option<f64>,
    max_unorm: Option<f64>,
    skip_zeros: Option<bool>,
    stochastic_param: Option<bool>,
    stochastic_state: Option<bool>,
    seed: Option<u64>,
    optim_bits: Option<u32>,
    min_8bit_size: Option<u64>,
}

impl From<&Overrides> for OverridesRecord {
    fn from(o: &Overrides) -> Self {
        OverridesRecord {
            lr: o.lr,
            lr_multiplier: o.lr_multiplier,
            betas: o.betas,
            weight_decay: o.weight_decay,
            max_unorm: o.max_unorm,
            skip_zeros: o.skip_zeros,
            stochastic_param: o.stochastic_param,
            stochastic_state: o.stochastic_state,
            seed: o.seed,
            optim_bits: o.optim_bits,
            min_8bit_size: o.min_8bit_size.map(|n| n as u64),
        }
    }
}

impl OverridesRecord {
    /// Returns the overrides. Their ranges are not checked here; the optimizer checks them.
    pub(super) fn read(&self) -> Overrides {
        let mut o = Overrides::new();
        o.lr = self.lr;
        o.lr_multiplier = self.lr_multiplier;
        o.betas = self.betas;
        o.weight_decay = self.weight_decay;
        o.max_unorm = self.max_unorm;
        o.skip_zeros = self.skip_zeros;
        o.stochastic_param = self.stochastic_param;
        o.stochastic_state = self.stochastic_state;
        o.seed = self.seed;
        o.optim_bits = self.optim_bits;
        // No parameter has more than usize::MAX elements, so clamping does not change the meaning.
        let size = self.min_8bit_size;
        o.min_8bit_size = size.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        o
    }
}

/// Returns the code of a type.
pub(super) fn dtype_code(dtype: Dtype) -> Result<u8, Damage> {
    match dtype {
        Dtype::F32 => Ok(0),
        Dtype::F16 => Ok(1),
        Dtype::Bf16 => Ok(2),
        _ => Err(value("the type", dtype, "f32, f16 or bf16")),
    }
}

/// Returns the type with a code.
pub(super) fn dtype(code: u8) -> Result<Dtype, Damage> {
    match code {
        0 => Ok(Dtype::F32),
        1 => Ok(Dtype::F16),
        2 => Ok(Dtype::Bf16),
        _ => Err(value("the type", code, "0 (f32), 1 (f16) or 2 (bf16)")),
    }
}

/// Returns the code of what a step does if a momentum is not finite.
pub(super) fn on_non_finite_code(on_non_finite: OnNonFinite) -> u8 {
    match on_non_finite {
        OnNonFinite::RejectStep => 1,
        _ => 0,
    }
}

/// Returns what a step does if a momentum is not finite.
pub(super) fn on_non_finite(code: u8) -> Result<OnNonFinite, Damage> {
    match code {
        0 => Ok(OnNonFinite::SkipBlock),
        1 => Ok(OnNonFinite::RejectStep),
        _ => {
            let wanted = "0 (skip the block) or 1 (reject the step)";
            Err(value("on_non_finite", code, wanted))
        }
    }
}

/// A state layout with its code, block size and codebook in the format.
#[derive(Debug)]
pub(super) struct LayoutCode {
    pub(super) code: u8,
    pub(super) block: u32,
    pub(super) codebook: u32,
    pub(super) layout: &'static dyn StateLayout,
}

const LAYOUTS: [LayoutCode; 2] = [
    LayoutCode {
        code: 0,
        block: 0,
        codebook: 0,
        layout: &Momentum32,
    },
    LayoutCode {
        code: 1,
        block: lion_core::BLOCK as u32,
        codebook: CODEBOOK_ID,
        layout: &Blockwise8,
    },
];

/// Returns the entry of the layout with a code. Checks the block size and the codebook.
pub(super) fn layout_with(
    code: u8,
    block: u32,
    codebook: u32,
) -> Result<&'static LayoutCode, Damage> {
    let found = const { &LAYOUTS }.iter().find(|layout| layout.code == code);
    let Some(found) = found else {
        let wanted = "0 (momentum32) or 1 (blockwise8)";
        return Err(value("the layout of the state", code, wanted));
    };
    if block != found.block {
        return Err(value("the block size", block, found.block));
    }
    if codebook != found.codebook {
        let [given, wanted] = [codebook, found.codebook].map(|id| format!("{id:#010x}"));
        return Err(value("the codebook", given, wanted));
    }
    Ok(found)
}

/// Returns the entry of the layout with this name, or `None` if the format has no code for it.
pub(super) fn layout_named(name: &str) -> Option<&'static LayoutCode> {
    const { &LAYOUTS }
        .iter()
        .find(|code| code.layout.name() == name)
}

/// Checks that a shard of `len` elements consists of whole blocks of its tensor.
pub(super) fn check_shard(offset: u64, whole_len: u64, len: u64) -> Result<(), Damage> {
    const BLOCK: u64 = lion_core::BLOCK as u64;
    if !offset.is_multiple_of(BLOCK) && offset != whole_len {
        let wanted = format!("a multiple of {BLOCK}, or the whole length {whole_len}");
        return Err(value("the offset of a shard", offset, wanted));
    }
    let end = offset.checked_add(len).filter(|&end| end <= whole_len);
    let Some(end) = end else {
        let wanted = format!("at least its offset {offset} and its length {len} together");
        return Err(value("the whole length of a shard", whole_len, wanted));
    };
    if end < whole_len && !end.is_multiple_of(BLOCK) {
        let wanted = format!("a multiple of {BLOCK} or the whole length {whole_len}");
        return Err(value("the end of a shard", end, wanted));
    }
    Ok(())
}

/// Returns the memory order of `len` elements that the axes describe.
pub(super) fn order(len: u64, axes: &[(u64, i64)]) -> Result<MemoryOrder, Damage> {
    check_axes(len, axes)?;
    if axes.is_empty() {
        return Ok(MemoryOrder::RowMajor);
    }
    let axis = |&(len, stride): &(u64, i64)| {
        Some((usize::try_from(len).ok()?, isize::try_from(stride).ok()?))
    };
    match axes.iter().map(axis).collect() {
        Some(axes) => Ok(MemoryOrder::Permuted(axes)),
        None => Err(value(
            "the number of elements",
            len,
            "as many as this machine can address",
        )),
    }
}

/// Checks that the axes describe a memory order of `len` elements without gaps. Row-major order must be
/// given as an empty list.
pub(super) fn check_axes(len: u64, axes: &[(u64, i64)]) -> Result<(), Damage> {
    if axes.is_empty() {
        return Ok(());
    }
    if axes.len() > MAX_AXES {
        return Err(value("the number of axes", axes.len(), "at most 1024"));
    }
    if let Some((length, _)) = axes.iter().find(|(length, _)| *length < 2) {
        return Err(value("the length of an axis", length, "2 or more"));
    }
    let product = axes
        .iter()
        .try_fold(1u64, |product, (length, _)| product.checked_mul(*length));
    if product != Some(len) {
        let given = product.map_or("beyond 64 bits".to_owned(), |product| product.to_string());
        return Err(value("the product of the axes' lengths", given, len));
    }
    // From the fastest axis to the slowest, each stride is the product of the lengths of the faster axes.
    let mut rising = axes.to_vec();
    rising.sort_unstable_by_key(|(_, stride)| stride.unsigned_abs());
    let mut wanted = 1;
    for (length, stride) in rising {
        if stride.unsigned_abs() != wanted {
            let wanted = format!("{wanted} or -{wanted}");
            return Err(value("the stride of an axis", stride, wanted));
        }
        // Does not overflow: the product divides `len`.
        wanted *= length;
    }
    let mut strides = axes.iter().map(|(_, stride)| *stride);
    let falling = strides.clone().is_sorted_by(|a, b| a > b);
    if falling && strides.all(|stride| stride > 0) {
        return Err(value(
            "the number of axes",
            axes.len(),
            "0, as the order is row-major",
        ));
    }
    Ok(())
}

/// Checks that a step count is at most [`MAX_STEPS`].
pub(crate) fn check_steps(steps: u64) -> Result<(), Damage> {
    if steps <= MAX_STEPS {
        return Ok(());
    }
    let wanted = format!("at most {MAX_STEPS}");
    Err(value("the number of steps", steps, wanted))
}

/// Checks that a string is at most [`MAX_NAME`] bytes long.
pub(super) fn check_length(field: &'static str, string: &str) -> Result<(), Damage> {
    if string.len() <= MAX_NAME {
        return Ok(());
    }
    Err(value(field, string.len(), "at most 65535 bytes"))
}

/// Returns the axes of a memory order as the format stores them. An order with gaps must not be given.
pub(super) fn axes_of(order: &MemoryOrder) -> Vec<(u64, i64)> {
    match order {
        MemoryOrder::Permuted(axes) => axes.iter().map(|&(n, s)| (n as u64, s as i64)).collect(),
        _ => Vec::new(),
    }
}

/// Returns [`Damage::Value`].
pub(super) fn value(field: &'static str, given: impl ToString, wanted: impl ToString) -> Damage {
    Damage::Value {
        field,
        given: given.to_string(),
        wanted: wanted.to_string(),
    }
}

/// Returns the first multiple of [`ALIGN`] at or after `offset`, or `None` if it overflows.
pub(super) fn align(offset: u64) -> Option<u64> {
    offset.checked_next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codebook_is_known_by_its_checksum() {
        let bytes = lion_quant::CODEBOOK.map(f32::to_le_bytes);
        assert_eq!(crc32fast::hash(bytes.as_flattened()), CODEBOOK_ID);
    }

    #[test]
    fn axes_describe_an_order_without_gaps_or_are_refused() {
        let good: [(u64, &[(u64, i64)]); 7] = [
            (0, &[]),
            (6, &[]),
            (6, &[(2, 1), (3, 2)]),
            (6, &[(2, -3), (3, 1)]),
            (6, &[(6, -1)]),
            (24, &[(3, 2), (2, 1), (4, 6)]),
            (1 << 63, &[(2, 1), (1 << 62, 2)]),
        ];
        for (len, axes) in good {
            assert!(check_axes(len, axes).is_ok(), "{len} {axes:?}");
        }
        type Bad<'a> = (u64, &'a [(u64, i64)], &'a str);
        let bad: [Bad<'_>; 12] = [
            (2, &[(2, 1); 1025], "the number of axes is 1025"),
            (6, &[(1, 6), (6, 1)], "the length of an axis is 1"),
            (0, &[(0, 1)], "the length of an axis is 0"),
            (
                6,
                &[(2, 1), (4, 2)],
                "the product of the axes' lengths is 8, wanted 6",
            ),
            (
                0,
                &[(1 << 32, 1), (1 << 32, 1 << 32)],
                "lengths is beyond 64 bits, wanted 0",
            ),
            (
                6,
                &[(2, 0), (3, 2)],
                "the stride of an axis is 0, wanted 1 or -1",
            ),
            (
                2,
                &[(2, i64::MIN)],
                "the stride of an axis is -9223372036854775808",
            ),
            (
                6,
                &[(2, 1), (3, 4)],
                "the stride of an axis is 4, wanted 2 or -2",
            ),
            (6, &[(2, 1), (3, 1)], "the stride of an axis is 1, wanted "),
            (6, &[(2, i64::MAX), (3, 1)], "wanted 3 or -3"),
            (6, &[(2, 3), (3, 1)], "the number of axes is 2, wanted 0"),
            (6, &[(6, 1)], "the number of axes is 1, wanted 0"),
        ];
        for (len, axes, wanted) in bad {
            let damage = check_axes(len, axes).unwrap_err().to_string();
            assert!(damage.contains(wanted), "{damage}\nwanted: {wanted}");
        }
    }
}
