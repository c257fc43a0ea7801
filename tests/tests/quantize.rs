//! The codebook, and properties of blockwise quantization.
#![allow(clippy::unwrap_used)]

use lion::arithmetic::philox::PhiloxKey;
use lion::cpu::{Cpu, Isa};
use lion::quant::{self, CODEBOOK, MAGNITUDES, position};
use lion_test_support::{RecordFile, Rng, compare_f32, property};
use quickcheck::TestResult;
use sha2::{Digest, Sha256};
use std::path::Path;

#[test]
fn codebook_has_the_bits_of_bitsandbytes() {
    let bytes: Vec<u8> = CODEBOOK.iter().flat_map(|x| x.to_le_bytes()).collect();
    let hash: String = Sha256::digest(&bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert_eq!(
        hash,
        "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"
    );
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
    for folder in ["spec", "golden"] {
        let path = directory.join(folder).join("qmap_signed.safetensors");
        let qmap = RecordFile::read(&path).unwrap().floats("qmap").unwrap();
        assert_eq!(compare_f32(&CODEBOOK, &qmap), None);
    }
}

/// Returns the index of the nearest magnitude, computed in f64 by comparing all of them.
fn nearest(a: f32, last: usize) -> usize {
    let distance = |k: &usize| (f64::from(MAGNITUDES[*k]) - f64::from(a)).abs();
    let best = (0..=last).min_by(|a, b| distance(a).total_cmp(&distance(b)));
    best.unwrap()
}

/// Returns whether `code` is the code of the codeword nearest to `x`, or of a neighbour if `x` is within
/// 7 ulp of a midpoint, as the specification allows.
fn is_nearest(x: f32, code: u8) -> bool {
    let last = if x.is_sign_negative() { 127 } else { 128 };
    let k = usize::from(code.abs_diff(127));
    let right_side = code == 127 || x.is_sign_negative() == (code < 127);
    let best = nearest(x.abs(), last);
    let midpoint = (f64::from(MAGNITUDES[k]) + f64::from(MAGNITUDES[best])) / 2.0;
    let ulps = (midpoint as f32).to_bits().abs_diff(x.abs().to_bits());
    right_side && (k == best || (k.abs_diff(best) == 1 && ulps <= 7))
}

/// The quantizer of one instruction set.
struct Quantizer(Cpu);

impl Quantizer {
    /// Returns `None` and prints SKIPPED if this CPU does not have the instruction set.
    fn new(isa: Isa) -> Option<Self> {
        let cpu = Cpu::with_isa(isa);
        if let Err(reason) = &cpu {
            println!("SKIPPED {isa}: {reason}");
        }
        cpu.ok().map(Quantizer)
    }

    fn quantize(&self, m: &[f32], key: Option<PhiloxKey>) -> (Vec<u8>, Vec<f32>) {
        let (mut codes, mut absmax) = (vec![0; m.len()], vec![0.0; m.len().div_ceil(256)]);
        self.0.quantize(m, &mut codes, &mut absmax, key).unwrap();
        (codes, absmax)
    }

    fn dequantize(&self, codes: &[u8], absmax: &[f32]) -> Vec<f32> {
        let mut m = vec![0.0; codes.len()];
        self.0.dequantize(codes, absmax, &mut m).unwrap();
        m
    }

    /// Checks that every number gets the nearest codeword, in particular near midpoints.
    fn picks_the_nearest(&self, seed: u64) -> TestResult {
        let mut rng = Rng::new(seed);
        let mut m = rng.spread(255, 8.0);
        for x in &mut m[100..] {
            let k = rng.below(128);
            let midpoint = (MAGNITUDES[k] + MAGNITUDES[k + 1]) / 2.0;
            let near = midpoint
                .to_bits()
                .wrapping_add_signed(rng.below(21) as i32 - 10);
            *x = f32::from_bits(near).copysign(*x);
        }
        m.push(1.0); // the absmax, so that every quotient is exact
        let (codes, absmax) = self.quantize(&m, None);
        let bad = m
            .iter()
            .zip(&codes)
            .find(|&(&x, &code)| !is_nearest(x, code));
        match bad {
            None => TestResult::from_bool(absmax == [1.0]),
            Some((x, code)) => TestResult::error(format!("{x:e} got code {code}")),
        }
    }

    /// Checks that quantizing a dequantized block gives the same state, if the largest magnitude of the
    /// block has a codeword: 1.0 has one, and -1.0 has none.
    fn is_stable(&self, (seed, scale): (u64, i8)) -> bool {
        let mut rng = Rng::new(seed);
        let n = 1 + rng.below(1000);
        let mut m = rng.spread(n, 7.0);
        for block in m.chunks_mut(256) {
            block[0] = 1.5;
        }
        for x in &mut m {
            *x *= 2f32.powi(i32::from(scale) / 2);
        }
        let (codes, absmax) = self.quantize(&m, None);
        let (codes2, absmax2) = self.quantize(&self.dequantize(&codes, &absmax), None);
        codes == codes2 && compare_f32(&absmax2, &absmax).is_none()
    }

    fn errs_by_half_a_gap_at_most(&self, seed: u64) -> bool {
        let mut rng = Rng::new(seed);
        let n = 1 + rng.below(600);
        let m = rng.spread(n, 7.0);
        let (codes, absmax) = self.quantize(&m, None);
        let back = self.dequantize(&codes, &absmax);
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
            // -1.0 has no codeword, so its error is a whole gap.
            let share = if x < 0.0 && above == 128 { 1.0 } else { 0.5 };
            (f64::from(x) - f64::from(y)).abs() <= top * (gap * share + 1e-6 * a)
        })
    }

    /// Checks that codes, dequantized numbers and random choices match those of the portable functions, at any length.
    fn agrees_with_the_plain_one(&self, seed: u64) -> bool {
        let mut rng = Rng::new(seed);
        let n = rng.below(1100);
        let scale = 10f32.powi(rng.below(76) as i32 - 38);
        let m: Vec<f32> = rng.spread(n, 9.0).iter().map(|x| x * scale).collect();
        let drawn = PhiloxKey::new(seed, rng.next_u64());
        [None, Some(drawn)].into_iter().all(|key| {
            let (codes, absmax) = self.quantize(&m, key);
            let (mut codes2, mut absmax2) = (vec![0; n], vec![0.0; n.div_ceil(256)]);
            quant::quantize(&m, &mut codes2, &mut absmax2, key).unwrap();
            let mut back = vec![0.0; n];
            quant::dequantize(&codes, &absmax, &mut back).unwrap();
            codes == codes2
                && compare_f32(&absmax, &absmax2).is_none()
                && compare_f32(&self.dequantize(&codes, &absmax), &back).is_none()
        })
    }

    /// Checks random choices for numbers around each magnitude, where the slope of the position changes for some:
    /// the next floats, and floats up to a sixteenth of a binade away.
    fn draws_as_the_plain_one_around_magnitudes(&self) {
        for (k, &v) in MAGNITUDES.iter().enumerate().take(128).skip(1) {
            for stride in [1, 4099] {
                for sign in [1.0, -1.0] {
                    let first = v.to_bits() - 127 * stride;
                    let around = (0..255).map(|i| f32::from_bits(first + i * stride).min(1.0));
                    let m: Vec<f32> = around.chain([1.0]).map(|x| sign * x).collect();
                    let key = Some(PhiloxKey::new(k as u64, stride.into()));
                    let (codes, _) = self.quantize(&m, key);
                    let (mut plain, mut absmax) = (vec![0; 256], [0.0]);
                    quant::quantize(&m, &mut plain, &mut absmax, key).unwrap();
                    assert_eq!(codes, plain, "around {v:e}");
                }
            }
        }
    }

    fn keeps_the_sign_of_small_numbers(&self) {
        for (k, &v) in MAGNITUDES.iter().enumerate().take(128).skip(1) {
            let mut m = [0.0; 256];
            m[..3].copy_from_slice(&[v, -v, 1.0]);
            let (codes, _) = self.quantize(&m, None);
            assert_eq!(codes[..4], [127 + k as u8, 127 - k as u8, 255, 127]);
        }
    }

    fn dequantizes_every_code(&self) {
        let codes: Vec<u8> = (0..=255).collect();
        for absmax in [1.0, 0.3, f32::MAX, f32::MIN_POSITIVE, 0.0] {
            let expected = CODEBOOK.map(|v| v * absmax);
            let back = self.dequantize(&codes, &[absmax]);
            assert_eq!(compare_f32(&back, &expected), None);
        }
    }

    /// Checks that stochastic codes are one of the two neighbours of a number, and unbiased.
    fn is_right_on_average(&self) {
        const DRAWS: usize = 100_000;
        let mut m = vec![0.3f32; 256];
        m[0] = 1.0;
        m[1] = -0.3;
        let at = position(0.3);
        let (mut sum, mut count) = (0u64, 0u64);
        for step in 0..(DRAWS / 254) as u64 {
            let (codes, _) = self.quantize(&m, Some(PhiloxKey::new(42, step)));
            assert!([-at.floor(), -at.ceil()].contains(&(f32::from(codes[1]) - 127.0)));
            for &code in &codes[2..] {
                let k = f32::from(code) - 127.0;
                assert!(k == at.floor() || k == at.ceil(), "{k} for {at}");
                sum += u64::from(code) - 127;
                count += 1;
            }
        }
        let (mean, at) = (sum as f64 / count as f64, f64::from(at));
        // Five standard deviations of the mean of `count` draws with a probability of up to 1/2.
        let allowed = 5.0 * 0.5 / (count as f64).sqrt();
        assert!((mean - at).abs() < allowed, "mean {mean}, wanted {at}");
    }
}

