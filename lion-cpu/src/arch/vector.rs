//! The operations that a kernel needs from an instruction set, on vectors of `f32` lanes.

use half::{bf16, f16};
use lion_core::Element;
use lion_core::philox::{PhiloxKey, Stream};
use std::fmt;
use std::mem::MaybeUninit;

/// An instruction set as a value, which proves that this CPU has it. So arithmetic is safe to call, and only
/// the methods with pointers are unsafe.
///
/// Each method computes the operation of its name in `f32`, per lane, with one rounding per operation. The
/// quantizer and dequantizer process four vectors at a time, which fill a vector of bytes.
pub(crate) trait Vector: Copy + Send + Sync + fmt::Debug {
    /// The number of lanes of a vector.
    const LANES: usize;

    /// A vector of `f32`.
    type F: Copy;

    /// A vector of `u32`.
    type I: Copy;

    /// A learning rate, in the form that [`signed`](Vector::signed) takes.
    type Rate: Copy;

    fn splat(self, x: f32) -> Self::F;

    /// # Safety
    /// `LANES` elements from `from` on can be read.
    unsafe fn load(self, from: *const f32) -> Self::F;

    /// # Safety
    /// `LANES` elements from `to` on can be written.
    unsafe fn store(self, x: Self::F, to: *mut f32);

    /// # Safety
    /// `4 * LANES` elements from `from` on can be read.
    unsafe fn load_f16(self, from: *const f16) -> [Self::F; 4];

    /// # Safety
    /// The condition of [`load_f16`](Vector::load_f16).
    unsafe fn load_bf16(self, from: *const bf16) -> [Self::F; 4];

    /// Rounds to nearest even.
    ///
    /// # Safety
    /// `4 * LANES` elements from `to` on can be written.
    unsafe fn store_f16(self, x: [Self::F; 4], to: *mut f16);

    /// Rounds to nearest even, or stochastically by `draws`.
    ///
    /// # Safety
    /// The condition of [`store_f16`](Vector::store_f16), and `4 * LANES` draws can be read.
    unsafe fn store_bf16(self, x: [Self::F; 4], draws: Option<*const u16>, to: *mut bf16);

    /// Returns the bitwise or of the numbers, without sign bits.
    fn or_u16(self, x: &[u16; 256]) -> u16;

    /// Returns the largest of the numbers without their sign bits.
    fn top_u16(self, x: &[u16; 256]) -> u16;

    fn add(self, a: Self::F, b: Self::F) -> Self::F;

    fn sub(self, a: Self::F, b: Self::F) -> Self::F;

    fn mul(self, a: Self::F, b: Self::F) -> Self::F;

    fn rate(self, lr: f32) -> Self::Rate;

    /// Returns `lr * sign(c)`, and 0 where `c` is 0. `c` is not NaN.
    fn signed(self, c: Self::F, lr: Self::Rate) -> Self::F;

    /// Returns `zero` in the lanes where `g` is 0, and `other` in the others.
    fn where_zero(self, g: Self::F, zero: Self::F, other: Self::F) -> Self::F;

    /// Returns zeros, the initial value of a [`top`](Vector::top).
    fn no_top(self) -> Self::I;

    /// Returns, per lane, the larger of `top` and the bits of the magnitude of `x`.
    fn top(self, top: Self::I, x: Self::F) -> Self::I;

    /// Returns the bitwise or of `bits` and the bits of `x`.
    fn or(self, bits: Self::I, x: Self::F) -> Self::I;

    /// Returns whether all lanes, without their sign bits, are at most `bound`.
    fn is_within(self, bits: Self::I, bound: u32) -> bool;

    /// Returns the largest lane.
    fn largest(self, top: Self::I) -> u32;

    /// Returns the codewords of `4 * LANES` codes, in order.
    ///
    /// # Safety
    /// `4 * LANES` bytes from `codes` on can be read.
    unsafe fn decode(self, codes: *const u8) -> [Self::F; 4];

    /// Stores the codes of `4 * LANES` numbers that are divided by their absmax, in order: the nearest code or,
    /// with `draws`, one of the two codes around each number.
    ///
    /// # Safety
    /// `4 * LANES` bytes from `codes` on can be written, and that many draws can be read.
    unsafe fn encode(self, x: [Self::F; 4], draws: Option<*const u16>, codes: *mut u8);

    /// Returns the draws of the block of 256 elements that begins at the element `first`.
    fn draws(
        self,
        key: PhiloxKey,
        stream: Stream,
        first: u64,
        out: &mut MaybeUninit<[u16; 256]>,
    ) -> &mut [u16; 256];

    /// Prefetches the cache line at an address, which may be invalid.
    fn prefetch(self, at: *const u8);
}

/// An element type that vectors load and store, four at a time.
pub(crate) trait Lane: Element {
    /// # Safety
    /// `4 * LANES` elements from `from` on can be read.
    unsafe fn load<V: Vector>(v: V, from: *const Self) -> [V::F; 4];

