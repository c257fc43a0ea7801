//! Reads a checkpoint: the preamble, the settings, and the planes in parts.

use super::error::{CheckpointError, Damage};
use super::header::{
    ALIGN, FIRST_VERSION, GroupRecord, HeadRecord, MAGIC, MAX_GROUPS, MAX_NAME, PREAMBLE, Preamble,
    ScopesRecord, VERSION, value,
};
use super::source::{PART, Source, open};
use super::tensors::{Plane, Tensor, Tensors};
use crc32fast::Hasher;
use lion_core::{Group, NUMBERS_VERSION, Optimizer, OptimizerConfig, PlaneType};
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// A checkpoint open for reading.
///
/// Opening a checkpoint checks everything except the planes: the checksums of the preamble and of the
/// header, and every length and offset against the length of the file.
///
/// To resume a run, use `Lion::load`. This type is for inspecting a file.
///
/// ```
/// use lion::{Dtype, Lion8bit, ParamSpec, checkpoint::Checkpoint};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("run.lion");
/// let mut lion = Lion8bit::builder().lr(0.25).build()?;
/// lion.register(ParamSpec::new("weight", 8192, Dtype::Bf16))?;
/// let bytes = lion.save(&path)?;
///
/// let mut file = Checkpoint::open(&path)?;
/// assert_eq!((file.version(), file.file_bytes()), (2, bytes));
/// assert_eq!(file.numbers(), lion::arithmetic::NUMBERS_VERSION);
/// assert!(file.library().starts_with("lion "));
/// assert_eq!(file.settings().defaults.lr, Some(0.25));
///
/// let tensors = file.tensors()?.collect::<Result<Vec<_>, _>>()?;
/// assert_eq!((tensors[0].name.as_str(), tensors[0].len), ("weight", 8192));
/// let planes: Vec<_> = tensors[0].planes.iter().map(|p| (p.name, p.bytes)).collect();
/// assert_eq!(planes, [("codes", 8192), ("absmax", 32 * 4)]);
/// file.verify(&tensors[0])?; // reads the planes and compares their checksums
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint<R> {
    pub(super) source: Source<R>,
    preamble: Preamble,
    library: String,
    numbers: u32,
    settings: OptimizerConfig,
    tensors: u64,
    /// The offset of the record of the first tensor.
    first: u64,
}

impl Checkpoint<File> {
    /// Opens a checkpoint file and checks its header.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::NotAFile`], [`CheckpointError::NotACheckpoint`],
    /// [`CheckpointError::UnknownVersion`], [`CheckpointError::UnknownNumbers`],
    /// [`CheckpointError::Damaged`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        Checkpoint::read(open(path)?, path)
    }
}

impl<R: Read + Seek + Send> Checkpoint<R> {
    /// Opens a checkpoint from any reader, such as a `Cursor` over bytes in memory. Error messages name it
    /// `path`.
    ///
    /// ```
    /// use lion::{Lion, checkpoint::Checkpoint};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("run.lion");
    /// Lion::builder().build()?.save(&path)?;
    /// let bytes = std::fs::read(&path)?;
    /// let checkpoint = Checkpoint::read(std::io::Cursor::new(bytes), "run.lion")?;
    /// assert_eq!(checkpoint.settings().groups.len(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`open`](Checkpoint::open), except [`CheckpointError::NotAFile`].
    pub fn read(reader: R, path: impl Into<PathBuf>) -> Result<Self, CheckpointError> {
        let mut source = Source::new(reader, path.into())?;
        let preamble = preamble(&mut source)?;
        let checksum = source.checksum(preamble.header_bytes)?;
        check_sum(
            &source,
            PREAMBLE,
            "header",
            checksum,
            preamble.header_checksum,
        )?;
        source.seek(PREAMBLE)?;
        let end = PREAMBLE + preamble.header_bytes;
        let HeadRecord {
            library,
            numbers,
            scopes: ScopesRecord { defaults, groups },
        } = source.decode_version(preamble.version, end)?;
        check_length("the length of the library's name", &library)
            .map_err(|damage| source.damaged(PREAMBLE, None, damage))?;
        check_numbers(&source, numbers, &library)?;
        if groups > MAX_GROUPS as u64 {
            let damage = value("the number of groups", groups, "at most 4096");
            return Err(source.damaged(source.position() - 8, None, damage));
        }
        let groups = self::groups(&mut source, groups, end)?;
        let tensors = source.decode(end)?;
        let mut checkpoint = Checkpoint {
            preamble,
            library,
            numbers,
            settings: OptimizerConfig::new(defaults.read(), groups),
            tensors,
            first: source.position(),
            source,
        };
        for tensor in checkpoint.tensors()? {
            tensor?;
        }
        Ok(checkpoint)
    }

    /// Returns the version of the format.
    pub fn version(&self) -> u32 {
        self.preamble.version
    }

