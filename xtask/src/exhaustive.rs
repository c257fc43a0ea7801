//! `cargo xtask verify --exhaustive`: tests the quantizer of every instruction set on every float
//! in [-1, 1], and the dequantizer on every code.

use anyhow::{Result, ensure};
use indicatif::ProgressBar;
use lion::cpu::{Cpu, Isa};
use lion::quant::{CODEBOOK, MAGNITUDES, position};
use lion::tensor::BLOCK;
use rayon::prelude::*;

/// Number of floats in [0, 1]: all bit patterns up to that of 1.0.
const FLOATS: u32 = 0x3F80_0000 + 1;

/// Floats per task. A block holds 255 of them and a 1.0, which makes the absmax 1.
const TASK: u32 = 255 * 1024;

/// Limits of the specification: the number of codes that may not be the nearest, and the largest
/// distance of such a float from a midpoint.
const NOT_NEAREST: u64 = 278;
const ULPS: u32 = 7;

/// The result for one instruction set, or for a part of the floats.
#[derive(Clone, Copy, Default)]
struct Found {
    /// The floats that were tested, not counting their negatives.
    floats: u64,
    /// Codes that differ from those of a plain implementation of position().
    wrong: u64,
    /// Codes that differ from the nearest codeword, by midpoints rounded to `f32`.
    not_nearest: u64,
    /// Codes with a codeword that is not the closest in exact arithmetic. Floats on a midpoint, or
    /// where rounding has moved the midpoint, are not included.
    farther: u64,
    /// The largest distance of such a float from the midpoint of the two codewords.
    ulps: u32,
}

impl Found {
    fn and(self, other: Found) -> Found {
        Found {
            floats: self.floats + other.floats,
            wrong: self.wrong + other.wrong,
            not_nearest: self.not_nearest + other.not_nearest,
            farther: self.farther + other.farther,
            ulps: self.ulps.max(other.ulps),
        }
    }
}

/// Runs all tests, and returns whether every code is correct. Runs only one in `sample` tasks.
pub(crate) fn run(json: bool, only: Option<&str>, sample: u32) -> Result<bool> {
    let mut right = true;
    let isas = Isa::ALL
        .iter()
        .filter(|isa| only.is_none_or(|name| isa.name() == name));
    for &isa in isas {
        let cpu = match Cpu::with_isa(isa) {
            Ok(cpu) => cpu,
            Err(reason) => {
                print_skip(json, isa, &reason.to_string());
                continue;
            }
        };
        // The last task is one of them: it has the numbers next to 1.0.
        let last = FLOATS.div_ceil(TASK) - 1;
        let tasks = last / sample + 1;
        let bar = ProgressBar::new(tasks.into());
        let found = (0..tasks).into_par_iter().map(|task| {
            let found = quantize(&cpu, (last - task * sample) * TASK);
            bar.inc(1);
            found
        });
        let found = found.try_reduce(Found::default, |a, b| Ok(a.and(b)));
        bar.finish_and_clear();
        let found = found?;
        let decoded_wrong = dequantize(&cpu)?;
        right &= found.wrong == 0 && decoded_wrong == 0;
        right &=
            found.not_nearest == NOT_NEAREST || (sample > 1 && found.not_nearest < NOT_NEAREST);
        right &= found.ulps <= ULPS;
        print(json, isa, found, decoded_wrong);
    }
    Ok(right)
}

