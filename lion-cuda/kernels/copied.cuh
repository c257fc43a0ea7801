// Accesses to a block of any length and alignment, through a copy in shared memory.
//
// The copy moves elements between the lanes that process them and the lanes that access them. In global memory, the
// accesses are vectors of the same size as those of `load_whole` and `store_whole`, but at aligned addresses. The
// elements before the first vector and after the last one are accessed one by one, each by one lane. Nothing outside of
// the block is accessed.
#pragma once
#include "load.cuh"

// The copies of the warps of a CTA, for elements of at most BYTES bytes. A copy begins up to one vector behind the start
// of its place.
template <u32 BYTES>
struct Copies {
    uint4 of_warp[THREADS / WARP][BLOCK * BYTES / 16 + 1];
};

// The accesses of a lane to one array of elements of BYTES bytes. An array of bytes must be aligned to VECTOR.
template <u32 BYTES, bool WIDE>
struct Copied {
    static constexpr u32 VECTOR = Place<BYTES, WIDE>::SIZE;  // bytes
    static constexpr u32 WORDS = VECTOR / 4;                 // per vector
    static constexpr u32 GROUPS = WIDE ? 2 : 1;              // vectors per lane
    static constexpr u32 SECOND = WARP * VECTOR;             // bytes between the two vectors of a lane
    static_assert(!WIDE || SECOND == Place<BYTES, WIDE>::SECOND, "the vectors of a block are adjacent");

    u64 vectors;      // address of the first vector of the lane
    u32 lane;
    u32 copy;         // address of the copy
    u32 shift;        // bytes between an aligned address and the block
    u32 bytes;        // length of the block
    u32 vectors_end;  // offset, in the block, of the end of the last vector
    u32 single;       // offset, in the block, of the element that the lane accesses by itself; none if not below `bytes`

    // `at` is the address of the first element of the lane, as for `load_whole`, and `len` is the number of elements
    // in this and all later blocks.
    template <class C>
    __device__ Copied(u64 at, u32 len, const C &copies) : shift(u32(at) % VECTOR) {
        // The registers of the loop over whole, aligned blocks are scarce. Reading the thread here keeps the values
        // below out of that loop, and the opaque addition keeps `at` in a pair of registers.
        u32 thread;
        asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
        asm volatile("add.u64 %0, %1, %2;" : "=l"(vectors) : "l"(at), "l"(-u64(shift)));
        lane = thread % WARP;
        copy = shared_address(copies.of_warp[thread / WARP]);
        bytes = min(len, BLOCK) * BYTES;
        const u32 vectors_begin = min((VECTOR - shift) % VECTOR, bytes);
        vectors_end = vectors_begin + (bytes - vectors_begin) / VECTOR * VECTOR;
        single = lane * BYTES;
        if (single >= vectors_begin) single += vectors_end - vectors_begin;
    }

    // Returns the address of the single element.
    __device__ u64 single_at() const { return vectors - lane * VECTOR + shift + single; }

    // Returns whether a vector of the lane is in the block. In lane 0 of an unaligned block, the offset of the first
    // one is negative, which is a large unsigned number.
    __device__ bool has_vector(u32 group) const { return group * SECOND + lane * VECTOR - shift < vectors_end; }

    // Loads the elements of the lane. Words beyond the end are `missing`.
    __device__ void load(u32 (&w)[2 * BYTES], u32 missing = 0) const {
#pragma unroll
        for (u32 i = 0; i < 2 * BYTES; i++) w[i] = missing;
        if (has_vector(0)) load_vector<0>(w);
        if (WIDE && has_vector(1)) load_vector<SECOND>(w + WORDS);
        u32 bits = 0;
        if (single < bytes) bits = load_one<BYTES>(single_at());
        const u32 own = copy + lane * VECTOR;
        // Other lanes may still read the copy of another array.
        __syncwarp();
        write(own, w);
        if constexpr (WIDE) write(own + SECOND, w + WORDS);
        if (lane == 0) {
            // If the block is short, `shift` bytes of this vector are read as elements beyond the end.
            const u32 words[4] = {missing, missing, missing, missing};
            write(copy + GROUPS * SECOND, words);
        }
        __syncwarp();
        if (single < bytes) store_shared_one<BYTES>(copy + shift + single, bits);
        __syncwarp();
        read(own + shift, w);
        if constexpr (WIDE) read(own + shift + SECOND, w + WORDS);
    }

    // Stores the elements of the lane.
    __device__ void store(u32 (&w)[2 * BYTES]) const {
        // One vector later, because offsets can be negative.
        const u32 first = copy + VECTOR, own = first + lane * VECTOR;
        __syncwarp();
        write(own, w);
        if constexpr (WIDE) write(own + SECOND, w + WORDS);
        __syncwarp();
        if (has_vector(0)) {
            read(own - shift, w);
            store_vector<0>(w);
        }
        if (WIDE && has_vector(1)) {
            read(own - shift + SECOND, w + WORDS);
            store_vector<SECOND>(w + WORDS);
        }
        if (single < bytes) store_one<BYTES>(single_at(), load_shared_one<BYTES>(first + single));
    }

    template <u32 OFFSET>
    __device__ void load_vector(u32 *w) const {
        if constexpr (WORDS == 4) {
            ::load<OFFSET>(vectors, w[0], w[1], w[2], w[3]);
        } else if constexpr (WORDS == 2) {
            ::load<OFFSET>(vectors, w[0], w[1]);
        } else {
            ::load<OFFSET>(vectors, w[0]);
        }
    }

    template <u32 OFFSET>
    __device__ void store_vector(const u32 *w) const {
        if constexpr (WORDS == 4) {
            ::store<OFFSET>(vectors, w[0], w[1], w[2], w[3]);
        } else if constexpr (WORDS == 2) {
            ::store<OFFSET>(vectors, w[0], w[1]);
        } else {
            ::store<OFFSET>(vectors, w[0]);
        }
    }

    // Writes a vector to the copy.
    static __device__ void write(u32 to, const u32 *w) {
        if constexpr (WORDS == 4) {
            asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};"
                         :: "r"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
        } else if constexpr (WORDS == 2) {
            asm volatile("st.shared.v2.u32 [%0], {%1, %2};" :: "r"(to), "r"(w[0]), "r"(w[1]) : "memory");
        } else {
            asm volatile("st.shared.u32 [%0], %1;" :: "r"(to), "r"(w[0]) : "memory");
        }
    }

    // Reads a vector from the copy, at an address that is aligned to an element.
    static __device__ void read(u32 from, u32 *w) {
        if constexpr (BYTES == 2) {
            const bool aligned = from % 4 == 0;
            const u32 first = from & ~3u, last = aligned ? first + VECTOR - 4 : first + VECTOR;
            u32 word = read_word(first);
#pragma unroll
            for (u32 i = 0; i < WORDS; i++) {
                const u32 next = read_word(i + 1 < WORDS ? first + 4 * (i + 1) : last);
                w[i] = __byte_perm(word, next, aligned ? 0x3210 : 0x5432);
                word = next;
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < WORDS; i++) w[i] = read_word(from + 4 * i);
        }
    }

    static __device__ u32 read_word(u32 from) {
        u32 word;
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(from));
        return word;
    }
};
