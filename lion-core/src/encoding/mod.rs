//! Records and settings in a file of the trainer. This file has the fields that are written for each type, and the
//! checks of what is read. `with_bincode.rs` and `with_serde/` implement the traits of these crates.
//!
//! docs/records.md specifies the bytes and the names. A field is only added to a record with a new version of it, and
//! every earlier version is read as before.

use crate::backend::{Mismatch, check_progress};
use crate::tensor::span;
use crate::{
    BLOCK, Bits, Dtype, Error, Group, Hyper, MemoryOrder, NUMBERS_VERSION, OnNonFinite,
    OptimizerConfig, Overrides, Planes, Scope, Shard, StateRecord,
};
use std::borrow::Cow;
use std::fmt;

/// The version of every record.
const VERSION: u8 = 1;

/// The first version of the numbers whose states have been written.
const FIRST_NUMBERS: u32 = 2;

/// The maximum number of axes of a memory order. Each has a length of 2 or more, so more of them have more elements
/// than 64 bits can count.
const MAX_AXES: usize = 64;

/// The maximum number of groups, as in a checkpoint.
const MAX_GROUPS: usize = 4096;

/// What is wrong with a value: the field, what it is, and what was wanted.
struct Invalid(String);

impl Invalid {
    fn new(field: impl fmt::Display, given: impl fmt::Display, wanted: impl fmt::Display) -> Self {
        Invalid(format!("{field} is {given}, wanted {wanted}"))
    }

    /// Names the record in an error of a check of hyper-parameters.
    fn of(record: &str, error: &Error) -> Self {
        match error {
            Error::InvalidHyper {
                name,
                given,
                wanted,
                ..
            } => Invalid::new(format_args!("{record}.{name}"), given, wanted),
            error => Invalid(format!("{record}: {error}")),
        }
    }

    fn mismatch(record: &str, error: &Mismatch) -> Self {
        let field = format_args!("{record}.{}", error.part);
        Invalid::new(field, &error.given, &error.wanted)
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The version of a record, its first field.
struct Version;

impl Version {
    fn check(given: u8, field: &str) -> Result<Self, Invalid> {
        if given == VERSION {
            return Ok(Version);
        }
        let wanted = format!("{VERSION}, which this version of lion reads");
        Err(Invalid::new(field, given, wanted))
    }
}

/// The version of the numbers with which a state was stepped.
struct Numbers;

impl Numbers {
    fn check(given: u32) -> Result<Self, Invalid> {
        if (FIRST_NUMBERS..=NUMBERS_VERSION).contains(&given) {
            return Ok(Numbers);
        }
        let wanted = format!("{FIRST_NUMBERS} to {NUMBERS_VERSION}");
        Err(Invalid::new("StateRecord.numbers", given, wanted))
    }
}

/// A name.
struct Name(String);

/// A list of at most `MOST` elements.
struct List<T, const MOST: usize>(Vec<T>);

impl<T, const MOST: usize> List<T, MOST> {
    fn new(list: Vec<T>, what: &str) -> Result<Self, Invalid> {
        Self::check(list.len() as u64, what)?;
        Ok(List(list))
    }

    fn check(len: u64, what: &str) -> Result<(), Invalid> {
        if len <= MOST as u64 {
            return Ok(());
        }
        let field = format_args!("the number of elements of {what}");
        Err(Invalid::new(field, len, format_args!("{MOST} at most")))
    }
}

/// The length and the stride of each axis.
type Axes = List<(u64, i64), MAX_AXES>;

/// Calls a macro with the written fields of each record: the name of the structure, the name of the record, and the
/// fields in their order.
macro_rules! records {
    ($each:ident) => {
        $each! {
            StateFields<'a>, "StateRecord" {
                version: Version,
                numbers: Numbers,
                steps: u64,
                seed: u64,
                order: Option<MemoryOrder>,
                shard: Shard,
                planes: Cow<'a, Planes>,
            }
            ShardFields, "Shard" {
                version: Version,
                offset: u64,
                whole_len: u64,
            }
            OverridesFields, "Overrides" {
                version: Version,
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
                is_paged: Option<bool>,
                min_paged_size: Option<u64>,
            }
            HyperFields, "Hyper" {
                version: Version,
                lr: f64,
                lr_multiplier: f64,
                beta1: f64,
                beta2: f64,
                weight_decay: f64,
                max_unorm: f64,
                skip_zeros: bool,
                stochastic_param: bool,
                stochastic_state: bool,
                seed: u64,
                optim_bits: Bits,
                min_8bit_size: u64,
                is_paged: bool,
                min_paged_size: u64,
            }
            GroupFields, "Group" {
                version: Version,
                name: Name,
                overrides: Overrides,
            }
            ConfigFields, "OptimizerConfig" {
                version: Version,
                defaults: Overrides,
                groups: List<Group, MAX_GROUPS>,
                on_non_finite: Option<OnNonFinite>,
            }
        }
    };
}

#[cfg(feature = "bincode")]
mod with_bincode;
#[cfg(feature = "serde")]
mod with_serde;

macro_rules! structures {
    ($($fields:ident $(<$life:lifetime>)?, $record:literal { $($field:ident: $kind:ty,)* })*) => {
        $(struct $fields $(<$life>)? { $($field: $kind,)* })*
    };
}

records!(structures);

impl<'a> StateFields<'a> {
    fn of(record: &'a StateRecord) -> Result<Self, Invalid> {
        check_state(record)?;
        Ok(StateFields {
            version: Version,
            numbers: Numbers,
            steps: record.steps,
            seed: record.seed,
            order: record.order.clone(),
            shard: record.shard,
            planes: Cow::Borrowed(&record.planes),
        })
    }

