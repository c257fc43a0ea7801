//! NEON, with 4 lanes. Codewords and nearest indices are looked up in memory, and the lines of stochastic rounding by
//! `TBL`, in registers.
//!
//! Every aarch64 CPU has NEON, and it computes with subnormal numbers. Products and sums are separate instructions:
//! `FMLA` would round once instead of twice.

use super::bytes::{bytes, padded};
use super::vector::{Lane, Vector};
use super::{generic, scalar};
use crate::job::{Job, KernelOptions, StateMut, View};
use half::{bf16, f16};
use lion_core::philox::{GROUP, PhiloxKey, ROUNDS, Stream};
use lion_core::{Slice, SliceMut, SumSquares};
use lion_quant::{CODEBOOK, KEY_BASE, OFFSETS, PIECES, SLOPES, THRESHOLDS, ZERO_CODE};
use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;
use std::mem::MaybeUninit;

/// NEON.
///
/// The field is private, so only [`new`](Neon::new) returns a value, and a value proves that this CPU has NEON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

/// The sign bit of an `f32`.
const SIGN: u32 = 1 << 31;

/// The codewords by code.
static CODEWORDS: [f32; 256] = CODEBOOK;

/// A function of a key that rises in steps of one, by look-ups of 16 bytes, in rows of 16 keys. No row has more than
/// two steps.
struct Rows {
    /// The value at the first key of a row.
    first: [u8; 16],
    /// The last keys before a step. 255 if there is none.
    before: [[u8; 16]; 2],
}

const fn rows(value: &[u8; 256]) -> Rows {
    let mut rows = Rows {
        first: [0; 16],
        before: [[u8::MAX; 16]; 2],
    };
    let mut row = 0;
    while row < 16 {
        rows.first[row] = value[16 * row];
        let mut steps = 0;
        let mut key = 16 * row + 1;
        while key < 16 * (row + 1) {
            if value[key] != value[key - 1] {
                assert!(value[key] == value[key - 1] + 1);
                rows.before[steps][row] = key as u8 - 1; // a third would not compile
                steps += 1;
            }
            key += 1;
        }
        row += 1;
    }
    rows
}

/// The index of the nearest magnitude by the upper half of the bits of a magnitude `x` up to 1: bits 16 to 23 of
/// `STARTS[upper half] + bits of x`. No upper half stands for more than two indices, and the lower half of the sum carries
/// if `x` has the second one. The addition also cancels the upper half.
///
/// To look up the line of a number by `TBL` and compute with it takes twice as many vector instructions. The numbers
/// from 0.001 to 1 use 5 KiB of the table.
static STARTS: [u32; 1 << 14] = {
    let mut starts = [0; 1 << 14];
    let (mut k, mut upper) = (0, 0);
    while upper < starts.len() {
        let first = (upper as u32) << 16;
        while k < 128 && FIRST_BITS[k + 1] <= first {
            k += 1;
        }
        starts[upper] = ((k as u32) << 16).wrapping_sub(first);
        if k < 128 && FIRST_BITS[k + 1] <= first + 0xFFFF {
            let carry = (1 << 16) - (FIRST_BITS[k + 1] - first);
            starts[upper] = starts[upper].wrapping_add(carry);
            assert!(k + 1 == 128 || FIRST_BITS[k + 2] > first + 0xFFFF);
        }
        upper += 1;
    }
    starts
};

/// The bits of the smallest magnitude that is rounded to an index.
const FIRST_BITS: [u32; 129] = {
    let mut first_bits = [0; 129];
    let mut k = 1;
    while k < 129 {
        let (mut below, mut at) = (0, 1f32.to_bits());
        while below + 1 < at {
            let middle = below.midpoint(at);
            if nearest_index(f32::from_bits(middle)) < k {
                below = middle;
            } else {
                at = middle;
            }
        }
        first_bits[k as usize] = at;
        k += 1;
    }
    first_bits
};

/// Rounds [`lion_quant::position`] to an integer, half to even.
const fn nearest_index(a: f32) -> u32 {
    let mut s = 0;
    while s < PIECES - 1 && THRESHOLDS[s] < a {
        s += 1;
    }
    let position = (a * SLOPES[s]) + OFFSETS[s];
    // Floats from 2^23 on are integers.
    const ROUND: f32 = 12_582_912.0;
    (position + ROUND).to_bits() - ROUND.to_bits()
}

