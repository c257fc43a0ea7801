//! Errors of a backend.

#[cfg(doc)]
use crate::Backend;
use crate::{Bits, Operand, PagingError, Shard};
use std::error::Error as StdError;
use std::fmt;

/// An error of a backend.
#[derive(Debug)]
#[non_exhaustive]
pub enum BackendError {
    /// Memory for a state could not be allocated.
    OutOfMemory {
        /// Requested bytes.
        bytes: usize,
    },
    /// A state was allocated by another backend.
    ForeignState {
        /// The backend of the step.
        backend: String,
        /// The parameter of the state.
        parameter: String,
    },
    /// The length of a state differs from the length of its parameter, or its width from the width
    /// that was requested.
    WrongState {
        /// The backend that allocated it, or the backend of the step. A `Box<str>` keeps the error type
        /// small.
        backend: Box<str>,
        /// The parameter of the state.
        parameter: Box<str>,
        /// Elements of the state.
        given_len: usize,
        /// Elements of the parameter.
        wanted_len: usize,
        /// Width of the state.
        given_bits: Bits,
        /// The width that was requested.
        wanted_bits: Bits,
    },
    /// The backend cannot access the memory of an array: it is in device memory and the backend
    /// runs on the CPU, or it is in the memory of another device.
    WrongDevice {
        /// The backend of the step.
        backend: String,
        /// The parameter of the update.
        parameter: String,
        /// The parameter or the gradient.
        operand: Operand,
    },
    /// The width of some planes differs from the width of the state.
    WrongPlanes {
        /// Width of the planes.
        given: Bits,
        /// Width of the state.
        wanted: Bits,
    },
    /// A range of a plane does not exist, or does not consist of whole numbers.
    WrongPart {
        /// Name of the state's layout.
        layout: &'static str,
        /// Index of the plane.
        plane: usize,
        /// First byte of the range in the plane.
        offset: usize,
        /// Bytes of the range.
        bytes: usize,
        /// Bytes of the plane; 0 if the layout has no such plane.
        size: usize,
    },
    /// The backend cannot be used on this machine.
    Unavailable {
        /// The backend that was requested.
        backend: String,
        /// What is missing.
        reason: String,
    },
    /// The norm of a gradient in device memory was requested from a backend that does not implement
    /// [`Backend::sum_squares`] for it.
    NormUnsupported {
        /// The backend.
        backend: String,
        /// The parameter of the gradient.
        parameter: String,
    },
    /// The norm of a shard was requested from a backend that does not implement
    /// [`Backend::shard_norms`].
    ShardNormUnsupported {
        /// The backend.
        backend: String,
        /// The parameter.
        parameter: String,
    },
    /// The shard of a [`TensorStep`](crate::TensorStep) does not consist of whole blocks of the whole tensor.
    WrongShard {
        /// The parameter.
        parameter: Box<str>,
        /// Elements of the parameter.
        elements: usize,
        /// Its position in the whole tensor.
        shard: Shard,
    },
    /// A shard is to be clipped by `max_unorm`, and the step does not contain the norm of the whole tensor.
    MissingNorm {
        /// The backend.
        backend: String,
        /// The parameter.
        parameter: String,
    },
    /// The gradient of a [`TensorStep`](crate::TensorStep) does not have as many elements as its
    /// parameter, for example because a wrapping backend has replaced the gradient.
    WrongGradient {
        /// The backend. A `Box<str>` keeps every error small.
        backend: Box<str>,
        /// The parameter.
        parameter: Box<str>,
        /// Elements of the gradient.
        given: usize,
        /// Elements of the parameter.
        wanted: usize,
    },
    /// A method of a backend returned another number of results than it was given inputs.
    WrongCount {
        /// The backend.
        backend: String,
        /// Results that it returned.
        given: usize,
        /// Inputs.
        wanted: usize,
    },
    /// A state cannot be paged, or a piece of it could not be moved.
    Paging(PagingError),
    /// An error of a backend that is not part of this project.
    Other(Box<dyn StdError + Send + Sync>),
    /// A step failed before it changed any parameter or state.
    NotBegun {
        /// What went wrong.
        source: Box<BackendError>,
    },
}

impl BackendError {
    /// Returns whether a [`step`](Backend::step) that fails with this error may have changed
    /// parameters and states.
    ///
    /// This is `false` for [`NotBegun`](BackendError::NotBegun), and for errors that a backend returns
    /// only before it changes anything: [`ForeignState`](BackendError::ForeignState),
    /// [`WrongState`](BackendError::WrongState), [`WrongDevice`](BackendError::WrongDevice),
    /// [`WrongGradient`](BackendError::WrongGradient) and [`PagingError::OtherProcess`]. It is `true` for every other error.
    ///
    /// ```
    /// use lion_core::BackendError;
    /// let error = BackendError::OutOfMemory { bytes: 64 };
    /// assert!(error.has_begun());
    /// assert!(!error.not_begun().has_begun());
    /// ```
    pub fn has_begun(&self) -> bool {
        !matches!(
            self,
            BackendError::NotBegun { .. }
                | BackendError::ForeignState { .. }
                | BackendError::WrongState { .. }
                | BackendError::WrongDevice { .. }
                | BackendError::WrongGradient { .. }
                | BackendError::MissingNorm { .. }
                | BackendError::WrongShard { .. }
        ) && !self.is_of_another_process()
    }

