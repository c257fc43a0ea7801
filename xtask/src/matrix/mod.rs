//! The matrix: compares every backend of this machine with a plain implementation of the
//! specification, for each state width and each pair of types, over options and edge cases; and their norms of gradients with a plain sum.

mod case;
mod norm;

use anyhow::{Result, ensure};
use case::{Case, STEPS, cases, norm_cases};
use lion::cuda::{Cuda, DeviceArray};
use lion::{
    Dtype, Lion, ParamSpec, StepArgs,
    backend::{Backend, Bits, Planes},
    update,
};
use lion_test_support::{
    BitDifference, Candidate, Rng, Tensor, compare_codes, compare_f32, compare_params,
    reference_step, zero_state,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// Maximum number of tensors per case in quick mode, and if each tensor uses a page of a device's
/// managed memory. A GPU can hang when more memory is requested than it has.
const FEW: usize = 200;

/// What the cases of a row compare with the specification.
#[derive(Clone, Copy)]
enum Check {
    /// Steps, with a state of this width.
    Step(Bits),
    /// The norm of gradients.
    Norm,
}

impl Check {
    const ALL: [Check; 3] = [
        Check::Step(Bits::ThirtyTwo),
        Check::Step(Bits::Eight),
        Check::Norm,
    ];

    /// Returns the entry of the column `state`.
    fn name(self) -> String {
        match self {
            Check::Step(bits) => bits.get().to_string(),
            Check::Norm => "norm".to_owned(),
        }
    }
}

/// The result of all cases of one cell.
enum Cell {
    Identical(usize),
    Differs(Vec<String>),
    Skipped(String),
}

/// Runs the matrix for all pairs of types, or for two. Returns whether all bits are as expected and
/// no required backend is missing.
pub(crate) fn run(
    candidates: &[Candidate],
    required: &[String],
    quick: bool,
    json: bool,
) -> Result<bool> {
    for name in required {
        let names: Vec<_> = candidates.iter().map(|candidate| candidate.name).collect();
        ensure!(
            names.contains(&name.as_str()),
            "--require is `{name}`, wanted one of {}",
            names.join(", ")
        );
        // Opened before the others: a process has one CUDA driver, the one that is opened first. If
        // it cannot be opened, its row reports the reason.
        let required = candidates.iter().find(|candidate| candidate.name == name);
        drop(required.map(Candidate::open));
    }
    if !json {
        let pairs: Vec<_> = pairs(quick)
            .map(|(p, g)| format!("{:>10}", format!("{p}/{g}")))
            .collect();
        println!("{:<19} state {}", "backend", pairs.join(""));
    }
    let (mut right, mut identical) = (true, 0);
    let mut notes = Vec::new();
    for candidate in candidates {
        let mut missing = None;
        for check in Check::ALL {
            let mut line = format!("{:<19} {:>5} ", candidate.name, check.name());
            for (param, grad) in pairs(quick) {
                let most = if quick || candidate.is_paged_on_device() {
                    FEW
                } else {
                    usize::MAX
                };
                let cell = run_cell(candidate, most, check, (param, grad))?;
                if json {
                    println!("{}", row(candidate.name, check, param, grad, &cell));
                }
                let text = match cell {
                    Cell::Identical(cases) => {
                        identical += cases;
                        format!("{cases} ok")
                    }
                    Cell::Differs(found) => {
                        right = false;
                        let text = format!("{} WRONG", found.len());
                        notes.extend(found);
                        text
                    }
                    Cell::Skipped(reason) => {
                        missing = Some(reason);
                        "SKIPPED".to_owned()
                    }
                };
                line += &format!("{text:>10}");
            }
            if !json {
                println!("{line}");
            }
        }
        if let Some(reason) = missing {
            right &= !required.iter().any(|name| name == candidate.name);
            notes.push(format!("SKIPPED {}: {reason}", candidate.name));
        }
    }
    for note in notes {
        eprintln!("{note}");
    }
    if !json {
        println!("{identical} cases identical with the specification");
    }
    Ok(right && identical > 0)
}

/// Returns the nine pairs of types of parameter and gradient, or two of them.
fn pairs(quick: bool) -> impl Iterator<Item = (Dtype, Dtype)> {
    let all = Dtype::ALL
        .iter()
        .flat_map(|&param| Dtype::ALL.iter().map(move |&grad| (param, grad)));
    let few = [Dtype::F32, Dtype::Bf16].map(|dtype| (dtype, dtype));
    all.filter(move |pair| !quick || few.contains(pair))
}

fn row(backend: &str, check: Check, param: Dtype, grad: Dtype, cell: &Cell) -> Value {
    let mut row = json!({
        "backend": backend,
        "param": param.name(),
        "grad": grad.name(),
    });
    row["state"] = match check {
        Check::Step(bits) => json!(bits.get()),
        Check::Norm => json!(check.name()),
    };
    match cell {
        Cell::Identical(cases) => {
            row["result"] = json!("identical");
            row["cases"] = json!(cases);
        }
        Cell::Differs(found) => {
            row["result"] = json!("differs");
            row["differences"] = json!(found);
        }
        Cell::Skipped(reason) => {
            row["result"] = json!("skipped");
            row["reason"] = json!(reason);
        }
    }
    row
}

/// Runs the cases of a cell, with a limited number of tensors.
fn run_cell(
    candidate: &Candidate,
    most: usize,
    check: Check,
    (param, grad): (Dtype, Dtype),
) -> Result<Cell> {
    let cuda = match candidate.cuda() {
        Some(Ok(cuda)) => Some(cuda),
        Some(Err(reason)) => return Ok(Cell::Skipped(reason)),
        None => None,
    };
    if let Err(reason) = candidate.open() {
        return Ok(Cell::Skipped(reason.to_string()));
    }
    let mut cases = match check {
        Check::Step(bits) => cases(bits, param, grad),
        Check::Norm => norm_cases(param, grad),
    };
    for case in &mut cases {
        case.lengths.truncate(most);
    }
    let mut found = Vec::new();
    for case in &cases {
        // A device copies host arrays before a step, so device arrays are the more important case.
        // One case with host arrays tests the copies.
        let places: &[Option<&Arc<Cuda>>] = match &cuda {
            Some(cuda) if case.name == "lengths" => &[Some(cuda), None],
            Some(cuda) => &[Some(cuda)],
            None => &[None],
        };
        for &place in places {
            let backend = candidate.open()?;
            let difference = match check {
                Check::Step(bits) => run_case(backend, place, case, bits, param, grad)?,
                Check::Norm => norm::run_case(backend, place, case, param, grad)?,
            };
            if let Some(at) = difference {
                let (name, case, row) = (candidate.name, case.name, check.name());
                found.push(format!("WRONG {name} {row} {param}/{grad} {case}: {at}"));
            }
        }
    }
    Ok(if found.is_empty() {
        Cell::Identical(cases.len())
    } else {
        Cell::Differs(found)
    })
}

/// One parameter of a case, as stored by the reference and by the backend.
struct Pair {
    reference: Tensor,
    state: Planes,
    given: Tensor,
    device: Option<DeviceArray>,
}

/// Runs a case, and returns the first difference between a backend and the reference.
fn run_case(
    backend: impl Backend + 'static,
    cuda: Option<&Arc<Cuda>>,
    case: &Case,
    bits: Bits,
    param: Dtype,
    grad: Dtype,
) -> Result<Option<String>> {
    let mut rng = Rng::new(case.rule.seed ^ bits.get() as u64);
    let (param_start, grad_start) = case.starts;
    let mut lion = Lion::builder().backend(backend).build()?;
    let mut pairs = Vec::new();
    let mut handles = Vec::new();
    for (i, &len) in case.lengths.iter().enumerate() {
        let spec = ParamSpec::new(format!("p{i}"), len, param).overrides(case.overrides(bits));
        handles.push(lion.register(spec)?);
        let given = case.param(&mut rng, param, param_start + len);
        pairs.push(Pair {
            reference: given.tail(param_start),
            state: zero_state(bits, len),
            device: cuda.map(|cuda| cuda.array(given.slice())).transpose()?,
            given,
        });
    }
    for step in 1..=STEPS {
        let grads: Vec<Tensor> = case
            .lengths
            .iter()
            .map(|len| case.grad(&mut rng, grad, grad_start + len))
            .collect();
        let mut wanted = 0;
        for (pair, grad) in pairs.iter_mut().zip(&grads) {
            let grad = grad.tail(grad_start);
            let Pair {
                reference, state, ..
            } = pair;
            wanted += reference_step(&case.rule, step, reference, &grad, state);
        }
        let args = StepArgs::new().grad_scale(case.rule.grad_scale);
        let given = if let Some(cuda) = cuda {
            let arrays = grads.iter().map(|grad| cuda.array(grad.slice()));
            let arrays = arrays.collect::<Result<Vec<_>, _>>()?;
            let updates = handles.iter().zip(&mut pairs).zip(&arrays);
            let updates = updates.filter_map(|((&handle, pair), grad)| {
                let param = pair.device.as_mut()?;
                let range = param_start..param.len();
                let grad = grad.slice(grad_start..grad.len());
                Some(update(handle, param.slice_mut(range), grad))
            });
            lion.step_with(args, updates)?;
            lion.synchronize()?
                .iter()
                .map(|skipped| skipped.skipped)
                .sum()
        } else {
            let updates = handles.iter().zip(&mut pairs).zip(&grads);
            let updates = updates.map(|((&handle, pair), grad)| {
                let (_, param) = pair.given.slice_mut().split_at(param_start);
                update(handle, param, grad.from(grad_start))
            });
            lion.step_with(args, updates)?.skipped_blocks()
        };
        if given != wanted {
            return Ok(Some(format!(
                "step {step} skipped {given} blocks, wanted {wanted}"
            )));
        }
    }
    for (pair, &handle) in pairs.iter_mut().zip(&handles) {
        if let Some(device) = &pair.device {
            device.read(pair.given.slice_mut())?;
        }
        let given = pair.given.tail(param_start);
        let state = lion.export_state(handle)?.planes;
        let differences = [("p", compare_params(&given, &pair.reference))];
        let differences = differences
            .into_iter()
            .chain(compare_states(&state, &pair.state));
        if let Some((plane, at)) = differences
            .filter_map(|(plane, at)| Some((plane, at?)))
            .next()
        {
            let n = pair.reference.len();
            return Ok(Some(format!("plane {plane} of {n} elements, {at}")));
        }
    }
    Ok(None)
}

fn compare_states(given: &Planes, wanted: &Planes) -> Vec<(&'static str, Option<BitDifference>)> {
    match (given, wanted) {
        (Planes::Momentum32 { momentum: given }, Planes::Momentum32 { momentum: wanted }) => {
            vec![("m", compare_f32(given, wanted))]
        }
        (
            Planes::Blockwise8 { codes, absmax },
            Planes::Blockwise8 {
                codes: wanted_codes,
                absmax: wanted_absmax,
            },
        ) => vec![
            ("c", compare_codes(codes, wanted_codes)),
            ("a", compare_f32(absmax, wanted_absmax)),
        ],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lion_test_support::backends;

    #[test]
    fn a_missing_backend_fails_where_it_is_required() {
        let mut candidates = backends();
        candidates.retain(|candidate| ["scalar", "cuda"].contains(&candidate.name));
        let there = candidates[1].open().is_ok();
        let cuda = run(&candidates, &["cuda".to_owned()], true, true);
        assert_eq!(cuda.unwrap(), there);
        // A backend that is not required is skipped, and the available ones have been verified.
        assert!(run(&candidates, &["scalar".to_owned()], true, true).unwrap());
    }
}
