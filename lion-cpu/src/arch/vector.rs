//! What a kernel needs of an instruction set: a vector of `f32` lanes.

use half::{bf16, f16};
use lion_core::Element;
use lion_core::philox::Words;
use std::fmt;

/// An instruction set as a value, which proves that this CPU has it: arithmetic is safe to call
/// on it, and only what goes through a pointer is not.
///
/// Each method is what its name says in `f32`, one rounding an operation, lane by lane. The quantizer
/// and dequantizer work on four vectors at a time, which fill a vector of bytes.
pub(crate) trait Vector: Copy + Send + Sync + fmt::Debug {
    /// Lanes of a vector.
    const LANES: usize;

    /// A vector of `f32`.
    type F: Copy;

    /// A vector of `u32`.
    type I: Copy;

    fn splat(self, x: f32) -> Self::F;

    /// # Safety
    /// `LANES` elements from `from` on can be read.
    unsafe fn load_f32(self, from: *const f32) -> Self::F;

    /// # Safety
    /// As [`load_f32`](Vector::load_f32).
    unsafe fn load_f16(self, from: *const f16) -> Self::F;

    /// # Safety
    /// As [`load_f32`](Vector::load_f32).
    unsafe fn load_bf16(self, from: *const bf16) -> Self::F;

    /// # Safety
    /// `LANES` elements from `to` on can be written.
    unsafe fn store_f32(self, x: Self::F, to: *mut f32);

    /// Rounds to nearest even.
    ///
    /// # Safety
    /// As [`store_f32`](Vector::store_f32).
    unsafe fn store_f16(self, x: Self::F, to: *mut f16);

    /// Rounds to nearest even, or stochastically by the low 16 bits of `words`.
    ///
    /// # Safety
    /// As [`store_f32`](Vector::store_f32), and `LANES` words can be read.
    unsafe fn store_bf16(self, x: Self::F, words: Option<*const u32>, to: *mut bf16);

    fn add(self, a: Self::F, b: Self::F) -> Self::F;

    fn sub(self, a: Self::F, b: Self::F) -> Self::F;

    fn mul(self, a: Self::F, b: Self::F) -> Self::F;

    /// `lr * sign(c)`, 0 where `c` is 0 or not a number. The sign bit of `lr` is 0.
    fn step(self, c: Self::F, lr: Self::F) -> Self::F;

    /// `zero` in the lanes where `g` is 0, `other` in the others.
    fn where_zero(self, g: Self::F, zero: Self::F, other: Self::F) -> Self::F;

    /// Zeros to begin a [`top`](Vector::top) with.
    fn no_top(self) -> Self::I;

    /// Lane by lane the larger of `top` and the bits of the magnitude of `x`.
    fn top(self, top: Self::I, x: Self::F) -> Self::I;

    /// The largest lane.
    fn largest(self, top: Self::I) -> u32;

    /// The codewords of `4 * LANES` codes, in order.
    ///
    /// # Safety
    /// `4 * LANES` bytes from `codes` on can be read.
    unsafe fn dequantize(self, codes: *const u8) -> [Self::F; 4];

    /// The codes of `4 * LANES` numbers already divided by their absmax, in order: the nearest, or with
    /// `words` one of the two around each number, drawn by the high 16 bits of its word.
    ///
    /// # Safety
    /// `4 * LANES` bytes from `codes` on can be written, and as many words be read.
    unsafe fn quantize(self, x: [Self::F; 4], words: Option<*const u32>, codes: *mut u8);

    /// The random words of a block of 256 elements that begins at the element `first`.
    fn words(self, words: Words, first: u64, out: &mut [u32; 256]);

    /// Asks for the cache line at an address, which need not be valid, to be brought near.
    fn prefetch(self, at: *const u8);
}

/// An element type that vectors load and store.
pub(crate) trait Lane: Element {
    /// # Safety
    /// As [`Vector::load_f32`].
    unsafe fn load<V: Vector>(v: V, from: *const Self) -> V::F;

    /// # Safety
    /// As [`Vector::store_bf16`].
    unsafe fn store<V: Vector>(v: V, x: V::F, words: Option<*const u32>, to: *mut Self);
}

impl Lane for f32 {
    #[inline(always)]
    unsafe fn load<V: Vector>(v: V, from: *const Self) -> V::F {
        // SAFETY: as the caller promises.
        unsafe { v.load_f32(from) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, x: V::F, _: Option<*const u32>, to: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { v.store_f32(x, to) }
    }
}

impl Lane for f16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(v: V, from: *const Self) -> V::F {
        // SAFETY: as the caller promises.
        unsafe { v.load_f16(from) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, x: V::F, _: Option<*const u32>, to: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { v.store_f16(x, to) }
    }
}

impl Lane for bf16 {
    #[inline(always)]
    unsafe fn load<V: Vector>(v: V, from: *const Self) -> V::F {
        // SAFETY: as the caller promises.
        unsafe { v.load_bf16(from) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(v: V, x: V::F, words: Option<*const u32>, to: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { v.store_bf16(x, words, to) }
    }
}
