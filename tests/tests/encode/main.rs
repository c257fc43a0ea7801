//! Records and settings through bincode and serde, for a trainer's own file.
#![allow(clippy::unwrap_used)]

mod hostile;
mod refused;
mod resume;
mod vectors;

use bincode::config;
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Decode, Encode};
use lion::backend::{Group, OptimizerConfig, Planes, StateRecord};
use lion::tensor::{MemoryOrder, Shard};
use lion::{Dtype, OnNonFinite, Overrides};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Encodes with bincode's standard configuration. The others give the same bytes.
fn encode<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, config::standard()).unwrap()
}

/// Decodes a value and returns it with the number of its bytes.
fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<(T, usize), DecodeError> {
    bincode::decode_from_slice(bytes, config::standard())
}

/// Encodes with serde in bincode's format, which stores neither names nor types.
fn encode_serde<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, config::standard()).unwrap()
}

fn decode_serde<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), DecodeError> {
    bincode::serde::decode_from_slice(bytes, config::standard())
}

/// Returns the record of a 2 x 3 parameter in column-major order.
fn columns() -> StateRecord {
    let momentum = vec![0.1, -0.0, 1e-45, -2.5, f32::MAX, 3.0];
    let order = MemoryOrder::of(&[2, 3], &[1, 2], true);
    let record = StateRecord::new(3, Planes::Momentum32 { momentum });
    record.seed(u64::MAX - 1).order(Some(order))
}

/// Returns the record of the shard that begins at element 512 of 519.
fn shard() -> StateRecord {
    let planes = Planes::Blockwise8 {
        codes: vec![0, 127, 128, 255, 1, 2, 3],
        absmax: vec![0.3],
    };
    let record = StateRecord::new(1 << 62, planes).seed(7);
    record.shard(Shard::new(512, 519))
}

/// Returns the record of a parameter that was never stepped.
fn fresh() -> StateRecord {
    let momentum = Vec::new();
    StateRecord::new(0, Planes::Momentum32 { momentum })
}

fn settings() -> OptimizerConfig {
    let defaults = Overrides::new()
        .lr(1e-4)
        .betas((0.9, 0.99))
        .seed(3)
        .optim_bits(8);
    let groups = vec![
        Group::new("norms", Overrides::new().weight_decay(0.0).is_paged(true)),
        Group::new("größe", Overrides::new().min_8bit_size(usize::MAX)),
    ];
    OptimizerConfig::new(defaults, groups).on_non_finite(OnNonFinite::RejectStep)
}

/// Encodes a type of lion in each form, and decodes it.
#[track_caller]
fn round_trip<T>(value: &T)
where
    T: Encode + Decode<()> + for<'a> BorrowDecode<'a, ()>,
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let other = config::legacy().with_big_endian();
    let bytes = bincode::encode_to_vec(value, other).unwrap();
    assert_eq!(bytes, encode(value), "{value:?}");
    let (decoded, used): (T, usize) = bincode::decode_from_slice(&bytes, other).unwrap();
    assert_eq!((&decoded, used), (value, bytes.len()));
    returns(value);
}

/// Encodes a value in each form, and decodes it.
#[track_caller]
fn returns<T>(value: &T)
where
    T: Encode + Decode<()> + for<'a> BorrowDecode<'a, ()>,
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let bytes = encode(value);
    let (decoded, used): (T, usize) = decode(&bytes).unwrap();
    assert_eq!((&decoded, used), (value, bytes.len()));
    assert_eq!(encode(&decoded), bytes, "{value:?}");
    let (borrowed, _): (T, usize) =
        bincode::borrow_decode_from_slice(&bytes, config::standard()).unwrap();
    assert_eq!(&borrowed, value);
    let read: T = bincode::decode_from_std_read(&mut &bytes[..], config::standard()).unwrap();
    assert_eq!(&read, value);

    let binary = encode_serde(value);
    let (decoded, used): (T, usize) = decode_serde(&binary).unwrap();
    assert_eq!((&decoded, used), (value, binary.len()));
    assert_eq!(encode(&decoded), bytes, "{value:?}");
    let read: T =
        bincode::serde::decode_from_std_read(&mut &binary[..], config::standard()).unwrap();
    assert_eq!(encode(&read), bytes, "{value:?}");

    let text = serde_json::to_string(value).unwrap();
    let decoded: T = serde_json::from_str(&text).unwrap();
    assert_eq!(encode(&decoded), bytes, "{text}");
    let tree = serde_json::to_value(value).unwrap();
    let decoded: T = serde_json::from_value(tree).unwrap();
    assert_eq!(encode(&decoded), bytes, "{text}");
}

#[test]
fn every_type_returns_with_the_same_bits() {
    use lion::OnNonFinite;
    use lion::backend::Bits;

    for record in [columns(), shard(), fresh()] {
        round_trip(&record);
        round_trip(&record.shard);
        round_trip(&record.planes);
        round_trip(&record.order);
    }
    let settings = settings();
    round_trip(&settings);
    round_trip(&settings.groups[1]);
    round_trip(&settings.defaults);
    round_trip(&settings.defaults.resolved().unwrap());
    round_trip(&Overrides::new().resolved().unwrap());
    round_trip(&Overrides::new());
    round_trip(&Dtype::ALL);
    round_trip(&[Bits::Eight, Bits::ThirtyTwo]);
    round_trip(&[OnNonFinite::SkipBlock, OnNonFinite::RejectStep]);
    // In a structure of the trainer.
    returns(&(
        1u8,
        vec![("w".to_owned(), shard()), ("v".to_owned(), columns())],
        settings,
    ));
}

/// Planes longer than the parts in which they are read and written.
#[test]
fn long_planes_return_with_the_same_bits() {
    for n in [4095u32, 4096, 4097, 16384, 100_001] {
        let momentum = (0..n).map(|i| (i as f32).sqrt() / 7.0).collect();
        round_trip(&StateRecord::new(1, Planes::Momentum32 { momentum }));
        let codes = (0..n).map(|i| (i * 31) as u8).collect();
        let absmax = (0..n.div_ceil(256)).map(|i| i as f32).collect();
        round_trip(&StateRecord::new(1, Planes::Blockwise8 { codes, absmax }));
    }
}

/// A parser of JSON may be off by one in the last digit of an f64. A momentum does not depend on it.
#[test]
fn floats_in_json_have_the_digits_of_an_f64() {
    let momentum = vec![0.1, f32::MIN_POSITIVE];
    let text = serde_json::to_string(&Planes::Momentum32 { momentum }).unwrap();
    let wanted = r#"{"momentum32":[0.10000000149011612,1.1754943508222875e-38]}"#;
    assert_eq!(text, wanted);
    for bits in (0..0x7F80_0000u32).step_by(65_521) {
        let momentum = vec![f32::from_bits(bits), -f32::from_bits(bits)];
        let text = serde_json::to_string(&Planes::Momentum32 {
            momentum: momentum.clone(),
        })
        .unwrap();
        let Planes::Momentum32 { momentum: given } = serde_json::from_str(&text).unwrap() else {
            panic!("{text}");
        };
        let bits = |x: &[f32]| [x[0].to_bits(), x[1].to_bits()];
        assert_eq!(bits(&given), bits(&momentum), "{text}");
    }
}
