//! Mutated safetensors files.

use crate::{CONSTANT, Pair, folder, fuzz, mutate, optimizer, snapshot};
use lion::interop::{InteropError, export, import, import_from};
use lion::quant::CODEBOOK;
use lion::{Lion, checkpoint::LoadPolicy};
use lion_test_support::Rng;
use safetensors::SafeTensors;
use std::io::Cursor;
use std::path::Path;

/// Bound of the memory per byte of a file: the names of other parameters, and a long string while it is read.
const MULTIPLE: usize = 4;

#[test]
fn safetensors_files() {
    let folder = folder();
    let path = folder.path().join("exported.safetensors");
    let mut pair = Pair::new();
    fuzz("safetensors", |rng| {
        let bytes = input(rng);
        let policy = [LoadPolicy::Strict, LoadPolicy::NonStrict][rng.below(2)];
        pair.load(
            CONSTANT + MULTIPLE * bytes.len(),
            |lion| import_from(lion, Cursor::new(&bytes), "input", policy).map(drop),
            |lion| {
                // The reference implementation accepts every file that is accepted here.
                SafeTensors::deserialize(&bytes).unwrap();
                exports_and_imports(lion, &path);
            },
        )
    });
}

/// Exports an imported state, and checks that importing it again gives the same state.
fn exports_and_imports(lion: &Lion, path: &Path) {
    match export(lion, path) {
        Ok(()) => {}
        // The used optimizer has one parameter in another memory order, which a non-strict import may keep.
        Err(InteropError::Order { parameter }) if parameter == "turned" => return,
        Err(error) => panic!("{error}"),
    }
    let mut again = optimizer(false);
    import(&mut again, path, LoadPolicy::Strict).unwrap();
    let (given, wanted) = (snapshot(&again), snapshot(lion));
    for (given, wanted) in given.parameters.iter().zip(&wanted.parameters) {
        assert_eq!(given.3.steps, wanted.3.steps, "{}", wanted.0);
        assert_eq!(given.3.planes, wanted.3.planes, "{}", wanted.0);
    }
}

/// The JSON tokens of a tensor, which may be invalid.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    /// The name and value of each field.
    fields: Vec<(String, String)>,
    data: Vec<u8>,
}

fn entry(name: String, dtype: &str, shape: &[usize], data: Vec<u8>) -> Entry {
    let quoted = |text: &str| format!("\"{text}\"");
    Entry {
        name: quoted(&name),
        fields: vec![
            (quoted("dtype"), quoted(dtype)),
            (quoted("shape"), format!("{shape:?}")),
            // The offset is filled in when all tensors are known.
            (quoted("data_offsets"), String::new()),
        ],
        data,
    }
}

