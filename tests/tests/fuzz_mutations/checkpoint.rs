//! Mutated checkpoints.

use crate::{CONSTANT, Pair, extreme, folder, fuzz, mutate, optimizer, snapshot};
use lion::checkpoint::{Checkpoint, load};
use lion::{
    Lion,
    checkpoint::{Load, LoadPolicy},
};
use lion_test_support::{
    CheckpointFile, GroupPart, OverridesPart, RecordPart, Rng, SectionPart, TensorPart, seal,
};
use std::io::Cursor;
use std::path::Path;

/// Bound of the memory per byte of a file: names, and the records of the loaded tensors.
const MULTIPLE: usize = 4;

/// Bound of the memory per group, in bytes. A file has at most 4,096 groups. All are held in memory, and copied if an
/// optimizer takes them over.
const GROUP: usize = 800;

#[test]
fn checkpoints() {
    let folder = folder();
    let path = folder.path().join("saved.lion");
    let mut pair = Pair::new();
    fuzz("checkpoints", |rng| {
        let (bytes, groups) = input(rng);
        let policy = [LoadPolicy::Strict, LoadPolicy::NonStrict][rng.below(2)];
        let how = Load::new().policy(policy).keep_settings(rng.below(4) == 0);
        pair.load(
            CONSTANT + MULTIPLE * bytes.len() + GROUP * groups,
            |lion| {
                let mut checkpoint = Checkpoint::read(Cursor::new(&bytes), "input")?;
                // Planes of sections are read in parts of a few MiB, other than the bytes that are asked for.
                for name in ["loader", "unknown"] {
                    let section = checkpoint.section(name)?;
                    assert!(section.is_none_or(|section| section.len() <= bytes.len()));
                }
                load(lion, &mut checkpoint, how).map(drop)
            },
            |lion| saves_and_loads(lion, &path),
        )
    });
}

/// The report names the group of each parameter. Each name is stored once, not once per parameter.
#[test]
fn long_group_name_is_not_copied_per_parameter() {
    let mut file = right(&mut Rng::new(1));
    file.groups.truncate(1);
    file.groups[0].name = "g".repeat(65_535).into();
    for tensor in &mut file.tensors {
        tensor.group = Some(0);
    }
    let bytes = file.bytes();
    let most = CONSTANT + MULTIPLE * bytes.len() + GROUP;
    let mut loads = 0;
    let load = |lion: &mut Lion| {
        let mut checkpoint = Checkpoint::read(Cursor::new(&bytes), "input")?;
        load(lion, &mut checkpoint, Load::new()).map(drop)
    };
    assert!(Pair::new().load(most, load, |_| loads += 1));
    assert_eq!(loads, 2);
}

/// Saves a loaded optimizer, and checks that the file loads into a fresh optimizer with the same result.
fn saves_and_loads(lion: &Lion, path: &Path) {
    lion.save(path).unwrap();
    let mut again = optimizer(false);
    let report = again.load(path).unwrap();
    assert_eq!(report.loaded.len(), lion.parameters().len());
    let (given, wanted) = (snapshot(&again), snapshot(lion));
    for (given, wanted) in given.parameters.iter().zip(&wanted.parameters) {
        assert_eq!(given.3, wanted.3, "{}", wanted.0);
    }
}

/// Returns a valid file with mutated parts and then mutated bytes, and how many groups a reader may find in it.
fn input(rng: &mut Rng) -> (Vec<u8>, usize) {
    let mut file = right(rng);
    for _ in 0..rng.below(3) {
        change(rng, &mut file);
    }
    // A mutation that copies bytes may add a few groups.
    let groups = (file.groups.len() + 64).min(4096);
    let mut bytes = file.bytes();
    if rng.below(2) == 0 {
        let other = right(rng).bytes();
        let records = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
        for _ in 0..1 + rng.below(3) {
            // Mutations of the preamble and the records reach more checks than those of the planes.
            let range = match rng.below(8) {
                0 => 0..bytes.len(),
                1 => 0..36.min(bytes.len()),
                // The header of version 1, and the index of version 2 with its checksum.
                _ if file.version == 1 => 0..(36 + records).min(bytes.len()),
                _ => bytes.len().saturating_sub(records + 4)..bytes.len(),
            };
            let mut part = bytes[range.clone()].to_vec();
            mutate(rng, &mut part, &other);
            bytes.splice(range, part);
        }
        // With correct checksums the reader gets further.
        if rng.below(4) > 0 {
            seal(&mut bytes);
        }
    }
    (bytes, groups)
}

