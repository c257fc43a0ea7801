// The blockwise 8-bit state: from codes to momenta and back.
#pragma once
#include "bits.cuh"
#include "tables.cuh"  // numbers of lion-quant; `cargo xtask ptx` writes it

constexpr u32 ZERO_CODE = 127;
constexpr u32 TINY_BITS = 0x00800000;  // of the smallest normal f32

// Adding it leaves no bit below 1: the sum is rounded to an integer, half to even, that stands in the low bits.
constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23

// In shared memory, written once a CTA for all its blocks.
struct Tables {
    float codebook[256];
    float2 line[KEYS];  // slope and offset of position() for the magnitudes of a key
};

// What stochastic rounding needs besides.
struct Pieces {
    float threshold[PIECES + 1];  // piece s is from above threshold[s] to threshold[s + 1]
    float slope[PIECES], offset[PIECES];
    u8 of_key[KEYS];
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

__device__ void load_pieces(Pieces &pieces) {
    const u32 i = threadIdx.x;
    if (i < KEYS) pieces.of_key[i] = PIECE_OF_KEY[i];
    if (i < PIECES) {
        pieces.threshold[i] = i == 0 ? -1.0f : __uint_as_float(THRESHOLDS[i - 1]);
        pieces.slope[i] = __uint_as_float(SLOPES[i]);
        pieces.offset[i] = __uint_as_float(OFFSETS[i]);
    }
    if (i == PIECES) pieces.threshold[i] = __uint_as_float(INFINITE);
}

// The key of a magnitude up to 1: an eighth of a binade of its product with KEY_SCALE. The factor is chosen so that
// close to each threshold of position() there is a border of keys, and so that what lies far below the first
// threshold becomes subnormal: there binades end, and keys begin at 0.
__device__ u32 key(float a) {
    return bits_from<20>(a * __uint_as_float(KEY_SCALE));
}

// m of element i of a lane's eight; `codebook` is its address in shared memory.
__device__ float dequantize(u32 codebook, const u32 (&codes)[2], u32 i, float absmax) {
    return shared_float(codebook, __byte_perm(codes[i / 4], 0, 0x4440 | i % 4)) * absmax;
}

// The codes of the codewords nearest to eight x = m * inverse. Of m there are the signs and the bits of the
// magnitudes; `lines` is the address of Tables::line in shared memory.
//
// Around each threshold of position() the lines of both sides round to the same index, over a whole range, and the
// nearest border of keys lies within it: which of the two lines a key gives does not matter. (All floats of [0, 1]
// were compared.)
__device__ void nearest(u32 lines, const float (&m)[8], const u32 (&magnitude)[8], float inverse, u32 (&codes)[2]) {
    u32 low[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const float a = multiply_bits(magnitude[i], inverse);
        const float2 line = shared_pair(lines, key(a));
        const float at = (a * line.x) + line.y;
        // -k before rounding; at is not negative. There is no -1.0: where m is negative k is at most 127.
        const float minus_at = fminf(negate_unless(at, m[i]), 127);
        // The low byte is that of -k - 128, the complement of k + 127; 128 is even, so that halves still go to the
        // even k.
        low[i] = sum_bits(minus_at, ROUND - 128);
    }
#pragma unroll
    for (u32 group = 0; group < 2; group++) {
        const u32 *four = low + 4 * group;
        const u32 pair0 = __byte_perm(four[0], four[1], 0x0040), pair1 = __byte_perm(four[2], four[3], 0x0040);
        codes[group] = ~__byte_perm(pair0, pair1, 0x5410);
    }
}

// position() by the exact piece: the number of thresholds strictly below a. A key has no more than one threshold.
__device__ float position(const Pieces &pieces, float a) {
    u32 s = pieces.of_key[key(a)];
    if (!(pieces.threshold[s] < a)) s--;
    if (pieces.threshold[s + 1] < a) s++;
    return (a * pieces.slope[s]) + pieces.offset[s];
}

// The code of one of the two codewords around x, the upper one with odds by the position of x between them. A draw
// has 16 bits.
__device__ u32 stochastic(const Pieces &pieces, float x, u32 draw) {
    const float fraction = float(draw) * (1.0f / 65536);
    const int k = int(position(pieces, fabsf(x)) + fraction);
    return __float_as_int(x) < 0 ? ZERO_CODE - min(k, 127) : ZERO_CODE + min(k, 128);
}
