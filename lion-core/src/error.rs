//! Errors of the optimizer, and their messages.

use crate::{BackendError, Bits, Dtype, MemoryOrder, Operand, Scope, Shard, SkippedBlocks};
use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;

/// An error of an optimizer.
///
/// A call that returns an error had no effect, with these exceptions:
///
/// - [`Error::Backend`] from a step, if [`BackendError::has_begun`] returns `true`: some or all
///   parameters and states of the step may have changed. Step counts have not.
/// - [`Error::Backend`] from [`synchronize`](crate::Optimizer::synchronize): it reports an error of
///   an earlier step.
/// - [`Error::Damaged`] with a source, or from [`Restore::abandon`](crate::Restore::abandon): the
///   states of the named parameters are partly overwritten. Nothing else has changed.
/// - [`Error::PartlyReset`]: some blocks of the range may be reset. Nothing else has changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A hyper-parameter is outside its range.
    InvalidHyper {
        /// The scope it was given in.
        scope: Scope,
        /// Its name.
        name: &'static str,
        /// Its value.
        given: f64,
        /// The valid range, in words.
        wanted: &'static str,
    },
    /// A parameter with this name is already registered.
    DuplicateParameter {
        /// The name.
        parameter: String,
    },
    /// No parameter with this name is registered.
    UnknownParameter {
        /// The name.
        parameter: String,
    },
    /// The name of a parameter or group is empty.
    EmptyName,
    /// A group with this name already exists.
    DuplicateGroup {
        /// The name.
        group: String,
    },
    /// No group with this name exists.
    UnknownGroup {
        /// The name.
        group: String,
    },
    /// A handle belongs to another optimizer, or to a parameter that was removed.
    UnknownHandle {
        /// The position at which its parameter was registered.
        index: usize,
        /// The number of parameters of this optimizer.
        registered: usize,
        /// Whether this optimizer has removed a parameter with the same serial number. If so, the
        /// handle belongs to that parameter or to another optimizer.
        removed: bool,
    },
    /// A range of elements does not consist of whole blocks of a parameter.
    NotWholeBlocks {
        /// Name of the parameter.
        parameter: String,
        /// The range.
        given: Range<usize>,
        /// Elements of the parameter.
        elements: usize,
    },
    /// A [`reset`](crate::Optimizer::reset) failed after it had begun. Each block in the range has
    /// either a momentum of zero or its previous momentum. Nothing else has changed.
    PartlyReset {
        /// Name of the parameter.
        parameter: String,
        /// The range that was to be reset.
        range: Range<usize>,
        /// What went wrong.
        source: Box<BackendError>,
    },
    /// An array has a different number of elements than the parameter was registered with.
    WrongLength {
        /// Name of the parameter.
        parameter: String,
        /// The parameter or the gradient.
        operand: Operand,
        /// Its elements.
        given: usize,
        /// Elements of the parameter.
        wanted: usize,
    },
    /// A parameter has a different element type than it was registered with.
    WrongDtype {
        /// Name of the parameter.
        parameter: String,
        /// The type it has.
        given: Dtype,
        /// The type it was registered with.
        wanted: Dtype,
    },
    /// An update has no gradient.
    MissingGradient {
        /// Name of the parameter.
        parameter: String,
    },
    /// The same parameter occurs twice in one step.
    RepeatedParameter {
        /// Name of the parameter.
        parameter: String,
    },
    /// An array has gaps between its elements.
    NotContiguous {
        /// Name of the parameter.
        parameter: String,
        /// The parameter or the gradient.
        operand: Operand,
        /// The length of each axis.
        shape: Vec<usize>,
        /// The stride of each axis, in elements.
        strides: Vec<isize>,
    },
    /// A gradient has a different memory order than its parameter, or a parameter has a different
    /// memory order than in its earlier steps. A step would pair the wrong elements.
    OrderMismatch {
        /// Name of the parameter.
        parameter: String,
        /// The parameter or the gradient.
        operand: Operand,
        /// Its order.
        given: MemoryOrder,
        /// The memory order of the parameter.
        wanted: MemoryOrder,
    },
    /// A change of hyper-parameters would change the width of an existing state.
    BitsFixed {
        /// Name of the parameter.
        parameter: String,
        /// The width that the change asks for.
        given: Bits,
        /// The width that the state has.
        wanted: Bits,
    },
    /// A change of hyper-parameters would change whether an existing state is paged.
    PagingFixed {
        /// Name of the parameter.
        parameter: String,
        /// Whether the state would be paged after the change.
        given: bool,
        /// Whether the state is paged.
        wanted: bool,
    },
    /// A record does not fit the state that it would replace.
    StateMismatch {
        /// Name of the parameter.
        parameter: String,
        /// The name of the plane, or `bits`.
        plane: &'static str,
        /// The value in the record.
        given: String,
        /// The value that the state requires.
        wanted: String,
    },
    /// A gradient has a different shape than its parameter. Axes of length 1 are ignored. Shapes
    /// are only compared if both are known.
    ShapeMismatch {
        /// Name of the parameter.
        parameter: String,
        /// The shape of the gradient.
        given: Vec<usize>,
        /// The shape of the parameter.
        wanted: Vec<usize>,
    },
    /// A parameter has reached the largest step count that a checkpoint can record.
    TooManySteps {
        /// Name of the parameter.
        parameter: String,
        /// The maximum step count, 2^62. In practice only a record or a file with a wrong count
        /// reaches it.
        most: u64,
    },
    /// Stochastic rounding is set for a parameter whose element type does not support it.
    StochasticParam {
        /// Name of the parameter.
        parameter: String,
        /// The element type.
        dtype: Dtype,
    },
    /// A shard does not consist of whole blocks of 256 elements, or is not within the whole tensor.
    InvalidShard {
        /// Name of the parameter.
        parameter: String,
        /// Elements of the shard.
        elements: usize,
        /// Its position in the whole tensor.
        shard: Shard,
    },
    /// `max_unorm` is set for a shard, and the update does not contain the norm of the whole tensor; see
    /// [`Update::with_norm`](crate::Update::with_norm). The norm of the shard alone would give other bits.
    MissingNorm {
        /// Name of the parameter.
        parameter: String,
        /// Its position in the whole tensor.
        shard: Shard,
    },
    /// The norms of some shards do not make the norm of a whole tensor.
    ShardsIncomplete {
        /// The shard at which the sum ends. If there is none, the whole tensor.
        shard: Shard,
        /// The block of the whole tensor up to which the norms are complete.
        block: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// `max_grad_norm` is set for a step of a shard. It would clip by the gradients of this process alone. Compute
    /// the norm over all processes, and set [`grad_scale`](crate::StepArgs::grad_scale).
    ShardGradNorm {
        /// Name of the parameter.
        parameter: String,
        /// Its position in the whole tensor.
        shard: Shard,
    },
    /// Two options of a builder exclude each other.
    ConflictingOptions {
        /// One option.
        first: &'static str,
        /// The other option.
        second: &'static str,
        /// Why they exclude each other.
        reason: &'static str,
    },
    /// States were partly overwritten by a failed load or import and mix old and new values.
    ///
    /// Until each of these parameters is loaded or imported again, the optimizer refuses to step
    /// and to export these states.
    Damaged {
        /// Names of the parameters.
        parameters: Vec<String>,
        /// The error that interrupted this call. `None` if an earlier call did the damage.
        source: Option<Box<BackendError>>,
    },
    /// New momenta are not finite, under [`OnNonFinite::RejectStep`](crate::OnNonFinite).
    NonFinite {
        /// The parameters with such momenta.
        parameters: Vec<SkippedBlocks>,
    },
    /// The backend failed.
    Backend {
        /// Name of the parameter that the error concerns, if it concerns one.
        parameter: Option<String>,
        /// What went wrong.
        source: BackendError,
    },
}