/// Returns a file that loads.
fn right(rng: &mut Rng) -> CheckpointFile {
    let mut codes = vec![0u8; 300];
    codes.fill_with(|| rng.next_u64() as u8);
    let momentum = |rng: &mut Rng, n| rng.spread(n, 4.0);
    let mut turned = TensorPart::momentum32("turned", &momentum(rng, 24));
    let orders = [
        vec![(2, 1), (3, 2), (4, 6)],
        vec![(24, -1)],
        vec![],
        vec![(4, 1), (6, 4)],
    ];
    turned.order = Some(orders[rng.below(orders.len())].clone());
    let version = 1 + rng.below(2) as u32;
    let mut file = CheckpointFile {
        version,
        numbers: 1 + rng.below(2) as u32,
        library: b"by hand".to_vec(),
        defaults: overrides(rng),
        groups: vec![group("eight", rng), group("other", rng)],
        tensors: vec![
            TensorPart::blockwise8("codes", &codes, &[1.0, 0.5]),
            TensorPart::blockwise8("few", &codes[..5], &[0.0]),
            TensorPart::momentum32("half", &momentum(rng, 40)),
            TensorPart::momentum32("none", &[]),
            turned,
        ],
        on_non_finite: rng.below(2) as u8,
        chunk: [4096, 8192, 4 << 20][rng.below(3)],
        ..CheckpointFile::default()
    };
    if rng.below(2) == 0 {
        let len = 1 + rng.below(3000);
        let values = rng.spread(len, 4.0);
        file.sections.push(SectionPart::param("codes", &values));
    }
    if rng.below(2) == 0 {
        let bytes = vec![rng.next_u64() as u8; rng.below(10_000)];
        file.sections.push(SectionPart::entry("loader", &bytes));
    }
    for (i, tensor) in file.tensors.iter_mut().enumerate() {
        tensor.dtype = [0, 2, 1, 0, 0][i];
        tensor.steps = rng.next_u64() >> (2 + rng.below(62));
        tensor.seed = rng.next_u64();
        tensor.group = [None, Some(0), Some(1)][rng.below(3)];
        tensor.overrides = overrides(rng);
        // The width of each state.
        tensor.overrides.optim_bits = Some(if i < 2 { 8 } else { 32 });
        tensor.overrides.min_8bit_size = (i < 2).then_some(0);
        if rng.below(4) == 0 {
            (tensor.order, tensor.steps) = (None, 0);
        }
    }
    file
}

fn group(name: &str, rng: &mut Rng) -> GroupPart {
    GroupPart {
        name: name.into(),
        overrides: overrides(rng),
    }
}

/// Returns hyper-parameters within their ranges.
fn overrides(rng: &mut Rng) -> OverridesPart {
    let mut some = || (rng.below(3) == 0).then(|| f64::from(rng.signed_unit().abs()) * 0.9);
    OverridesPart {
        lr: some(),
        lr_multiplier: some(),
        betas: some().zip(some()),
        weight_decay: some(),
        max_unorm: some(),
        skip_zeros: some().map(|x| u8::from(x > 0.5)),
        stochastic_state: some().map(|x| u8::from(x > 0.5)),
        seed: some().map(f64::to_bits),
        ..OverridesPart::default()
    }
}

/// Replaces one part of a file by an extreme value.
fn change(rng: &mut Rng, file: &mut CheckpointFile) {
    if file.tensors.is_empty() {
        file.tensors.push(TensorPart::default());
    }
    let (i, j) = (rng.below(file.tensors.len()), rng.below(file.tensors.len()));
    match rng.below(24) {
        0 => return change_overrides(rng, &mut file.defaults),
        1 => file.library = vec![b'l'; rng.below(70_000)],
        2 => {
            // Short records, up to and beyond the maximum number.
            let count = [1, 100, 4094, 4095][rng.below(4)];
            let group = |i| GroupPart {
                name: format!("{i}").into_bytes(),
                ..GroupPart::default()
            };
            file.groups.extend((0..count).map(group));
            return;
        }
        3 if !file.groups.is_empty() => {
            let (from, to) = (rng.below(file.groups.len()), rng.below(file.groups.len()));
            file.groups[to] = file.groups[from].clone();
            return;
        }
        4 if !file.groups.is_empty() => {
            let group = rng.below(file.groups.len());
            let group = &mut file.groups[group];
            match rng.below(2) {
                0 => change_overrides(rng, &mut group.overrides),
                _ => group.name = name(rng),
            }
            return;
        }
        5 => file.rest = vec![rng.next_u64() as u8; 1 + rng.below(100)],
        6 => file.tensors.swap(i, j),
        7 => file.tensors[i] = file.tensors[j].clone(),
        8 => drop(file.tensors.remove(i)),
        9 => {
            // Tensors that are not registered.
            let tensor = |k| TensorPart::momentum32(&format!("u{k:04}"), &[]);
            file.tensors.extend((0..1 + rng.below(200)).map(tensor));
        }
        10 => {
            file.numbers = extreme(rng, 2) as u32;
            return;
        }
        12 => {
            file.chunk = extreme(rng, 4096) as u32;
            return;
        }
        13 => {
            file.on_non_finite = extreme(rng, 1) as u8;
            return;
        }
        14 => {
            let count = rng.below(4);
            let layout = |_| (rng.below(3) as u8, 256 * rng.below(2) as u32, 0x1B13_7AEB);
            file.layouts = Some((0..count).map(layout).collect());
            return;
        }
        15 | 16 => return change_section(rng, &mut file.sections),
        11 => {
            file.version = [0, 1, 2, 3, u32::MAX][rng.below(5)];
            return;
        }
        _ => {}
    }
    let Some(tensor) = file.tensors.get_mut(i) else {
        return;
    };
    match rng.below(24) {
        0 => tensor.name = name(rng),
        1 => tensor.len = extreme(rng, tensor.len),
        2 => tensor.dtype = extreme(rng, 0) as u8,
        3 => tensor.layout ^= 1,
        4 => tensor.block = extreme(rng, 256) as u32,
        5 => tensor.codebook = extreme(rng, 0) as u32,
        6 => tensor.group = Some(extreme(rng, 0) as u32),
        7 => change_overrides(rng, &mut tensor.overrides),
        8 => tensor.steps = extreme(rng, tensor.steps),
        9 => {
            let axes = [1, 2, 3, 64, 1024, 1025, 10_000][rng.below(7)];
            let axis = |_| (extreme(rng, 2), extreme(rng, 1) as i64);
            tensor.order = Some((0..axes).map(axis).collect());
        }
        10 | 11 => {
            if let Some(axes) = tensor.order.as_mut().filter(|axes| !axes.is_empty()) {
                let axis = rng.below(axes.len());
                let (len, stride) = &mut axes[axis];
                match rng.below(3) {
                    0 => *len = extreme(rng, *len),
                    1 => *stride = extreme(rng, *stride as u64) as i64,
                    _ => *stride = -*stride,
                }
            }
        }
        12 => drop(tensor.planes.pop()),
        13 => tensor.planes.push(vec![0; rng.below(100)]),
        14 | 15 if !tensor.planes.is_empty() => {
            let plane = rng.below(tensor.planes.len());
            let other = tensor.planes[plane].clone();
            mutate(rng, &mut tensor.planes[plane], &other);
        }
        16 => tensor.shard = Some((extreme(rng, 256), extreme(rng, 1024))),
        17 => tensor.shard = Some((256, 256 + tensor.len)),
        _ => {}
    }
}