    /// Rounds to nearest even, or `bf16` stochastically by `draws`.
    ///
    /// # Safety
    /// `4 * LANES` elements from `to` on can be written, and that many draws can be read.
    unsafe fn store<V: Vector>(v: V, x: [V::F; 4], draws: Option<*const u16>, to: *mut Self);

    /// Returns the bits of the largest magnitude of a block, as `f32`.
    fn top<V: Vector>(v: V, block: &[Self; 256]) -> u32;

    /// Returns whether the bitwise or of all magnitudes, as `f32`, is at most `bound`. Then all magnitudes are.
    /// It takes half the operations of [`top`](Lane::top), and suffices for most blocks.
    fn is_well_within<V: Vector>(v: V, block: &[Self; 256], bound: u32) -> bool;

    /// Returns whether the bits of all magnitudes, as `f32`, are at most `bound`.
    #[inline(always)]
    fn is_within<V: Vector>(v: V, block: &[Self; 256], bound: u32) -> bool {
        Self::is_well_within(v, block, bound) || Self::top(v, block) <= bound
    }
}

impl Lane for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(v: V, from: *const Self) -> [V::F; 4] {
        // SAFETY: the caller guarantees it.
        unsafe {
            [
                v.load(from),
                v.load(from.add(V::LANES)),
                v.load(from.add(2 * V::LANES)),
                v.load(from.add(3 * V::LANES)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, x: [V::F; 4], _: Option<*const u16>, to: *mut Self) {
        for (j, &x) in x.iter().enumerate() {
            // SAFETY: the caller guarantees it.
            unsafe { v.store(x, to.add(j * V::LANES)) };
        }
    }

    #[inline(always)]
    fn top<V: Vector>(v: V, block: &[Self; 256]) -> u32 {
        let mut top = v.no_top();
        for i in (0..block.len()).step_by(V::LANES) {
            // SAFETY: LANES divides 256, so the block has LANES elements from i on.
            top = v.top(top, unsafe { v.load(block.as_ptr().add(i)) });
        }
        v.largest(top)
    }

    #[inline(always)]
    fn is_well_within<V: Vector>(v: V, block: &[Self; 256], bound: u32) -> bool {
        let mut bits = v.no_top();
        for i in (0..block.len()).step_by(4 * V::LANES) {
            // SAFETY: 4 * LANES divides 256, so the block has that many elements from i on.
            for x in unsafe { f32::load(v, block.as_ptr().add(i)) } {
                bits = v.or(bits, x);
            }
        }
        v.is_within(bits, bound)
    }
}

impl Lane for f16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(v: V, from: *const Self) -> [V::F; 4] {
        // SAFETY: the caller guarantees it.
        unsafe { v.load_f16(from) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, x: [V::F; 4], _: Option<*const u16>, to: *mut Self) {
        // SAFETY: the caller guarantees it.
        unsafe { v.store_f16(x, to) }
    }

    #[inline(always)]
    fn top<V: Vector>(v: V, block: &[Self; 256]) -> u32 {
        f16::from_bits(v.top_u16(words_of_f16(block)))
            .widen()
            .to_bits()
    }

    #[inline(always)]
    fn is_well_within<V: Vector>(v: V, block: &[Self; 256], bound: u32) -> bool {
        f16::from_bits(v.or_u16(words_of_f16(block)))
            .widen()
            .to_bits()
            <= bound
    }
}

impl Lane for bf16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(v: V, from: *const Self) -> [V::F; 4] {
        // SAFETY: the caller guarantees it.
        unsafe { v.load_bf16(from) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, x: [V::F; 4], draws: Option<*const u16>, to: *mut Self) {
        // SAFETY: the caller guarantees it.
        unsafe { v.store_bf16(x, draws, to) }
    }

    #[inline(always)]
    fn top<V: Vector>(v: V, block: &[Self; 256]) -> u32 {
        bf16::from_bits(v.top_u16(words_of_bf16(block)))
            .widen()
            .to_bits()
    }

    #[inline(always)]
    fn is_well_within<V: Vector>(v: V, block: &[Self; 256], bound: u32) -> bool {
        bf16::from_bits(v.or_u16(words_of_bf16(block)))
            .widen()
            .to_bits()
            <= bound
    }
}

#[inline(always)]
fn words_of_f16(block: &[f16; 256]) -> &[u16; 256] {
    // SAFETY: an f16 is a u16 (`repr(transparent)`), and all bit patterns are valid for both.
    unsafe { &*std::ptr::from_ref(block).cast() }
}

#[inline(always)]
fn words_of_bf16(block: &[bf16; 256]) -> &[u16; 256] {
    // SAFETY: a bf16 is a u16 (`repr(transparent)`), and all bit patterns are valid for both.
    unsafe { &*std::ptr::from_ref(block).cast() }
}
