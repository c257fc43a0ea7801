//! Checkpoints of runs whose processes hold shards: saved by some number of them, and loaded by another.
#![allow(clippy::unwrap_used)]

mod interrupted;
mod refused;

use lion::checkpoint::{
    Checkpoint, CheckpointError, Load, LoadPolicy, LoadReport, Save, ShardedCheckpoint,
    ShardedSave, load_sharded, shard_name, split_shard_name,
};
use lion::tensor::BLOCK;
use lion::{Dtype, Handle, Lion, Overrides, ParamSpec, update};
use lion_test_support::{Rng, Tensor, f32_spec, settings_and_states, temporary_path};
use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// The whole parameters: a short last block, fewer blocks than processes, a name with an `@`, and one without elements.
const WHOLES: [(&str, usize, Dtype); 5] = [
    ("a", 9 * BLOCK + 100, Dtype::F32),
    ("b", 5, Dtype::Bf16),
    ("c@256", 2 * BLOCK, Dtype::F16),
    ("empty", 0, Dtype::F32),
    ("z", 4 * BLOCK, Dtype::Bf16),
];

/// A process: its optimizer, and each of its parameters with the whole, the elements and the values.
struct Process {
    lion: Lion,
    params: Vec<(Handle, usize, Range<usize>, Tensor)>,
}

fn base(bits: u32) -> Lion {
    let mut lion = Lion::builder()
        .lr(0.01)
        .seed(7)
        .optim_bits(bits)
        .min_8bit_size(0)
        .build()
        .unwrap();
    let decay = Overrides::new().weight_decay(0.1).lr_multiplier(0.5);
    lion.add_group("decay", decay).unwrap();
    lion
}

fn initial(whole: usize) -> Vec<f32> {
    Rng::new(whole as u64 + 1).spread(WHOLES[whole].1, 1.0)
}

fn spec_of(whole: usize, name: String, len: usize) -> ParamSpec {
    let (_, _, dtype) = WHOLES[whole];
    let overrides = Overrides::new();
    let spec = ParamSpec::new(name, len, dtype);
    match whole {
        0 => spec
            .group("decay")
            .overrides(overrides.stochastic_state(true)),
        1 => spec.overrides(overrides.stochastic_param(true).seed(99)),
        4 => spec.overrides(overrides.stochastic_param(true)),
        _ => spec,
    }
}

/// One process with the whole parameters.
fn whole(bits: u32) -> Process {
    let mut lion = base(bits);
    let mut params = Vec::new();
    for (i, (name, len, dtype)) in WHOLES.into_iter().enumerate() {
        let handle = lion.register(spec_of(i, name.to_owned(), len)).unwrap();
        params.push((handle, i, 0..len, Tensor::from_f32(dtype, &initial(i))));
    }
    Process { lion, params }
}

/// The shards of a whole of each process: twice as many parts as processes, some of them without elements.
fn ranges(whole: usize, process: usize, processes: usize) -> Vec<Range<usize>> {
    let len = WHOLES[whole].1;
    let blocks = len.div_ceil(BLOCK);
    let parts = 2 * processes;
    let own = (0..parts).filter(|part| (3 * part + whole) % processes == process);
    let range = |part: usize| {
        let [start, end] = [part, part + 1].map(|at| (at * blocks / parts * BLOCK).min(len));
        start..end
    };
    own.map(range).filter(|range| !range.is_empty()).collect()
}

/// Processes with shards.
fn sharded(bits: u32, processes: usize) -> Vec<Process> {
    let of_process = |process| {
        let mut lion = base(bits);
        let mut params = Vec::new();
        for (i, (name, len, dtype)) in WHOLES.into_iter().enumerate() {
            let spec = spec_of(i, name.to_owned(), 0).shard(0, len);
            let whole = lion.register(spec).unwrap();
            let info = lion.info(whole).unwrap();
            let overrides = info.overrides.seed(info.hyper.seed);
            for range in ranges(i, process, processes) {
                let spec = spec_of(i, shard_name(name, range.start), range.len())
                    .overrides(overrides)
                    .shard(range.start, len);
                let handle = lion.register(spec).unwrap();
                let values = Tensor::from_f32(dtype, &initial(i)[range.clone()]);
                params.push((handle, i, range, values));
            }
        }
        Process { lion, params }
    };
    (0..processes).map(of_process).collect()
}

