//! Property tests with random inputs and a printed seed.

use quickcheck::{Arbitrary, Gen, QuickCheck, Testable};
use std::fmt::Debug;

/// Cases per property.
const CASES: u64 = 200;

/// Tests a property on random inputs. The seed comes from `LION_TEST_SEED` or, if that is not set,
/// from the clock. It is printed, and the test harness shows it if the property fails.
///
/// # Panics
/// If the property fails, or `LION_TEST_SEED` is not a number.
pub fn property<A, T>(name: &str, holds: fn(A) -> T)
where
    A: Arbitrary + Debug,
    T: Testable,
{
    let seed = match std::env::var("LION_TEST_SEED") {
        Ok(text) => text.parse().expect("LION_TEST_SEED is a whole number"),
        Err(_) => std::time::UNIX_EPOCH
            .elapsed()
            .map_or(0, |time| time.as_nanos() as u64),
    };
    println!("property `{name}`: LION_TEST_SEED={seed}");
    QuickCheck::new()
        .tests(CASES)
        .rng(Gen::from_size_and_seed(100, seed))
        .quickcheck(holds);
}

/// SplitMix64, for large arrays that a property derives from one random seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Returns a generator with a seed.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// Returns the next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// Returns an integer in `[0, end)`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_u64() % end as u64) as usize
    }

    /// Returns a number in `[-1, 1)`.
    pub fn signed_unit(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Returns numbers of either sign. Their magnitudes span `decades` decades below 1, and one in
    /// eight is 0.
    pub fn spread(&mut self, n: usize, decades: f32) -> Vec<f32> {
        let number = |rng: &mut Rng| {
            let magnitude = 10f32.powf(-decades * rng.signed_unit().abs());
            match rng.below(16) {
                0 => 0.0,
                1 => -0.0,
                k if k % 2 == 0 => magnitude,
                _ => -magnitude,
            }
        };
        (0..n).map(|_| number(self)).collect()
    }

    /// Shuffles a list (Fisher and Yates).
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }
}
