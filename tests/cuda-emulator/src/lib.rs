//! A CUDA driver without a GPU: it interprets PTX, for tests.

// The names are those of the driver's interface.
#[allow(non_snake_case)]
pub mod driver;
mod machine;
pub mod ptx;
