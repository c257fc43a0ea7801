//! What goes wrong in a backend.

#[cfg(doc)]
use crate::Backend;
use crate::{Bits, Operand, PagingError};
use std::error::Error as StdError;
use std::fmt;

/// What goes wrong in a backend.
#[derive(Debug)]
#[non_exhaustive]
pub enum BackendError {
    /// Memory for a state cannot be had.
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// A state was allocated by another backend.
    ForeignState {
        /// The backend that was asked to step it.
        backend: String,
        /// The parameter it belongs to.
        parameter: String,
    },
    /// A state does not have as many elements as its parameter, or not the width that it was
    /// allocated with.
    WrongState {
        /// The backend that allocated it, or was asked to step it. As a `Box<str>`, which keeps every
        /// error small.
        backend: Box<str>,
        /// The parameter it belongs to.
        parameter: Box<str>,
        /// Elements of the state.
        given_len: usize,
        /// Elements of the parameter.
        wanted_len: usize,
        /// Width of the state.
        given_bits: Bits,
        /// The width that was asked for.
        wanted_bits: Bits,
    },
    /// An array lies where the backend cannot reach it: in a device's memory for the CPU, or in that of
    /// another device.
    WrongDevice {
        /// The backend that was asked to step it.
        backend: String,
        /// The parameter it belongs to.
        parameter: String,
        /// Whether it is the parameter itself or its gradient.
        operand: Operand,
    },
    /// Planes of another width than the state's.
    WrongPlanes {
        /// Width of the planes.
        given: Bits,
        /// Width of the state.
        wanted: Bits,
    },
    /// A part of a plane that is not there, or that cuts a number.
    WrongPart {
        /// Name of the state's layout.
        layout: &'static str,
        /// Which plane, counted from 0.
        plane: usize,
        /// Its first byte in the plane.
        offset: usize,
        /// Its bytes.
        bytes: usize,
        /// Bytes of the plane; 0 where the layout has no such plane.
        size: usize,
    },
    /// The backend cannot be used on this machine.
    Unavailable {
        /// The backend that was asked for.
        backend: String,
        /// What is missing.
        reason: String,
    },
    /// The norm of a gradient in the memory of a device, from a backend that does not compute it:
    /// [`Backend::sum_squares`].
    NormUnsupported {
        /// The backend that was asked.
        backend: String,
        /// The parameter whose gradient it is.
        parameter: String,
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
    /// A state cannot be paged, or a part of one not be moved.
    Paging(PagingError),
    /// An error of a backend from outside this project.
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
    /// [`WrongState`](BackendError::WrongState), [`WrongDevice`](BackendError::WrongDevice) and
    /// [`PagingError::OtherProcess`]. It is `true` for every other error.
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
        ) && !self.is_of_another_process()
    }

    /// Whether the caller is a child made by `fork` of the process that has the states. A call cannot
    /// meet this on its way, so it has changed nothing.
    pub(crate) fn is_of_another_process(&self) -> bool {
        matches!(self, BackendError::Paging(PagingError::OtherProcess { .. }))
    }

    /// Returns the error of a backend that has no state of this width.
    pub fn no_state_of(backend: &str, bits: Bits) -> Self {
        BackendError::Unavailable {
            backend: backend.to_owned(),
            reason: format!("it has no state of {bits} per element"),
        }
    }

    /// Marks this error as met before the step changed anything.
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
                write!(f, "{bytes} bytes of memory for a state cannot be had")
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
                let place = "lies where the backend";
                write!(
                    f,
                    "{whose}parameter `{parameter}` {place} `{backend}` cannot reach it"
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