impl Process {
    fn step(&mut self, step: u64) {
        let grads: Vec<Vec<f32>> = (0..WHOLES.len())
            .map(|i| Rng::new(100 * step + i as u64).spread(WHOLES[i].1, 2.0))
            .collect();
        let stepped = self.params.iter_mut().filter(|param| !param.2.is_empty());
        let updates = stepped.map(|(handle, i, range, values)| {
            update(*handle, values.slice_mut(), &grads[*i][range.clone()])
        });
        self.lion.step(updates.collect::<Vec<_>>()).unwrap();
    }

    /// Takes the values of another run.
    fn take_values(&mut self, from: &Process) {
        for (_, i, range, values) in &mut self.params {
            let all = from.params[*i].3.bytes();
            let size = WHOLES[*i].2.bytes();
            let bytes = &all[range.start * size..range.end * size];
            *values = Tensor::from_bytes(WHOLES[*i].2, bytes);
        }
    }

    /// Asserts that values, states, steps, seeds and settings are those of one process with the whole parameters.
    fn assert_is_part_of(&self, wanted: &Process) {
        let (lion, whole) = (&self.lion, &wanted.lion);
        assert_eq!(lion.defaults(), whole.defaults());
        assert_eq!(lion.groups(), whole.groups());
        for (handle, i, range, values) in &self.params {
            let (whole_handle, _, _, whole_values) = &wanted.params[*i];
            let size = WHOLES[*i].2.bytes();
            let bytes = &whole_values.bytes()[range.start * size..range.end * size];
            assert!(values.bytes() == bytes, "values of {i}, {range:?}");

            let (info, whole_info) = (lion.info(*handle), whole.info(*whole_handle));
            let (info, whole_info) = (info.unwrap(), whole_info.unwrap());
            assert_eq!(info.steps, whole_info.steps);
            assert_eq!(info.order, whole_info.order);
            assert_eq!(info.group, whole_info.group);
            assert_eq!(info.hyper, whole_info.hyper, "{}", info.name);
            let (state, whole_state) = (lion.state(*handle), whole.state(*whole_handle));
            let (state, whole_state) = (state.unwrap(), whole_state.unwrap());
            for (plane, per_element) in planes(info.bits.get()) {
                let [start, end] = [range.start, range.end].map(per_element);
                let (mut given, mut wanted) = (vec![0; end - start], vec![1; end - start]);
                state.read(plane, 0, &mut given).unwrap();
                whole_state.read(plane, start, &mut wanted).unwrap();
                assert!(given == wanted, "plane {plane} of {}", info.name);
            }
        }
    }
}

type ByteOf = fn(usize) -> usize;

/// The planes of a state, each with the function from an element to its byte.
fn planes(bits: u32) -> Vec<(usize, ByteOf)> {
    match bits {
        8 => vec![(0, |at| at), (1, |at| at.div_ceil(BLOCK) * 4)],
        _ => vec![(0, |at| at * 4)],
    }
}

fn save(processes: &[Process], index: &Path, id: u64) -> ShardedSave {
    let save = ShardedSave::new(index, id);
    for (rank, process) in processes.iter().enumerate() {
        process.lion.save(save.file(rank)).unwrap();
    }
    save
}

fn save_and_commit(processes: &[Process], index: &Path, id: u64) {
    let bytes = save(processes, index, id).commit(processes.len()).unwrap();
    assert_eq!(fs::metadata(index).unwrap().len(), bytes);
}

fn load_all(processes: &mut [Process], index: &Path) -> Vec<LoadReport> {
    let loads = processes
        .iter_mut()
        .map(|process| load_sharded(&mut process.lion, index, Load::new()).unwrap());
    loads.collect()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.collect()
}