/// The numbers of thresholds with smaller keys. The piece of a number is this one or, if the number is greater than the
/// next threshold, the one after it.
static BELOW: Rows = {
    let mut below = [0; 256];
    let mut key = 0;
    while key < 256 {
        let mut s = 0;
        while s < PIECES - 1 && key_of(THRESHOLDS[s]) < key {
            s += 1;
        }
        // The next threshold has to be the only one with this key.
        assert!(s + 1 >= PIECES - 1 || key_of(THRESHOLDS[s + 1]) > key);
        below[key] = s as u8;
        key += 1;
    }
    rows(&below)
};

/// Returns the key of a threshold.
const fn key_of(threshold: f32) -> usize {
    ((threshold.to_bits() >> 16) as u16).saturating_sub(KEY_BASE) as usize >> 4
}

static SLOPE_BYTES: [[u8; 16]; 4] = bytes(&padded(&SLOPES, f32::INFINITY));
static OFFSET_BYTES: [[u8; 16]; 4] = bytes(&padded(&OFFSETS, f32::INFINITY));
static THRESHOLD_BYTES: [[u8; 16]; 4] = bytes(&padded(&THRESHOLDS, f32::INFINITY));

impl Neon {
    /// Returns a value, if this CPU has NEON and is little-endian.
    pub(crate) fn new() -> Option<Self> {
        let has = cfg!(target_endian = "little") && is_aarch64_feature_detected!("neon");
        has.then_some(Neon(()))
    }

    #[inline(always)]
    fn table(self, table: &'static [u8; 16]) -> uint8x16_t {
        intrinsics!(vld1q_u8(table.as_ptr()))
    }

    /// Returns the codewords of the four bytes, the lowest first.
    #[inline(always)]
    fn codewords(self, codes: u32) -> float32x4_t {
        let word = |j: u32| CODEWORDS[(codes >> (8 * j)) as usize % CODEWORDS.len()];
        let words = [word(0), word(1), word(2), word(3)];
        intrinsics!(vld1q_f32(words.as_ptr()))
    }

    /// Returns the upper halves of the bits of 16 numbers, in order.
    #[inline(always)]
    fn upper_halves(self, x: [float32x4_t; 4]) -> [uint16x8_t; 2] {
        intrinsics! {
            let [x0, x1, x2, x3] = x.map(|x| vreinterpretq_u16_f32(x));
            [vuzp2q_u16(x0, x1), vuzp2q_u16(x2, x3)]
        }
    }

    /// Returns the values of 16 keys.
    #[inline(always)]
    fn values(self, rows: &'static Rows, key: uint8x16_t) -> uint8x16_t {
        intrinsics! {
            let row = vshrq_n_u8::<4>(key);
            let value = vqtbl1q_u8(self.table(&rows.first), row);
            // A comparison that holds is -1.
            let before = vqtbl1q_u8(self.table(&rows.before[0]), row);
            let value = vsubq_u8(value, vcgtq_u8(key, before));
            let before = vqtbl1q_u8(self.table(&rows.before[1]), row);
            vsubq_u8(value, vcgtq_u8(key, before))
        }
    }

    /// Returns the entries of a table of floats for 16 pieces, in order.
    #[inline(always)]
    fn floats(self, table: &'static [[u8; 16]; 4], s: uint8x16_t) -> [float32x4_t; 4] {
        intrinsics! {
            let b0 = vqtbl1q_u8(self.table(&table[0]), s);
            let b1 = vqtbl1q_u8(self.table(&table[1]), s);
            let b2 = vqtbl1q_u8(self.table(&table[2]), s);
            let b3 = vqtbl1q_u8(self.table(&table[3]), s);
            let low0 = vreinterpretq_u16_u8(vzip1q_u8(b0, b1));
            let low1 = vreinterpretq_u16_u8(vzip2q_u8(b0, b1));
            let high0 = vreinterpretq_u16_u8(vzip1q_u8(b2, b3));
            let high1 = vreinterpretq_u16_u8(vzip2q_u8(b2, b3));
            [
                vreinterpretq_f32_u16(vzip1q_u16(low0, high0)),
                vreinterpretq_f32_u16(vzip2q_u16(low0, high0)),
                vreinterpretq_f32_u16(vzip1q_u16(low1, high1)),
                vreinterpretq_f32_u16(vzip2q_u16(low1, high1)),
            ]
        }
    }