    fn record(self) -> Result<StateRecord, Invalid> {
        let record = StateRecord {
            steps: self.steps,
            seed: self.seed,
            order: self.order,
            shard: self.shard,
            planes: self.planes.into_owned(),
        };
        check_state(&record)?;
        Ok(record)
    }
}

/// Checks everything except the planes, which are checked where they are encoded or decoded.
fn check_state(record: &StateRecord) -> Result<(), Invalid> {
    let len = record.planes.len();
    check_progress(record.steps, record.order.as_ref(), len)
        .map_err(|e| Invalid::mismatch("StateRecord", &e))?;
    if record.shard.is_shard_of(len) {
        return Ok(());
    }
    let given = format!("{} with {len} elements", record.shard);
    let wanted = "whole blocks of 256 elements within the whole";
    Err(Invalid::new("StateRecord.shard", given, wanted))
}

fn check_planes(planes: &Planes) -> Result<(), Invalid> {
    if let Planes::Blockwise8 { codes, absmax } = planes {
        let (given, wanted) = (absmax.len(), codes.len().div_ceil(BLOCK));
        if given != wanted {
            let [given, wanted] = [given, wanted].map(|n| format!("{n} numbers"));
            return Err(Invalid::new("Planes.absmax", given, wanted));
        }
    }
    planes
        .check_values()
        .map_err(|e| Invalid::mismatch("Planes", &e))
}

impl ShardFields {
    fn of(shard: &Shard) -> Result<Self, Invalid> {
        check_shard(shard)?;
        Ok(ShardFields {
            version: Version,
            offset: shard.offset as u64,
            whole_len: shard.whole_len as u64,
        })
    }

