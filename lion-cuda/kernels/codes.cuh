// The blockwise 8-bit state: dequantization and quantization.
#pragma once
#include "bits.cuh"
#include "tables.cuh"  // tables of lion-quant, which `cargo xtask ptx` generates

constexpr u32 ZERO_CODES = 0x7F7F7F7F;  // four codes of 0
constexpr u32 TINY_BITS = 0x00800000;  // the bits of the smallest normal f32

// Adding this constant rounds to an integer, half to even, which is in the low bits of the sum.
constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23

constexpr float DRAWS = 65536;  // the number of different draws

// Tables in shared memory, which each CTA writes once.
struct Tables {
    float codebook[256];
    float2 line[KEYS];  // slope and offset of position() per key
};

// Additional table for stochastic rounding: per key, its threshold, and the lines of position() below and above it. A
// key without a threshold has an infinite one. The lines are multiplied by 65536, the number of draws.
struct Exact {
    float4 below[KEYS];  // threshold, unused, slope, offset
    float4 above[KEYS];  // slope, offset, unused
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

__device__ void load_exact(Exact &exact) {
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
    const auto scaled = [](u32 bits) { return __uint_as_float(bits) * DRAWS; };
    exact.below[i] = make_float4(threshold, 0, scaled(SLOPES[s]), scaled(OFFSETS[s]));
    exact.above[i] = make_float4(scaled(SLOPES[above]), scaled(OFFSETS[above]), 0, 0);
}

// Returns the momentum of element i of the eight elements of a lane. `codebook` is an address in shared memory.
__device__ float dequantize(u32 codebook, const u32 (&codes)[2], u32 i, float absmax) {
    return shared_float(codebook, __byte_perm(codes[i / 4], 0, 0x4440 | i % 4)) * absmax;
}

// Packs the complements of the lowest bytes of four words.
__device__ u32 pack_complements(u32 a, u32 b, u32 c, u32 d) {
    // Only the lower half of `ab` and the upper half of `cd` are used.
    const u32 ab = __byte_perm(a, b, 0x0040), cd = __byte_perm(c, d, 0x4000);
    u32 packed;
    asm("lop3.b32 %0, %1, %2, 0xFFFF, 0x1B;" : "=r"(packed) : "r"(ab), "r"(cd));  // ~(0xFFFF ? ab : cd), per bit
    return packed;
}

// Packs the third bytes of four words, counted from the lowest.
__device__ u32 pack_third(u32 a, u32 b, u32 c, u32 d) {
    return __byte_perm(__byte_perm(a, b, 0x0062), __byte_perm(c, d, 0x0062), 0x5410);
}

// Packs the signs of four floats: a byte is 0xFF if the number has its sign bit set, and otherwise 0.
__device__ u32 pack_signs(float a, float b, float c, float d) {
    u32 signs;
    asm("{ .reg .u32 ab, cd; prmt.b32 ab, %1, %2, 0x00FB; prmt.b32 cd, %3, %4, 0x00FB; prmt.b32 %0, ab, cd, 0x5410; }"
        : "=r"(signs) : "f"(a), "f"(b), "f"(c), "f"(d));
    return signs;
}

// Returns the four codes of indices k of magnitudes, packed, with the signs of pack_signs: 127 + k, or 127 - k if
// negative. An index can be up to 129, and then counts as 128. There is no codeword -1.0, so a negative number has an
// index of at most 127.
__device__ u32 codes_of(u32 k, u32 signs) {
    constexpr u32 LOW = 0x7F7F7F7F;
    u32 largest;  // 0xFF in the bytes where the index is 128 or more
    asm("prmt.b32 %0, %1, 0, 0xBA98;" : "=r"(largest) : "r"(k));
    // No sum of two bytes carries.
    const u32 code = (LOW ^ (k & signs & LOW)) + (k & ~signs & LOW);
    return (largest & ~signs) | (~largest & code);
}

// Computes the codes of the codewords nearest to x = m * inverse for eight elements. `lines` is the address of
// Tables::line in shared memory.
//
// In an interval around each threshold of position(), the lines of both sides round to the same index. The nearest
// boundary between keys is in this interval, so it does not matter which of the two lines a key selects. This was
// verified for all floats in [0, 1].
__device__ void nearest(u32 lines, const float (&m)[8], float inverse, u32 (&codes)[2]) {
    u32 low[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const float a = fabsf(m[i]) * inverse;
        const float2 line = shared_pair(lines, key(a));
        const float at = (a * line.x) + line.y;
        // -k before rounding. `at` is not negative. There is no codeword -1.0, so k is at most 127 if m is negative.
        const float minus_at = fminf(negate_unless(at, m[i]), 127);
        // The low byte is that of -k - 128, the complement of k + 127. 128 is even, so halves still round to even k.
        low[i] = sum_bits(minus_at, ROUND - 128);
    }
#pragma unroll
    for (u32 i = 0; i < 8; i += 4) codes[i / 4] = pack_complements(low[i], low[i + 1], low[i + 2], low[i + 3]);
}

// Returns the line of position() for a magnitude, given the address of the first entry of its key in Exact.
__device__ float2 exact_line(u32 at, float a) {
    float2 line;
    asm volatile("{ .reg .f32 threshold, unused; .reg .pred above; "
                 "ld.shared.v4.f32 {threshold, unused, %0, %1}, [%2]; "
                 "setp.lt.f32 above, threshold, %3; "
                 "@above ld.shared.v2.f32 {%0, %1}, [%2+%4]; }"
                 : "=f"(line.x), "=f"(line.y) : "r"(at), "f"(a), "n"(16 * KEYS));
    return line;
}

// Returns one of the two draws in a word.
__device__ float draw_of(u32 draws, u32 i) {
    float draw;
    if (i == 0) {
        asm("{ .reg .u16 low, high; mov.b32 {low, high}, %1; cvt.rn.f32.u16 %0, low; }" : "=f"(draw) : "r"(draws));
    } else {
        asm("{ .reg .u16 low, high; mov.b32 {low, high}, %1; cvt.rn.f32.u16 %0, high; }" : "=f"(draw) : "r"(draws));
    }
    return draw;
}

// Computes the codes of one of the two codewords around x = m * inverse for eight elements, chosen by draws of 16 bits.
// The probability of the codeword with the larger magnitude is the position of x between the two. The arguments are
// those of `nearest`; `exact` is the address of the table in shared memory.
__device__ void stochastic(u32 exact, const float (&m)[8], float inverse, const u32 (&draws)[4], u32 (&codes)[2]) {
    u32 k[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const float a = fabsf(m[i]) * inverse;
        const float2 line = exact_line(element_address<16>(exact, key(a)), a);
        // Both terms are multiplied by 65536, so the index is the part of the sum from bit 16 on. A quotient slightly above
        // 1 can give the index 129.
        const float at = ((a * line.x) + line.y) + draw_of(draws[i / 2], i % 2);
        k[i] = __float2uint_rz(at);
    }
#pragma unroll
    for (u32 i = 0; i < 8; i += 4) {
        codes[i / 4] = codes_of(pack_third(k[i], k[i + 1], k[i + 2], k[i + 3]), pack_signs(m[i], m[i + 1], m[i + 2], m[i + 3]));
    }
}
