// Counts the blocks that a step would skip.
#pragma once
#include "step.cuh"

// Returns the largest magnitude, as bits, of the new momenta of a lane in a block. `momentum(i)` returns the
// momentum of element i.
template <class G, class Momentum>
__device__ u32 top_of_new(const Coefficients &k, bool skip_zeros, const Eight<G> &grad, Momentum momentum) {
    float m[8], p[8] = {};
#pragma unroll
    for (u32 i = 0; i < 8; i++) m[i] = momentum(i);
    update(k, skip_zeros, p, grad, m);
    return largest_of_lane(m);
}

template <class G, bool CODES>
__device__ void survey(const Tensor *tensors, u32 count, u64 runs) {
    constexpr bool WIDE = !CODES || G::BYTES == 4;
    constexpr u32 STATE_BYTES = CODES ? 1 : 4;
    __shared__ float codebook[CODES ? 256 : 1];
    if constexpr (CODES) {
        load_codebook(codebook);
        __syncthreads();
    }
    const u32 codebook_at = CODES ? shared_address(codebook) : 0;
    __shared__ Copies<WIDE ? 4 : 2> copies;
    const u32 lane = threadIdx.x % WARP;
    Constants<G, G, STATE_BYTES, WIDE> c;
    const auto begin_tensor = [&](const Tensor &t) {
        c.read(t, lane);
        // The parameter is not accessed.
        c.whole = Place<G::BYTES, WIDE>::aligned(t.grad) ? BLOCK : ~0u;
    };
    for_each_run(tensors, count, runs, begin_tensor, [&](const Tensor &t, const Run &run) {
        const bool skip_zeros = c.flags & SKIP_ZEROS;
        u64 grad = begin(c.grad + run.first * G::BYTES), state = begin(c.state + run.first * STATE_BYTES);
        u32 bad = 0;
        u32 absmax_of_lane = 0;
        if (CODES && lane < run.blocks) {
            absmax_of_lane = load_one<4>(t.absmax + (run.index * RUN_BLOCKS + lane) * 4);
        }
#pragma unroll 1
        for (u32 block = 0; block < run.blocks; block++) {
            const u32 len = run.len - block * BLOCK;
            Eight<G> g;
            u32 stored[2 * STATE_BYTES];
            if (len >= c.whole) {
                load_whole<WIDE>(grad, g.word);
                load_whole<WIDE>(state, stored);
            } else {
                Copied<G::BYTES, WIDE>(grad, len, copies).load(g.word);
                Copied<STATE_BYTES, WIDE>(state, len, copies).load(stored, CODES ? ZERO_CODES : 0);
            }
            u32 top;
            if constexpr (CODES) {
                const float absmax = __uint_as_float(__shfl_sync(ALL_LANES, absmax_of_lane, block));
                top = top_of_new(c.k, skip_zeros, g, [&](u32 i) { return dequantize(codebook_at, stored, i, absmax); });
            } else {
                top = top_of_new(c.k, skip_zeros, g, [&](u32 i) { return __uint_as_float(stored[i]); });
            }
            bad += __any_sync(ALL_LANES, top >= INFINITE) ? 1 : 0;
            grad += BLOCK * G::BYTES;
            state += BLOCK * STATE_BYTES;
        }
        if (bad > 0 && lane == 0) count_up(t.skipped, bad);
    });
}
