// The random number generator Philox4x32-7 (Salmon et al., SC'11).
#pragma once
#include "tensor.cuh"

// The streams of a tensor: rounding of the parameter, and choice of the code.
constexpr u32 PARAM = 0, STATE = 1;

// Multiplies two words. In C++, the compiler would add 0 to the upper half.
__device__ void multiply_wide(u32 a, u32 b, u32 &high, u32 &low) {
    asm("{ .reg .u64 product; mul.wide.u32 product, %2, %3; mov.b64 {%0, %1}, product; }"
        : "=r"(low), "=r"(high) : "r"(a), "r"(b));
}

// Returns the draws of elements 8 * group to 8 * group + 7 in a stream: 16 bits each, two per word, the lower half first.
__device__ uint4 random_words(u64 group, u32 stream, u64 seed, u64 step) {
    u32 c0 = u32(group), c1 = u32(group >> 32) | stream << 31, c2 = u32(step), c3 = u32(step >> 32);
    u32 k0 = u32(seed), k1 = u32(seed >> 32);
#pragma unroll
    for (u32 round = 0; round < 7; round++) {
        u32 a_high, a_low, b_high, b_low;
        multiply_wide(c0, 0xD2511F53, a_high, a_low);
        multiply_wide(c2, 0xCD9E8D57, b_high, b_low);
        c0 = b_high ^ c1 ^ k0;
        c1 = b_low;
        c2 = a_high ^ c3 ^ k1;
        c3 = a_low;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return make_uint4(c0, c1, c2, c3);
}