    /// Returns `a * slope + offset` of 16 magnitudes, where `s` are the pieces.
    #[inline(always)]
    fn on_lines(self, a: [float32x4_t; 4], s: uint8x16_t) -> [float32x4_t; 4] {
        let slope = self.floats(&SLOPE_BYTES, s);
        let offset = self.floats(&OFFSET_BYTES, s);
        let mut at = a;
        for ((at, slope), offset) in at.iter_mut().zip(slope).zip(offset) {
            *at = self.add(self.mul(*at, slope), offset);
        }
        at
    }

    /// Returns the index of the magnitude that is nearest to each of 16 numbers. `upper` are their upper halves.
    #[inline(always)]
    fn nearest(self, x: [float32x4_t; 4], upper: [uint16x8_t; 2]) -> uint8x16_t {
        intrinsics! {
            let [u0, u1] = upper.map(|upper| vreinterpretq_u64_u16(upper));
            let [x0, x1, x2, x3] = x.map(|x| vreinterpretq_u32_f32(x));
            let front = vaddhn_u32(x0, self.starts(vgetq_lane_u64::<0>(u0)));
            let front = vaddhn_high_u32(front, x1, self.starts(vgetq_lane_u64::<1>(u0)));
            let back = vaddhn_u32(x2, self.starts(vgetq_lane_u64::<0>(u1)));
            let back = vaddhn_high_u32(back, x3, self.starts(vgetq_lane_u64::<1>(u1)));
            vuzp1q_u8(vreinterpretq_u8_u16(front), vreinterpretq_u8_u16(back))
        }
    }

    /// Returns the entries of [`STARTS`] for four upper halves.
    #[inline(always)]
    fn starts(self, upper: u64) -> uint32x4_t {
        let start = |j: u32| STARTS[(upper >> (16 * j)) as usize % STARTS.len()];
        let starts = [start(0), start(1), start(2), start(3)];
        intrinsics!(vld1q_u32(starts.as_ptr()))
    }

    /// Returns the index of one of the two magnitudes around each of 16 numbers.
    ///
    /// # Safety
    /// 16 draws can be read.
    #[inline(always)]
    unsafe fn drawn(
        self,
        x: [float32x4_t; 4],
        upper: [uint16x8_t; 2],
        draws: *const u16,
    ) -> uint8x16_t {
        intrinsics! {
            let a = x.map(|x| vabsq_f32(x));
            let [k0, k1] = upper.map(|upper| {
                let magnitude = vandq_u16(upper, vdupq_n_u16(0x7FFF));
                vqsubq_u16(magnitude, vdupq_n_u16(KEY_BASE))
            });
            let key = vshrn_high_n_u16::<4>(vshrn_n_u16::<4>(k0), k1);
            let below = self.values(&BELOW, key);
            let thresholds = self.floats(&THRESHOLD_BYTES, below);
            let [t0, t1, t2, t3] = thresholds;
            let [a0, a1, a2, a3] = a;
            let beyond = [
                vcgtq_f32(a0, t0),
                vcgtq_f32(a1, t1),
                vcgtq_f32(a2, t2),
                vcgtq_f32(a3, t3),
            ];
            let [p0, p1, p2, p3] = self.on_lines(a, vsubq_u8(below, self.low_bytes(beyond)));
            let [d0, d1, d2, d3] = self.widen_draws(draws);
            // Less than 2^16 units of 2^-16.
            self.low_bytes([
                vcvtq_u32_f32(vaddq_f32(p0, vcvtq_n_f32_u32::<16>(d0))),
                vcvtq_u32_f32(vaddq_f32(p1, vcvtq_n_f32_u32::<16>(d1))),
                vcvtq_u32_f32(vaddq_f32(p2, vcvtq_n_f32_u32::<16>(d2))),
                vcvtq_u32_f32(vaddq_f32(p3, vcvtq_n_f32_u32::<16>(d3))),
            ])
        }
    }

