//! What a step cannot use is refused when it is encoded and when it is decoded, with an error that names it.

use super::{columns, decode, encode, settings, shard};
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode, config};
use lion::backend::{Bits, Group, Hyper, OptimizerConfig, Planes, StateRecord};
use lion::tensor::{MemoryOrder, Shard};
use lion::{Dtype, OnNonFinite, Overrides};
use serde::Serialize;
use serde_json::{Value, json};

/// Returns the message of bincode's error when a value is encoded, and checks that serde's has the same.
#[track_caller]
fn encoding<T: Encode + Serialize>(value: &T) -> String {
    let EncodeError::OtherString(message) =
        bincode::encode_to_vec(value, config::standard()).unwrap_err()
    else {
        panic!("an error of another kind");
    };
    assert_eq!(
        serde_json::to_string(value).unwrap_err().to_string(),
        message
    );
    message
}

/// Returns the message of the error when bytes are decoded.
#[track_caller]
fn decoding<T: Decode<()>>(bytes: &[u8]) -> String {
    match decode::<T>(bytes) {
        Err(DecodeError::OtherString(message)) => message,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("decoded"),
    }
}

#[test]
fn invalid_values_are_not_encoded() {
    let momentum32 = |momentum| StateRecord::new(1, Planes::Momentum32 { momentum });
    let record = |change: fn(&mut StateRecord)| {
        let mut record = columns();
        change(&mut record);
        encoding(&record)
    };
    for (given, wanted) in [
        (
            record(|r| r.steps = (1 << 62) + 1),
            "StateRecord.steps is 4611686018427387905, wanted 4611686018427387904 at most",
        ),
        (
            record(|r| r.order = Some(MemoryOrder::of(&[3, 3], &[1, 3], true))),
            "StateRecord.order is permuted (lengths [3, 3], strides [1, 3]), wanted a contiguous order of 6 \
             elements",
        ),
        (
            record(|r| r.shard = Shard::new(0, 7)),
            "StateRecord.shard is a shard at element 0 of 7 with 6 elements, wanted whole blocks of 256 elements \
             within the whole",
        ),
        (
            encoding(&momentum32(vec![0.0, f32::NAN])),
            "Planes.momentum is NaN at index 1, wanted finite values, and no negative absmax",
        ),
        (
            encoding(&momentum32(vec![f32::NEG_INFINITY])),
            "Planes.momentum is -inf at index 0, wanted finite values, and no negative absmax",
        ),
        (
            encoding(&Planes::Blockwise8 {
                codes: vec![0; 257],
                absmax: vec![1.0, -1.0],
            }),
            "Planes.absmax is -1 at index 1, wanted finite values, and no negative absmax",
        ),
        (
            encoding(&Planes::Blockwise8 {
                codes: vec![0; 257],
                absmax: vec![1.0],
            }),
            "Planes.absmax is 1 numbers, wanted 2 numbers",
        ),
        (
            encoding(&Shard::new(100, 400)),
            "Shard.offset is 100, wanted a multiple of 256 below the whole length 400, or this length",
        ),
        (
            encoding(&MemoryOrder::of(&[2, 3], &[6, 2], false)),
            "MemoryOrder is not contiguous (shape [2, 3], strides [6, 2]), wanted a contiguous order",
        ),
        (
            encoding(&Overrides::new().lr(-1.0)),
            "Overrides.lr is -1, wanted 0 or more, and finite in f32",
        ),
        (
            encoding(&Overrides::new().betas((0.5, 1.0))),
            "Overrides.beta2 is 1, wanted at least 0, and below 1 in f32",
        ),
        (
            encoding(&Overrides::new().optim_bits(16)),
            "Overrides.optim_bits is 16, wanted 8 or 32",
        ),
        (
            encoding(&{
                let mut hyper = Hyper::default();
                hyper.max_unorm = f64::NAN;
                hyper
            }),
            "Hyper.max_unorm is NaN, wanted 0 or more, and finite in f32",
        ),
        (
            encoding(&Group::new("", Overrides::new())),
            "Group: a name is empty, wanted at least one character",
        ),
        (
            encoding(&Group::new(
                "g",
                Overrides::new().lr_multiplier(f64::INFINITY),
            )),
            "Group.lr_multiplier is inf, wanted 0 or more, and finite in f32",
        ),
        (
            encoding(&OptimizerConfig::new(
                Overrides::new(),
                vec![Group::new("g", Overrides::new()); 2],
            )),
            "OptimizerConfig: group `g` already exists",
        ),
        (
            encoding(&OptimizerConfig::new(
                Overrides::new(),
                (0..4097)
                    .map(|i| Group::new(format!("{i}"), Overrides::new()))
                    .collect(),
            )),
            "the number of elements of OptimizerConfig.groups is 4097, wanted 4096 at most",
        ),
    ] {
        assert_eq!(given, wanted);
    }
}

