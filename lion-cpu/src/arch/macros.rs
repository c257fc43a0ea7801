//! Macros that the files of the instruction sets share.

/// Defines the method of a kernel that steps a run of blocks, with the pairs of element types of `$for_each`.
///
/// The attribute of the inner function applies to the loops that are inlined into it. Calling it is unsafe if the CPU
/// may lack the instructions.
macro_rules! step {
    ($name:ident, $vector:ty, $features:literal, $for_each:ident) => {
        /// Steps a run of blocks. Returns the number of blocks that were skipped.
        pub(crate) fn $name(self, job: Job<'_>) -> u64 {
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
            $for_each!(SliceMut, param, grad, |p, g| unsafe {
                inner(self, p, g, state, first, &options)
            })
        }
    };
}

/// Defines the methods of a kernel, compiled for the instructions that a value of the type proves.
///
/// The attribute of the inner functions applies to the loops that are inlined into them. Calling one is unsafe if
/// the CPU may lack the instructions.
macro_rules! kernel {
    ($vector:ty, $features:literal) => {
        impl $vector {
            step!(step, $vector, $features, for_each_pair);

            /// Returns the sum of the squares of one block of the parameter, and the number of elements whose
            /// update is not zero. Runs the scalar loop, compiled for these instructions.
            pub(crate) fn norm(self, view: View<'_>, block: usize) -> (f64, u64) {
                #[target_feature(enable = $features)]
                fn inner(view: View<'_>, block: usize) -> (f64, u64) {
                    scalar::norm(view, block)
                }

                // SAFETY: `self` proves that the CPU has the instructions.
                unsafe { inner(view, block) }
            }

            /// Returns the sum of the squares of some blocks of a gradient. Runs the scalar loop, compiled for
            /// these instructions.
            pub(crate) fn squares(self, gradient: Slice<'_>) -> SumSquares {
                #[target_feature(enable = $features)]
                fn inner(gradient: Slice<'_>) -> SumSquares {
                    scalar::squares(gradient)
                }

                // SAFETY: `self` proves that the CPU has the instructions.
                unsafe { inner(gradient) }
            }

            /// Returns whether all new momenta of one block are finite. Runs the scalar loop, compiled for these
            /// instructions.
            pub(crate) fn is_finite(self, view: View<'_>, block: usize) -> bool {
                #[target_feature(enable = $features)]
                fn inner(view: View<'_>, block: usize) -> bool {
                    scalar::is_finite(view, block)
                }

                // SAFETY: `self` proves that the CPU has the instructions.
                unsafe { inner(view, block) }
            }

            /// Computes [`lion_quant::quantize_block`].
            pub(crate) fn quantize(
                self,
                m: &[f32],
                draws: Option<&[u16]>,
                codes: &mut [u8],
            ) -> f32 {
                #[target_feature(enable = $features)]
                fn inner(v: $vector, m: &[f32], draws: Option<&[u16]>, codes: &mut [u8]) -> f32 {
                    generic::quantize_block(v, m, draws, codes)
                }

                // SAFETY: `self` proves that the CPU has the instructions.
                unsafe { inner(self, m, draws, codes) }
            }

            /// Computes [`lion_quant::dequantize_block`].
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

/// Calls intrinsics in a method of a vector type.
macro_rules! intrinsics {
    ($($body:tt)*) => {{
        // SAFETY: `self` proves that the CPU has the instructions, because only `new` returns a value of its
        // type. Memory accesses are to arrays of the size of their type, or are guaranteed by the caller of an
        // unsafe method.
        unsafe { $($body)* }
    }};
}
