// The kernels of one pair of formats, of the parameter and of the gradient: `lion` and `norm` for each width of the
// state. `cargo xtask ptx` compiles this file once per pair, with these macros: PAIR is the name, such as f32_bf16, and
// OF_PARAM and OF_GRAD are the formats.
//
// Each operation is an IEEE-754 operation that rounds once. The compiler gets --fmad=false, and neither fast math nor
// flush to zero.
#include "kernel.cuh"
#include "norm.cuh"
#include "step.cuh"

KERNEL(NAMED(lion32_, PAIR, ), 3, (step32<OF_PARAM, OF_GRAD>))
KERNEL(NAMED(lion8_, PAIR, ), 3, (step8<OF_PARAM, OF_GRAD, false>))
KERNEL(NAMED(lion8_, PAIR, _options), 3, (step8<OF_PARAM, OF_GRAD, true>))
KERNEL(NAMED(norm32_, PAIR, ), 3, (norm<OF_PARAM, OF_GRAD, false>))
KERNEL(NAMED(norm8_, PAIR, ), 3, (norm<OF_PARAM, OF_GRAD, true>))