    /// Loads 16 draws.
    ///
    /// # Safety
    /// 16 draws can be read.
    #[inline(always)]
    unsafe fn widen_draws(self, draws: *const u16) -> [uint32x4_t; 4] {
        intrinsics! {
            let (d0, d1) = (vld1q_u16(draws), vld1q_u16(draws.add(8)));
            [
                vmovl_u16(vget_low_u16(d0)),
                vmovl_high_u16(d0),
                vmovl_u16(vget_low_u16(d1)),
                vmovl_high_u16(d1),
            ]
        }
    }

    /// Returns the lowest byte of each of 16 lanes.
    #[inline(always)]
    fn low_bytes(self, x: [uint32x4_t; 4]) -> uint8x16_t {
        intrinsics! {
            let [x0, x1, x2, x3] = x.map(|x| vreinterpretq_u16_u32(x));
            let (front, back) = (vuzp1q_u16(x0, x1), vuzp1q_u16(x2, x3));
            vuzp1q_u8(vreinterpretq_u8_u16(front), vreinterpretq_u8_u16(back))
        }
    }

    /// Four counters of Philox4x32-7, one word of each per vector.
    #[inline(always)]
    fn philox(self, counter: [uint32x4_t; 4], key: [u32; 2]) -> [uint32x4_t; 4] {
        let [mut c0, mut c1, mut c2, mut c3] = counter;
        let [mut k0, mut k1] = key;
        for _ in 0..ROUNDS {
            let [high_a, low_a] = self.products(c0, 0xD251_1F53);
            let [high_b, low_b] = self.products(c2, 0xCD9E_8D57);
            intrinsics! {
                c0 = veorq_u32(veorq_u32(high_b, c1), vdupq_n_u32(k0));
                c2 = veorq_u32(veorq_u32(high_a, c3), vdupq_n_u32(k1));
            }
            (c1, c3) = (low_b, low_a);
            k0 = k0.wrapping_add(0x9E37_79B9);
            k1 = k1.wrapping_add(0xBB67_AE85);
        }
        [c0, c1, c2, c3]
    }

    /// Returns the upper and the lower halves of the products.
    #[inline(always)]
    fn products(self, x: uint32x4_t, by: u32) -> [uint32x4_t; 2] {
        intrinsics! {
            let by = vdupq_n_u32(by);
            let front = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(x), vget_low_u32(by)));
            let back = vreinterpretq_u32_u64(vmull_high_u32(x, by));
            [vuzp2q_u32(front, back), vuzp1q_u32(front, back)]
        }
    }
}

kernel!(Neon, "neon");

impl Vector for Neon {
    const LANES: usize = 4;
    type F = float32x4_t;
    type I = uint32x4_t;
    type Rate = float32x4_t;

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        intrinsics!(vdupq_n_f32(x))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> float32x4_t {
        intrinsics!(vld1q_f32(from))
    }

