// The formats of parameters, gradients and momenta, and conversions of eight elements.
#pragma once
#include "bits.cuh"

// Formats, with bytes per element.
struct F32 { static constexpr u32 BYTES = 4; };
struct F16 { static constexpr u32 BYTES = 2; };
struct Bf16 { static constexpr u32 BYTES = 2; };

// The eight elements of a lane in the stored format. A word has two elements of a 16-bit format.
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

// Returns the bits of x, such that adding to the lower half and keeping the upper half rounds x. The NaN that
// arithmetic produces is 0x7FFFFFFF, which a carry would turn into -0, so its lower half is cleared. A NaN that was
// loaded from bf16 has a lower half of 0.
__device__ u32 before_cut(float x) {
    return u32(min(__float_as_int(x), 0x7FFF0000));
}

// Rounds two f32 to bf16, to nearest even. The lower half of infinity is 0, so infinity is not changed.
__device__ u32 narrow_bf16(float low, float high) {
    u32 a = before_cut(low), b = before_cut(high);
    a += 0x7FFF + field<16, 1>(a);
    b += 0x7FFF + field<16, 1>(b);
    return __byte_perm(a, b, 0x7632);
}

// Rounds two f32 to bf16 stochastically: adds a draw of 16 bits to each, then truncates.
__device__ u32 narrow_bf16(float low, float high, u32 draws) {
    const u32 a = before_cut(low) + (draws & 0xFFFF), b = before_cut(high) + (draws >> 16);
    return __byte_perm(a, b, 0x7632);
}

// Rounds eight f32 to the stored format, to nearest even.
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
