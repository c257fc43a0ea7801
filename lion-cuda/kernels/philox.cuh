// The random number generator Philox4x32-10 (Salmon et al., SC'11).
#pragma once
#include "tensor.cuh"

// Returns the random words of elements 4 * group to 4 * group + 3.
__device__ uint4 random_words(u64 group, u64 seed, u64 step) {
    u32 c0 = u32(group), c1 = u32(group >> 32), c2 = u32(step), c3 = u32(step >> 32);
    u32 k0 = u32(seed), k1 = u32(seed >> 32);
#pragma unroll
    for (u32 round = 0; round < 10; round++) {
        const u64 a = u64(c0) * 0xD2511F53u, b = u64(c2) * 0xCD9E8D57u;
        c0 = u32(b >> 32) ^ c1 ^ k0;
        c1 = u32(b);
        c2 = u32(a >> 32) ^ c3 ^ k1;
        c3 = u32(a);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return make_uint4(c0, c1, c2, c3);
}