/// Two processes after one step.
fn two() -> Vec<Process> {
    let mut processes = sharded(8, 2);
    processes.iter_mut().for_each(|process| process.step(1));
    processes
}

#[test]
fn every_number_of_processes_continues_with_the_bits_of_one() {
    for bits in [8, 32] {
        let (folder, index) = temporary_path("run.lion");
        let mut reference = whole(bits);
        reference.step(1);
        let mut processes = sharded(bits, 4);
        processes.iter_mut().for_each(|process| process.step(1));
        for (step, count) in [(2, 4), (3, 3), (4, 1), (5, 2), (6, 7)] {
            save_and_commit(&processes, &index, ShardedSave::random_id());
            assert_eq!(names(folder.path()).len(), 1 + processes.len());
            processes = sharded(bits, count);
            for report in load_all(&mut processes, &index) {
                assert_eq!(report.loaded, ["a", "b", "c@256", "empty", "z"]);
                assert!(report.settings.is_empty(), "{report}");
            }
            for process in &mut processes {
                process.take_values(&reference);
                process.assert_is_part_of(&reference);
                process.step(step);
            }
            reference.step(step);
            for process in &processes {
                process.assert_is_part_of(&reference);
            }
        }
    }
}

#[test]
fn one_process_with_whole_parameters_loads_the_index_and_several_load_its_file() {
    for bits in [8, 32] {
        let (_folder, index) = temporary_path("run.lion");
        let mut reference = whole(bits);
        let mut processes = sharded(bits, 3);
        reference.step(1);
        processes.iter_mut().for_each(|process| process.step(1));
        save_and_commit(&processes, &index, 1);
        let mut one = whole(bits);
        let report = one.lion.load(&index).unwrap();
        assert_eq!(report.to_string(), "5 parameters loaded");
        let [given, wanted] = [&one, &reference].map(|it| settings_and_states(&it.lion));
        assert!(given == wanted);

        one.lion.save(&index).unwrap();
        let mut processes = sharded(bits, 5);
        load_all(&mut processes, &index);
        for process in &mut processes {
            process.take_values(&reference);
            process.assert_is_part_of(&reference);
        }
    }
}