/// Each case overwrites bytes of a valid encoding, by the offsets of docs/records.md.
#[test]
fn invalid_bytes_are_refused_by_name() {
    let state = |at: usize, bytes: &[u8]| {
        let mut record = encode(&columns());
        record[at..at + bytes.len()].copy_from_slice(bytes);
        decoding::<StateRecord>(&record)
    };
    let eight = |at: usize, bytes: &[u8]| {
        let mut record = encode(&shard());
        record[at..at + bytes.len()].copy_from_slice(bytes);
        decoding::<StateRecord>(&record)
    };
    let set = |at: usize, bytes: &[u8]| {
        let mut record = encode(&settings());
        record[at..at + bytes.len()].copy_from_slice(bytes);
        decoding::<OptimizerConfig>(&record)
    };
    for (given, wanted) in [
        (
            state(0, &[2]),
            "StateRecord.version is 2, wanted 1, which this version of lion reads",
        ),
        (state(1, &[1]), "StateRecord.numbers is 1, wanted 2 to 2"),
        (state(1, &[3]), "StateRecord.numbers is 3, wanted 2 to 2"),
        (
            state(5, &u64::MAX.to_le_bytes()),
            "StateRecord.steps is 18446744073709551615, wanted 4611686018427387904 at most",
        ),
        (
            state(21, &[2]),
            "StateRecord.order is 2, wanted 0 (absent) or 1 (present)",
        ),
        (
            state(22, &[2]),
            "the tag of MemoryOrder is 2, wanted 0 (row-major) or 1 (permuted)",
        ),
        (
            state(23, &u64::MAX.to_le_bytes()),
            "the number of elements of MemoryOrder is 18446744073709551615, wanted 64 at most",
        ),
        (
            state(39, &2i64.to_le_bytes()),
            "MemoryOrder is permuted (lengths [2, 3], strides [2, 2]), wanted axes longer than 1 without gaps \
             between the elements, which are not in row-major order",
        ),
        (
            state(31, &3u64.to_le_bytes()),
            "MemoryOrder is permuted (lengths [3, 3], strides [1, 2]), wanted axes longer than 1 without gaps \
             between the elements, which are not in row-major order",
        ),
        (
            state(39, &3i64.to_le_bytes()),
            "MemoryOrder is permuted (lengths [2, 3], strides [3, 2]), wanted axes longer than 1 without gaps \
             between the elements, which are not in row-major order",
        ),
        (
            // Row-major order.
            state(31, [2u64, 3, 3, 1].map(u64::to_le_bytes).as_flattened()),
            "MemoryOrder is permuted (lengths [2, 3], strides [3, 1]), wanted axes longer than 1 without gaps \
             between the elements, which are not in row-major order",
        ),
        (
            state(63, &[0]),
            "Shard.version is 0, wanted 1, which this version of lion reads",
        ),
        (
            state(64, &[1]),
            "Shard.offset is 1, wanted a multiple of 256 below the whole length 6, or this length",
        ),
        (
            state(72, &[255]),
            "StateRecord.shard is a shard at element 0 of 255 with 6 elements, wanted whole blocks of 256 \
             elements within the whole",
        ),
        (
            state(80, &[2]),
            "the tag of Planes is 2, wanted 0 (momentum32) or 1 (blockwise8)",
        ),
        (
            state(93, &f32::INFINITY.to_le_bytes()),
            "Planes.momentum is inf at index 1, wanted finite values, and no negative absmax",
        ),
        (
            eight(56, &(-0.5f32).to_le_bytes()),
            "Planes.absmax is -0.5 at index 0, wanted finite values, and no negative absmax",
        ),
        (
            set(1, &[9]),
            "Overrides.version is 9, wanted 1, which this version of lion reads",
        ),
        (
            set(2, &[9]),
            "Overrides.lr is 9, wanted 0 (absent) or 1 (present)",
        ),
        (
            set(3, &f64::NAN.to_le_bytes()),
            "Overrides.lr is NaN, wanted 0 or more, and finite in f32",
        ),
        (
            set(13, &1.0f64.to_le_bytes()),
            "Overrides.beta1 is 1, wanted at least 0, and below 1 in f32",
        ),
        (
            decoding::<Dtype>(&[3]),
            "the tag of Dtype is 3, wanted below 3: f32, f16, bf16",
        ),
        (
            decoding::<OnNonFinite>(&[255]),
            "the tag of OnNonFinite is 255, wanted below 2: skip_block, reject_step",
        ),
        (
            decoding::<Bits>(&[4]),
            "the number of bits is 4, wanted 8 or 32",
        ),
    ] {
        assert_eq!(given, wanted);
    }
    let mut group = encode(&Group::new("a", Overrides::new()));
    group[9] = 0xFF;
    let error = decoding::<Group>(&group);
    assert!(error.starts_with("Group.name is invalid utf-8"), "{error}");
}

