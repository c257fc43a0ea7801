//! Replays a trajectory on a backend, and reports differing bits.

use crate::bits::{BitDifference, compare_codes, compare_f32, compare_params};
use crate::{Tensor, Trajectory};
use lion::arithmetic::norm::UpdateNorm;
use lion::{
    Error, Handle, Lion, ParamSpec, StepArgs,
    backend::{Backend, Planes, StateRecord},
    tensor::{BLOCK, Shard, Slice, Update},
    update,
};
use std::fmt;
use std::ops::Range;

/// How a trajectory is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each step starts from the recorded parameter and state.
    Recorded,
    /// Each step starts from the result of the previous step.
    FreeRunning,
    /// As [`FreeRunning`](Mode::FreeRunning), with the tensor divided into shards: into two at each boundary of
    /// blocks, and into single blocks.
    Shards,
}

impl Mode {
    /// All modes.
    pub const ALL: [Mode; 3] = [Mode::Recorded, Mode::FreeRunning, Mode::Shards];

    /// Returns the name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Recorded => "recorded",
            Mode::FreeRunning => "free-running",
            Mode::Shards => "shards",
        }
    }

    /// Returns the divisions of a tensor of `n` elements: the boundaries of the parts, both ends included.
    fn divisions(self, n: usize) -> Vec<Vec<usize>> {
        if self != Mode::Shards {
            return vec![vec![0, n]];
        }
        let cuts: Vec<usize> = (0..n).step_by(BLOCK).skip(1).collect();
        let mut divisions: Vec<Vec<usize>> = cuts.iter().map(|&cut| vec![0, cut, n]).collect();
        divisions.push([&[0][..], &cuts, &[n]].concat());
        divisions
    }
}

/// A plane whose bits after a step differ from the recorded ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// How the trajectory was replayed.
    pub mode: Mode,
    /// Index of the step, from 0.
    pub step: usize,
    /// `p`, `m`, `c`, `a`, or `skipped` for the number of skipped blocks.
    pub plane: &'static str,
    /// The first difference.
    pub at: BitDifference,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference {
            mode,
            step,
            plane,
            at,
        } = self;
        write!(f, "{} step {step} plane {plane} {at}", mode.name())
    }
}

/// Runs all steps of a trajectory on a backend, and returns every plane that differs after a step.
///
/// # Errors
/// If the optimizer rejects a hyper-parameter, a state or a step.
pub fn replay(
    trajectory: &Trajectory,
    backend: impl Backend + 'static,
    mode: Mode,
) -> Result<Vec<Difference>, Error> {
    let mut lion = Lion::builder().backend(backend).build()?;
    let mut differences = Vec::new();
    for bounds in mode.divisions(trajectory.elements()) {
        differences.extend(replay_division(&mut lion, trajectory, &bounds, mode)?);
    }
    Ok(differences)
}

/// A part of the parameter, registered under its own name.
struct Part {
    handle: Handle,
    elements: Range<usize>,
    param: Tensor,
}

fn replay_division(
    lion: &mut Lion,
    trajectory: &Trajectory,
    bounds: &[usize],
    mode: Mode,
) -> Result<Vec<Difference>, Error> {
    let mut parts = Vec::new();
    for bounds in bounds.windows(2) {
        let (elements, n) = (bounds[0]..bounds[1], trajectory.elements());
        let name = match mode {
            Mode::Shards => format!("p from {}", elements.start),
            _ => "p".to_owned(),
        };
        let spec = ParamSpec::new(name, elements.len(), trajectory.param_dtype);
        let spec = spec.shard(elements.start, n);
        parts.push(Part {
            handle: lion.register(spec.overrides(trajectory.overrides))?,
            param: trajectory.params[0].range(elements.clone()),
            elements,
        });
    }
    let is_clipped = trajectory.overrides.max_unorm.is_some_and(|max| max > 0.0);
    let mut differences = Vec::new();
    for step in 0..trajectory.steps() {
        if mode == Mode::Recorded || step == 0 {
            for part in &mut parts {
                part.param = trajectory.params[step].range(part.elements.clone());
                restore(lion, part, trajectory, step)?;
            }
        }
        let args = StepArgs::new().grad_scale(trajectory.grad_scale);
        let (grad, mut norm) = (trajectory.grads[step].slice(), None);
        if mode == Mode::Shards && is_clipped {
            let norms = lion.shard_norms(args, updates(&mut parts, grad, None))?;
            norm = Some(UpdateNorm::of_shards(norms.iter().map(|(_, norm)| norm))?);
        }
        let skipped = lion
            .step_with(args, updates(&mut parts, grad, norm))?
            .skipped_blocks();
        let planes = parts.iter().map(|part| lion.export_state(part.handle));
        let planes = planes.map(|record| record.map(|record| record.planes));
        let planes = planes.collect::<Result<Vec<Planes>, Error>>()?;
        let param = Tensor::concat(parts.iter().map(|part| &part.param));
        let found = compare(trajectory, step, &param, &whole(planes), skipped);
        differences.extend(found.into_iter().map(|(plane, at)| Difference {
            mode,
            step,
            plane,
            at,
        }));
    }
    for part in parts {
        lion.remove(part.handle)?;
    }
    Ok(differences)
}

