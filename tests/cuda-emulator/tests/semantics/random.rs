//! Random operands. The seed is printed.

/// A SplitMix64 generator.
pub(crate) struct Random(u64);

impl Random {
    /// Creates a generator whose seed is `LION_TEST_SEED` or, if that is not set, the clock.
    pub(crate) fn new() -> Self {
        let seed = match std::env::var("LION_TEST_SEED") {
            Ok(text) => text.parse().expect("LION_TEST_SEED is a whole number"),
            Err(_) => std::time::UNIX_EPOCH
                .elapsed()
                .map_or(0, |time| time.as_nanos() as u64),
        };
        println!("LION_TEST_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// Returns an integer with at most `bits` bits. The lengths vary, and include all zeros and all ones.
    pub(crate) fn integer(&mut self, bits: u32) -> u64 {
        let mask = u64::MAX >> (64 - bits);
        let value = self.bits() & mask >> self.below(bits.into());
        match self.below(4) {
            0 => !value & mask,
            1 => (1 << self.below(bits.into())) & mask,
            _ => value,
        }
    }

    /// Returns a float with these numbers of mantissa and exponent bits. One in eight is infinite, NaN, zero or close to zero. The
    /// exponents are close to each other, and mantissas end with many zeros or ones, so that ties occur.
    pub(crate) fn float(&mut self, mantissa: u32, exponent: u32) -> u64 {
        let (ones, most) = ((1 << mantissa) - 1, (1 << exponent) - 1);
        let field = match self.below(16) {
            0 => 0,
            1 => most,
            2 => most - 1,
            3 => self.below(most),
            _ => most / 2 + self.below(2 * u64::from(mantissa)) - u64::from(mantissa),
        };
        let zeros = self.below(u64::from(mantissa) + 1);
        let fraction = match self.below(4) {
            0 => self.bits() & ones & (ones << zeros),
            1 => (self.bits() | ((1 << zeros) - 1)) & ones,
            2 => self.below(3),
            _ => self.bits() & ones,
        };
        let sign = self.below(2);
        sign << (mantissa + exponent) | field << mantissa | fraction
    }
}
