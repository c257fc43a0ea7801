// The definition of a kernel that processes the runs of a table, and names that contain a type.
#pragma once
#include "tensor.cuh"

#define JOIN(TASK, TYPES, OPTIONS) TASK##TYPES##OPTIONS
// The name of a kernel. TYPES can be a macro.
#define NAMED(TASK, TYPES, OPTIONS) JOIN(TASK, TYPES, OPTIONS)

// `CTAS` is the number of CTAs per multiprocessor for which registers are allocated.
#define KERNEL(NAME, CTAS, CALL)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, CTAS)                                   \
    NAME(const Tensor *tensors, u32 count, u64 runs) { CALL(tensors, count, runs); }
