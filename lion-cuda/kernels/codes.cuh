// The blockwise 8-bit state: dequantization and quantization.
#pragma once
#include "bits.cuh"
#include "tables.cuh"  // tables of lion-quant, which `cargo xtask ptx` generates

constexpr u32 ZERO_CODES = 0x7F7F7F7F;  // four codes of 0
constexpr u32 TINY_BITS = 0x00800000;  // the bits of the smallest normal f32

// Adding this constant rounds to an integer, half to even, which is in the low bits of the sum.
constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23

// Tables in shared memory, which each CTA writes once.
struct Tables {
    float codebook[256];
    float2 line[KEYS];  // slope and offset of position() per key
};

// Additional table for stochastic rounding: the lines of position() below and above the threshold that a key has, or
// twice the same line and an infinite threshold.
struct Exact {
    float2 below, above;  // slope and offset
    float threshold;
};

__device__ void load_codebook(float (&codebook)[256]) {
    codebook[threadIdx.x] = __uint_as_float(CODEBOOK[threadIdx.x]);
}

__device__ void load_tables(Tables &tables) {
    static_assert(THREADS == 256 && KEYS <= THREADS, "a thread fills one place of each table");
    load_codebook(tables.codebook);
    if (threadIdx.x < KEYS) {
        const u32 s = PIECE_OF_KEY[threadIdx.x];
        tables.line[threadIdx.x] = make_float2(__uint_as_float(SLOPES[s]), __uint_as_float(OFFSETS[s]));
    }
}

// Returns the key of a magnitude of at most 1. A key is an eighth of a binade of the product with KEY_SCALE. The
// factor is chosen such that a boundary between keys is close to each threshold of position(), and such that
// magnitudes far below the first threshold become subnormal, where keys begin at 0.
__device__ u32 key(float a) {
    return bits_from<20>(a * __uint_as_float(KEY_SCALE));
}

__device__ void load_exact(Exact (&exact)[KEYS]) {
    const u32 i = threadIdx.x;
    if (i >= KEYS) return;
    // A key has at most one threshold. All thresholds of smaller keys are below its magnitudes.
    u32 s = 0;
    float threshold = __uint_as_float(INFINITE);
#pragma unroll 1
    for (u32 t = 0; t < PIECES - 1; t++) {
        const float other = __uint_as_float(THRESHOLDS[t]);
        const u32 key_of_other = key(other);
        if (key_of_other < i) s++;
        if (key_of_other == i) threshold = other;
    }
    const u32 above = __float_as_uint(threshold) < INFINITE ? s + 1 : s;
    exact[i].below = make_float2(__uint_as_float(SLOPES[s]), __uint_as_float(OFFSETS[s]));
    exact[i].above = make_float2(__uint_as_float(SLOPES[above]), __uint_as_float(OFFSETS[above]));
    exact[i].threshold = threshold;
}

// Returns the momentum of element i of the eight elements of a lane. `codebook` is an address in shared memory.
__device__ float dequantize(u32 codebook, const u32 (&codes)[2], u32 i, float absmax) {
    return shared_float(codebook, __byte_perm(codes[i / 4], 0, 0x4440 | i % 4)) * absmax;
}

// Packs the complements of the low bytes of eight words.
__device__ void pack(const u32 (&low)[8], u32 (&codes)[2]) {
#pragma unroll
    for (u32 group = 0; group < 2; group++) {
        const u32 *four = low + 4 * group;
        const u32 pair0 = __byte_perm(four[0], four[1], 0x0040), pair1 = __byte_perm(four[2], four[3], 0x0040);
        codes[group] = ~__byte_perm(pair0, pair1, 0x5410);
    }
}

// Computes the codes of the codewords nearest to x = m * inverse for eight elements. `m` is only read for the
// signs, and `magnitude` has the bits of the magnitudes. `lines` is the address of Tables::line in shared memory.
//
// In an interval around each threshold of position(), the lines of both sides round to the same index. The nearest
// boundary between keys is in this interval, so it does not matter which of the two lines a key selects. This was
// verified for all floats in [0, 1].
__device__ void nearest(u32 lines, const float (&m)[8], const u32 (&magnitude)[8], float inverse, u32 (&codes)[2]) {
    u32 low[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const float a = multiply_bits(magnitude[i], inverse);
        const float2 line = shared_pair(lines, key(a));
        const float at = (a * line.x) + line.y;
        // -k before rounding. `at` is not negative. There is no codeword -1.0, so k is at most 127 if m is negative.
        const float minus_at = fminf(negate_unless(at, m[i]), 127);
        // The low byte is that of -k - 128, the complement of k + 127. 128 is even, so halves still round to even k.
        low[i] = sum_bits(minus_at, ROUND - 128);
    }
    pack(low, codes);
}

// Computes the codes of one of the two codewords around x = m * inverse for eight elements, chosen by draws of 16 bits.
// The probability of the codeword with the larger magnitude is the position of x between the two. The arguments are
// those of `nearest`; `exact` is the address of the table in shared memory.
__device__ void stochastic(u32 exact, const float (&m)[8], const u32 (&magnitude)[8], float inverse,
                           const u32 (&draws)[4], u32 (&codes)[2]) {
    u32 low[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const float a = multiply_bits(magnitude[i], inverse);
        u32 at_key = element_address<sizeof(Exact)>(exact, key(a));
        if (shared_float(at_key + 16, 0) < a) at_key += 8;
        const float2 line = shared_pair(at_key, 0);
        const u32 draw = i % 2 ? draws[i / 2] >> 16 : draws[i / 2] & 0xFFFF;
        // A quotient slightly above 1 has a position above 128.
        const float at = fminf((a * line.x) + line.y, 128) + float(draw) * (1.0f / 65536);
        // As in `nearest`, after the fraction is cut off.
        const float minus_at = fminf(negate_unless(truncf(at), m[i]), 127);
        low[i] = sum_bits(minus_at, ROUND - 128);
    }
    pack(low, codes);
}
