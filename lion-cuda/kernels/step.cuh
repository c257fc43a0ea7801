// The step for both widths of the state: one pass over parameter, gradient and state, with one warp per block.
//
// The new momenta of a block are checked before it is written. If one is not finite, the block is skipped. Elements
// beyond the end of a short block are zeros, which change nothing.
#pragma once
#include "codes.cuh"
#include "copied.cuh"
#include "philox.cuh"
#include "update.cuh"

// Whether the elements of a lane are two groups of four that are apart: see first_of_group.
template <class P, class G>
constexpr bool WIDE8 = P::BYTES == 4 || G::BYTES == 4;

template <class P>
struct is_bf16 { static constexpr bool value = false; };
template <>
struct is_bf16<Bf16> { static constexpr bool value = true; };

// Computes the draws of the eight elements of a lane in the block that begins at element `first` of the whole tensor, two per word. All
// lanes of the warp call it.
template <bool WIDE>
__device__ void draws_of_lane(u64 first, u32 lane, u32 stream, u64 seed, u64 step, u32 (&draws)[4]) {
    if constexpr (WIDE) {
        // A pair of lanes has the halves of two groups. Each lane computes one group, and they exchange halves.
        const bool odd = lane % 2;
        const u64 group = first / 8 + lane / 2 + (odd ? BLOCK / 16 : 0);
        const uint4 own = random_words(group, stream, seed, step);
        const u32 other0 = __shfl_xor_sync(ALL_LANES, odd ? own.x : own.z, 1);
        const u32 other1 = __shfl_xor_sync(ALL_LANES, odd ? own.y : own.w, 1);
        draws[0] = odd ? other0 : own.x;
        draws[1] = odd ? other1 : own.y;
        draws[2] = odd ? own.z : other0;
        draws[3] = odd ? own.w : other1;
    } else {
        const uint4 own = random_words(first / 8 + lane, stream, seed, step);
        draws[0] = own.x;
        draws[1] = own.y;
        draws[2] = own.z;
        draws[3] = own.w;
    }
}

// Updates the eight elements of a lane: p becomes p', and m becomes m'.
template <class G>
__device__ void update(const Coefficients &k, bool skip_zeros, float (&p)[8], const Eight<G> &grad, float (&m)[8]) {
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const float g = widen(grad, i);
        const bool still = skip_zeros && g == 0;
        p[i] = k.parameter(p[i], k.direction(g, m[i]), still);
        m[i] = still ? m[i] : k.momentum(g, m[i]);
    }
}

// Rounds the new parameters, stochastically if requested and if they are bf16.
template <class P>
__device__ Eight<P> narrow(const float (&p)[8], bool stochastic, const u32 (&draws)[4]) {
    if constexpr (is_bf16<P>::value) {
        if (stochastic) {
            Eight<P> out;
#pragma unroll
            for (u32 i = 0; i < 8; i += 2) out.word[i / 2] = narrow_bf16(p[i], p[i + 1], draws[i / 2]);
            return out;
        }
    }
    return narrow<P>(p);
}

// The constants of a tensor that a warp keeps in registers. The addresses are those of the first element of the lane.
template <class P, class G, u32 STATE_BYTES, bool WIDE>
struct Constants {
    Coefficients k;
    u64 param, grad, state;
    u32 flags;
    u32 whole;  // minimum length of a block for vector accesses; none if an array is not aligned

    __device__ void read(const Tensor &t, u32 lane) {
        const u32 first = first_of_group<WIDE>(lane, 0);
        k = Coefficients(t);
        param = t.param + first * P::BYTES;
        grad = t.grad + first * G::BYTES;
        state = t.state + first * STATE_BYTES;
        flags = t.flags;
        const bool aligned = Place<P::BYTES, WIDE>::aligned(t.param) && Place<G::BYTES, WIDE>::aligned(t.grad);
        whole = aligned ? BLOCK : ~0u;
    }
};

// Returns an address such that the compiler increments it per block, and does not compute it again from the index
// of the run.
__device__ u64 begin(u64 address) {
    asm volatile("" : "+l"(address));
    return address;
}

// By its count of instructions, memory bounds this step on current GPUs. So one kernel serves with and without options.
template <class P, class G>
__device__ void step32(const Tensor *tensors, u32 count, u64 runs) {
    __shared__ Copies<4> copies;
    const u32 lane = threadIdx.x % WARP;
    Constants<P, G, 4, true> c;
    for_each_run(tensors, count, runs, [&](const Tensor &t) { c.read(t, lane); }, [&](const Tensor &t, const Run &run) {
        const bool skip_zeros = c.flags & SKIP_ZEROS;
        const bool draw = is_bf16<P>::value && (c.flags & STOCHASTIC_PARAM);
        u64 param = begin(c.param + run.first * P::BYTES), grad = begin(c.grad + run.first * G::BYTES);
        u64 state = begin(c.state + run.first * 4);
        u32 left_as_they_were = 0;
#pragma unroll 1
        for (u32 start = 0; start < run.len; start += BLOCK) {
            const u32 len = run.len - start;
            const bool whole = len >= c.whole;
            Eight<P> p;
            Eight<G> g;
            Eight<F32> m;
            if (whole) {
                load_whole<true>(param, p.word);
                load_whole<true>(grad, g.word);
                load_whole<true>(state, m.word);
            } else {
                Copied<P::BYTES, true>(param, len, copies).load(p.word);
                Copied<G::BYTES, true>(grad, len, copies).load(g.word);
                Copied<4, true>(state, len, copies).load(m.word);
            }
            float new_p[8], new_m[8];
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                new_p[i] = widen(p, i);
                new_m[i] = widen(m, i);
            }
            update(c.k, skip_zeros, new_p, g, new_m);
            if (__any_sync(ALL_LANES, largest_of_lane(new_m) >= INFINITE)) {
                left_as_they_were++;
            } else {
                u32 draws[4];
                if (draw) draws_of_lane<true>(t.offset + run.first + start, lane, PARAM, t.seed, t.step, draws);
                p = narrow<P>(new_p, draw, draws);
                m = narrow<F32>(new_m);
                if (whole) {
                    store_whole<true>(param, p.word);
                    store_whole<true>(state, m.word);
                } else {
                    Copied<P::BYTES, true>(param, len, copies).store(p.word);
                    Copied<4, true>(state, len, copies).store(m.word);
                }
            }
            param += BLOCK * P::BYTES;
            grad += BLOCK * G::BYTES;
            state += BLOCK * 4;
        }
        if (left_as_they_were > 0 && lane == 0) count_up(t.skipped, left_as_they_were);
    });
}

