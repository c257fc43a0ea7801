//! Damaged records are errors or other valid records, and never panic.

use super::{columns, decode, decode_serde, encode, encode_serde, fresh, settings, shard};
use bincode::{Decode, Encode};
use lion::backend::{OptimizerConfig, Planes, StateRecord};
use lion::{Dtype, Lion, Overrides, ParamSpec};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Calls `check` with each input that differs in one byte from `bytes`, and with each that ends early.
fn damage(bytes: &[u8], mut check: impl FnMut(&[u8])) {
    for len in 0..bytes.len() {
        check(&bytes[..len]);
    }
    let mut damaged = bytes.to_vec();
    for at in 0..bytes.len() {
        for value in 0..=255 {
            damaged[at] = value;
            if damaged != bytes {
                check(&damaged);
            }
        }
        damaged[at] = bytes[at];
    }
}

/// Checks a type in each form. `valid` gets the values that are decoded from damaged input.
fn check<T>(value: &T, mut valid: impl FnMut(T))
where
    T: Encode + Decode<()> + Serialize + DeserializeOwned,
{
    let bytes = encode(value);
    let (mut accepted, mut refused) = (0, 0);
    damage(&bytes, |damaged| match decode::<T>(damaged) {
        Ok((value, used)) => {
            // There is one encoding of each value.
            assert_eq!(encode(&value), damaged[..used]);
            accepted += 1;
            valid(value);
        }
        Err(_) => refused += 1,
    });
    assert!(
        accepted > 0 && refused > bytes.len(),
        "{accepted} accepted, {refused} refused"
    );
    for len in 0..bytes.len() {
        assert!(
            decode::<T>(&bytes[..len]).is_err(),
            "{len} of {} bytes",
            bytes.len()
        );
    }

    let binary = encode_serde(value);
    damage(&binary, |damaged| {
        if let Ok((value, _)) = decode_serde::<T>(damaged) {
            decode::<T>(&encode(&value)).unwrap();
            valid(value);
        }
    });
    let text = serde_json::to_vec(value).unwrap();
    damage(&text, |damaged| {
        if let Ok(value) = serde_json::from_slice::<T>(damaged) {
            decode::<T>(&encode(&value)).unwrap();
            valid(value);
        }
    });
}

/// Imports records into an optimizer, and steps it where they are accepted.
struct Importer {
    lion: Lion,
    spec: ParamSpec,
    len: usize,
    imported: usize,
    refused: usize,
}

impl Importer {
    fn new(spec: ParamSpec, len: usize) -> Self {
        Importer {
            lion: Lion::builder().build().unwrap(),
            spec,
            len,
            imported: 0,
            refused: 0,
        }
    }

    fn import(&mut self, record: &StateRecord) {
        let handle = self.lion.register(self.spec.clone()).unwrap();
        match self.lion.import_state(handle, record) {
            Ok(()) => {
                assert_eq!(self.lion.export_state(handle).unwrap(), *record);
                let (mut weight, grad) = (vec![1.0f32; self.len], vec![0.5f32; self.len]);
                // A record in another memory order, or with the largest step count, is not stepped.
                let _ = self.lion.step([(handle, &mut weight, &grad)]);
                self.imported += 1;
            }
            Err(_) => self.refused += 1,
        }
        self.lion.remove(handle).unwrap();
    }
}

#[test]
fn damaged_32_bit_state() {
    let mut importer = Importer::new(ParamSpec::new("w", 6, Dtype::F32), 6);
    check(&columns(), |record| importer.import(&record));
    let (imported, refused) = (importer.imported, importer.refused);
    assert!(imported > 0 && refused > 0, "{imported} {refused}");
}

#[test]
fn damaged_8_bit_state_of_a_shard() {
    let eight = Overrides::new().optim_bits(8).min_8bit_size(0);
    let spec = ParamSpec::new("w", 7, Dtype::F32).shard(512, 519);
    let mut importer = Importer::new(spec.overrides(eight), 7);
    check(&shard(), |record| importer.import(&record));
    let (imported, refused) = (importer.imported, importer.refused);
    assert!(imported > 0 && refused > 0, "{imported} {refused}");
}

#[test]
fn damaged_state_without_elements() {
    let mut importer = Importer::new(ParamSpec::new("w", 0, Dtype::F32), 0);
    check(&fresh(), |record| importer.import(&record));
    assert!(importer.imported > 0);
}

#[test]
fn damaged_settings() {
    let mut lion = Lion::builder().build().unwrap();
    check(&settings(), |settings: OptimizerConfig| {
        // Whatever is decoded is in the ranges that the optimizer accepts.
        lion.restore(Some(settings), Vec::new()).unwrap().commit();
        lion = Lion::builder().build().unwrap();
    });
    check(&settings().defaults.resolved().unwrap(), |_| {});
}

/// A plane whose length is beyond the input ends in an error, in each form.
#[test]
fn lengths_beyond_the_input_are_errors() {
    let momentum = vec![1.0];
    let bytes = encode(&Planes::Momentum32 { momentum });
    for len in [
        2u64,
        1 << 20,
        1 << 62,
        u64::MAX / 4,
        u64::MAX / 4 + 2,
        u64::MAX,
    ] {
        for tag in [0, 1] {
            let mut long = bytes.clone();
            long[0] = tag;
            long[1..9].copy_from_slice(&len.to_le_bytes());
            assert!(decode::<Planes>(&long).is_err(), "{len}");
            let mut reader = &long[..];
            let config = bincode::config::standard();
            let read = bincode::decode_from_std_read::<Planes, _, _>(&mut reader, config);
            assert!(read.is_err(), "{len}");
            // The same in serde's form: the index of the variant, and the length in bytes.
            let mut long = bincode::encode_to_vec((u32::from(tag), len), config).unwrap();
            long.extend([0; 8]);
            assert!(decode_serde::<Planes>(&long).is_err(), "{len}");
        }
    }
}
