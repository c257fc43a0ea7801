//! The project's own commands, as a library for the command and for `cargo bench`.
#![forbid(unsafe_code)]

pub mod bench;