    /// Returns the name and version of the library that wrote the file.
    pub fn library(&self) -> &str {
        &self.library
    }

    /// Returns the version of the numbers with which the file was written. It is 1 for every file of version 1
    /// of the format. [`NUMBERS_VERSION`] is the version with which a run continues.
    pub fn numbers(&self) -> u32 {
        self.numbers
    }

    /// Returns the size of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.preamble.file_bytes
    }

    /// Returns the hyper-parameters and groups.
    pub fn settings(&self) -> &OptimizerConfig {
        &self.settings
    }

    /// Returns a copy of the settings, to be loaded into `optimizer`.
    ///
    /// The optimizer keeps the groups that only it has. If this would give it more groups than a file can
    /// hold, it could not be saved afterwards; therefore the load is refused here.
    pub(super) fn settings_for(
        &self,
        optimizer: &Optimizer,
    ) -> Result<OptimizerConfig, CheckpointError> {
        let names: HashSet<_> = self.settings.groups.iter().map(|g| &g.name).collect();
        let own = optimizer.groups().iter();
        let kept = own.filter(|group| !names.contains(&group.name)).count();
        let given = names.len() + kept;
        if kept > 0 && given > MAX_GROUPS {
            return Err(CheckpointError::TooLarge {
                what: "groups of the file and the optimizer together",
                given,
                most: MAX_GROUPS,
            });
        }
        Ok(self.settings.clone())
    }

    /// Returns an iterator over the records of all tensors, sorted by name. Each record is read from the
    /// file when the iterator returns it.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]. The iterator itself returns [`CheckpointError::Io`] and
    /// [`CheckpointError::Damaged`].
    pub fn tensors(&mut self) -> Result<Tensors<'_, R>, CheckpointError> {
        self.source.seek(self.first)?;
        let end = PREAMBLE + self.preamble.header_bytes;
        let (count, groups) = (self.tensors, self.settings.groups.len());
        let (version, file_bytes) = (self.preamble.version, self.preamble.file_bytes);
        Ok(Tensors::new(
            &mut self.source,
            version,
            end,
            count,
            groups,
            file_bytes,
        ))
    }

    /// Reads the planes of a tensor and checks them: the checksums, and that the numbers are valid.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Damaged`].
    pub fn verify(&mut self, tensor: &Tensor) -> Result<(), CheckpointError> {
        let mut buffer = Vec::new();
        let mut planes = tensor.planes.iter();
        planes.try_for_each(|plane| self.plane(&tensor.name, plane, &mut buffer, |_, _| Ok(())))
    }

    /// Reads a plane in parts and passes each to `take` with its offset in the plane. The padding before
    /// the plane is checked first; the checksum and the numbers are checked at the end.
    pub(super) fn plane(
        &mut self,
        tensor: &str,
        plane: &Plane,
        buffer: &mut Vec<u8>,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let source = &mut self.source;
        source.seek(plane.padding)?;
        let mut zeros = [0; ALIGN as usize];
        let zeros = &mut zeros[..(plane.offset - plane.padding) as usize];
        source.fill(zeros)?;
        if let Some(at) = zeros.iter().position(|&byte| byte != 0) {
            let damage = value("a padding byte", zeros[at], 0);
            return Err(source.damaged(plane.padding + at as u64, Some(tensor), damage));
        }
        let size = plane.bytes.min(PART as u64) as usize;
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let mut hasher = Hasher::new();
        let mut bad = None;
        source.parts(plane.bytes, buffer, |at, part| {
            hasher.update(part);
            if plane.plane_type == PlaneType::F32 && bad.is_none() {
                bad = first_invalid(plane, part).map(|(i, number)| (at + i, number));
            }
            take(at, part)
        })?;
        let parts = hasher.finalize();
        if parts != plane.checksum {
            let damage = Damage::Checksum {
                part: plane.name,
                given: parts,
                wanted: plane.checksum,
            };
            return Err(source.damaged(plane.offset, Some(tensor), damage));
        }
        match bad {
            None => Ok(()),
            Some((at, number)) => {
                let wanted = match plane.name {
                    ABSMAX => "a finite number that is 0 or more",
                    _ => "a finite number",
                };
                let damage = value("a number of the state", number, wanted);
                Err(source.damaged(plane.offset + at as u64, Some(tensor), damage))
            }
        }
    }
}

/// Checks the version of the numbers of a file that `library` wrote.
fn check_numbers<R: Read + Seek>(
    source: &Source<R>,
    given: u32,
    library: &str,
) -> Result<(), CheckpointError> {
    if given > NUMBERS_VERSION {
        return Err(CheckpointError::UnknownNumbers {
            path: source.path.clone(),
            given,
            newest: NUMBERS_VERSION,
        });
    }
    if given == 0 {
        let damage = value("the version of the numbers", given, "1 or more");
        let offset = PREAMBLE + 8 + library.len() as u64;
        return Err(source.damaged(offset, None, damage));
    }
    Ok(())
}

