// The work of a launch: the tensors of a table, divided into runs of eight blocks. A warp processes one run at a
// time. The host calls a run a tile.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 BLOCK = 256;               // elements that share one absmax, and that are skipped together
constexpr u32 RUN_BLOCKS = 8;            // their absmax fill one 32-byte sector
constexpr u32 RUN = RUN_BLOCKS * BLOCK;  // elements that a warp processes at a time
constexpr u32 THREADS = 256;             // per CTA
constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xFFFFFFFF;

// Flags of a tensor. The step kernels without options ignore them.
constexpr u32 SKIP_ZEROS = 1;
constexpr u32 STOCHASTIC_PARAM = 2;
constexpr u32 STOCHASTIC_STATE = 4;

// One row of the table of a launch. `TensorDesc` on the host has the same layout.
struct Tensor {
    u64 param, grad;      // addresses, aligned to the size of an element
    u64 state;            // momentum (f32) or codes (u8), 16-byte aligned
    u64 absmax;           // f32, 32-byte aligned; 0 for a 32-bit state
    u64 len;              // elements, more than 0
    u64 first_run;        // number of runs of the tensors before this one
    u64 seed, step;       // of the Philox key
    u64 offset;           // index in the whole tensor of element 0, a multiple of BLOCK
    u64 skipped;          // address of the u64 counter of skipped blocks; `total` writes an f64 after it
    u64 sums;             // scratch, per run: f64 sum of squares of the parameter, or of the gradient
    u64 moves;            // scratch, per run: u64 number of elements with sign(c) != 0
    double full_lr;       // before it is clipped by max_unorm
    double max_unorm;
    float lr, decay, grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
    u32 flags;
};
static_assert(sizeof(Tensor) == 144, "the host writes this record");

// Returns the first element, in a block, of a group of four that a lane holds. If one of the arrays of the kernel is
// f32, the two groups of a lane are apart, so that the 16-byte accesses of a warp cover whole sectors. Otherwise the
// eight elements of a lane are adjacent.
template <bool WIDE>
__device__ u32 first_of_group(u32 lane, u32 group) {
    return WIDE ? BLOCK / 2 * group + 4 * lane : 8 * lane + 4 * group;
}

// One run of a tensor.
struct Run {
    u64 index;   // in the tensor
    u64 first;   // the first element
    u32 len;     // number of elements, at most RUN
    u32 blocks;  // number of blocks, of which the last may be short
};

// Calls `work(tensor, run)` for every `warps`-th run, those of this warp. Calls `begin(tensor)` before the first
// run of each tensor, which loads the constants of the tensor into registers.
template <class Begin, class Work>
__device__ void for_each_run(const Tensor *tensors, u32 count, u64 runs, Begin begin, Work work) {
    const u64 warps = u64(gridDim.x) * (THREADS / WARP);
    u64 first_run = 0, end_run = 0, len = 0;
    u32 current = 0;
    for (u64 run = u64(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP; run < runs; run += warps) {
        if (run >= end_run) {
            // Binary search for the last tensor that begins at or before this run, from the current one on.
            u32 above = count;
            while (above - current > 1) {
                const u32 middle = current + (above - current) / 2;
                if (tensors[middle].first_run <= run) {
                    current = middle;
                } else {
                    above = middle;
                }
            }
            first_run = tensors[current].first_run;
            end_run = above < count ? tensors[above].first_run : runs;
            len = tensors[current].len;
            begin(tensors[current]);
        }
        Run at;
        at.index = run - first_run;
        at.first = at.index * RUN;
        at.len = len - at.first < RUN ? u32(len - at.first) : RUN;
        at.blocks = (at.len + BLOCK - 1) / BLOCK;
        work(tensors[current], at);
    }
}
