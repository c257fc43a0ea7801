// The sums of squares of gradients, for their norm. The sum of a block that is not finite is 0.
#pragma once
#include "norm.cuh"

// Computes the sum of each run, and counts the blocks that are not finite at `skipped`. The order of additions is
// that of `norm`.
template <class G>
__device__ void squares(const Tensor *tensors, u32 count, u64 runs) {
    const u32 lane = threadIdx.x % WARP;
    for_each_run(tensors, count, runs, [](const Tensor &) {}, [&](const Tensor &t, const Run &run) {
        double sums[2] = {0, 0};
#pragma unroll 1
        for (u32 half = 0; half < 2; half++) {
            const u32 block = RUN_BLOCKS / 2 * half + lane / 8;
            const u32 end = min(run.len, (block + 1) * BLOCK);
            double sum = 0;
#pragma unroll 4
            for (u32 i = block * BLOCK + lane % 8; i < end; i += 8) {
                const float g = widen_one<G>(load_one<G::BYTES>(t.grad + (run.first + i) * G::BYTES));
                sum += double(g) * double(g);
            }
            sum = add_lanes(sum, lane);
            (half == 0 ? sums[0] : sums[1]) = sum;
        }
        double of_block[RUN_BLOCKS];
        u32 bad = 0;
#pragma unroll
        for (u32 block = 0; block < RUN_BLOCKS; block++) {
            of_block[block] = shuffle(sums[block / 4], block % 4 * 8);
            // The sum of squares of finite floats is finite.
            constexpr u32 EXPONENT = 0x7FF00000;
            if ((u32(__double2hiint(of_block[block])) & EXPONENT) == EXPONENT) {
                of_block[block] = 0;
                bad++;
            }
        }
        add_pairs(of_block, run.blocks);
        if (lane == 0) {
            reinterpret_cast<double *>(t.sums)[run.index] = of_block[0];
            if (bad > 0) count_up(t.skipped, bad);
        }
    });
}

// Writes the sum of a tensor after the counter at `skipped`. Runs in one CTA.
__device__ void total_squares(const Tensor &t) {
    double *sums = reinterpret_cast<double *>(t.sums);
    add_runs(sums, (t.len + RUN - 1) / RUN);
    if (threadIdx.x == 0) reinterpret_cast<double *>(t.skipped)[1] = sums[0];
}
