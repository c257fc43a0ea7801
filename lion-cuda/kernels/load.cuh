// Accesses to global memory: one element, or, as vectors, the eight elements of a lane in a whole, aligned block.
//
// The accesses are written in PTX, because the compiler does not know the state space of an address from a table and
// would use slower generic accesses.
#pragma once
#include "numbers.cuh"

// Loads and stores of consecutive words, OFFSET bytes after an address.
template <u32 OFFSET>
__device__ void load(u64 at, u32 &a) {
    asm volatile("ld.global.u32 %0, [%1+%2];" : "=r"(a) : "l"(at), "n"(OFFSET));
}

template <u32 OFFSET>
__device__ void load(u64 at, u32 &a, u32 &b) {
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2+%3];" : "=r"(a), "=r"(b) : "l"(at), "n"(OFFSET));
}

template <u32 OFFSET>
__device__ void load(u64 at, u32 &a, u32 &b, u32 &c, u32 &d) {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4+%5];"
                 : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "l"(at), "n"(OFFSET));
}

template <u32 OFFSET>
__device__ void store(u64 at, u32 a) {
    asm volatile("st.global.u32 [%0+%1], %2;" :: "l"(at), "n"(OFFSET), "r"(a) : "memory");
}

template <u32 OFFSET>
__device__ void store(u64 at, u32 a, u32 b) {
    asm volatile("st.global.v2.u32 [%0+%1], {%2, %3};" :: "l"(at), "n"(OFFSET), "r"(a), "r"(b) : "memory");
}

template <u32 OFFSET>
__device__ void store(u64 at, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.global.v4.u32 [%0+%1], {%2, %3, %4, %5};"
                 :: "l"(at), "n"(OFFSET), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

// Loads and stores of one element of BYTES bytes, with its bits in a word.
template <u32 BYTES>
__device__ u32 load_one(u64 at) {
    u32 bits;
    if constexpr (BYTES == 1) {
        asm volatile("ld.global.u8 %0, [%1];" : "=r"(bits) : "l"(at));
    } else if constexpr (BYTES == 2) {
        asm volatile("ld.global.u16 %0, [%1];" : "=r"(bits) : "l"(at));
    } else {
        load<0>(at, bits);
    }
    return bits;
}

template <u32 BYTES>
__device__ void store_one(u64 at, u32 bits) {
    if constexpr (BYTES == 1) {
        asm volatile("st.global.u8 [%0], %1;" :: "l"(at), "r"(bits) : "memory");
    } else if constexpr (BYTES == 2) {
        asm volatile("st.global.u16 [%0], %1;" :: "l"(at), "r"(bits) : "memory");
    } else {
        store<0>(at, bits);
    }
}

__device__ void count_up(u64 counter, u64 by) {
    asm volatile("red.global.add.u64 [%0], %1;" :: "l"(counter), "l"(by) : "memory");
}

// The accesses to the groups of `first_of_group`, with BYTES bytes per element: the size of an access in bytes, and
// the offset of the second group of a wide lane.
template <u32 BYTES, bool WIDE>
struct Place {
    static constexpr u32 SIZE = (WIDE ? 4 : 8) * BYTES;
    static constexpr u32 SECOND = BLOCK / 2 * BYTES;
    static __device__ bool aligned(u64 address) { return address % (SIZE < 16 ? SIZE : 16) == 0; }
};

// Loads and stores of the elements of a lane in a whole block. `at` is the address of the first one.
template <bool WIDE, u32 WORDS>
__device__ void load_whole(u64 at, u32 (&w)[WORDS]) {
    constexpr u32 SECOND = Place<WORDS / 2, WIDE>::SECOND;
    static_assert(WIDE || WORDS <= 4, "eight f32 are two accesses: such kernels are wide");
    if constexpr (WORDS == 8) {
        load<0>(at, w[0], w[1], w[2], w[3]);
        load<SECOND>(at, w[4], w[5], w[6], w[7]);
    } else if constexpr (WORDS == 4 && WIDE) {
        load<0>(at, w[0], w[1]);
        load<SECOND>(at, w[2], w[3]);
    } else if constexpr (WORDS == 4) {
        load<0>(at, w[0], w[1], w[2], w[3]);
    } else if constexpr (WIDE) {
        load<0>(at, w[0]);
        load<SECOND>(at, w[1]);
    } else {
        load<0>(at, w[0], w[1]);
    }
}

template <bool WIDE, u32 WORDS>
__device__ void store_whole(u64 at, const u32 (&w)[WORDS]) {
    constexpr u32 SECOND = Place<WORDS / 2, WIDE>::SECOND;
    if constexpr (WORDS == 8) {
        store<0>(at, w[0], w[1], w[2], w[3]);
        store<SECOND>(at, w[4], w[5], w[6], w[7]);
    } else if constexpr (WORDS == 4 && WIDE) {
        store<0>(at, w[0], w[1]);
        store<SECOND>(at, w[2], w[3]);
    } else if constexpr (WORDS == 4) {
        store<0>(at, w[0], w[1], w[2], w[3]);
    } else if constexpr (WIDE) {
        store<0>(at, w[0]);
        store<SECOND>(at, w[1]);
    } else {
        store<0>(at, w[0], w[1]);
    }
}