#[test]
fn limit_of_the_configuration_applies() {
    let bytes = encode(&columns());
    const EXACT: usize = 113;
    assert_eq!(bytes.len(), EXACT);
    let decode = |bytes| {
        let exact = config::standard().with_limit::<EXACT>();
        let short = config::standard().with_limit::<{ EXACT - 1 }>();
        (
            bincode::decode_from_slice::<StateRecord, _>(bytes, exact),
            bincode::decode_from_slice::<StateRecord, _>(bytes, short),
        )
    };
    let (exact, short) = decode(&bytes);
    exact.unwrap();
    assert!(
        matches!(short, Err(DecodeError::LimitExceeded)),
        "{short:?}"
    );
}

#[test]
fn json_is_refused_by_name() {
    let refused = |value: Value| {
        serde_json::from_value::<Overrides>(value)
            .unwrap_err()
            .to_string()
    };
    // A version that is left out is 1, as in a file written by hand.
    let by_hand: Overrides = serde_json::from_str(r#"{"lr": 1, "optim_bits": 8}"#).unwrap();
    assert_eq!(by_hand, Overrides::new().lr(1.0).optim_bits(8));
    for (given, wanted) in [
        (
            refused(json!({"version": 2})),
            "the version of a record is 2, wanted 1, which this version of lion reads",
        ),
        (
            refused(json!({"lr": -1})),
            "Overrides.lr is -1, wanted 0 or more, and finite in f32",
        ),
        (
            refused(json!({"learning_rate": 1})),
            "a name of Overrides is `learning_rate`, wanted one of version, lr, lr_multiplier, betas, \
             weight_decay, max_unorm, skip_zeros, stochastic_param, stochastic_state, seed, optim_bits, \
             min_8bit_size, is_paged, min_paged_size",
        ),
    ] {
        assert_eq!(given, wanted);
    }
    let text = r#"{"lr": 1, "lr": 2}"#;
    let error = serde_json::from_str::<Overrides>(text).unwrap_err();
    assert!(
        error.to_string().starts_with("duplicate field `lr`"),
        "{error}"
    );

    let mut record = serde_json::to_value(shard()).unwrap();
    record["planes"]["blockwise8"]["absmax"] = json!([1, 2]);
    let error = serde_json::from_value::<StateRecord>(record.clone()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Planes.absmax is 2 numbers, wanted 1 numbers"
    );
    // Beyond f32, and so infinite.
    record["planes"]["blockwise8"]["absmax"] = json!([1e39]);
    let error = serde_json::from_value::<StateRecord>(record.clone()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("Planes.absmax is inf at index 0"),
        "{error}"
    );
    record.as_object_mut().unwrap().remove("seed");
    record["planes"]["blockwise8"]["absmax"] = json!([1]);
    let error = serde_json::from_value::<StateRecord>(record).unwrap_err();
    assert_eq!(error.to_string(), "missing field `seed`");
    let axes = json!({"permuted": vec![[2, 1]; 65]});
    let error = serde_json::from_value::<MemoryOrder>(axes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the number of elements of a list is 65, wanted 64 at most"
    );
}
