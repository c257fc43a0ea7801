//! The error type of checkpoints.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;

/// An error while saving, loading or reading a checkpoint.
#[derive(Debug)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file system operation failed. A save on a full disk returns this error and keeps the previous
    /// file.
    Io {
        /// The operation: `open`, `read`, `write`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The file does not begin with the magic number of a checkpoint.
    NotACheckpoint {
        /// The file.
        path: PathBuf,
        /// The first bytes of the file, at most eight.
        given: Vec<u8>,
    },
    /// The file has a format version that this version of the library cannot read.
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// The version of the file.
        given: u32,
        /// The newest version that this library reads.
        newest: u32,
    },
    /// The file was written with a version of the numbers that is newer than
    /// [`NUMBERS_VERSION`](lion_core::NUMBERS_VERSION). A run that continues from it would not return the bits
    /// that it would have returned without the interruption.
    UnknownNumbers {
        /// The file.
        path: PathBuf,
        /// The version of the file.
        given: u32,
        /// The version of this library.
        newest: u32,
    },
    /// The file has a section that this version of the library does not know, and that a reader must not skip.
    UnknownSection {
        /// The file.
        path: PathBuf,
        /// The id of the section.
        given: u32,
        /// The name and version of the library that wrote the file.
        library: String,
    },
    /// The file is damaged: it holds bytes that no save writes.
    Damaged {
        /// The file.
        path: PathBuf,
        /// The byte offset of the damage in the file.
        offset: u64,
        /// The parameter whose data is damaged. `None` if the damage belongs to no parameter.
        parameter: Option<String>,
        /// The kind of the damage.
        damage: Damage,
    },
    /// The parameters of the file differ from those of the optimizer. The error lists all differences.
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The parameters of the optimizer that are not in the file.
        missing: Vec<String>,
        /// The parameters of the file that are not in the optimizer.
        unexpected: Vec<String>,
        /// The parameters that are in both but differ in length, shard, type or width of the state.
        different: Vec<Difference>,
    },
    /// Two parameters of the file get the same name, from the function of [`Load::rename`](super::Load::rename).
    NameCollision {
        /// The file.
        path: PathBuf,
        /// The names of the two parameters in the file.
        given: [String; 2],
        /// The name that both get.
        renamed: String,
    },
    /// The optimizer exceeds a limit of the format.
    TooLarge {
        /// The limited quantity.
        what: &'static str,
        /// Its value.
        given: usize,
        /// The largest value that the format allows.
        most: usize,
    },
    /// A parameter has a value that the format does not allow, such as more than 2^62 steps.
    Unrepresentable {
        /// The file.
        path: PathBuf,
        /// The parameter.
        parameter: String,
        /// The value.
        damage: Damage,
    },
    /// The values of a parameter or named bytes cannot be saved, or the same name was given twice.
    InvalidSection {
        /// The file.
        path: PathBuf,
        /// The name of the parameter or section.
        name: String,
        /// What was given and what is wanted.
        reason: String,
    },
    /// The save before this one is still running.
    StillSaving {
        /// The file that it writes.
        path: PathBuf,
    },
    /// A folder has checkpoints, and none of them is whole.
    NoneWhole {
        /// The folder.
        folder: PathBuf,
        /// The checkpoints, latest step first, each with the reason.
        passed_over: Vec<(PathBuf, CheckpointError)>,
    },
    /// A range of bytes is not in the plane.
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The name of the plane.
        plane: &'static str,
        /// The first byte that was asked for.
        offset: u64,
        /// The number of bytes that were asked for.
        len: u64,
        /// The size of the plane in bytes.
        bytes: u64,
    },
    /// The file is the index of a checkpoint in several files, which this function does not read.
    /// [`load_sharded`](super::load_sharded) and `Lion::load` do.
    Sharded {
        /// The index.
        path: PathBuf,
    },
    /// The files of a checkpoint in several files do not belong together, or do not hold each parameter exactly once.
    Shards {
        /// The index.
        path: PathBuf,
        /// The file that does not fit to the index or to the files before it. It is the index if elements are in no file.
        file: PathBuf,
        /// The whole parameter. `None` if the difference is in a property of the file or in a setting.
        parameter: Option<String>,
        /// What differs, such as `the number of steps` or `the first element of a shard`.
        what: &'static str,
        /// Its value in the file.
        given: String,
        /// The value that fits.
        wanted: String,
    },
    /// The id of a [`ShardedSave`](super::ShardedSave) is that of an earlier save: the index names a file that this save has
    /// overwritten. The index can no longer be loaded. Save again with a new id.
    UsedId {
        /// The index.
        path: PathBuf,
        /// The file that was overwritten.
        file: PathBuf,
        /// The id.
        id: u64,
    },
    /// A state has a layout that the format does not support.
    UnknownLayout {
        /// The file.
        path: PathBuf,
        /// The parameter.
        parameter: String,
        /// The name of the layout.
        layout: &'static str,
    },
    /// The path names something other than a regular file. Such paths are refused because reading or
    /// writing them may block forever, and because a save would replace them.
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What the path names: `folder`, `FIFO`, `socket`, `device` or `special file`.
        given: &'static str,
    },
    /// The length of the new file differs from the number of bytes written. The save keeps the previous
    /// file.
    WrongLength {
        /// The file that the save would have replaced.
        path: PathBuf,
        /// The length of the new file in bytes.
        given: u64,
        /// The number of bytes written.
        wanted: u64,
    },
    /// The save put the complete new file in place but could not sync the folder. A power cut may bring
    /// the previous file back. A later save that succeeds makes the file durable.
    NotDurable {
        /// The file.
        path: PathBuf,
        /// The error of the operating system from syncing the folder.
        source: io::Error,
    },
    /// The load failed while it wrote into states, and some of them could not be restored.
    ///
    /// This happens in two cases: when the second reading of the file, after all of it was checked, fails
    /// while states that have been stepped are overwritten; and when the backend cannot reset states that
    /// had not been stepped. The states of the listed parameters hold a mixture of old and new values;
    /// nothing else has changed. Load them again before the next step, from this or another file.
    PartlyLoaded {
        /// The file.
        path: PathBuf,
        /// The parameters whose states were partly written.
        parameters: Vec<String>,
        /// The error that stopped the load.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The name or an extension of a [`Rotation`](super::Rotation) cannot be part of a file name.
    InvalidName {
        /// The name or extension.
        name: String,
    },
    /// The optimizer or its backend returned an error.
    Optimizer {
        /// The file.
        path: PathBuf,
        /// The error of the optimizer.
        source: lion_core::Error,
    },
}