/// Reads the groups.
fn groups<R: Read + Seek>(
    source: &mut Source<R>,
    count: u64,
    end: u64,
) -> Result<Vec<Group>, CheckpointError> {
    let (mut groups, mut starts) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let start = source.position();
        let GroupRecord { name, overrides } = source.decode(end)?;
        if name.is_empty() {
            let damage = value("the name of a group", "empty", "at least one byte");
            return Err(source.damaged(start, None, damage));
        }
        check_length("the length of a group's name", &name)
            .map_err(|damage| source.damaged(start, None, damage))?;
        let overrides = overrides.read();
        groups.push(Group::new(name, overrides));
        starts.push(start);
    }
    let mut names = HashSet::with_capacity(groups.len());
    let repeated = groups.iter().position(|group| !names.insert(&group.name));
    if let Some(repeated) = repeated {
        let name = format!("`{}`", groups[repeated].name);
        let damage = value("the name of a group", name, "a unique name");
        return Err(source.damaged(starts[repeated], None, damage));
    }
    Ok(groups)
}

/// Checks that a string is at most [`MAX_NAME`] bytes long.
pub(super) fn check_length(field: &'static str, string: &str) -> Result<(), Damage> {
    if string.len() <= MAX_NAME {
        return Ok(());
    }
    Err(value(field, string.len(), "at most 65535 bytes"))
}

/// The name of the plane whose numbers must not be negative.
const ABSMAX: &str = "absmax";

/// Returns the byte offset and the value of the first `f32` of `part` that no step produces: one that is
/// not finite, or a negative absmax.
fn first_invalid(plane: &Plane, part: &[u8]) -> Option<(usize, f32)> {
    let mask = if plane.name == ABSMAX {
        u32::MAX
    } else {
        u32::MAX >> 1
    };
    let (words, _) = part.as_chunks::<4>();
    // The floats are compared as integers. Infinities and NaNs have all bits of the exponent set, so they
    // are 0x7F80_0000 or more. If the mask keeps the sign bit, so are negative numbers; -0 is allowed.
    let is_bad = |word: &[u8; 4]| {
        let bits = u32::from_le_bytes(*word);
        (bits & mask) >= 0x7F80_0000 && bits != 0x8000_0000
    };
    // Test all words first: the compiler vectorizes this fold, but not a search that stops early.
    if !words.iter().fold(false, |any, word| any | is_bad(word)) {
        return None;
    }
    let at = words.iter().position(is_bad)?;
    Some((4 * at, f32::from_le_bytes(words[at])))
}

/// Compares the checksum `given` of a part of the header with the stored checksum `wanted`.
fn check_sum<R: Read + Seek>(
    source: &Source<R>,
    offset: u64,
    part: &'static str,
    given: u32,
    wanted: u32,
) -> Result<(), CheckpointError> {
    if given == wanted {
        return Ok(());
    }
    let damage = Damage::Checksum {
        part,
        given,
        wanted,
    };
    Err(source.damaged(offset, None, damage))
}

/// Reads the preamble and checks it against the length of the file.
fn preamble<R: Read + Seek>(source: &mut Source<R>) -> Result<Preamble, CheckpointError> {
    let mut bytes = vec![0; source.len().min(PREAMBLE) as usize];
    source.fill(&mut bytes)?;
    let magic = &bytes[..bytes.len().min(8)];
    if magic != &MAGIC[..magic.len()] || magic.is_empty() {
        return Err(CheckpointError::NotACheckpoint {
            path: source.path.clone(),
            given: magic.to_vec(),
        });
    }
    let (given, wanted) = (source.len(), PREAMBLE);
    if given < wanted {
        return Err(source.damaged(given, None, Damage::CutShort { given, wanted }));
    }
    let checksum = crc32fast::hash(&bytes[..32]);
    source.seek(0)?;
    let preamble: Preamble = source.decode(PREAMBLE)?;
    check_sum(source, 0, "preamble", checksum, preamble.checksum)?;
    if !(FIRST_VERSION..=VERSION).contains(&preamble.version) {
        return Err(CheckpointError::UnknownVersion {
            path: source.path.clone(),
            given: preamble.version,
            newest: VERSION,
        });
    }
    let wanted = preamble.file_bytes;
    if given < wanted {
        return Err(source.damaged(given, None, Damage::CutShort { given, wanted }));
    }
    if given > wanted {
        return Err(source.damaged(wanted, None, Damage::TooLong { given, wanted }));
    }
    if preamble.header_bytes > given - PREAMBLE {
        let wanted = format!("at most {}", given - PREAMBLE);
        let damage = value("the header's length", preamble.header_bytes, wanted);
        return Err(source.damaged(16, None, damage));
    }
    Ok(preamble)
}
