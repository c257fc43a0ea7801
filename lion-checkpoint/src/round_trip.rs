//! Checkpoints that are written into memory and loaded from there, without a file: Miri runs this too.

use super::write::write;
use super::{Checkpoint, CheckpointError, Damage, Load, Save, load};
use lion::{Device, Dtype, Handle, Lion, Overrides, ParamSpec};
use lion_core::{BLOCK, Planes, StateRecord};
use std::io::Cursor;
use std::path::Path;

/// Elements of each parameter: a block and a part of one of an 8-bit state, and a 32-bit state.
const LENGTHS: [usize; 2] = [BLOCK + 3, 3];

/// An optimizer, and what it steps.
struct Run {
    lion: Lion,
    handles: [Handle; 2],
    params: [Vec<f32>; 2],
}

impl Run {
    fn new() -> Self {
        // The default device may load the CUDA driver, which Miri cannot call.
        let mut lion = Lion::builder().device(Device::Cpu).build().unwrap();
        let eight = Overrides::new().optim_bits(8).min_8bit_size(0);
        lion.add_group("eight", eight).unwrap();
        let long = ParamSpec::new("long", LENGTHS[0], Dtype::F32).group("eight");
        let short = ParamSpec::new("short", LENGTHS[1], Dtype::F32);
        let handles = [long, short].map(|spec| lion.register(spec).unwrap());
        let params = LENGTHS.map(|n| vec![1.0; n]);
        Run {
            lion,
            handles,
            params,
        }
    }

    /// Returns an optimizer after one step per scale of the gradients.
    fn stepped(scales: &[f32]) -> Self {
        let mut run = Run::new();
        for &scale in scales {
            run.step(scale);
        }
        run
    }

    fn step(&mut self, scale: f32) {
        let grads = LENGTHS.map(|n| Vec::from_iter((0..n).map(|i| (i as f32 - 100.0) * scale)));
        let [long, short] = &mut self.params;
        let updates = [
            (self.handles[0], long, &grads[0]),
            (self.handles[1], short, &grads[1]),
        ];
        self.lion.step(updates).unwrap();
    }

    fn states(&self) -> [StateRecord; 2] {
        self.handles.map(|h| self.lion.export_state(h).unwrap())
    }

    fn saved(&self) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        let bytes = write(
            self.lion.as_ref(),
            &Save::new(),
            &mut file,
            Path::new("memory"),
        )
        .unwrap();
        assert_eq!(bytes, file.get_ref().len() as u64);
        file.into_inner()
    }

    fn load(&mut self, bytes: &[u8]) -> Result<Vec<String>, CheckpointError> {
        let mut checkpoint = Checkpoint::read(Cursor::new(bytes), "memory")?;
        load(&mut self.lion, &mut checkpoint, Load::new()).map(|report| report.loaded)
    }

    fn param_bits(&self) -> [Vec<u32>; 2] {
        let bits = |param: &Vec<f32>| Vec::from_iter(param.iter().map(|x| x.to_bits()));
        self.params.each_ref().map(bits)
    }
}

/// The bytes of each plane of a state, little-endian.
fn planes(state: &StateRecord) -> Vec<Vec<u8>> {
    let floats = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    match &state.planes {
        Planes::Blockwise8 { codes, absmax } => vec![codes.clone(), floats(absmax)],
        Planes::Momentum32 { momentum } => vec![floats(momentum)],
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_loaded_has_the_bits_that_were_saved_and_steps_as_what_was_saved() {
    let mut saved = Run::stepped(&[0.5, -0.125]);
    let bytes = saved.saved();

    // The planes as they lie in the file.
    let mut checkpoint = Checkpoint::read(Cursor::new(&bytes), "memory").unwrap();
    let tensors = checkpoint.tensors().unwrap().map(Result::unwrap);
    let tensors: Vec<_> = tensors.collect();
    assert_eq!(tensors.len(), 2);
    for (tensor, state) in tensors.iter().zip(saved.states()) {
        assert_eq!((tensor.steps, tensor.seed), (2, state.seed));
        let places = tensor.planes.iter();
        let found = places.map(|plane| &bytes[plane.offset as usize..][..plane.bytes as usize]);
        assert_eq!(Vec::from_iter(found), planes(&state), "{}", tensor.name);
    }

    // States that are fresh are read once, and those that have been stepped are checked first.
    let mut loaded = [Run::new(), Run::stepped(&[7.0])];
    for run in &mut loaded {
        assert_ne!(run.states(), saved.states());
        assert_eq!(run.load(&bytes).unwrap(), ["long", "short"]);
        assert_eq!(run.states(), saved.states());
        run.params = saved.params.clone();
    }
    saved.step(0.25);
    for run in &mut loaded {
        run.step(0.25);
        assert_eq!(run.param_bits(), saved.param_bits());
        assert_eq!(run.states(), saved.states());
    }
}

#[test]
fn a_bit_that_is_flipped_in_a_plane_is_found_and_the_states_are_as_they_were() {
    let good = Run::stepped(&[0.5]).saved();
    let mut checkpoint = Checkpoint::read(Cursor::new(&good), "memory").unwrap();
    let tensors = checkpoint.tensors().unwrap().map(Result::unwrap);
    let planes = tensors.flat_map(|it| it.planes.into_iter().map(move |p| (it.name.clone(), p)));
    let planes: Vec<_> = planes.collect();
    let names = planes.iter().map(|(name, plane)| (&**name, plane.name));
    let wanted = [("long", "codes"), ("long", "absmax"), ("short", "momentum")];
    assert_eq!(Vec::from_iter(names), wanted);
    let mut runs = [Run::new(), Run::stepped(&[7.0])];
    let before = runs.each_ref().map(Run::states);
    for (name, plane) in planes {
        let mut bad = good.clone();
        bad[(plane.offset + plane.bytes - 4) as usize] ^= 1;
        for (run, before) in runs.iter_mut().zip(&before) {
            let error = run.load(&bad).unwrap_err();
            let CheckpointError::Damaged {
                offset,
                parameter: Some(parameter),
                damage: Damage::Checksum { part, .. },
                ..
            } = error
            else {
                panic!("{error:?}");
            };
            assert_eq!(
                (parameter, part, offset),
                (name.clone(), plane.name, plane.offset)
            );
            assert_eq!(run.states(), *before);
        }
    }
}
