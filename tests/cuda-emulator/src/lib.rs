//! A CUDA driver without a GPU: it interprets PTX, for tests.
