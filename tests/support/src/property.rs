//! Properties over random inputs, with the seed printed.

use quickcheck::{Arbitrary, Gen, QuickCheck, Testable};
use std::fmt::Debug;

/// Cases of one property.
const CASES: u64 = 200;

/// Checks a property over random inputs. The seed comes from `LION_TEST_SEED` or, if that is not set,
/// from the clock; it is printed, and shown by the test harness when the property fails.
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

/// SplitMix64, for the large arrays that a property derives from one random seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// A whole number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_u64() % end as u64) as usize
    }

    /// A number in `[-1, 1)`.
    pub fn signed_unit(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Numbers of either sign whose magnitudes spread over `decades` below 1; one in eight is 0.
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

    /// Puts a list into random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }
}
