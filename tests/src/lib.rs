//! The integration tests of `lion`, in a package of their own: what only tests need, such as the emulated CUDA
//! driver, is then not built for the examples of `lion`.
