//! Tables of 16 numbers by byte, for instructions that look up 16 bytes in a register.

/// Returns numbers, followed by `fill` up to the length of a register.
pub(super) const fn padded<const N: usize>(numbers: &[f32; N], fill: f32) -> [f32; 16] {
    let mut all = [fill; 16];
    let mut i = 0;
    while i < N {
        all[i] = numbers[i];
        i += 1;
    }
    all
}

/// Returns the four bytes of each number, lowest first.
pub(super) const fn bytes(numbers: &[f32; 16]) -> [[u8; 16]; 4] {
    let mut bytes = [[0; 16]; 4];
    let mut i = 0;
    while i < 16 {
        let of_float = numbers[i].to_bits().to_le_bytes();
        let mut byte = 0;
        while byte < 4 {
            bytes[byte][i] = of_float[byte];
            byte += 1;
        }
        i += 1;
    }
    bytes
}