/// A property of a parameter that differs between the file and the optimizer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// The name of the parameter.
    pub parameter: String,
    /// The property that differs: `length`, `shard`, `type`, `state`, `memory order` or `place`.
    pub what: &'static str,
    /// The value in the file.
    pub given: String,
    /// The value in the optimizer.
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

/// The kind of damage in a checkpoint, or the reason why a value cannot be saved.
#[derive(Debug)]
#[non_exhaustive]
pub enum Damage {
    /// The file is shorter than its header says.
    CutShort {
        /// The length of the file in bytes.
        given: u64,
        /// The minimum length in bytes.
        wanted: u64,
    },
    /// The file is longer than its header says.
    TooLong {
        /// The length of the file in bytes.
        given: u64,
        /// The expected length in bytes.
        wanted: u64,
    },
    /// A checksum does not match.
    Checksum {
        /// The bytes that the checksum covers: `preamble`, `header`, `index`, or the name of a plane, for one of its chunks.
        part: &'static str,
        /// The checksum computed from the bytes.
        given: u32,
        /// The checksum stored in the file.
        wanted: u32,
    },
    /// A record of the header cannot be decoded.
    Record {
        /// The error of the decoder.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A field has an invalid value.
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        given: String,
        /// A description of the valid values.
        wanted: String,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::CutShort { given, wanted } => {
                write!(
                    f,
                    "the file ends after {given} bytes, wanted at least {wanted}"
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
                "`{}` is not a checkpoint: it begins with the bytes {given:02x?}",
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
            CheckpointError::UnknownNumbers {
                path,
                given,
                newest,
            } => write!(
                f,
                "`{}` has version {given} of the numbers, wanted 1 to {newest}",
                path.display()
            ),
            CheckpointError::UnknownSection {
                path,
                given,
                library,
            } => write!(
                f,
                "`{}` has a section with the id {given}, which this version of the library cannot read; it was \
                 written by {library:?}",
                path.display()
            ),
            CheckpointError::InvalidSection { path, name, reason } => {
                write!(f, "`{}`: {name:?}: {reason}", path.display())
            }
            CheckpointError::StillSaving { path } => {
                write!(f, "the save to `{}` is still running", path.display())
            }
            CheckpointError::NoneWhole {
                folder,
                passed_over,
            } => {
                write!(f, "`{}` has no whole checkpoint", folder.display())?;
                list(f, "", passed_over, |f, (_, error)| write!(f, "{error}"))
            }
            CheckpointError::OutOfRange {
                path,
                plane,
                offset,
                len,
                bytes,
            } => write!(
                f,
                "`{}`: {len} bytes of `{plane}` from byte {offset} on, wanted bytes within its {bytes}",
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
            CheckpointError::NameCollision {
                path,
                given: [first, second],
                renamed,
            } => write!(
                f,
                "`{}`: the parameters `{first}` and `{second}` of the file both get the name `{renamed}`, wanted \
                 different names",
                path.display()
            ),
            CheckpointError::TooLarge { what, given, most } => {
                write!(f, "{given} {what}, wanted at most {most}")
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
            CheckpointError::Sharded { path } => write!(
                f,
                "`{}` is the index of a checkpoint in several files, wanted a checkpoint in one file; `load_sharded` \
                 reads it",
                path.display()
            ),
            CheckpointError::Shards {
                path,
                file,
                parameter,
                what,
                given,
                wanted,
            } => {
                let (path, file) = (path.display(), file.display());
                write!(f, "`{path}` and its files do not fit together: `{file}`: ")?;
                if let Some(parameter) = parameter {
                    write!(f, "parameter `{parameter}`: ")?;
                }
                write!(f, "{what} is {given}, wanted {wanted}")
            }
            CheckpointError::UsedId { path, file, id } => write!(
                f,
                "`{}` names `{}`, which a save with the same id {id:016x} has overwritten; wanted an id that is new for \
                 each save",
                path.display(),
                file.display()
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
                write!(f, "`{}` was loaded only in part: {source}", path.display())?;
                list(
                    f,
                    "these are partly overwritten: ",
                    parameters,
                    |f, name| write!(f, "`{name}`"),
                )
            }
            CheckpointError::InvalidName { name } => write!(
                f,
                "{name:?} is not valid in the file names of a rotation, wanted a name or an extension \
                 that is not empty and has no path separator"
            ),
            CheckpointError::Optimizer { path, source } => {
                write!(f, "`{}`: {source}", path.display())
            }
        }
    }
}

/// Writes `items` after the label `what`, separated by commas. Writes nothing if there are none.
pub(crate) fn list<T>(
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
        // The message of each inner error is part of this error's message, so the chain continues with
        // the source of the inner error.
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