    fn record(self) -> Result<Shard, Invalid> {
        let offset = length("Shard.offset", self.offset)?;
        let shard = Shard::new(offset, length("Shard.whole_len", self.whole_len)?);
        check_shard(&shard)?;
        Ok(shard)
    }
}

/// Checks that a shard can begin there.
fn check_shard(shard: &Shard) -> Result<(), Invalid> {
    if shard.is_shard_of(0) {
        return Ok(());
    }
    let whole = shard.whole_len;
    let wanted = format!("a multiple of 256 below the whole length {whole}, or this length");
    Err(Invalid::new("Shard.offset", shard.offset, wanted))
}

fn length(field: &str, given: u64) -> Result<usize, Invalid> {
    let wanted = "as many as this machine can address";
    usize::try_from(given).map_err(|_| Invalid::new(field, given, wanted))
}

/// Returns a bound of a number of elements. No parameter has more than `usize::MAX` elements, so a larger bound means
/// the same.
fn bound(given: u64) -> usize {
    usize::try_from(given).unwrap_or(usize::MAX)
}

impl OverridesFields {
    fn of(o: &Overrides) -> Result<Self, Invalid> {
        check_overrides(o)?;
        Ok(OverridesFields {
            version: Version,
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
            is_paged: o.is_paged,
            min_paged_size: o.min_paged_size.map(|n| n as u64),
        })
    }

    fn record(self) -> Result<Overrides, Invalid> {
        let overrides = Overrides {
            lr: self.lr,
            lr_multiplier: self.lr_multiplier,
            betas: self.betas,
            weight_decay: self.weight_decay,
            max_unorm: self.max_unorm,
            skip_zeros: self.skip_zeros,
            stochastic_param: self.stochastic_param,
            stochastic_state: self.stochastic_state,
            seed: self.seed,
            optim_bits: self.optim_bits,
            min_8bit_size: self.min_8bit_size.map(bound),
            is_paged: self.is_paged,
            min_paged_size: self.min_paged_size.map(bound),
        };
        check_overrides(&overrides)?;
        Ok(overrides)
    }
}

fn check_overrides(overrides: &Overrides) -> Result<(), Invalid> {
    overrides
        .check(|| Scope::Defaults)
        .map_err(|e| Invalid::of("Overrides", &e))
}

impl HyperFields {
    fn of(h: &Hyper) -> Result<Self, Invalid> {
        check_hyper(h)?;
        Ok(HyperFields {
            version: Version,
            lr: h.lr,
            lr_multiplier: h.lr_multiplier,
            beta1: h.beta1,
            beta2: h.beta2,
            weight_decay: h.weight_decay,
            max_unorm: h.max_unorm,
            skip_zeros: h.skip_zeros,
            stochastic_param: h.stochastic_param,
            stochastic_state: h.stochastic_state,
            seed: h.seed,
            optim_bits: h.optim_bits,
            min_8bit_size: h.min_8bit_size as u64,
            is_paged: h.is_paged,
            min_paged_size: h.min_paged_size as u64,
        })
    }

    fn record(self) -> Result<Hyper, Invalid> {
        let hyper = Hyper {
            lr: self.lr,
            lr_multiplier: self.lr_multiplier,
            beta1: self.beta1,
            beta2: self.beta2,
            weight_decay: self.weight_decay,
            max_unorm: self.max_unorm,
            skip_zeros: self.skip_zeros,
            stochastic_param: self.stochastic_param,
            stochastic_state: self.stochastic_state,
            seed: self.seed,
            optim_bits: self.optim_bits,
            min_8bit_size: bound(self.min_8bit_size),
            is_paged: self.is_paged,
            min_paged_size: bound(self.min_paged_size),
        };
        check_hyper(&hyper)?;
        Ok(hyper)
    }
}

fn check_hyper(hyper: &Hyper) -> Result<(), Invalid> {
    hyper
        .check_values(|| Scope::Defaults)
        .map_err(|e| Invalid::of("Hyper", &e))
}

impl GroupFields {
    fn of(group: &Group) -> Result<Self, Invalid> {
        group.check().map_err(|e| Invalid::of("Group", &e))?;
        Ok(GroupFields {
            version: Version,
            name: Name(group.name.clone()),
            overrides: group.overrides,
        })
    }

