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
        unexpected: Vec<String>,
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
    /// A path that is not the name of a regular file. Reading from or writing to it may never end, and
    /// a save would replace it.
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there: `folder`, `FIFO`, `socket`, `device` or `special file`.
        given: &'static str,
    },
    /// A new file that does not have as many bytes as were written. The file that was there before
    /// stays.
    WrongLength {
        /// The file that was to be replaced.
        path: PathBuf,
        /// Bytes of the new file.
        given: u64,
        /// Bytes that were written.
        wanted: u64,
    },
    /// A save that has put the new file in place, whole, but could not sync the folder: after a power
    /// cut the file that was there before may be back. A further save that returns no error makes it
    /// last.
    NotDurable {
        /// The file.
        path: PathBuf,
        /// What the system says of the folder.
        source: io::Error,
    },
    /// A load that has failed after all of the file had been checked, while it was read again into states
    /// that had been stepped, or whose fresh states the backend could not make fresh again. The states
    /// named here hold numbers of before and of the file; nothing else has changed. They must be loaded
    /// again, from any file.
    PartlyLoaded {
        /// The file.
        path: PathBuf,
        /// The parameters whose states have been written to.
        parameters: Vec<String>,
        /// What went wrong.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A name or extension of a [`Rotation`](super::Rotation) that cannot be part of a file's name.
    InvalidName {
        /// The name.
        name: String,
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
                unexpected,
                different,
            } => {
                let path = path.display();
                write!(f, "`{path}` does not have the parameters of the optimizer")?;
                list(f, "it lacks ", missing, |f, name| write!(f, "`{name}`"))?;
                list(f, "it also has ", unexpected, |f, name| {
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
            CheckpointError::NotAFile { path, given } => write!(
                f,
                "`{}` is a {given}, wanted a regular file",
                path.display()
            ),
            CheckpointError::WrongLength {
                path,
                given,
                wanted,
            } => write!(
                f,
                "cannot write `{}`: the new file has {given} bytes after {wanted} were written",
                path.display()
            ),
            CheckpointError::NotDurable { path, source } => write!(
                f,
                "`{}` is saved, but a power cut may undo it: its folder cannot be synced: {source}",
                path.display()
            ),
            CheckpointError::PartlyLoaded {
                path,
                parameters,
                source,
            } => {
                write!(f, "`{}` is loaded in part: {source}", path.display())?;
                list(
                    f,
                    "old and new numbers are mixed in the states of ",
                    parameters,
                    |f, name| write!(f, "`{name}`"),
                )
            }
            CheckpointError::InvalidName { name } => write!(
                f,
                "the name of a rotation is {name:?}, wanted a part of a file name: not empty, and \
                 without a path separator"
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
            CheckpointError::Io { source, .. } | CheckpointError::NotDurable { source, .. } => {
                source.source()
            }
            CheckpointError::PartlyLoaded { source, .. } => source.source(),
            CheckpointError::Damaged {
                damage: Damage::Record { source },
                ..
            } => source.source(),
            CheckpointError::Optimizer { source, .. } => source.source(),
            _ => None,
        }
    }
}
