//! The records of a header as bincode has them, and what they mean here. docs/format.md specifies the
//! bytes.

use super::error::Damage;
use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};
use lion_core::{Dtype, MemoryOrder, Momentum32, Overrides, StateLayout};
use lion_quant::Blockwise8;

/// The first bytes of a file. The first of all is no ASCII, and the rest has the line ends and the
/// end-of-file mark that transfers as text change.
pub(super) const MAGIC: [u8; 8] = *b"\x89LION\r\n\x1A";

/// Version of the format that is written.
pub const VERSION: u32 = 1;

/// Bytes before the header.
pub(super) const PREAMBLE: u64 = 36;

/// Planes begin at multiples of this: a mapped file has them aligned for any vector register.
pub(super) const ALIGN: u64 = 64;

/// Bytes that decoding one record may ask for, beyond any that can be written.
const LIMIT: usize = 256 << 10;

/// Longest string: the library, or the name of a parameter or group, in bytes.
pub(crate) const MAX_NAME: usize = u16::MAX as usize;

/// Most groups: they are held in memory while a file is read.
pub(super) const MAX_GROUPS: usize = 4096;

/// Most axes of an array in memory.
pub(super) const MAX_AXES: usize = 1024;

/// Most steps: counting on from here does not overflow, and no run comes near.
pub(crate) const MAX_STEPS: u64 = 1 << 62;

/// CRC-32 of the 1,024 bytes of the codebook.
pub(super) const CODEBOOK_ID: u32 = 0x1B13_7AEB;

/// Integers have their full width, little-endian.
pub(super) const CONFIG: Configuration<LittleEndian, Fixint, Limit<LIMIT>> =
    bincode::config::standard()
        .with_fixed_int_encoding()
        .with_limit::<LIMIT>();

/// The first 36 bytes.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct Preamble {
    pub(super) magic: [u8; 8],
    pub(super) version: u32,
    pub(super) header_checksum: u32,
    pub(super) header_bytes: u64,
    pub(super) file_bytes: u64,
    /// Of the 32 bytes before.
    pub(super) checksum: u32,
}

/// The beginning of a header, up to the number of groups.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct HeadRecord {
    pub(super) library: String,
    pub(super) defaults: OverridesRecord,
    pub(super) groups: u64,
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

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct TensorRecord {
    pub(super) name: String,
    pub(super) len: u64,
    pub(super) dtype: u8,
    pub(super) layout: u8,
    pub(super) block: u32,
    pub(super) codebook: u32,
    pub(super) group: Option<u32>,
    pub(super) overrides: OverridesRecord,
    /// `None` before the first step, no axes for row-major order.
    pub(super) order: Option<Vec<(u64, i64)>>,
    pub(super) steps: u64,
    pub(super) seed: u64,
    pub(super) planes: Vec<PlaneRecord>,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(super) struct PlaneRecord {
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) checksum: u32,
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
    /// Their ranges are checked by whoever takes them.
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
        // No parameter has more elements than the address space, so the largest number stands for any.
        let size = self.min_8bit_size;
        o.min_8bit_size = size.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        o
    }
}

/// `None` for a type that the format has no code for.
pub(super) fn dtype_code(dtype: Dtype) -> Option<u8> {
    match dtype {
        Dtype::F32 => Some(0),
        Dtype::F16 => Some(1),
        Dtype::Bf16 => Some(2),
        _ => None,
    }
}

pub(super) fn dtype(code: u8) -> Result<Dtype, Damage> {
    match code {
        0 => Ok(Dtype::F32),
        1 => Ok(Dtype::F16),
        2 => Ok(Dtype::Bf16),
        _ => Err(value("the type", code, "0 (f32), 1 (f16) or 2 (bf16)")),
    }
}

/// A layout with its code, block size and codebook.
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

/// The code of a layout by its name.
pub(super) fn layout_named(name: &str) -> Option<&'static LayoutCode> {
    const { &LAYOUTS }
        .iter()
        .find(|code| code.layout.name() == name)
}

impl TensorRecord {
    /// The layout of the state.
    pub(super) fn state_layout(&self) -> Result<&'static dyn StateLayout, Damage> {
        let found = const { &LAYOUTS }
            .iter()
            .find(|code| code.code == self.layout);
        let Some(found) = found else {
            let wanted = "0 (momentum32) or 1 (blockwise8)";
            return Err(value("the layout of the state", self.layout, wanted));
        };
        if self.block != found.block {
            return Err(value("the block size", self.block, found.block));
        }
        if self.codebook != found.codebook {
            let [given, wanted] = [self.codebook, found.codebook].map(|id| format!("{id:#010x}"));
            return Err(value("the codebook", given, wanted));
        }
        Ok(found.layout)
    }

    /// The order of the elements in memory.
    pub(super) fn order(&self) -> Result<Option<MemoryOrder>, Damage> {
        let Some(axes) = &self.order else {
            return Ok(None);
        };
        check_axes(self.len, axes)?;
        if axes.is_empty() {
            return Ok(Some(MemoryOrder::RowMajor));
        }
        let axis = |&(len, stride): &(u64, i64)| {
            Some((usize::try_from(len).ok()?, isize::try_from(stride).ok()?))
        };
        match axes.iter().map(axis).collect() {
            Some(axes) => Ok(Some(MemoryOrder::Permuted(axes))),
            None => Err(value(
                "the number of elements",
                self.len,
                "as many as this machine can address",
            )),
        }
    }
}

/// Checks that the axes describe an order in which `len` elements lie in memory without gaps. Row-major order,
/// and no other, has no axes.
pub(super) fn check_axes(len: u64, axes: &[(u64, i64)]) -> Result<(), Damage> {
    if axes.is_empty() {
        return Ok(());
    }
    if axes.len() > MAX_AXES {
        return Err(value("the number of axes", axes.len(), "1024 at most"));
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
    // From the fastest axis to the slowest, each stride is the product of the lengths before.
    let mut rising = axes.to_vec();
    rising.sort_unstable_by_key(|(_, stride)| stride.unsigned_abs());
    let mut wanted = 1;
    for (length, stride) in rising {
        if stride.unsigned_abs() != wanted {
            let wanted = format!("{wanted} or -{wanted}");
            return Err(value("the stride of an axis", stride, wanted));
        }
        // Does not overflow: it divides `len`.
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

/// Checks a count of steps.
pub(crate) fn check_steps(steps: u64) -> Result<(), Damage> {
    if steps <= MAX_STEPS {
        return Ok(());
    }
    let wanted = format!("{MAX_STEPS} at most");
    Err(value("the number of steps", steps, wanted))
}

/// The axes of an order in memory; none that has gaps is ever stepped.
pub(super) fn axes_of(order: Option<&MemoryOrder>) -> Option<Vec<(u64, i64)>> {
    match order? {
        MemoryOrder::Permuted(axes) => {
            Some(axes.iter().map(|&(n, s)| (n as u64, s as i64)).collect())
        }
        _ => Some(Vec::new()),
    }
}

pub(super) fn value(field: &'static str, given: impl ToString, wanted: impl ToString) -> Damage {
    Damage::Value {
        field,
        given: given.to_string(),
        wanted: wanted.to_string(),
    }
}

/// The next offset that a plane may begin at.
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
