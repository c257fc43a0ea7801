//! Replays a trajectory on a backend, and reports differing bits.

use crate::bits::{BitDifference, compare_codes, compare_f32, compare_params};
use crate::{Tensor, Trajectory};
use lion::{
    Error, Handle, Lion, ParamSpec, StepArgs,
    backend::{Backend, Planes, StateRecord},
    update,
};
use std::fmt;

/// The starting point of each step of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The recorded parameter and state.
    Recorded,
    /// The result of the previous step.
    FreeRunning,
}

impl Mode {
    /// Returns the name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Recorded => "recorded",
            Mode::FreeRunning => "free-running",
        }
    }
}

/// A plane whose bits after a step differ from the recorded ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The starting point of the step.
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
    let spec = ParamSpec::new("p", trajectory.elements(), trajectory.param_dtype);
    let handle = lion.register(spec.overrides(trajectory.overrides))?;
    let mut param = trajectory.params[0].clone();
    let mut differences = Vec::new();
    for step in 0..trajectory.steps() {
        if mode == Mode::Recorded || step == 0 {
            param = trajectory.params[step].clone();
            restore(&mut lion, handle, trajectory, step)?;
        }
        let args = StepArgs::new().grad_scale(trajectory.grad_scale);
        let grad = trajectory.grads[step].slice();
        let report = lion.step_with(args, [update(handle, param.slice_mut(), grad)])?;
        let skipped = report.skipped_blocks();
        let planes = lion.export_state(handle)?.planes;
        let found = compare(trajectory, step, &param, &planes, skipped);
        differences.extend(found.into_iter().map(|(plane, at)| Difference {
            mode,
            step,
            plane,
            at,
        }));
    }
    Ok(differences)
}

fn restore(
    lion: &mut Lion,
    handle: Handle,
    trajectory: &Trajectory,
    step: usize,
) -> Result<(), Error> {
    let record = StateRecord::new(step as u64, trajectory.states[step].clone())
        .seed(trajectory.seed)
        .order(None);
    lion.import_state(handle, &record)
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