#[test]
fn settings_names_types_and_widths_are_loaded_as_from_one_file() {
    let (_folder, index) = temporary_path("run.lion");
    let mut lion = base(8);
    lion.set_lr(0.5).unwrap();
    let own = Overrides::new().skip_zeros(true);
    let spec = f32_spec("old.w", 0).shard(0, 1000).overrides(own);
    let empty = lion.register(spec).unwrap();
    let seed = own.seed(lion.info(empty).unwrap().hyper.seed);
    for (offset, len) in [(0, 512), (512, 488)] {
        let spec = f32_spec(&shard_name("old.w", offset), len).shard(offset, 1000);
        let w = lion.register(spec.overrides(seed).group("decay")).unwrap();
        // The group of a shard is that of the whole.
        assert_eq!(lion.info(w).unwrap().group, Some("decay"));
    }
    let save = ShardedSave::new(&index, 1);
    lion.save(save.file(0)).unwrap();
    let error = save.commit(1).unwrap_err();
    let CheckpointError::Shards {
        parameter,
        what,
        given,
        wanted,
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    let differs = (parameter.as_deref(), *what, given.as_str(), wanted.as_str());
    assert_eq!(
        differs,
        (Some("old.w"), "the index of the group", "0", "none")
    );

    let mut lion = base(8);
    lion.set_lr(0.5).unwrap();
    lion.register(f32_spec("old.w", 0).shard(0, 1000).overrides(own))
        .unwrap();
    for (offset, len) in [(0, 512), (512, 488)] {
        let spec = f32_spec(&shard_name("old.w", offset), len).shard(offset, 1000);
        let w = lion.register(spec.overrides(seed)).unwrap();
        let grad: Vec<f32> = (0..len).map(|i| (i % 9) as f32 - 4.0).collect();
        lion.step([(w, &mut vec![0.0f32; len], &grad)]).unwrap();
    }
    lion.save(save.file(0)).unwrap();
    save.commit(1).unwrap();

    let mut resumed = base(32);
    let spec = ParamSpec::new("w", 256, Dtype::Bf16).shard(256, 1000);
    let part = resumed.register(spec).unwrap();
    let rename = |name: &str| name.strip_prefix("old.").map(str::to_owned);
    let before = settings_and_states(&resumed);
    let error = load_sharded(&mut resumed, &index, Load::new().rename(&rename)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`w` (state blockwise8, wanted momentum32)"),
        "{error}"
    );
    let how = Load::new().rename(&rename).convert_states(true);
    let error = load_sharded(&mut resumed, &index, how).unwrap_err();
    assert!(
        error.to_string().contains("`w` (type f32, wanted bf16)"),
        "{error}"
    );
    assert_eq!(settings_and_states(&resumed), before);
    let how = how.allow_dtype_change(true);
    let report = load_sharded(&mut resumed, &index, how.keep_settings(true)).unwrap();
    assert!(
        report
            .settings
            .iter()
            .all(|change| change.setting == "seed")
    );
    assert_eq!(resumed.lr(), 0.01);
    let report = load_sharded(&mut resumed, &index, how).unwrap();
    assert_eq!(report.renamed, [("old.w".to_owned(), "w".to_owned())]);
    assert_eq!((report.converted.len(), report.dtype_changed.len()), (1, 1));
    assert_eq!((report.loaded, resumed.lr()), (vec!["w".to_owned()], 0.5));
    assert_eq!(resumed.info(part).unwrap().overrides.skip_zeros, Some(true));
    // The bits of a conversion of the whole state.
    let mut momentum = vec![0; 4 * 1000];
    let mut wide = base(32);
    let w = wide.register(f32_spec("old.w", 1000)).unwrap();
    wide.load_with(&index, Load::new().convert_states(true))
        .unwrap();
    wide.state(w).unwrap().read(0, 0, &mut momentum).unwrap();
    assert!(momentum.iter().any(|&byte| byte != 0));
    let mut given = vec![0; 4 * 256];
    resumed.state(part).unwrap().read(0, 0, &mut given).unwrap();
    assert!(given == momentum[4 * 256..4 * 512]);

    // Other parameters, with both policies.
    let mut other = base(8);
    other.register(f32_spec("mine", 4)).unwrap();
    other.register(f32_spec("old.w", 0).shard(0, 999)).unwrap();
    let error = load_sharded(&mut other, &index, Load::new()).unwrap_err();
    let CheckpointError::Mismatch {
        missing, different, ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(
        (missing, different[0].what),
        (vec!["mine".to_owned()], "length")
    );
    let how = Load::new().policy(LoadPolicy::NonStrict);
    let report = load_sharded(&mut other, &index, how).unwrap();
    assert_eq!(
        (
            report.loaded.len(),
            report.missing.len(),
            report.different.len()
        ),
        (0, 1, 1)
    );
}

/// The group that only the optimizer has multiplies the learning rate of the file beyond the range of `f32`.
#[test]
fn a_check_refuses_what_a_load_refuses_and_changes_nothing() {
    let (_folder, index) = temporary_path("run.lion");
    let build = |lr: f64| {
        let mut lion = Lion::builder().lr(lr).build().unwrap();
        let own = Overrides::new().lr_multiplier(1e20);
        lion.add_group("own", own).unwrap();
        lion.register(f32_spec("w", 1000).group("own")).unwrap();
        lion
    };
    let save = |lr: f64| {
        let mut lion = Lion::builder().lr(lr).build().unwrap();
        lion.register(f32_spec("w", 1000)).unwrap();
        let save = ShardedSave::new(&index, ShardedSave::random_id());
        lion.save(save.file(0)).unwrap();
        save.commit(1).unwrap();
    };
    let mut lion = build(1e-3);
    let before = settings_and_states(&lion);
    save(1e30);
    let mut checkpoint = ShardedCheckpoint::open(&index).unwrap();
    let checked = checkpoint.check(&mut lion, Load::new()).unwrap_err();
    assert!(
        matches!(checked, CheckpointError::Optimizer { .. }),
        "{checked:?}"
    );
    let loaded = checkpoint.load(&mut lion, Load::new()).unwrap_err();
    assert_eq!(checked.to_string(), loaded.to_string());

    save(1e-2);
    let mut checkpoint = ShardedCheckpoint::open(&index).unwrap();
    let checked = checkpoint.check(&mut lion, Load::new()).unwrap();
    assert_eq!(settings_and_states(&lion), before);
    let loaded = checkpoint.load(&mut lion, Load::new()).unwrap();
    assert_eq!((checked.loaded, lion.lr()), (loaded.loaded, 1e-2));
}

/// The file that is open is read, not the one that has replaced it.
#[test]
fn a_checkpoint_in_one_file_is_loaded_after_it_is_replaced() {
    let (_folder, path) = temporary_path("run.lion");
    let mut saved = whole(8);
    saved.step(1);
    saved
        .lion
        .save_with(&path, &Save::new().section("epoch", b"one"))
        .unwrap();
    let mut checkpoint = ShardedCheckpoint::open(&path).unwrap();
    saved.step(2);
    saved.lion.save(&path).unwrap();

    let mut reference = whole(8);
    reference.step(1);
    for mut process in sharded(8, 2) {
        checkpoint.check(&mut process.lion, Load::new()).unwrap();
        checkpoint.load(&mut process.lion, Load::new()).unwrap();
        process.take_values(&reference);
        process.assert_is_part_of(&reference);
    }
    let epoch = checkpoint.index().section("epoch").unwrap();
    assert_eq!(epoch.as_deref(), Some(&b"one"[..]));
}

#[test]
#[cfg(unix)]
fn an_index_opens_through_a_link_with_its_files_beside_the_link_or_beside_the_index() {
    let (folder, index) = temporary_path("run.lion");
    let saved = save(&two(), &index, ShardedSave::random_id());
    saved.commit(2).unwrap();
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    let link = other.join("latest.lion");
    std::os::unix::fs::symlink(&index, &link).unwrap();
    load_all(&mut sharded(8, 3), &link);
    // One of the files is moved, and the other one stays beside the index.
    let moved = saved.file(1);
    fs::rename(&moved, other.join(moved.file_name().unwrap())).unwrap();
    load_all(&mut sharded(8, 3), &link);
    let error = ShardedCheckpoint::open(&index).unwrap_err();
    assert!(
        matches!(error, CheckpointError::Io { action: "open", .. }),
        "{error:?}"
    );
}

#[test]
fn a_permuted_whole_is_loaded_whole_and_cannot_be_cut() {
    let (_folder, index) = temporary_path("run.lion");
    let mut lion = Lion::builder().build().unwrap();
    let w = lion.register(f32_spec("w", 1024)).unwrap();
    let mut p = ndarray::Array2::<f32>::zeros((2, 512)).reversed_axes();
    let g = ndarray::Array2::<f32>::ones((2, 512)).reversed_axes();
    lion.step([(w, &mut p, &g)]).unwrap();
    let save = ShardedSave::new(&index, 1);
    lion.save(save.file(0)).unwrap();
    save.commit(1).unwrap();
    let mut whole = Lion::builder().build().unwrap();
    whole.register(f32_spec("w", 1024)).unwrap();
    whole.load(&index).unwrap();
    assert_eq!(settings_and_states(&whole), settings_and_states(&lion));

    let mut part = Lion::builder().build().unwrap();
    part.register(f32_spec("w", 512).shard(0, 1024)).unwrap();
    let error = part.load(&index).unwrap_err().to_string();
    assert!(error.contains("`w` (memory order "), "{error}");
}

#[test]
fn an_index_holds_values_and_bytes_and_one_file_functions_refuse_it() {
    let (_folder, index) = temporary_path("run.lion");
    let processes = two();
    let saved = save(&processes, &index, 1);
    let (weight, epoch) = (vec![1.5f32; 300], [3u8; 8]);
    let contents = Save::new()
        .param("a", &weight)
        .section("epoch", &epoch)
        .score(0.25);
    saved.commit_with(2, &contents).unwrap();
    let mut file = Checkpoint::open(&index).unwrap();
    file.verify_all().unwrap();
    let mut read = vec![0.0f32; 300];
    file.read_params([("a", &mut read)]).unwrap();
    assert_eq!((read, file.score()), (weight, Some(0.25)));
    assert_eq!(file.section("epoch").unwrap().as_deref(), Some(&epoch[..]));
    let listed: Vec<_> = file.files().iter().map(|file| file.name.clone()).collect();
    assert_eq!(
        listed,
        ["run.lion.0000000000000001.0", "run.lion.0000000000000001.1"]
    );

    let error = lion::checkpoint::load(&mut whole(8).lion, &mut file, Load::new()).unwrap_err();
    assert!(
        matches!(error, CheckpointError::Sharded { .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("`load_sharded` reads it"),
        "{error}"
    );

    let mut sharded = ShardedCheckpoint::open(&index).unwrap();
    sharded.verify_all().unwrap();
    let a = &sharded.tensors()[0];
    assert_eq!((a.name.as_str(), a.len, a.steps), ("a", 2404, 1));
    assert_eq!(a.shards.iter().map(|shard| shard.len).sum::<u64>(), 2404);
    assert!(split_shard_name(&a.shards[1].name).is_some());
}

/// A shard begins and ends within a chunk of 4 MiB of a file, and a thread reads ahead.
#[test]
fn planes_of_several_chunks_are_cut_anywhere() {
    const N: usize = 3_000_100;
    let register = |bits: u32, ranges: &[Range<usize>]| {
        let mut lion = base(bits);
        lion.register(f32_spec("w", 0).shard(0, N)).unwrap();
        for range in ranges {
            let spec = f32_spec(&shard_name("w", range.start), range.len());
            lion.register(spec.shard(range.start, N)).unwrap();
        }
        lion
    };
    let one = |bits: u32| {
        let mut lion = base(bits);
        lion.register(f32_spec("w", N)).unwrap();
        lion
    };
    let bytes = |lion: &Lion, name: &str, plane: usize, len: usize| {
        let mut bytes = vec![0; len];
        let handle = lion.handle(name).unwrap();
        lion.state(handle)
            .unwrap()
            .read(plane, 0, &mut bytes)
            .unwrap();
        bytes
    };
    let (_folder, index) = temporary_path("run.lion");
    let mut lion = one(32);
    let (w, grad) = (lion.handle("w").unwrap(), Rng::new(5).spread(N, 2.0));
    lion.step([(w, &mut vec![0.0f32; N], &grad)]).unwrap();
    lion.save(&index).unwrap();
    let wanted = bytes(&lion, "w", 0, 4 * N);
    let mut narrow = one(8);
    let convert = Load::new().convert_states(true);
    narrow.load_with(&index, convert).unwrap();
    let codes = bytes(&narrow, "w", 0, N);

    // From one file to three processes, and from their files to one and to two.
    let cuts = [0, 5000 * BLOCK, 5001 * BLOCK, N].map(|at| at.min(N));
    let save = ShardedSave::new(&index, 1);
    for (rank, cut) in cuts.windows(2).enumerate() {
        let range = cut[0]..cut[1];
        let mut lion = register(32, std::slice::from_ref(&range));
        load_sharded(&mut lion, &index, Load::new()).unwrap();
        let given = bytes(&lion, &shard_name("w", range.start), 0, 4 * range.len());
        assert!(given == wanted[4 * range.start..4 * range.end]);
        lion.save(save.file(rank)).unwrap();
    }
    save.commit(3).unwrap();
    let mut whole = one(32);
    whole.load(&index).unwrap();
    assert!(bytes(&whole, "w", 0, 4 * N) == wanted);
    let ranges = [4097 * BLOCK..5002 * BLOCK, 5002 * BLOCK..N];
    let mut parts = register(8, &ranges);
    load_sharded(&mut parts, &index, convert).unwrap();
    for range in ranges {
        let given = bytes(&parts, &shard_name("w", range.start), 0, range.len());
        assert!(given == codes[range], "converted");
    }
}
