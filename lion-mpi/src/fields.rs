//! Hyper-parameters as properties on which all ranks must agree.

use crate::agree::Field;
use lion::backend::Hyper;
use std::hash::{Hash, Hasher};

macro_rules! hyper {
    ($($field:ident: $bits:expr),*) => {
        /// Adds hyper-parameters to a hash.
        pub(crate) fn hash_hyper(hyper: &Hyper, hasher: &mut impl Hasher) {
            $($bits(hyper.$field).hash(hasher);)*
        }

        /// Returns hyper-parameters with their names.
        pub(crate) fn hyper_fields(hyper: &Hyper) -> Vec<Field> {
            vec![$((stringify!($field), format!("{:?}", hyper.$field))),*]
        }
    };
}

hyper! {
    lr: f64::to_bits,
    lr_multiplier: f64::to_bits,
    beta1: f64::to_bits,
    beta2: f64::to_bits,
    weight_decay: f64::to_bits,
    max_unorm: f64::to_bits,
    skip_zeros: u64::from,
    stochastic_param: u64::from,
    stochastic_state: u64::from,
    seed: u64::from,
    optim_bits: |bits: lion::backend::Bits| bits.get(),
    min_8bit_size: std::convert::identity,
    is_paged: u64::from,
    min_paged_size: std::convert::identity
}
