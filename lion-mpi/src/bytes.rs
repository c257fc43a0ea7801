//! The elements of arrays as the bytes of messages, and the sum of received gradients.

use lion::tensor::{Slice, SliceMut};
use lion::{Dtype, bf16, f16};
use std::ops::Range;

/// Returns the bytes of elements, in the byte order of this machine.
pub(crate) fn bytes_of(slice: Slice<'_>, range: Range<usize>) -> &[u8] {
    match slice {
        Slice::F32(data) => bytemuck::cast_slice(&data[range]),
        Slice::F16(data) => bytemuck::cast_slice(&data[range]),
        Slice::Bf16(data) => bytemuck::cast_slice(&data[range]),
        // There is no other type.
        _ => &[],
    }
}

/// Overwrites elements with the bytes of a message.
pub(crate) fn store(slice: SliceMut<'_>, range: Range<usize>, bytes: &[u8]) {
    let own: &mut [u8] = match slice {
        SliceMut::F32(data) => bytemuck::cast_slice_mut(&mut data[range]),
        SliceMut::F16(data) => bytemuck::cast_slice_mut(&mut data[range]),
        SliceMut::Bf16(data) => bytemuck::cast_slice_mut(&mut data[range]),
        // There is no other type.
        _ => return,
    };
    own.copy_from_slice(bytes);
}

/// Widens the numbers of a message to `f32`, and stores them (`is_first`) or adds them to those of lower ranks.
pub(crate) fn add(sums: &mut [f32], bytes: &[u8], dtype: Dtype, is_first: bool) {
    fn each<const N: usize>(
        sums: &mut [f32],
        bytes: &[u8],
        is_first: bool,
        widen: impl Fn([u8; N]) -> f32,
    ) {
        let (numbers, _) = bytes.as_chunks::<N>();
        let pairs = sums.iter_mut().zip(numbers);
        if is_first {
            pairs.for_each(|(sum, &number)| *sum = widen(number));
        } else {
            pairs.for_each(|(sum, &number)| *sum += widen(number));
        }
    }
    match dtype {
        Dtype::F16 => each(sums, bytes, is_first, |it| f16::from_ne_bytes(it).to_f32()),
        Dtype::Bf16 => each(sums, bytes, is_first, |it| bf16::from_ne_bytes(it).to_f32()),
        _ => each(sums, bytes, is_first, f32::from_ne_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_of_every_type_are_added_in_f32() {
        let (a, b) = (
            [f16::from_f32(1.5), f16::from_f32(-2.0)],
            [f16::from_f32(0.25), f16::from_f32(1e-7)],
        );
        let mut sums = [9.0f32; 2];
        add(&mut sums, bytes_of(Slice::F16(&a), 0..2), Dtype::F16, true);
        add(&mut sums, bytes_of(Slice::F16(&b), 0..2), Dtype::F16, false);
        // 1e-7 rounds to 2 * 2^-24 in f16.
        assert_eq!(sums, [1.75, -2.0 + 2.0 / 16_777_216.0]);
        let b = [bf16::from_f32(3.0)];
        add(
            &mut sums[..1],
            bytes_of(Slice::Bf16(&b), 0..1),
            Dtype::Bf16,
            false,
        );
        add(
            &mut sums[1..],
            bytes_of(Slice::F32(&[0.5, 4.0]), 1..2),
            Dtype::F32,
            true,
        );
        assert_eq!(sums, [4.75, 4.0]);
    }

    #[test]
    fn stored_bytes_are_the_elements() {
        let mut data = [bf16::from_f32(0.0); 3];
        let from = [bf16::from_f32(1.0), bf16::from_f32(-3.0)];
        store(
            SliceMut::Bf16(&mut data),
            1..3,
            bytes_of(Slice::Bf16(&from), 0..2),
        );
        assert_eq!(data.map(bf16::to_f32), [0.0, 1.0, -3.0]);
    }
}
