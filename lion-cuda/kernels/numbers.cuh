// The formats in which parameters, gradients and momenta are stored, eight elements at a time.
#pragma once
#include "bits.cuh"

// Formats: bytes an element.
struct F32 { static constexpr u32 BYTES = 4; };
struct F16 { static constexpr u32 BYTES = 2; };
struct Bf16 { static constexpr u32 BYTES = 2; };

// The eight elements of a lane as they are stored; formats of 16 bits have two in a word.
template <class T>
struct Eight { u32 word[2 * T::BYTES]; };

template <class T>
__device__ float widen(const Eight<T> &x, u32 i);

template <>
__device__ float widen(const Eight<F32> &x, u32 i) {
    return __uint_as_float(x.word[i]);
}

template <>
__device__ float widen(const Eight<F16> &x, u32 i) {
    const u16 half = u16(i % 2 ? x.word[i / 2] >> 16 : x.word[i / 2]);
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(half));
    return wide;
}

template <>
__device__ float widen(const Eight<Bf16> &x, u32 i) {
    return i % 2 ? high_half(x.word[i / 2]) : low_half_up(x.word[i / 2]);
}

__device__ u32 to_half(float x) {
    u16 half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
}

// The bits of x, of which the upper half will be kept, ready to have something added to the lower half. The NaN that
// arithmetic yields here is 0x7FFFFFFF: a carry would take it to -0. One that it leaves as it was has a lower half of 0.
__device__ u32 before_cut(float x) {
    return u32(min(__float_as_int(x), 0x7FFF0000));
}

// Rounds two f32 to bf16 once, to nearest even; infinity has no lower half and stays.
__device__ u32 narrow_bf16(float low, float high) {
    u32 a = before_cut(low), b = before_cut(high);
    a += 0x7FFF + field<16, 1>(a);
    b += 0x7FFF + field<16, 1>(b);
    return __byte_perm(a, b, 0x7632);
}

// Rounds two f32 to bf16 stochastically: adds a draw of 16 bits to each, then cuts.
__device__ u32 narrow_bf16(float low, float high, u32 draws) {
    const u32 a = before_cut(low) + (draws & 0xFFFF), b = before_cut(high) + (draws >> 16);
    return __byte_perm(a, b, 0x7632);
}

// Rounds eight f32 to the stored format once, to nearest even.
template <class T>
__device__ Eight<T> narrow(const float (&x)[8]);

template <>
__device__ Eight<F32> narrow(const float (&x)[8]) {
    Eight<F32> out;
#pragma unroll
    for (u32 i = 0; i < 8; i++) out.word[i] = __float_as_uint(x[i]);
    return out;
}

template <>
__device__ Eight<F16> narrow(const float (&x)[8]) {
    Eight<F16> out;
#pragma unroll
    for (u32 i = 0; i < 8; i += 2) out.word[i / 2] = to_half(x[i]) | to_half(x[i + 1]) << 16;
    return out;
}

template <>
__device__ Eight<Bf16> narrow(const float (&x)[8]) {
    Eight<Bf16> out;
#pragma unroll
    for (u32 i = 0; i < 8; i += 2) out.word[i / 2] = narrow_bf16(x[i], x[i + 1]);
    return out;
}
