// The kernels that add the results of `norm` and of `squares`, with one CTA per tensor.
#include "squares.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) limit(Tensor *tensors, u32 count) {
    if (blockIdx.x < count) limit_lr(tensors[blockIdx.x]);
}

extern "C" __global__ void __launch_bounds__(THREADS) total(const Tensor *tensors, u32 count) {
    if (blockIdx.x < count) total_squares(tensors[blockIdx.x]);
}