/// Returns the tensors of a file that can be imported.
fn right(rng: &mut Rng) -> Vec<Entry> {
    let floats = |x: &[f32]| -> Vec<u8> { x.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let mut entries = Vec::new();
    for (name, n) in [
        ("codes", 300usize),
        ("few", 5),
        ("half", 40),
        ("none", 0),
        ("turned", 24),
    ] {
        if rng.below(16) == 0 {
            continue;
        }
        let key = |key: &str| format!("{name}.{key}");
        let steps = (rng.next_u64() >> (2 + rng.below(62))) as i64;
        entries.push(entry(key("step"), "I64", &[], steps.to_le_bytes().to_vec()));
        if matches!(name, "codes" | "few") {
            let codes = (0..n).map(|_| rng.next_u64() as u8).collect();
            let blocks = n.div_ceil(256);
            entries.push(entry(key("state1"), "U8", &[n], codes));
            entries.push(entry(
                key("absmax1"),
                "F32",
                &[blocks],
                floats(&vec![0.5; blocks]),
            ));
            entries.push(entry(key("qmap1"), "F32", &[256], floats(&CODEBOOK)));
        } else {
            let momentum = floats(&rng.spread(n, 4.0));
            let shape: &[usize] = if n == 24 { &[2, 3, 4] } else { &[n] };
            entries.push(entry(key("state1"), "F32", shape, momentum));
        }
    }
    entries
}

fn input(rng: &mut Rng) -> Vec<u8> {
    let mut entries = right(rng);
    rng.shuffle(&mut entries);
    for _ in 0..rng.below(3) {
        change(rng, &mut entries);
    }
    // Offsets are consecutive, before a mutation.
    let mut end = 0;
    for entry in &mut entries {
        let start = end;
        end += entry.data.len();
        for (_, value) in entry
            .fields
            .iter_mut()
            .filter(|(_, value)| value.is_empty())
        {
            *value = format!("[{start},{end}]");
        }
    }
    if rng.below(4) == 0 {
        change(rng, &mut entries);
    }
    let mut fields = Vec::new();
    if rng.below(2) == 0 {
        fields.push(metadata(rng));
    }
    for entry in &entries {
        let info = entry
            .fields
            .iter()
            .map(|(name, value)| format!("{name}:{value}"));
        let info = info.collect::<Vec<_>>().join(",");
        fields.push(format!("{}:{{{info}}}", entry.name));
    }
    if rng.below(16) == 0 {
        fields.push(metadata(rng));
    }
    let json = format!("{{{}}}", fields.join(","));
    let mut json = json.into_bytes();
    json.resize(json.len() + rng.below(9), b' ');
    if rng.below(3) == 0 {
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(json.len() + 1);
            let bytes: &[&[u8]] = &[
                b"\"",
                b"\\",
                b"[",
                b"{",
                b"}",
                b",",
                b":",
                b"\0",
                b"\xFF",
                b"\xC0\x80",
                b"9",
            ];
            match rng.below(4) {
                0 => drop(json.splice(at..at, bytes[rng.below(bytes.len())].iter().copied())),
                1 => drop(json.splice(at..(at + 1).min(json.len()), None)),
                _ => mutate(
                    rng,
                    &mut json,
                    b"{\"a.state1\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                ),
            }
            if json.is_empty() {
                json.push(b'{');
            }
        }
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    bytes.extend(entries.iter().flat_map(|entry| &entry.data));
    if rng.below(8) == 0 {
        mutate(rng, &mut bytes, &[]);
    }
    bytes
}

fn metadata(rng: &mut Rng) -> String {
    let values = [
        r#"{"format":"pt"}"#.to_owned(),
        "{}".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        r#"{"a":1}"#.to_owned(),
        format!(r#"{{"long":"{}"}}"#, "x".repeat(20_000)),
        format!(r#"{{"{}":"escaped"}}"#, r"\u0000".repeat(2000)),
        format!(r#"{{"nested":{}}}"#, "[".repeat(1000)),
    ];
    let value = if rng.below(2) == 0 {
        0
    } else {
        rng.below(values.len())
    };
    format!("\"__metadata__\":{}", values[value])
}

/// Returns a token that differs from the original.
fn token(rng: &mut Rng) -> String {
    let tokens = [
        "0",
        "1",
        "-1",
        "-0",
        "00",
        "1e3",
        "1.5",
        "1e400",
        "-1e400",
        "null",
        "true",
        "{}",
        "[]",
        "\"\"",
        "\"x\"",
        "18446744073709551615",
        "18446744073709551616",
        "9223372036854775808",
        "4294967296",
        "[0,0]",
        "[1,0]",
        "[0]",
        "[0,0,0]",
        "[300]",
        "[18446744073709551615,2]",
        "[4294967296,4294967296,0]",
        "[0,4294967296,4294967296]",
        "[-1]",
        "[1.0]",
        "[\"1\"]",
        "\"F64\"",
        "\"BF16\"",
        "\"F4\"",
        "\"U8\"",
        "\"F32\"",
        "\"\\ud800\"",
        "\"\\u0000\"",
    ];
    match rng.below(12) {
        0 => "[".repeat(1 << rng.below(14)),
        1 => {
            let depth = 1 << rng.below(12);
            "[".repeat(depth) + &"]".repeat(depth)
        }
        2 => format!("[{}0]", "0,".repeat(1 << rng.below(13))),
        3 => format!("[{}1]", "1,".repeat(rng.below(18))),
        4 => format!(
            "\"{}\"",
            ["\u{7f}", "\\u0001", "\u{202e}", "a"][rng.below(4)].repeat(1 << rng.below(14))
        ),
        5 => "9".repeat(1 << rng.below(12)),
        _ => tokens[rng.below(tokens.len())].to_owned(),
    }
}

fn change(rng: &mut Rng, entries: &mut Vec<Entry>) {
    if entries.is_empty() {
        entries.push(entry("codes.step".to_owned(), "I64", &[], vec![0; 8]));
    }
    let (i, j) = (rng.below(entries.len()), rng.below(entries.len()));
    let field = rng.below(entries[i].fields.len().max(1));
    match rng.below(14) {
        0..4 => {
            if let Some((_, value)) = entries[i].fields.get_mut(field) {
                *value = token(rng);
            }
        }
        4 => {
            if let Some(field) = entries[i].fields.get(field).cloned() {
                entries[i].fields.push(field);
            }
        }
        5 if !entries[i].fields.is_empty() => drop(entries[i].fields.remove(field)),
        6 => entries[i].fields.push(("\"more\"".to_owned(), token(rng))),
        7 => entries[i].name = token(rng),
        8 => {
            let names = [
                "codes.state2",
                "codes.qmap2",
                "w",
                ".step",
                "codes.step",
                "__metadata__",
                "few.absmax1",
            ];
            entries[i].name = format!("\"{}\"", names[rng.below(names.len())]);
        }
        9 => {
            let copy = entries[j].clone();
            entries.insert(i, copy);
        }
        10 => drop(entries.remove(i)),
        11 => {
            // Parameters that are not registered.
            for k in 0..1 + rng.below(300) {
                entries.push(entry(format!("u{k}.step"), "I64", &[], vec![0; 8]));
                entries.push(entry(format!("u{k}.state1"), "U8", &[0], Vec::new()));
            }
        }
        12 => {
            let other = entries[j].data.clone();
            let mut data = std::mem::take(&mut entries[i].data);
            mutate(rng, &mut data, &other);
            entries[i].data = data;
        }
        _ => {
            let numbers = [
                f32::NAN,
                f32::INFINITY,
                -1.0,
                -0.0,
                f32::MIN_POSITIVE / 2.0,
                f32::MAX,
            ];
            let number = numbers[rng.below(numbers.len())];
            if let Some(place) = entries[i].data.last_chunk_mut::<4>() {
                *place = number.to_le_bytes();
            }
        }
    }
}
