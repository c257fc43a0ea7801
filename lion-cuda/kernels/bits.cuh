// Operations on the bits of floats, each one instruction.
//
// PTX instructions of type .b32 accept float registers. In C++, each float would be moved to an integer register and
// back. A GPU has a single kind of register, where such a move costs nothing, but an interpreter of PTX executes it.
#pragma once
#include "tensor.cuh"

constexpr u32 SIGN = 0x80000000;
constexpr u32 INFINITE = 0x7F800000;

// Returns the bits of the magnitude of x.
__device__ u32 magnitude(float x) {
    u32 bits;
    asm("and.b32 %0, %1, 0x7FFFFFFF;" : "=r"(bits) : "f"(x));
    return bits;
}

// Returns the bits of x + y.
__device__ u32 sum_bits(float x, float y) {
    u32 bits;
    asm("add.rn.f32 %0, %1, %2;" : "=r"(bits) : "f"(x), "f"(y));
    return bits;
}

// Returns x, negated if the sign bit of `by` is set.
__device__ float negate_by(float x, float by) {
    float result;
    asm("lop3.b32 %0, %1, %2, %3, 0x6A;" : "=f"(result) : "f"(by), "r"(SIGN), "f"(x));  // (by & SIGN) ^ x
    return result;
}

// Returns x, which is not negative, negated unless the sign bit of `by` is set.
__device__ float negate_unless(float x, float by) {
    float result;
    asm("lop3.b32 %0, %1, %2, %3, 0xAE;" : "=f"(result) : "f"(by), "r"(SIGN), "f"(x));  // (~by & SIGN) | x
    return result;
}

// Returns COUNT bits of a word from bit FROM on.
template <u32 FROM, u32 COUNT>
__device__ u32 field(u32 word) {
    u32 bits;
    asm("bfe.u32 %0, %1, %2, %3;" : "=r"(bits) : "r"(word), "n"(FROM), "n"(COUNT));
    return bits;
}

template <u32 FROM>
__device__ u32 bits_from(float x) {
    u32 bits;
    asm("shr.b32 %0, %1, %2;" : "=r"(bits) : "f"(x), "n"(FROM));
    return bits;
}

// Returns the float whose upper half is the lower, or the upper, half of a word.
__device__ float low_half_up(u32 word) {
    float x;
    asm("shl.b32 %0, %1, 16;" : "=f"(x) : "r"(word));
    return x;
}

__device__ float high_half(u32 word) {
    float x;
    asm("and.b32 %0, %1, 0xFFFF0000;" : "=f"(x) : "r"(word));
    return x;
}

// Accesses to tables in shared memory by 32-bit addresses. C++ would use 64-bit addresses.
__device__ u32 shared_address(const void *table) { return u32(__cvta_generic_to_shared(table)); }

template <u32 BYTES>
__device__ u32 element_address(u32 table, u32 index) {
    u32 at;
    asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(at) : "r"(index), "n"(BYTES), "r"(table));
    return at;
}

__device__ float shared_float(u32 table, u32 index) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(element_address<4>(table, index)));
    return x;
}

__device__ float2 shared_pair(u32 table, u32 index) {
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(element_address<8>(table, index)));
    return x;
}

// Accesses to one element of BYTES bytes, with its bits in a word.
template <u32 BYTES>
__device__ u32 load_shared_one(u32 at) {
    u32 bits;
    if constexpr (BYTES == 1) {
        asm volatile("ld.shared.u8 %0, [%1];" : "=r"(bits) : "r"(at));
    } else if constexpr (BYTES == 2) {
        asm volatile("ld.shared.u16 %0, [%1];" : "=r"(bits) : "r"(at));
    } else {
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(bits) : "r"(at));
    }
    return bits;
}

template <u32 BYTES>
__device__ void store_shared_one(u32 at, u32 bits) {
    if constexpr (BYTES == 1) {
        asm volatile("st.shared.u8 [%0], %1;" :: "r"(at), "r"(bits) : "memory");
    } else if constexpr (BYTES == 2) {
        asm volatile("st.shared.u16 [%0], %1;" :: "r"(at), "r"(bits) : "memory");
    } else {
        asm volatile("st.shared.u32 [%0], %1;" :: "r"(at), "r"(bits) : "memory");
    }
}