macro_rules! for_each_isa {
    ($($name:ident $isa:expr;)*) => {
        $(mod $name {
            use super::*;

            const ISA: Isa = $isa;

            /// Returns whether a property holds, or true if the instruction set is missing.
            fn holds<A>(input: A, of: fn(&Quantizer, A) -> bool) -> bool {
                Quantizer::new(ISA).is_none_or(|q| of(&q, input))
            }

            #[test]
            fn quantize_picks_the_nearest_codeword() {
                property("quantize picks the nearest codeword", |seed: u64| {
                    match Quantizer::new(ISA) {
                        Some(q) => q.picks_the_nearest(seed),
                        None => TestResult::passed(),
                    }
                });
            }

            #[test]
            fn requantizing_a_dequantized_block_returns_the_same_codes() {
                property("dequantize(quantize) is stable", |input: (u64, i8)| {
                    holds(input, Quantizer::is_stable)
                });
            }

            #[test]
            fn quantization_error_is_at_most_half_a_gap() {
                property("the error is at most half a gap", |seed: u64| {
                    holds(seed, Quantizer::errs_by_half_a_gap_at_most)
                });
            }

            #[test]
            fn matches_the_portable_functions() {
                property("it agrees with the plain functions", |seed: u64| {
                    holds(seed, Quantizer::agrees_with_the_plain_one)
                });
            }

            #[test]
            fn small_numbers_keep_their_sign_and_codes_dequantize() {
                if let Some(q) = Quantizer::new(ISA) {
                    q.keeps_the_sign_of_small_numbers();
                    q.dequantizes_every_code();
                    q.is_right_on_average();
                    q.draws_as_the_plain_one_around_magnitudes();
                }
            }
        })*
    };
}

for_each_isa! {
    scalar Isa::Scalar;
    neon Isa::Neon;
    avx2 Isa::Avx2;
    avx512 Isa::Avx512;
    avx512vbmi Isa::Avx512Vbmi;
    avx512bf16 Isa::Avx512Bf16;
}