/// Quantizes a task's floats, starting at the bit pattern `first`, with both signs.
fn quantize(cpu: &Cpu, first: u32) -> Result<Found> {
    let end = (first + TASK).min(FLOATS);
    let mut m = Vec::with_capacity(BLOCK * (end - first).div_ceil(255) as usize);
    for block in (first..end).step_by(255) {
        m.extend((block..(block + 255).min(end)).map(f32::from_bits));
        m.push(1.0);
    }
    let (mut codes, mut absmax) = (vec![0; m.len()], vec![0.0; m.len().div_ceil(BLOCK)]);
    cpu.quantize(&m, &mut codes, &mut absmax, None)?;
    let turned: Vec<f32> = m.iter().map(|x| -x).collect();
    let mut turned_codes = vec![0; m.len()];
    cpu.quantize(&turned, &mut turned_codes, &mut absmax, None)?;
    ensure!(absmax.iter().all(|&a| a == 1.0), "an absmax is not 1");

    let mut found = Found {
        floats: (end - first).into(),
        ..Found::default()
    };
    let mut nearest = 0;
    for ((&a, &code), &turned_code) in m.iter().zip(&codes).zip(&turned_codes) {
        let k = position(a).round_ties_even() as u32;
        found.wrong += u64::from(u32::from(code) != 127 + k.min(128));
        found.wrong += u64::from(u32::from(turned_code) != 127 - k.min(127)); // The codebook has no -1.0.
        // The floats increase within a block, and decrease at the next block, after the 1.0.
        if nearest > 0 && a <= middle(nearest - 1) {
            nearest = (0..128).take_while(|&k| middle(k) < a).count();
        }
        while nearest < 128 && middle(nearest) < a {
            nearest += 1;
        }
        let k = usize::from(code.saturating_sub(127));
        if k != nearest {
            found.not_nearest += 1;
            let middle = middle(k.min(nearest));
            found.ulps = found.ulps.max(middle.to_bits().abs_diff(a.to_bits()));
            found.farther += u64::from(distance(a, k) > distance(a, nearest));
        } else if [k.wrapping_sub(1), k + 1]
            .iter()
            .any(|&j| distance(a, k) > distance(a, j))
        {
            found.farther += 1;
        }
    }
    Ok(found)
}

/// Returns the midpoint between two adjacent magnitudes, rounded to `f32`.
fn middle(k: usize) -> f32 {
    (MAGNITUDES[k] + MAGNITUDES[k + 1]) / 2.0
}

/// Returns the distance of a number from a magnitude, which is exact in `f64`.
fn distance(a: f32, k: usize) -> f64 {
    let v = MAGNITUDES.get(k).map_or(f64::INFINITY, |&v| f64::from(v));
    (v - f64::from(a)).abs()
}

/// Returns the number of codes that are not dequantized to their codeword times the absmax.
fn dequantize(cpu: &Cpu) -> Result<usize> {
    let codes: Vec<u8> = (0..=255).collect();
    let mut wrong = 0;
    for absmax in [1.0, 0.1, 3e38, f32::MIN_POSITIVE, 0.0] {
        let mut m = [0.0; BLOCK];
        cpu.dequantize(&codes, &[absmax], &mut m)?;
        let pairs = m.iter().zip(&CODEBOOK);
        wrong += pairs
            .filter(|&(x, v)| x.to_bits() != (v * absmax).to_bits())
            .count();
    }
    Ok(wrong)
}

fn print(json: bool, isa: Isa, found: Found, decoded_wrong: usize) {
    let Found {
        floats,
        wrong,
        not_nearest,
        farther,
        ulps,
    } = found;
    if json {
        let row = serde_json::json!({
            "exhaustive": isa.name(),
            "floats": floats,
            "wrong_codes": wrong,
            "not_nearest": not_nearest,
            "farther": farther,
            "largest_ulps": ulps,
            "wrong_codewords": decoded_wrong,
        });
        println!("{row}");
    } else {
        println!(
            "{:<11} {floats} floats of [0, 1] and their negatives: {wrong} codes differ from position(); \
             {not_nearest} are not the nearest (exactly {farther} are farther than another), by {ulps} ulp at most; \
             {decoded_wrong} of 256 codes are dequantized wrongly",
            isa.name()
        );
    }
}

fn print_skip(json: bool, isa: Isa, reason: &str) {
    if json {
        println!(
            "{}",
            serde_json::json!({ "exhaustive": isa.name(), "result": "skipped", "reason": reason })
        );
    } else {
        println!("{:<11} SKIPPED: {reason}", isa.name());
    }
}