/// Adds, removes or changes a section.
fn change_section(rng: &mut Rng, sections: &mut Vec<SectionPart>) {
    let mut unknown = SectionPart::entry("unknown", &vec![1; rng.below(300)]);
    unknown.id = extreme(rng, 1000) as u32;
    unknown.required = [0, 0, 1, 2][rng.below(4)];
    if sections.is_empty() || rng.below(4) == 0 {
        sections.push(unknown);
        return;
    }
    let i = rng.below(sections.len());
    let section = &mut sections[i];
    match (rng.below(7), section.records.first_mut()) {
        (0, _) => section.id = extreme(rng, section.id.into()) as u32,
        (1, _) => section.required ^= 1,
        (2, _) => section.rest = vec![rng.next_u64() as u8; 1 + rng.below(20)],
        (3, Some(record)) => {
            let again = record.clone();
            section.records.push(again);
        }
        (4, _) => drop(section.records.pop()),
        (
            _,
            Some(RecordPart::Param {
                name,
                len,
                dtype,
                order,
                plane,
            }),
        ) => match rng.below(5) {
            0 => *name = self::name(rng),
            1 => *len = extreme(rng, *len),
            2 => *dtype = extreme(rng, 0) as u8,
            3 => *order = vec![(extreme(rng, 2), extreme(rng, 1) as i64); rng.below(4)],
            _ => plane.truncate(rng.below(plane.len() + 1)),
        },
        (_, Some(RecordPart::Entry { name, bytes, plane })) => match rng.below(3) {
            0 => *name = self::name(rng),
            1 => *bytes = extreme(rng, *bytes),
            _ => plane.extend([0; 7]),
        },
        (_, None) => {}
    }
}

fn change_overrides(rng: &mut Rng, overrides: &mut OverridesPart) {
    let floats = [
        f64::NAN,
        f64::INFINITY,
        -1.0,
        -0.0,
        1.0,
        1e308,
        1e-320,
        0.999_999_999,
        1e38,
    ];
    let float = floats[rng.below(floats.len())];
    match rng.below(11) {
        0 => overrides.lr = Some(float),
        1 => overrides.lr_multiplier = Some(float),
        2 => overrides.betas = Some((float, 0.5)),
        3 => overrides.betas = Some((0.5, float)),
        4 => overrides.weight_decay = Some(float),
        5 => overrides.max_unorm = Some(float),
        6 => overrides.skip_zeros = Some(rng.next_u64() as u8),
        7 => overrides.stochastic_param = Some(1),
        8 => overrides.seed = Some(rng.next_u64()),
        9 => overrides.optim_bits = Some([8, 32, 16, 0, u32::MAX][rng.below(5)]),
        _ => overrides.min_8bit_size = Some(extreme(rng, 0)),
    }
}

fn name(rng: &mut Rng) -> Vec<u8> {
    match rng.below(6) {
        0 => Vec::new(),
        1 => vec![b'n'; 65_534 + rng.below(4)],
        2 => vec![rng.next_u64() as u8; rng.below(8)],
        3 => vec![b'n'; 300_000],
        4 => "\u{1b}[2J\u{202e}".into(),
        _ => b"other".to_vec(),
    }
}
