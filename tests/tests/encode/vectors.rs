//! The bytes and the names of docs/records.md, as a program in Python has written them from it.

use super::{decode, encode};
use bincode::{Decode, Encode};
use lion::backend::{Bits, Group, Hyper, OptimizerConfig, Planes, StateRecord};
use lion::tensor::{MemoryOrder, Shard};
use lion::{Dtype, OnNonFinite, Overrides};
use lion_test_support::from_root;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Debug;
use std::fs;

/// Checks that a value is what both files of this name have, and that the library writes the same.
fn same<T>(name: &str, value: &T)
where
    T: Encode + Decode<()> + Serialize + DeserializeOwned + PartialEq + Debug,
{
    let path = |ending| from_root("tests/vectors/encode").join(format!("{name}.{ending}"));
    let bytes = fs::read(path("bin")).unwrap();
    assert_eq!(encode(value), bytes, "{name}");
    let (decoded, used): (T, usize) = decode(&bytes).unwrap();
    assert_eq!((&decoded, used), (value, bytes.len()), "{name}");
    assert_eq!(encode(&decoded), bytes, "{name}");

    let text = fs::read_to_string(path("json")).unwrap();
    let wanted: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_value(value).unwrap(), wanted, "{name}");
    let decoded: T = serde_json::from_str(&text).unwrap();
    assert_eq!(encode(&decoded), bytes, "{name}");
}

#[test]
fn states() {
    let momentum = vec![0.0, -0.0, 1.0, -2.5, f32::from_bits(1), 65504.0];
    let order = MemoryOrder::of(&[2, 3], &[1, 2], true);
    let record = StateRecord::new(1 << 62, Planes::Momentum32 { momentum });
    same("state32", &record.seed(u64::MAX - 1).order(Some(order)));

    let codes = (0..300u32).map(|i| (i * 7 % 256) as u8).collect();
    let absmax = vec![1.5, 0.0];
    let record = StateRecord::new(3, Planes::Blockwise8 { codes, absmax });
    same("state8", &record.seed(7).shard(Shard::new(512, 812)));

    let momentum = Vec::new();
    same(
        "fresh",
        &StateRecord::new(0, Planes::Momentum32 { momentum }),
    );
}

#[test]
#[cfg(target_pointer_width = "64")]
fn hyper_parameters() {
    let defaults = Overrides::new()
        .lr(0.25)
        .lr_multiplier(0.5)
        .betas((0.75, 0.875))
        .weight_decay(0.125)
        .max_unorm(2.0)
        .skip_zeros(true)
        .stochastic_param(false)
        .stochastic_state(true)
        .seed(u64::MAX)
        .optim_bits(8)
        .min_8bit_size(1000)
        .is_paged(true)
        .min_paged_size(1 << 40);
    let groups = vec![
        Group::new("norms", Overrides::new().weight_decay(0.0)),
        Group::new("größe", Overrides::new().seed(0).optim_bits(32)),
    ];
    let settings = OptimizerConfig::new(defaults, groups);
    same("settings", &settings.on_non_finite(OnNonFinite::RejectStep));

    let hyper: Hyper = Overrides::new()
        .lr(0.5)
        .lr_multiplier(0.25)
        .betas((0.5, 0.75))
        .max_unorm(0.5)
        .stochastic_param(true)
        .seed(9)
        .min_8bit_size(0)
        .min_paged_size(5)
        .resolved()
        .unwrap();
    same("hyper", &hyper);
}

#[test]
fn enums() {
    let bits = [Bits::Eight, Bits::ThirtyTwo];
    let non_finite = [OnNonFinite::SkipBlock, OnNonFinite::RejectStep];
    same("enums", &(Dtype::ALL, bits, non_finite));
}
