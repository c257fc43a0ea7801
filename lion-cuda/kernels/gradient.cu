// The kernels of one format of the gradient that do not read the parameter: `survey` for each width of the state, and
// `squares`. `cargo xtask ptx` compiles this file once per format, with these macros: GRADIENT is the name, such as
// bf16, and OF_GRAD is the format.
#include "kernel.cuh"
#include "squares.cuh"
#include "survey.cuh"

KERNEL(NAMED(survey32_, GRADIENT, ), 3, (survey<OF_GRAD, false>))
KERNEL(NAMED(survey8_, GRADIENT, ), 3, (survey<OF_GRAD, true>))
KERNEL(NAMED(squares_, GRADIENT, ), 3, (squares<OF_GRAD>))
