//! Vectors of x86-64: AVX2, AVX-512, and AVX-512 with VBMI.

/// The methods of a kernel, compiled for the instructions that its value proves.
///
/// A loop is compiled for an instruction set by the attribute of the function it is inlined into: the
/// inner functions here. Whoever calls one must know that the CPU has the instructions.
macro_rules! kernel {
    ($vector:ty, $features:literal) => {
        impl $vector {
            /// Steps a run of blocks and returns how many it skipped.
            pub(crate) fn step(self, job: Job<'_>) -> u64 {
                #[target_feature(enable = $features)]
                fn inner<P: Lane, G: Lane>(
                    v: $vector,
                    p: &mut [P],
                    g: &[G],
                    state: StateMut<'_>,
                    first: u64,
                    options: &KernelOptions,
                ) -> u64 {
                    if options.is_plain() {
                        generic::step::<_, _, _, true>(v, p, g, state, first, options)
                    } else {
                        generic::step::<_, _, _, false>(v, p, g, state, first, options)
                    }
                }

                let Job {
                    param,
                    grad,
                    state,
                    first,
                    options,
                } = job;
                // SAFETY: `self` proves that the CPU has the instructions.
                for_each_pair!(SliceMut, param, grad, |p, g| unsafe {
                    inner(self, p, g, state, first, &options)
                })
            }

            /// Sum of the squares of one block of the parameter, and how many of its elements move: the
            /// scalar loop, compiled for these instructions.
            pub(crate) fn norm(self, view: View<'_>, block: usize) -> (f64, u64) {
                #[target_feature(enable = $features)]
                fn inner(view: View<'_>, block: usize) -> (f64, u64) {
                    scalar::norm(view, block)
                }

                // SAFETY: `self` proves that the CPU has the instructions.
                unsafe { inner(view, block) }
            }

            /// Sum of the squares of some blocks of a gradient: the scalar loop, compiled for these
            /// instructions.
            pub(crate) fn squares(self, gradient: Slice<'_>) -> SumSquares {
                #[target_feature(enable = $features)]
                fn inner(gradient: Slice<'_>) -> SumSquares {
                    scalar::squares(gradient)
                }

                // SAFETY: `self` proves that the CPU has the instructions.
                unsafe { inner(gradient) }
            }

            /// Whether all new momenta of one block are finite: the scalar loop, compiled for these
            /// instructions.
            pub(crate) fn is_finite(self, view: View<'_>, block: usize) -> bool {
                #[target_feature(enable = $features)]
                fn inner(view: View<'_>, block: usize) -> bool {
                    scalar::is_finite(view, block)
                }

                // SAFETY: `self` proves that the CPU has the instructions.
                unsafe { inner(view, block) }
            }

            /// [`lion_quant::quantize_block`].
            pub(crate) fn quantize(
                self,
                m: &[f32],
                words: Option<&[u32]>,
                codes: &mut [u8],
            ) -> f32 {
                #[target_feature(enable = $features)]
                fn inner(v: $vector, m: &[f32], words: Option<&[u32]>, codes: &mut [u8]) -> f32 {
                    generic::quantize_block(v, m, words, codes)
                }

                // SAFETY: `self` proves that the CPU has the instructions.
                unsafe { inner(self, m, words, codes) }
            }

            /// [`lion_quant::dequantize_block`].
            pub(crate) fn dequantize(self, codes: &[u8], absmax: f32, m: &mut [f32]) {
                #[target_feature(enable = $features)]
                fn inner(v: $vector, codes: &[u8], absmax: f32, m: &mut [f32]) {
                    generic::dequantize_block(v, codes, absmax, m);
                }

                // SAFETY: `self` proves that the CPU has the instructions.
                unsafe { inner(self, codes, absmax, m) }
            }
        }
    };
}

/// Intrinsics in a method of a vector type.
macro_rules! intrinsics {
    ($($body:tt)*) => {{
        // SAFETY: `self` proves that the CPU has the instructions, for `new` is the only way to a
        // value of its type. What is read or written lies in an array of the size that its type
        // says, or where the caller of an unsafe method promises.
        unsafe { $($body)* }
    }};
}

pub(super) mod avx2;
pub(super) mod avx512;
mod avx512_codes;
mod tables;