/// Returns the updates of the parts, in reverse: their order does not matter.
fn updates<'p>(
    parts: &'p mut [Part],
    grad: Slice<'p>,
    norm: Option<UpdateNorm>,
) -> Vec<Update<'p>> {
    let updates = parts.iter_mut().rev().map(|part| {
        let grad = grad.slice(part.elements.clone());
        let update = update(part.handle, part.param.slice_mut(), grad);
        match norm {
            Some(norm) => update.with_norm(norm),
            None => update,
        }
    });
    updates.collect()
}

fn restore(
    lion: &mut Lion,
    part: &Part,
    trajectory: &Trajectory,
    step: usize,
) -> Result<(), Error> {
    let Range { start, end } = part.elements;
    let planes = match &trajectory.states[step] {
        Planes::Momentum32 { momentum } => Planes::Momentum32 {
            momentum: momentum[start..end].to_vec(),
        },
        Planes::Blockwise8 { codes, absmax } => Planes::Blockwise8 {
            codes: codes[start..end].to_vec(),
            absmax: absmax[start / BLOCK..end.div_ceil(BLOCK)].to_vec(),
        },
        planes => planes.clone(),
    };
    let record = StateRecord::new(step as u64, planes)
        .seed(trajectory.seed)
        .shard(Shard::new(start, trajectory.elements()))
        .order(None);
    lion.import_state(part.handle, &record)
}

/// Returns the planes of the whole tensor from those of its parts.
fn whole(parts: Vec<Planes>) -> Planes {
    let mut parts = parts.into_iter();
    let first = parts.next().expect("a division has at least one part");
    parts.fold(first, |mut whole, part| {
        match (&mut whole, part) {
            (Planes::Momentum32 { momentum }, Planes::Momentum32 { momentum: next }) => {
                momentum.extend(next);
            }
            (
                Planes::Blockwise8 { codes, absmax },
                Planes::Blockwise8 {
                    codes: next_codes,
                    absmax: next_absmax,
                },
            ) => {
                codes.extend(next_codes);
                absmax.extend(next_absmax);
            }
            (whole, part) => panic!("a state of {} after one of {}", part.bits(), whole.bits()),
        }
        whole
    })
}

/// Returns the planes after a step that differ from the recorded ones.
fn compare(
    trajectory: &Trajectory,
    step: usize,
    param: &Tensor,
    planes: &Planes,
    skipped: u64,
) -> Vec<(&'static str, BitDifference)> {
    let mut found = vec![("p", compare_params(param, &trajectory.params[step + 1]))];
    match (planes, &trajectory.states[step + 1]) {
        (Planes::Momentum32 { momentum: given }, Planes::Momentum32 { momentum: wanted }) => {
            found.push(("m", compare_f32(given, wanted)));
        }
        (
            Planes::Blockwise8 { codes, absmax },
            Planes::Blockwise8 {
                codes: wanted_codes,
                absmax: wanted_absmax,
            },
        ) => {
            found.push(("c", compare_codes(codes, wanted_codes)));
            found.push(("a", compare_f32(absmax, wanted_absmax)));
        }
        (given, wanted) => found.push((
            "bits",
            Some(numbers(
                given.bits().get().into(),
                wanted.bits().get().into(),
            )),
        )),
    }
    let wanted = trajectory.skipped[step];
    let count = (skipped != wanted).then(|| numbers(skipped, wanted));
    found.push(("skipped", count));
    found
        .into_iter()
        .filter_map(|(plane, at)| Some((plane, at?)))
        .collect()
}

fn numbers(given: u64, wanted: u64) -> BitDifference {
    BitDifference {
        index: 0,
        given: given.to_string(),
        given_hex: format!("{given:#x}"),
        wanted: wanted.to_string(),
        wanted_hex: format!("{wanted:#x}"),
    }
}
