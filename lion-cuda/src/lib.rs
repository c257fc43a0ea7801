//! The CUDA backend of `lion`: kernels in PTX, launched through cust.