    #[inline(always)]
    unsafe fn store(self, x: float32x4_t, to: *mut f32) {
        intrinsics!(vst1q_f32(to, x))
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> [float32x4_t; 4] {
        intrinsics! {
            let from: *const u16 = from.cast();
            let front = vreinterpretq_f16_u16(vld1q_u16(from));
            let back = vreinterpretq_f16_u16(vld1q_u16(from.add(8)));
            [
                vcvt_f32_f16(vget_low_f16(front)),
                vcvt_high_f32_f16(front),
                vcvt_f32_f16(vget_low_f16(back)),
                vcvt_high_f32_f16(back),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_f16(self, x: [float32x4_t; 4], to: *mut f16) {
        intrinsics! {
            let to: *mut u16 = to.cast();
            let front = vcvt_high_f16_f32(vcvt_f16_f32(x[0]), x[1]);
            let back = vcvt_high_f16_f32(vcvt_f16_f32(x[2]), x[3]);
            vst1q_u16(to, vreinterpretq_u16_f16(front));
            vst1q_u16(to.add(8), vreinterpretq_u16_f16(back));
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, from: *const bf16) -> [float32x4_t; 4] {
        intrinsics! {
            let from: *const u16 = from.cast();
            let (front, back) = (vld1q_u16(from), vld1q_u16(from.add(8)));
            // Zeros below each number.
            let zero = vdupq_n_u16(0);
            [
                vreinterpretq_f32_u16(vzip1q_u16(zero, front)),
                vreinterpretq_f32_u16(vzip2q_u16(zero, front)),
                vreinterpretq_f32_u16(vzip1q_u16(zero, back)),
                vreinterpretq_f32_u16(vzip2q_u16(zero, back)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, x: [float32x4_t; 4], draws: Option<*const u16>, to: *mut bf16) {
        // Infinity does not change, because less than one unit is added to a lower half of 0.
        let rounded = match draws {
            None => x.map(|x| {
                intrinsics! {
                    let bits = vreinterpretq_u32_f32(x);
                    let odd = vandq_u32(bits, vdupq_n_u32(1 << 16));
                    (vsraq_n_u32::<16>(bits, odd), vdupq_n_u32(0x7FFF))
                }
            }),
            Some(draws) => {
                // SAFETY: the caller guarantees 16 draws.
                let [d0, d1, d2, d3] = unsafe { self.widen_draws(draws) };
                let [b0, b1, b2, b3] = x.map(|x| intrinsics!(vreinterpretq_u32_f32(x)));
                [(b0, d0), (b1, d1), (b2, d2), (b3, d3)]
            }
        };
        intrinsics! {
            // The upper halves of sums.
            let [r0, r1, r2, r3] = rounded;
            let front = vaddhn_high_u32(vaddhn_u32(r0.0, r0.1), r1.0, r1.1);
            let back = vaddhn_high_u32(vaddhn_u32(r2.0, r2.1), r3.0, r3.1);
            // A NaN is truncated and made quiet.
            let [u0, u1] = self.upper_halves(x);
            let [n0, n1, n2, n3] = x.map(|x| vreinterpretq_u16_u32(vceqq_f32(x, x)));
            let quiet = vdupq_n_u16(0x40);
            let front = vbslq_u16(vuzp1q_u16(n0, n1), front, vorrq_u16(u0, quiet));
            let back = vbslq_u16(vuzp1q_u16(n2, n3), back, vorrq_u16(u1, quiet));
            let to: *mut u16 = to.cast();
            vst1q_u16(to, front);
            vst1q_u16(to.add(8), back);
        }
    }

    #[inline(always)]
    fn or_u16(self, x: &[u16; 256]) -> u16 {
        intrinsics! {
            let mut bits = [vdupq_n_u16(0); 4];
            for x in x.as_chunks::<32>().0 {
                for (bits, x) in bits.iter_mut().zip(x.as_chunks::<8>().0) {
                    *bits = vorrq_u16(*bits, vld1q_u16(x.as_ptr()));
                }
            }
            let [b0, b1, b2, b3] = bits;
            let bits = vorrq_u16(vorrq_u16(b0, b1), vorrq_u16(b2, b3));
            let both = vreinterpretq_u64_u16(bits);
            let one = vgetq_lane_u64::<0>(both) | vgetq_lane_u64::<1>(both);
            let one = one | one >> 32;
            (one | one >> 16) as u16 & 0x7FFF
        }
    }

    #[inline(always)]
    fn top_u16(self, x: &[u16; 256]) -> u16 {
        intrinsics! {
            let mut top = vdupq_n_u16(0);
            for x in x.as_chunks::<8>().0 {
                let magnitude = vandq_u16(vld1q_u16(x.as_ptr()), vdupq_n_u16(0x7FFF));
                top = vmaxq_u16(top, magnitude);
            }
            vmaxvq_u16(top)
        }
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        intrinsics!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        intrinsics!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        intrinsics!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn rate(self, lr: f32) -> float32x4_t {
        self.splat(lr)
    }

    #[inline(always)]
    fn signed(self, c: float32x4_t, lr: float32x4_t) -> float32x4_t {
        intrinsics! {
            let (c, lr) = (vreinterpretq_u32_f32(c), vreinterpretq_u32_f32(lr));
            let moves = vtstq_u32(c, vdupq_n_u32(!SIGN));
            let signed = veorq_u32(vandq_u32(c, vdupq_n_u32(SIGN)), lr);
            vreinterpretq_f32_u32(vandq_u32(signed, moves))
        }
    }

    #[inline(always)]
    fn where_zero(self, g: float32x4_t, zero: float32x4_t, other: float32x4_t) -> float32x4_t {
        intrinsics!(vbslq_f32(vceqzq_f32(g), zero, other))
    }

    #[inline(always)]
    fn no_top(self) -> uint32x4_t {
        intrinsics!(vdupq_n_u32(0))
    }

    #[inline(always)]
    fn top(self, top: uint32x4_t, x: float32x4_t) -> uint32x4_t {
        intrinsics!(vmaxq_u32(top, vreinterpretq_u32_f32(vabsq_f32(x))))
    }

    #[inline(always)]
    fn or(self, bits: uint32x4_t, x: float32x4_t) -> uint32x4_t {
        intrinsics!(vorrq_u32(bits, vreinterpretq_u32_f32(x)))
    }

    #[inline(always)]
    fn is_within(self, bits: uint32x4_t, bound: u32) -> bool {
        intrinsics!(vmaxvq_u32(vandq_u32(bits, vdupq_n_u32(!SIGN))) <= bound)
    }

    #[inline(always)]
    fn largest(self, top: uint32x4_t) -> u32 {
        intrinsics!(vmaxvq_u32(top))
    }

    #[inline(always)]
    unsafe fn decode(self, codes: *const u8) -> [float32x4_t; 4] {
        // By `TBL`, 128 magnitudes are 32 registers of tables, and take three times as many vector instructions.
        // SAFETY: the caller guarantees 16 codes.
        let [c0, c1, c2, c3]: [u32; 4] = unsafe { codes.cast::<[u32; 4]>().read_unaligned() };
        [
            self.codewords(c0),
            self.codewords(c1),
            self.codewords(c2),
            self.codewords(c3),
        ]
    }

    #[inline(always)]
    unsafe fn encode(self, x: [float32x4_t; 4], draws: Option<*const u16>, codes: *mut u8) {
        let upper = self.upper_halves(x);
        let k = match draws {
            None => self.nearest(x, upper),
            // SAFETY: the caller guarantees 16 draws.
            Some(draws) => unsafe { self.drawn(x, upper, draws) },
        };
        intrinsics! {
            let [s0, s1] = upper.map(|upper| vreinterpretq_s8_u16(upper));
            let is_negative = vcltzq_s8(vuzp2q_s8(s0, s1));
            // Saturation clamps the codes to 0 and 255.
            let zero_code = vdupq_n_u8(ZERO_CODE);
            let (below, above) = (vqsubq_u8(zero_code, k), vqaddq_u8(zero_code, k));
            vst1q_u8(codes, vbslq_u8(is_negative, below, above));
        }
    }

    #[inline(always)]
    fn draws(
        self,
        key: PhiloxKey,
        stream: Stream,
        first: u64,
        out: &mut MaybeUninit<[u16; 256]>,
    ) -> &mut [u16; 256] {
        let seed = [key.seed as u32, (key.seed >> 32) as u32];
        let first = (first / GROUP as u64) | ((stream as u64) << 63);
        intrinsics! {
            let step = (
                vdupq_n_u32(key.step as u32),
                vdupq_n_u32((key.step >> 32) as u32),
            );
            let to: *mut u16 = out.as_mut_ptr().cast();
            for i in (0..256).step_by(4 * GROUP) {
                let group = first + (i / GROUP) as u64;
                // The first group is a multiple of 4, so that no sum carries.
                let groups = vorrq_u32(
                    vdupq_n_u32(group as u32),
                    vld1q_u32([0, 1, 2, 3].as_ptr()),
                );
                let counter = [groups, vdupq_n_u32((group >> 32) as u32), step.0, step.1];
                let [c0, c1, c2, c3] = self.philox(counter, seed);
                // Interleaves the words of the four groups.
                vst4q_u32(to.add(i).cast(), uint32x4x4_t(c0, c1, c2, c3));
            }
            // All 256 draws are written.
            out.assume_init_mut()
        }
    }

    /// Does nothing: prefetching has no intrinsic yet. These CPUs recognize sequential accesses.
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
}
