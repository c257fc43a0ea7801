// The kernels: `lion`, `norm` and `survey` for each width of the state, format of the parameter and format of the
// gradient; `squares` for each format of the gradient; `limit` and `total`.
//
// Each operation is an IEEE-754 operation that rounds once. The compiler gets --fmad=false, and neither fast math nor
// flush to zero. `cargo xtask ptx` compiles this file to lion.ptx.
#include "norm.cuh"
#include "squares.cuh"
#include "step.cuh"
#include "survey.cuh"

#define KERNEL(NAME, CALL)                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                         \
    NAME(const Tensor *tensors, u32 count, u64 runs) { CALL(tensors, count, runs); }

#define KERNELS(PG, P, G)                                                                         \
    KERNEL(lion32_##PG, (step32<P, G, false>))                                                    \
    KERNEL(lion32_##PG##_options, (step32<P, G, true>))                                           \
    KERNEL(lion8_##PG, (step8<P, G, false>))                                                      \
    KERNEL(lion8_##PG##_options, (step8<P, G, true>))                                             \
    KERNEL(norm32_##PG, (norm<P, G, false>))                                                      \
    KERNEL(norm8_##PG, (norm<P, G, true>))                                                        \
    KERNEL(survey32_##PG, (survey<G, false>))                                                     \
    KERNEL(survey8_##PG, (survey<G, true>))

KERNELS(f32_f32, F32, F32)
KERNELS(f32_f16, F32, F16)
KERNELS(f32_bf16, F32, Bf16)
KERNELS(f16_f32, F16, F32)
KERNELS(f16_f16, F16, F16)
KERNELS(f16_bf16, F16, Bf16)
KERNELS(bf16_f32, Bf16, F32)
KERNELS(bf16_f16, Bf16, F16)
KERNELS(bf16_bf16, Bf16, Bf16)

extern "C" __global__ void __launch_bounds__(THREADS) limit(Tensor *tensors, u32 count) {
    if (blockIdx.x < count) limit_lr(tensors[blockIdx.x]);
}

KERNEL(squares_f32, (squares<F32>))
KERNEL(squares_f16, (squares<F16>))
KERNEL(squares_bf16, (squares<Bf16>))

extern "C" __global__ void __launch_bounds__(THREADS) total(const Tensor *tensors, u32 count) {
    if (blockIdx.x < count) total_squares(tensors[blockIdx.x]);
}