    fn record(self) -> Result<Group, Invalid> {
        let group = Group::new(self.name.0, self.overrides);
        group.check().map_err(|e| Invalid::of("Group", &e))?;
        Ok(group)
    }
}

impl ConfigFields {
    fn of(config: &OptimizerConfig) -> Result<Self, Invalid> {
        check_config(config)?;
        Ok(ConfigFields {
            version: Version,
            defaults: config.defaults,
            groups: List::new(config.groups.clone(), "OptimizerConfig.groups")?,
            on_non_finite: config.on_non_finite,
        })
    }

    fn record(self) -> Result<OptimizerConfig, Invalid> {
        let mut config = OptimizerConfig::new(self.defaults, self.groups.0);
        config.on_non_finite = self.on_non_finite;
        check_config(&config)?;
        Ok(config)
    }
}

fn check_config(config: &OptimizerConfig) -> Result<(), Invalid> {
    config
        .check()
        .map_err(|e| Invalid::of("OptimizerConfig", &e))
}

/// Returns the axes of a memory order, or `None` if it is row-major.
fn axes_of(order: &MemoryOrder) -> Result<Option<Axes>, Invalid> {
    match order {
        MemoryOrder::RowMajor => Ok(None),
        MemoryOrder::Permuted(axes) => {
            let axes = axes.iter().map(|&(n, stride)| (n as u64, stride as i64));
            let axes = List::new(axes.collect(), "MemoryOrder")?;
            order_of(&axes)?;
            Ok(Some(axes))
        }
        MemoryOrder::Strided(_) => Err(Invalid::new("MemoryOrder", order, "a contiguous order")),
    }
}

/// Returns the memory order with these axes, which is not row-major.
fn order_of(axes: &Axes) -> Result<MemoryOrder, Invalid> {
    let (mut lengths, mut strides) = (Vec::new(), Vec::new());
    for &(len, stride) in &axes.0 {
        lengths.push(length("MemoryOrder: the length of an axis", len)?);
        let wanted = "a stride within this machine's memory";
        let within = isize::try_from(stride);
        let field = "MemoryOrder: the stride of an axis";
        strides.push(within.map_err(|_| Invalid::new(field, stride, wanted))?);
    }
    let order = MemoryOrder::of(&lengths, &strides, true);
    match &order {
        // An order of fewer axes had some of length 1.
        MemoryOrder::Permuted(kept) if kept.len() == axes.0.len() && span(kept).is_some() => {
            Ok(order)
        }
        _ => {
            let given = format!("permuted (lengths {lengths:?}, strides {strides:?})");
            let wanted = "axes longer than 1 without gaps between the elements, which are not in row-major order";
            Err(Invalid::new("MemoryOrder", given, wanted))
        }
    }
}

/// An enum whose variants have no fields.
trait Unit: Copy + 'static {
    const NAME: &'static str;
    /// The variants with their names. The index of a variant is its tag.
    const ALL: &'static [Self];
    const NAMES: &'static [&'static str];

    fn tag(self) -> u8;
}

impl Unit for Dtype {
    const NAME: &'static str = "Dtype";
    const ALL: &'static [Self] = &[Dtype::F32, Dtype::F16, Dtype::Bf16];
    const NAMES: &'static [&'static str] = &["f32", "f16", "bf16"];

    fn tag(self) -> u8 {
        match self {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::Bf16 => 2,
        }
    }
}

impl Unit for OnNonFinite {
    const NAME: &'static str = "OnNonFinite";
    const ALL: &'static [Self] = &[OnNonFinite::SkipBlock, OnNonFinite::RejectStep];
    const NAMES: &'static [&'static str] = &["skip_block", "reject_step"];

    fn tag(self) -> u8 {
        match self {
            OnNonFinite::SkipBlock => 0,
            OnNonFinite::RejectStep => 1,
        }
    }
}

/// Returns the width with this number of bits.
fn bits(given: u32) -> Result<Bits, Invalid> {
    match given {
        8 => Ok(Bits::Eight),
        32 => Ok(Bits::ThirtyTwo),
        _ => Err(Invalid::new("the number of bits", given, "8 or 32")),
    }
}
