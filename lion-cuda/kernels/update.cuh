// The element-wise update in f32, with one rounding per operation.
#pragma once
#include "bits.cuh"

struct Coefficients {
    float lr, decay, grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;

    __device__ Coefficients() {}
    __device__ explicit Coefficients(const Tensor &t)
        : lr(t.lr), decay(t.decay), grad_scale(t.grad_scale), beta1(t.beta1), one_minus_beta1(t.one_minus_beta1),
          beta2(t.beta2), one_minus_beta2(t.one_minus_beta2) {}

    // Returns c, whose sign is the direction of the step.
    __device__ float direction(float g, float m) const {
        return (beta1 * m) + (one_minus_beta1 * (g * grad_scale));
    }

    // Returns m'.
    __device__ float momentum(float g, float m) const {
        return (beta2 * m) + (one_minus_beta2 * (g * grad_scale));
    }

    // Returns p', given c = direction(g, m), or p if `still`. Both operations depend on `still`, because then they are
    // predicated, and no instruction selects the result.
    __device__ float parameter(float p, float c, bool still) const {
        const float decayed = still ? p : p * decay;
        // sign(0) and sign(NaN) are 0.
        return moves(c) && !still ? decayed - negate_by(lr, c) : decayed;
    }

    // Returns whether sign(c) is not 0.
    static __device__ bool moves(float c) { return c > 0 || c < 0; }
};

// Returns the bits of the largest magnitude of the eight numbers of a lane. They are at least INFINITE if a number is
// not finite: the bits are ordered as the magnitudes, and those of NaN are above those of infinity.
__device__ u32 largest_of_lane(const float (&x)[8]) {
    u32 top = magnitude(x[0]);
#pragma unroll
    for (u32 i = 1; i < 8; i++) top = max(top, magnitude(x[i]));
    return top;
}

// Returns the maximum over all lanes, in all lanes.
__device__ u32 largest_of_warp(u32 x) {
#pragma unroll
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}
