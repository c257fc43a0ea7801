// The norms for max_unorm, in the order of additions of the specification.
#pragma once
#include "step.cuh"

// Adds the first n of 8 numbers as a tree of adjacent pairs. An odd number is carried to the next level. x[0] becomes
// the sum.
template <class T>
__device__ void add_pairs(T (&x)[8], u32 n) {
#pragma unroll
    for (u32 apart = 1; apart < 8; apart *= 2) {
#pragma unroll
        for (u32 i = 0; i < 8; i += 2 * apart) {
            if (i + apart < n) x[i] += x[i + apart];
        }
    }
}

__device__ double shuffle(double x, u32 from) {
    const u32 low = __shfl_sync(ALL_LANES, u32(__double2loint(x)), from);
    const u32 high = __shfl_sync(ALL_LANES, u32(__double2hiint(x)), from);
    return __hiloint2double(high, low);
}

// Returns the sum over the eight lanes of a block, in all of them: ((0+4)+(2+6)) + ((1+5)+(3+7)).
__device__ double add_lanes(double x, u32 lane) {
    x += shuffle(x, lane ^ 4);
    x += shuffle(x, lane ^ 2);
    x += shuffle(x, lane ^ 1);
    return x;
}

// Converts one number from the bits of a format.
template <class T>
__device__ float widen_one(u32 bits) {
    Eight<T> x;
    x.word[0] = bits;
    return widen(x, 0);
}

// Computes the sum of squares of the parameters of each run, and its number of nonzero updates. Element i of a
// block is added to sum i % 8 of the block. A lane has this sum of two blocks, one in each half of the run.
template <class P, class G, bool CODES>
__device__ void norm(const Tensor *tensors, u32 count, u64 runs) {
    __shared__ float codebook[CODES ? 256 : 1];
    if constexpr (CODES) {
        load_codebook(codebook);
        __syncthreads();
    }
    const u32 lane = threadIdx.x % WARP;
    Coefficients k;
    for_each_run(tensors, count, runs, [&](const Tensor &t) { k = Coefficients(t); }, [&](const Tensor &t, const Run &run) {
        const bool skip_zeros = t.flags & SKIP_ZEROS;
        double sums[2] = {0, 0};
        u32 moves = 0;
#pragma unroll 1
        for (u32 half = 0; half < 2; half++) {
            const u32 block = RUN_BLOCKS / 2 * half + lane / 8;
            float absmax = 0;
            if (CODES && block < run.blocks) {
                absmax = __uint_as_float(load_one<4>(t.absmax + (run.index * RUN_BLOCKS + block) * 4));
            }
            const u32 end = min(run.len, (block + 1) * BLOCK);
            double sum = 0;
#pragma unroll 4
            for (u32 i = block * BLOCK + lane % 8; i < end; i += 8) {
                const u64 at = run.first + i;
                const float p = widen_one<P>(load_one<P::BYTES>(t.param + at * P::BYTES));
                const float g = widen_one<G>(load_one<G::BYTES>(t.grad + at * G::BYTES));
                float m;
                if constexpr (CODES) {
                    m = codebook[load_one<1>(t.state + at)] * absmax;
                } else {
                    m = __uint_as_float(load_one<4>(t.state + at * 4));
                }
                sum += double(p) * double(p);
                moves += Coefficients::moves(k.direction(g, m)) && !(skip_zeros && g == 0);
            }
            sum = add_lanes(sum, lane);
            // With the index `half`, the sums would be in memory.
            (half == 0 ? sums[0] : sums[1]) = sum;
        }
        double of_block[RUN_BLOCKS];
#pragma unroll
        for (u32 block = 0; block < RUN_BLOCKS; block++) of_block[block] = shuffle(sums[block / 4], block % 4 * 8);
        add_pairs(of_block, run.blocks);
#pragma unroll
        for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) moves += __shfl_xor_sync(ALL_LANES, moves, lanes);
        if (lane == 0) {
            reinterpret_cast<double *>(t.sums)[run.index] = of_block[0];
            reinterpret_cast<u64 *>(t.moves)[run.index] = moves;
        }
    });
}

// Adds one number per run as a tree of adjacent pairs, in one CTA. x[0] becomes the sum. Runs are aligned groups of
// blocks, so this continues the tree of their blocks. It adds eight nodes at a time, in place.
template <class T>
__device__ void add_runs(T *x, u64 runs) {
    for (u64 apart = 1; apart < runs; apart *= 8) {
        for (u64 first = threadIdx.x * 8 * apart; first < runs; first += u64(THREADS) * 8 * apart) {
            const u64 behind = (runs - first + apart - 1) / apart;
            const u32 n = behind < 8 ? u32(behind) : 8;
            T nodes[8];
#pragma unroll
            for (u32 i = 0; i < 8; i++) nodes[i] = i < n ? x[first + i * apart] : 0;
            add_pairs(nodes, n);
            x[first] = nodes[0];
        }
        __syncthreads();
    }
}

// Clips the learning rate of a tensor. Runs in one CTA. The weight decay keeps the full learning rate.
__device__ void limit_lr(Tensor &t) {
    double *sums = reinterpret_cast<double *>(t.sums);
    u64 *moves = reinterpret_cast<u64 *>(t.moves);
    const u64 runs = (t.len + RUN - 1) / RUN;
    add_runs(sums, runs);
    add_runs(moves, runs);
    if (threadIdx.x == 0) {
        const double bound = t.max_unorm * __dsqrt_rn(sums[0]);
        const double norm = __dsqrt_rn(__ull2double_rn(moves[0]));
        // If the norm of the parameter is 0 or NaN, the learning rate is not clipped.
        if (0 < bound && bound < norm) t.lr = __double2float_rn(__ddiv_rn(t.full_lr * bound, norm));
    }
}