    /// Returns whether the calling process is a forked child of the process that owns the states. A
    /// call checks this first, so it has changed nothing.
    pub(crate) fn is_of_another_process(&self) -> bool {
        matches!(self, BackendError::Paging(PagingError::OtherProcess { .. }))
    }

    /// Returns the error of a backend that does not support states of this width.
    ///
    /// ```
    /// use lion_core::{BackendError, Bits};
    /// let error = BackendError::no_state_of("mine", Bits::Eight);
    /// assert_eq!(
    ///     error.to_string(),
    ///     "backend `mine` cannot be used here: it has no state of 8 bits per element"
    /// );
    /// ```
    pub fn no_state_of(backend: &str, bits: Bits) -> Self {
        BackendError::Unavailable {
            backend: backend.to_owned(),
            reason: format!("it has no state of {bits} per element"),
        }
    }

    /// Marks this error as raised before the step changed anything: wraps it in
    /// [`NotBegun`](BackendError::NotBegun) unless [`has_begun`](BackendError::has_begun) is
    /// already `false`.
    #[must_use]
    pub fn not_begun(self) -> Self {
        if self.has_begun() {
            let source = Box::new(self);
            BackendError::NotBegun { source }
        } else {
            self
        }
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackendError::OutOfMemory { bytes } => {
                write!(f, "could not allocate {bytes} bytes of memory for a state")
            }
            BackendError::ForeignState { backend, parameter } => write!(
                f,
                "the state of parameter `{parameter}` was not allocated by the backend `{backend}`"
            ),
            BackendError::WrongState {
                backend,
                parameter,
                given_len,
                wanted_len,
                given_bits,
                wanted_bits,
            } => write!(
                f,
                "the state of parameter `{parameter}` from the backend `{backend}` has \
                 {given_len} elements of {given_bits}, wanted {wanted_len} of {wanted_bits}"
            ),
            BackendError::WrongDevice {
                backend,
                parameter,
                operand,
            } => {
                let whose = match operand {
                    Operand::Parameter => "",
                    Operand::Gradient => "the gradient of ",
                };
                let place = "is in memory that the backend";
                write!(
                    f,
                    "{whose}parameter `{parameter}` {place} `{backend}` cannot access"
                )
            }
            BackendError::WrongPlanes { given, wanted } => {
                write!(f, "the planes have {given}, wanted {wanted}")
            }
            BackendError::WrongPart {
                layout,
                plane,
                offset,
                bytes,
                size,
            } => write!(
                f,
                "bytes {offset} to {} of plane {plane} of `{layout}`, \
                 wanted whole numbers within its {size} bytes",
                offset.saturating_add(*bytes)
            ),
            BackendError::Unavailable { backend, reason } => {
                write!(f, "backend `{backend}` cannot be used here: {reason}")
            }
            BackendError::NormUnsupported { backend, parameter } => write!(
                f,
                "parameter `{parameter}`: the backend `{backend}` does not support the norm of a \
                 gradient in the memory of a device"
            ),
            BackendError::ShardNormUnsupported { backend, parameter } => write!(
                f,
                "parameter `{parameter}`: the backend `{backend}` does not support the norm of a shard"
            ),
            BackendError::WrongShard {
                parameter,
                elements,
                shard,
            } => write!(
                f,
                "parameter `{parameter}`: {elements} elements are {shard}; wanted whole blocks within the \
                 whole"
            ),
            BackendError::MissingNorm { backend, parameter } => write!(
                f,
                "parameter `{parameter}`: the backend `{backend}` cannot clip a shard by max_unorm without \
                 the norm of the whole tensor"
            ),
            BackendError::WrongGradient {
                backend,
                parameter,
                given,
                wanted,
            } => write!(
                f,
                "the gradient of parameter `{parameter}` has {given} elements in the backend \
                 `{backend}`, wanted {wanted}"
            ),
            BackendError::WrongCount {
                backend,
                given,
                wanted,
            } => write!(
                f,
                "the backend `{backend}` returned {given} results, wanted {wanted}"
            ),
            BackendError::Paging(error) => write!(f, "{error}"),
            BackendError::Other(_) => f.write_str("the backend failed"),
            BackendError::NotBegun { source } => write!(f, "{source}; nothing was changed"),
        }
    }
}

impl StdError for BackendError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            BackendError::Paging(error) => error.source(),
            BackendError::Other(source) => Some(source.as_ref()),
            BackendError::NotBegun { source } => source.source(),
            _ => None,
        }
    }
}

impl From<PagingError> for BackendError {
    fn from(error: PagingError) -> Self {
        BackendError::Paging(error)
    }
}
