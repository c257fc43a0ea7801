//! What goes wrong with a checkpoint, and where in the file.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// What is wrong with a checkpoint or with saving or loading one.
#[derive(Debug)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file system failed. On a full disk this is what a save returns, and the file that was there
    /// before stays.
    Io {
        /// What was being done: `open`, `read`, `write`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file does not begin as a checkpoint does.
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// Its first bytes, eight at most.
        given: Vec<u8>,
    },
    /// A version of the format that is not known here.
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        given: u32,
        /// The newest version that can be read.
        newest: u32,
    },
    /// Bytes that no save leaves behind.
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file it shows.
        offset: u64,
        /// The parameter it is about, if it is about one.
        parameter: Option<String>,
        /// What is wrong there.
        damage: Damage,
    },
    /// The parameters of the file are not those of the optimizer. All that differ are listed.
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Parameters of the optimizer that the file lacks.
        missing: Vec<String>,
        /// Parameters of the file that the optimizer lacks.
        additional: Vec<String>,
        /// Parameters that both have, with another length, type or width of state.
        different: Vec<Difference>,
    },
    /// An optimizer that the format has no room for.
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        given: usize,
        /// How much there may be.
        most: usize,
    },
    /// A parameter with a value that the format forbids, such as more than 2^62 steps.
    Unrepresentable {
        /// The file.
        path: PathBuf,
        /// The parameter.
        parameter: String,
        /// The value.
        damage: Damage,
    },
    /// A state of a layout that the format does not know.
    UnknownLayout {
        /// The file.
        path: PathBuf,
        /// The parameter.
        parameter: String,
        /// Name of the layout.
        layout: &'static str,
    },
    /// What the optimizer or its backend says.
    Optimizer {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: lion_core::Error,
    },
}

/// A parameter that is one thing in the file and another in the optimizer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// Its name.
    pub parameter: String,
    /// In what it differs: `length`, `type` or `state`.
    pub what: &'static str,
    /// What it is in the file.
    pub given: String,
    /// What it is in the optimizer.
    pub wanted: String,
}

impl Difference {
    pub(crate) fn of(
        parameter: &str,
        what: &'static str,
        given: impl ToString,
        wanted: impl ToString,
    ) -> Self {
        Difference {
            parameter: parameter.to_owned(),
            what,
            given: given.to_string(),
            wanted: wanted.to_string(),
        }
    }
}

/// What is wrong with bytes of a checkpoint.
#[derive(Debug)]
#[non_exhaustive]
pub enum Damage {
    /// The file ends early.
    CutShort {
        /// Bytes that it has.
        given: u64,
        /// Bytes that it should have at least.
        wanted: u64,
    },
    /// The file goes on after its end.
    TooLong {
        /// Bytes that it has.
        given: u64,
        /// Bytes that it should have.
        wanted: u64,
    },
    /// Bytes whose checksum is another than the one that was saved.
    Checksum {
        /// Which bytes: `preamble`, `header`, or the name of a plane.
        part: &'static str,
        /// The checksum of the bytes.
        given: u32,
        /// The checksum that was saved.
        wanted: u32,
    },
    /// A record of the header that cannot be decoded.
    Record {
        /// What the decoder says.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A field with a value that it cannot have.
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        given: String,
        /// What it may be.
        wanted: String,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::CutShort { given, wanted } => {
                write!(
                    f,
                    "the file ends after {given} bytes, wanted {wanted} at least"
                )
            }
            Damage::TooLong { given, wanted } => {
                write!(f, "the file has {given} bytes, wanted {wanted}")
            }
            Damage::Checksum {
                part,
                given,
                wanted,
            } => write!(
                f,
                "the checksum of `{part}` is {given:#010x}, wanted {wanted:#010x}"
            ),
            Damage::Record { source } => write!(f, "a record cannot be decoded: {source}"),
            Damage::Value {
                field,
                given,
                wanted,
            } => write!(f, "{field} is {given}, wanted {wanted}"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference {
            parameter,
            what,
            given,
            wanted,
        } = self;
        write!(f, "`{parameter}` ({what} {given}, wanted {wanted})")
    }
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckpointError::Io {
                action,
                path,
                source,
            } => write!(f, "cannot {action} `{}`: {source}", path.display()),
            CheckpointError::NotACheckpoint { path, given } => write!(
                f,
                "`{}` is no checkpoint: it begins with the bytes {given:02x?}",
                path.display()
            ),
            CheckpointError::UnknownVersion {
                path,
                given,
                newest,
            } => write!(
                f,
                "`{}` has format version {given}, wanted 1 to {newest}",
                path.display()
            ),
            CheckpointError::Damaged {
                path,
                offset,
                parameter,
                damage,
            } => {
                write!(f, "`{}` is damaged at byte {offset}: ", path.display())?;
                if let Some(parameter) = parameter {
                    write!(f, "parameter `{parameter}`: ")?;
                }
                write!(f, "{damage}")
            }
            CheckpointError::Mismatch {
                path,
                missing,
                additional,
                different,
            } => {
                let path = path.display();
                write!(f, "`{path}` does not have the parameters of the optimizer")?;
                list(f, "it lacks ", missing, |f, name| write!(f, "`{name}`"))?;
                list(f, "it also has ", additional, |f, name| {
                    write!(f, "`{name}`")
                })?;
                list(f, "it differs in ", different, |f, it| write!(f, "{it}"))
            }
            CheckpointError::TooLarge { what, given, most } => {
                write!(f, "{given} {what}, wanted {most} at most")
            }
            CheckpointError::Unrepresentable {
                path,
                parameter,
                damage,
            } => write!(
                f,
                "`{}` cannot hold parameter `{parameter}`: {damage}",
                path.display()
            ),
            CheckpointError::UnknownLayout {
                path,
                parameter,
                layout,
            } => write!(
                f,
                "`{}` cannot hold parameter `{parameter}`: its state is laid out as `{layout}`, \
                 wanted momentum32 or blockwise8",
                path.display()
            ),
            CheckpointError::Optimizer { path, source } => {
                write!(f, "`{}`: {source}", path.display())
            }
        }
    }
}

fn list<T>(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    items: &[T],
    show: impl Fn(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (i, item) in items.iter().enumerate() {
        f.write_str(if i == 0 { "; " } else { ", " })?;
        if i == 0 {
            f.write_str(what)?;
        }
        show(f, item)?;
    }
    Ok(())
}

impl StdError for CheckpointError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // The message of each is part of this one's; what caused it comes next.
        match self {
            CheckpointError::Io { source, .. } => source.source(),
            CheckpointError::Damaged {
                damage: Damage::Record { source },
                ..
            } => source.source(),
            CheckpointError::Optimizer { source, .. } => source.source(),
            _ => None,
        }
    }
}