template <class P, class G, bool OPTIONS>
__device__ void step8(const Tensor *tensors, u32 count, u64 runs) {
    constexpr bool WIDE = WIDE8<P, G>;
    __shared__ Tables tables;
    load_tables(tables);
    __shared__ Exact exact;
    if constexpr (OPTIONS) load_exact(exact);
    __syncthreads();

    const u32 codebook = shared_address(tables.codebook), lines = shared_address(tables.line);
    __shared__ Copies<WIDE ? 4 : 2> copies;
    const u32 lane = threadIdx.x % WARP;
    Constants<P, G, 1, WIDE> c;
    for_each_run(tensors, count, runs, [&](const Tensor &t) { c.read(t, lane); }, [&](const Tensor &t, const Run &run) {
        const bool skip_zeros = OPTIONS && (c.flags & SKIP_ZEROS);
        const bool draw_param = OPTIONS && is_bf16<P>::value && (c.flags & STOCHASTIC_PARAM);
        const bool draw_state = OPTIONS && (c.flags & STOCHASTIC_STATE);
        u64 param = begin(c.param + run.first * P::BYTES), grad = begin(c.grad + run.first * G::BYTES);
        u64 state = begin(c.state + run.first);
        u32 left_as_they_were = 0;
        // Lane b holds the absmax of block b.
        const u64 absmax_at = t.absmax + (run.index * RUN_BLOCKS + lane) * 4;
        u32 absmax_of_lane = lane < run.blocks ? load_one<4>(absmax_at) : 0;
#pragma unroll 1
        for (u32 block = 0; block < run.blocks; block++) {
            const u32 len = run.len - block * BLOCK;
            const bool whole = len >= c.whole;
            Eight<P> p;
            Eight<G> g;
            u32 codes[2];
            if (whole) {
                load_whole<WIDE>(param, p.word);
                load_whole<WIDE>(grad, g.word);
                load_whole<WIDE>(state, codes);
            } else {
                Copied<P::BYTES, WIDE>(param, len, copies).load(p.word);
                Copied<G::BYTES, WIDE>(grad, len, copies).load(g.word);
                Copied<1, WIDE>(state, len, copies).load(codes, ZERO_CODES);
            }
            const float absmax = __uint_as_float(__shfl_sync(ALL_LANES, absmax_of_lane, block));
            float new_p[8], new_m[8];
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                new_p[i] = widen(p, i);
                new_m[i] = dequantize(codebook, codes, i, absmax);
            }
            update(c.k, skip_zeros, new_p, g, new_m);
            const u32 top = largest_of_warp(largest_of_lane(new_m));
            if (top >= INFINITE) {
                left_as_they_were++;
            } else {
                const u64 first = t.offset + run.first + block * BLOCK;
                const auto draw = [&](u32 stream, u32 (&draws)[4]) {
                    draws_of_lane<WIDE>(first, lane, stream, t.seed, t.step, draws);
                };
                // Both streams together take fewer instructions than one after the other, because they share a part of
                // Philox, but more registers, which the exchange between the lanes of a wide kernel does not leave.
                constexpr bool TOGETHER = is_bf16<P>::value && !WIDE;
                u32 draws[4], state_draws[4];
                if (TOGETHER ? draw_param || draw_state : draw_param) {
                    draw(PARAM, draws);
                    if constexpr (TOGETHER) draw(STATE, state_draws);
                }
                p = narrow<P>(new_p, draw_param, draws);
                // If the absmax is below the smallest normal f32, the block becomes zero. With the factor 0, all
                // codes are those of 0.
                const bool tiny = top < TINY_BITS;
                const float inverse = tiny ? 0.0f : __frcp_rn(__uint_as_float(top));
                if (lane == block) absmax_of_lane = tiny ? 0 : top;
                if (draw_state) {
                    if constexpr (!TOGETHER) draw(STATE, state_draws);
                    stochastic(shared_address(&exact), new_m, inverse, state_draws, codes);
                } else {
                    nearest(lines, new_m, inverse, codes);
                }
                if (whole) {
                    store_whole<WIDE>(param, p.word);
                    store_whole<WIDE>(state, codes);
                } else {
                    Copied<P::BYTES, WIDE>(param, len, copies).store(p.word);
                    Copied<1, WIDE>(state, len, copies).store(codes);
                }
            }
            param += BLOCK * P::BYTES;
            grad += BLOCK * G::BYTES;
            state += BLOCK;
        }
        if (lane < run.blocks) store_one<4>(absmax_at, absmax_of_lane);
        if (left_as_they_were > 0 && lane == 0) count_up(t.skipped, left_as_they_were);
    });
}
