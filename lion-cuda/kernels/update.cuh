// The element-wise update, in f32, one rounding an operation.
#pragma once
#include "bits.cuh"

struct Coefficients {
    float lr, decay, grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;

    __device__ Coefficients() {}
    __device__ explicit Coefficients(const Tensor &t)
        : lr(t.lr), decay(t.decay), grad_scale(t.grad_scale), beta1(t.beta1), one_minus_beta1(t.one_minus_beta1),
          beta2(t.beta2), one_minus_beta2(t.one_minus_beta2) {}

    // c: its sign is the direction of the step.
    __device__ float direction(float g, float m) const {
        return (beta1 * m) + (one_minus_beta1 * (g * grad_scale));
    }

    // m'
    __device__ float momentum(float g, float m) const {
        return (beta2 * m) + (one_minus_beta2 * (g * grad_scale));
    }

    // p', with c = direction(g, m)
    __device__ float parameter(float p, float c) const {
        const float decayed = p * decay;
        // sign(0) is 0, and so is that of NaN.
        return moves(c) ? decayed - negate_by(lr, c) : decayed;
    }

    // Whether sign(c) is not 0.
    static __device__ bool moves(float c) { return c > 0 || c < 0; }
};

// The bits of the magnitudes of a lane's eight numbers, and of the largest: INFINITE or more if one of them is not
// finite, for magnitudes are ordered as their bits are, and every NaN lies above infinity.
__device__ u32 magnitudes(const float (&x)[8], u32 (&bits)[8]) {
    u32 top = 0;
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        bits[i] = magnitude(x[i]);
        top = i == 0 ? bits[i] : max(top, bits[i]);
    }
    return top;
}

// The largest of the lanes' numbers, in all lanes.
__device__ u32 largest_of_warp(u32 x) {
#pragma unroll
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}
