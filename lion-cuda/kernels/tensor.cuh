// The work of a launch: a table of tensors, cut into runs of eight blocks, a warp a run.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 BLOCK = 256;               // elements that share one absmax; also the unit of the non-finite rule
constexpr u32 RUN_BLOCKS = 8;            // their absmax are one 32-byte sector
constexpr u32 RUN = RUN_BLOCKS * BLOCK;  // elements a warp takes at a time
constexpr u32 THREADS = 256;             // of a CTA
constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xFFFFFFFF;

// Flags of a tensor; the plain step kernels take them for 0.
constexpr u32 SKIP_ZEROS = 1;
constexpr u32 STOCHASTIC_PARAM = 2;
constexpr u32 STOCHASTIC_STATE = 4;

// One tensor of a launch; the host has the same record.
struct Tensor {
    u64 param, grad;      // addresses, aligned to their element and not more
    u64 state;            // momentum (f32) or codes (u8), 16-byte aligned
    u64 absmax;           // f32, 32-byte aligned; 0 for a 32-bit state
    u64 len;              // elements, more than 0
    u64 first_run;        // runs of the tensors before this one
    u64 seed, step;       // of the draws
    u64 skipped;          // address of a u64 that counts the blocks left as they were; `total` writes an f64 behind it
    u64 sums;             // scratch, a run: f64 sum of the squares of the parameter, or of the gradient
    u64 moves;            // scratch, a run: u64 number of elements with sign(c) != 0
    double full_lr;       // of the step, before a limit by max_unorm
    double max_unorm;
    float lr, decay, grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
    u32 flags;
};
static_assert(sizeof(Tensor) == 136, "the host writes this record");

// The first element of four that a lane holds at once, in a block. Where an array of f32 is among those of the
// kernel, a lane takes two groups of four, so that a warp's 16-byte accesses touch whole sectors; else it takes
// eight neighbours.
template <bool WIDE>
__device__ u32 first_of_group(u32 lane, u32 group) {
    return WIDE ? BLOCK / 2 * group + 4 * lane : 8 * lane + 4 * group;
}

// One run of a tensor.
struct Run {
    u64 index;   // in its tensor
    u64 first;   // its first element
    u32 len;     // elements, at most RUN
    u32 blocks;  // the last of which may be short
};

// Calls `work(tensor, run)` for the runs of this warp: every `warps`-th of all. `begin(tensor)` comes before the
// first run of each tensor, so that what the tensor says stays in registers from run to run.
template <class Begin, class Work>
__device__ void for_each_run(const Tensor *tensors, u32 count, u64 runs, Begin begin, Work work) {
    const u64 warps = u64(gridDim.x) * (THREADS / WARP);
    u64 first_run = 0, end_run = 0, len = 0;
    u32 current = 0;
    for (u64 run = u64(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP; run < runs; run += warps) {
        if (run >= end_run) {
            // The last tensor that begins at or before this run; none before the current one does.
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