impl From<BackendError> for Error {
    fn from(source: BackendError) -> Self {
        Error::Backend {
            parameter: None,
            source,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::InvalidHyper {
                scope,
                name,
                given,
                wanted,
            } => {
                write!(f, "{scope}: {name} is ")?;
                // Prints large and small values in scientific notation, and whole numbers without a
                // decimal point.
                if *given == 0.0 || (1e-5..1e15).contains(&given.abs()) {
                    write!(f, "{given}")?;
                } else {
                    write!(f, "{given:?}")?;
                }
                write!(f, ", wanted {wanted}")
            }
            Error::DuplicateParameter { parameter } => {
                write!(f, "parameter `{parameter}` is already registered")
            }
            Error::UnknownParameter { parameter } => {
                write!(f, "no parameter `{parameter}` is registered")
            }
            Error::EmptyName => f.write_str("a name is empty, wanted at least one character"),
            Error::DuplicateGroup { group } => write!(f, "group `{group}` already exists"),
            Error::UnknownGroup { group } => write!(f, "no group `{group}` exists"),
            Error::UnknownHandle {
                index,
                registered,
                removed,
            } => {
                let why = if *removed {
                    "belongs to a removed parameter or to another optimizer"
                } else {
                    "does not belong to this optimizer"
                };
                write!(
                    f,
                    "handle {index} {why}; this optimizer has {registered} parameters"
                )
            }
            Error::NotWholeBlocks {
                parameter,
                given,
                elements,
            } => write!(
                f,
                "parameter `{parameter}`: elements {} to {} of {elements}, wanted a range that begins \
                 at a multiple of 256 and ends at a multiple of 256 or at the end",
                given.start, given.end
            ),
            Error::PartlyReset {
                parameter,
                range,
                source,
            } => write!(
                f,
                "parameter `{parameter}`: the reset of elements {} to {} failed: {source}; the momentum \
                 of each of their blocks is either zero or unchanged",
                range.start, range.end
            ),
            Error::WrongLength {
                parameter,
                operand,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}`: the {operand} has {given} elements, wanted {wanted}"
            ),
            Error::WrongDtype {
                parameter,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}`: the element type is {given}, wanted {wanted}"
            ),
            Error::MissingGradient { parameter } => {
                write!(f, "parameter `{parameter}`: the gradient is missing")
            }
            Error::RepeatedParameter { parameter } => {
                write!(f, "parameter `{parameter}` is given twice in one step")
            }
            Error::NotContiguous {
                parameter,
                operand,
                shape,
                strides,
            } => write!(
                f,
                "parameter `{parameter}`: the {operand} of shape {shape:?} has strides \
                 {strides:?}, wanted a contiguous array"
            ),
            Error::OrderMismatch {
                parameter,
                operand,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}`: the memory order of the {operand} is {given}, wanted {wanted}, \
                 the order of the parameter"
            ),
            Error::BitsFixed {
                parameter,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}`: its state was allocated with {wanted} and cannot change to {given}"
            ),
            Error::PagingFixed {
                parameter,
                given,
                wanted,
            } => {
                let say = |paged: &bool| if *paged { "paged" } else { "not paged" };
                write!(
                    f,
                    "parameter `{parameter}`: its state was allocated {} and cannot become {}",
                    say(wanted),
                    say(given)
                )
            }
            Error::StateMismatch {
                parameter,
                plane,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}`: state {plane}: the record has {given}, wanted {wanted}"
            ),
            Error::ShapeMismatch {
                parameter,
                given,
                wanted,
            } => write!(
                f,
                "parameter `{parameter}`: the gradient has the shape {given:?}, wanted {wanted:?}, \
                 the shape of the parameter"
            ),
            Error::TooManySteps { parameter, most } => write!(
                f,
                "parameter `{parameter}`: its step count has reached the maximum of {most}"
            ),
            Error::StochasticParam { parameter, dtype } => write!(
                f,
                "parameter `{parameter}`: stochastic_param is set, but the element type is {dtype}; \
                 only bf16 parameters are rounded stochastically"
            ),
            Error::InvalidShard {
                parameter,
                elements,
                shard,
            } => write!(
                f,
                "parameter `{parameter}`: {shard} has {elements} elements; wanted a shard within the whole \
                 that begins and ends at a multiple of 256 or at the end of the whole"
            ),
            Error::MissingNorm { parameter, shard } => write!(
                f,
                "parameter `{parameter}`: max_unorm is set for {shard}; the update must contain the norm \
                 of the whole tensor"
            ),
            Error::ShardsIncomplete {
                shard,
                block,
                reason,
            } => write!(
                f,
                "the norms of shards, at block {block}: {shard}: {reason}"
            ),
            Error::ShardGradNorm { parameter, shard } => write!(
                f,
                "parameter `{parameter}`: max_grad_norm is set for {shard}; set grad_scale by the norm over \
                 all processes"
            ),
            Error::ConflictingOptions {
                first,
                second,
                reason,
            } => write!(f, "`{first}` and `{second}` are both set: {reason}"),
            Error::Damaged { parameters, source } => {
                f.write_str("the states of these parameters are partly overwritten: ")?;
                for (i, parameter) in parameters.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    write!(f, "{comma}`{parameter}`")?;
                }
                match source {
                    Some(source) => write!(f, ": {source}"),
                    None => f.write_str("; load or import them again first"),
                }
            }
            Error::NonFinite { parameters } => {
                f.write_str("step rejected: the new momentum is not finite in ")?;
                for (i, parameter) in parameters.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    write!(f, "{comma}{parameter}")?;
                }
                Ok(())
            }
            Error::Backend {
                parameter: Some(parameter),
                source,
            } => write!(f, "parameter `{parameter}`: {source}"),
            Error::Backend {
                parameter: None,
                source,
            } => write!(f, "{source}"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            // The message already includes the message of `source`; its cause comes next.
            Error::Backend { source, .. } => source.source(),
            Error::Damaged { source, .. } => source.as_ref().and_then(|source| source.source()),
            Error::PartlyReset { source, .. } => source.source(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error types of the other crates contain these types, and must stay within Clippy's 128
    /// bytes.
    #[test]
    fn errors_are_small() {
        assert!(
            size_of::<BackendError>() <= 56,
            "{}",
            size_of::<BackendError>()
        );
        assert!(size_of::<Error>() <= 88, "{}", size_of::<Error>());
    }

    #[test]
    fn memory_orders_are_printed_in_words() {
        let error = Error::OrderMismatch {
            parameter: "w".to_owned(),
            operand: Operand::Gradient,
            given: MemoryOrder::RowMajor,
            wanted: MemoryOrder::of(&[2, 3], &[1, 2], true),
        };
        assert_eq!(
            error.to_string(),
            "parameter `w`: the memory order of the gradient is row-major, wanted permuted (lengths \
             [2, 3], strides [1, 2]), the order of the parameter"
        );
    }
}
