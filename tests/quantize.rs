//! The codebook, and properties of blockwise quantization.
#![allow(clippy::unwrap_used)]

use lion::arithmetic::philox::Words;
use lion::quant::{CODEBOOK, MAGNITUDES, dequantize, position, quantize};
use lion_test_support::{RecordFile, Rng, compare_f32, property};
use quickcheck::TestResult;
use sha2::{Digest, Sha256};
use std::path::Path;

#[test]
fn the_codebook_has_the_bits_of_bitsandbytes() {
    let bytes: Vec<u8> = CODEBOOK.iter().flat_map(|x| x.to_le_bytes()).collect();
    let hash: String = Sha256::digest(&bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert_eq!(
        hash,
        "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"
    );
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    for folder in ["spec", "golden"] {
        let path = directory.join(folder).join("qmap_signed.safetensors");
        let qmap = RecordFile::read(&path).unwrap().floats("qmap").unwrap();
        assert_eq!(compare_f32(&CODEBOOK, &qmap), None);
    }
}

/// The index of the nearest magnitude, computed in f64 by looking at all of them.
fn nearest(a: f32, last: usize) -> usize {
    let distance = |k: &usize| (f64::from(MAGNITUDES[*k]) - f64::from(a)).abs();
    let best = (0..=last).min_by(|a, b| distance(a).total_cmp(&distance(b)));
    best.unwrap()
}

/// Whether `code` is that of the codeword nearest to `x`, or of a neighbour of it where `x` is within
/// the 7 ulp around a midpoint that the specification grants.
fn is_nearest(x: f32, code: u8) -> bool {
    let last = if x.is_sign_negative() { 127 } else { 128 };
    let k = usize::from(code.abs_diff(127));
    let right_side = code == 127 || x.is_sign_negative() == (code < 127);
    let best = nearest(x.abs(), last);
    let midpoint = (f64::from(MAGNITUDES[k]) + f64::from(MAGNITUDES[best])) / 2.0;
    let ulps = (midpoint as f32).to_bits().abs_diff(x.abs().to_bits());
    right_side && (k == best || (k.abs_diff(best) == 1 && ulps <= 7))
}

#[test]
fn quantize_picks_the_nearest_codeword() {
    property("quantize picks the nearest codeword", |seed: u64| {
        let mut rng = Rng::new(seed);
        let mut m = rng.spread(255, 8.0);
        // Around the midpoints is where a wrong code would be.
        for x in &mut m[100..] {
            let k = rng.below(128);
            let midpoint = (MAGNITUDES[k] + MAGNITUDES[k + 1]) / 2.0;
            let near = midpoint
                .to_bits()
                .wrapping_add_signed(rng.below(21) as i32 - 10);
            *x = f32::from_bits(near).copysign(*x);
        }
        m.push(1.0); // the absmax, so that every quotient is exact
        let (mut codes, mut absmax) = (vec![0; 256], [0.0]);
        quantize(&m, &mut codes, &mut absmax, None).unwrap();
        let bad = m
            .iter()
            .zip(&codes)
            .find(|&(&x, &code)| !is_nearest(x, code));
        match bad {
            None => TestResult::from_bool(absmax == [1.0]),
            Some((x, code)) => TestResult::error(format!("{x:e} got code {code}")),
        }
    });
}

#[test]
fn the_sign_of_small_numbers_survives() {
    for (k, &v) in MAGNITUDES.iter().enumerate().take(128).skip(1) {
        let (mut codes, mut absmax) = ([0; 3], [0.0]);
        quantize(&[v, -v, 1.0], &mut codes, &mut absmax, None).unwrap();
        assert_eq!(codes, [127 + k as u8, 127 - k as u8, 255]);
    }
}

/// Quantizing what was dequantized gives the same state again, wherever the largest magnitude of a
/// block has a codeword: 1.0 does and -1.0 does not.
#[test]
fn dequantized_blocks_are_stable() {
    property(
        "dequantize(quantize) is stable",
        |(seed, scale): (u64, i8)| {
            let mut rng = Rng::new(seed);
            let n = 1 + rng.below(1000);
            let mut m = rng.spread(n, 7.0);
            for block in m.chunks_mut(256) {
                block[0] = 1.5;
            }
            for x in &mut m {
                *x *= 2f32.powi(i32::from(scale) / 2);
            }
            let (mut codes, mut absmax) = (vec![0; n], vec![0.0; n.div_ceil(256)]);
            quantize(&m, &mut codes, &mut absmax, None).unwrap();
            let mut back = vec![0.0; n];
            dequantize(&codes, &absmax, &mut back).unwrap();
            let (mut codes2, mut absmax2) = (codes.clone(), absmax.clone());
            quantize(&back, &mut codes2, &mut absmax2, None).unwrap();
            codes == codes2 && compare_f32(&absmax2, &absmax).is_none()
        },
    );
}

#[test]
fn the_error_is_at_most_half_a_gap() {
    property("the error is at most half a gap", |seed: u64| {
        let mut rng = Rng::new(seed);
        let n = 1 + rng.below(600);
        let m = rng.spread(n, 7.0);
        let (mut codes, mut absmax) = (vec![0; n], vec![0.0; n.div_ceil(256)]);
        quantize(&m, &mut codes, &mut absmax, None).unwrap();
        let mut back = vec![0.0; n];
        dequantize(&codes, &absmax, &mut back).unwrap();
        m.iter().zip(&back).enumerate().all(|(i, (&x, &y))| {
            let top = f64::from(absmax[i / 256]);
            if top == 0.0 {
                return x == 0.0 && y == 0.0;
            }
            let a = f64::from(x.abs()) / top;
            let above = MAGNITUDES
                .partition_point(|&v| f64::from(v) < a)
                .clamp(1, 128);
            let gap = f64::from(MAGNITUDES[above]) - f64::from(MAGNITUDES[above - 1]);
            // -1.0 has no codeword: there the error is the whole gap.
            let share = if x < 0.0 && above == 128 { 1.0 } else { 0.5 };
            (f64::from(x) - f64::from(y)).abs() <= top * (gap * share + 1e-6 * a)
        })
    });
}

/// Stochastic codes are one of the two around a number, and right on average.
#[test]
fn stochastic_codes_are_right_on_average() {
    const DRAWS: usize = 100_000;
    let mut m = vec![0.3f32; 256];
    m[0] = 1.0;
    m[1] = -0.3;
    let at = position(0.3);
    let (mut codes, mut absmax) = (vec![0; 256], [0.0]);
    let (mut sum, mut count) = (0u64, 0u64);
    for step in 0..(DRAWS / 254) as u64 {
        let words = Words { seed: 42, step };
        quantize(&m, &mut codes, &mut absmax, Some(words)).unwrap();
        assert!([-at.floor(), -at.ceil()].contains(&(f32::from(codes[1]) - 127.0)));
        for &code in &codes[2..] {
            let k = f32::from(code) - 127.0;
            assert!(k == at.floor() || k == at.ceil(), "{k} for {at}");
            sum += u64::from(code) - 127;
            count += 1;
        }
    }
    let (mean, at) = (sum as f64 / count as f64, f64::from(at));
    // Five standard deviations of the mean of `count` draws of odds up to 1/2.
    let allowed = 5.0 * 0.5 / (count as f64).sqrt();
    assert!((mean - at).abs() < allowed, "mean {mean}, wanted {at}");
}
