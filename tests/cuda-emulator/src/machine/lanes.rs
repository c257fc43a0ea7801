//! Loops over lanes, written so that the compiler vectorizes them.

use super::op::{V32, V64};

pub(super) fn map32(a: &V32, f: impl Fn(u32) -> u32) -> V32 {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = f(a[lane]);
    }
    out
}

pub(super) fn zip32(a: &V32, b: &V32, f: impl Fn(u32, u32) -> u32) -> V32 {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

pub(super) fn zip3_32(a: &V32, b: &V32, c: &V32, f: impl Fn(u32, u32, u32) -> u32) -> V32 {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = f(a[lane], b[lane], c[lane]);
    }
    out
}

pub(super) fn map64(a: &V64, f: impl Fn(u64) -> u64) -> V64 {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = f(a[lane]);
    }
    out
}

pub(super) fn zip64(a: &V64, b: &V64, f: impl Fn(u64, u64) -> u64) -> V64 {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

pub(super) fn zip3_64(a: &V64, b: &V64, c: &V64, f: impl Fn(u64, u64, u64) -> u64) -> V64 {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = f(a[lane], b[lane], c[lane]);
    }
    out
}

pub(super) fn widen(a: &V32, f: impl Fn(u32) -> u64) -> V64 {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = f(a[lane]);
    }
    out
}

pub(super) fn narrow(a: &V64, f: impl Fn(u64) -> u32) -> V32 {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = f(a[lane]);
    }
    out
}

pub(super) fn shift64(a: &V64, b: &V32, f: impl Fn(u64, u32) -> u64) -> V64 {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

pub(super) fn wide(a: &V32, b: &V32, f: impl Fn(u32, u32) -> u64) -> V64 {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

pub(super) fn wide_add(a: &V32, b: &V32, c: &V64, f: impl Fn(u32, u32, u64) -> u64) -> V64 {
    let mut out = [0; 32];
    for lane in 0..32 {
        out[lane] = f(a[lane], b[lane], c[lane]);
    }
    out
}

/// Tests two registers in each lane, and returns a mask with one bit per lane.
pub(super) fn test32(a: &V32, b: &V32, f: impl Fn(u32, u32) -> bool) -> u32 {
    // One byte per lane first, because the compiler vectorizes this loop.
    let mut bytes = [0_u8; 32];
    for lane in 0..32 {
        bytes[lane] = u8::from(f(a[lane], b[lane]));
    }
    bits(&bytes)
}

pub(super) fn test64(a: &V64, b: &V64, f: impl Fn(u64, u64) -> bool) -> u32 {
    let mut bytes = [0_u8; 32];
    for lane in 0..32 {
        bytes[lane] = u8::from(f(a[lane], b[lane]));
    }
    bits(&bytes)
}

fn bits(bytes: &[u8; 32]) -> u32 {
    let (eights, _) = bytes.as_chunks::<8>();
    let mut out = 0;
    for (at, eight) in eights.iter().enumerate() {
        // The product moves bit 0 of byte i to bit 56 + i. No two terms overlap.
        let gathered = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        out |= (gathered as u32) << (8 * at);
    }
    out
}

/// Iterates over the lanes of a mask.
pub(super) fn each(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        (mask != 0).then(|| {
            mask &= mask - 1;
            lane as usize
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_return_one_bit_per_lane() {
        let a: V32 = std::array::from_fn(|lane| lane as u32);
        for bit in 0..32 {
            assert_eq!(test32(&a, &[bit; 32], |a, b| a == b), 1 << bit);
        }
        assert_eq!(test32(&a, &[5; 32], |a, b| a < b), 0b11111);
        assert_eq!(each(0x8000_0005).collect::<Vec<_>>(), [0, 2, 31]);
    }
}
