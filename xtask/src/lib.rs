//! The benchmarks of the project, as a library for `cargo xtask` and for `cargo bench`.
#![forbid(unsafe_code)]

pub mod bench;
