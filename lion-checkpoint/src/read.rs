//! A checkpoint that is read: its header, record by record, and its planes, part by part.

use super::error::{CheckpointError, Damage};
use super::record::{
    ALIGN, GroupRecord, HeadRecord, MAGIC, MAX_GROUPS, MAX_NAME, PREAMBLE, Preamble, TensorRecord,
    VERSION, align, check_steps, dtype, value,
};
use super::source::{PART, Source, open};
use crc32fast::Hasher;
use lion_core::{
    Bits, Dtype, Group, MemoryOrder, Optimizer, OptimizerConfig, Overrides, PlaneSpec, PlaneType,
};
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// A checkpoint open for reading. Opening checks all but the planes: checksums of the header, and every
/// length against the file's.
///
/// `Lion::load` does all that a training run needs; this is for looking into a file.
#[derive(Debug)]
pub struct Checkpoint<R> {
    pub(super) source: Source<R>,
    preamble: Preamble,
    library: String,
    settings: OptimizerConfig,
    tensors: u64,
    /// Where the record of the first tensor is.
    first: u64,
}

/// What a checkpoint holds of one parameter.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its elements.
    pub len: u64,
    /// Their type.
    pub dtype: Dtype,
    /// Name of the state's layout.
    pub layout: &'static str,
    /// Width of the state.
    pub bits: Bits,
    /// Elements that share one absmax; 0 where there is none.
    pub block: u32,
    /// CRC-32 of the codebook; 0 where there is none.
    pub codebook: u32,
    /// Its group, by position in [`OptimizerConfig::groups`].
    pub group: Option<usize>,
    /// What is set for it alone.
    pub overrides: Overrides,
    /// The order in memory that the state belongs to; `None` before the first step.
    pub order: Option<MemoryOrder>,
    /// Steps done.
    pub steps: u64,
    /// Seed of its stochastic rounding.
    pub seed: u64,
    /// The planes of its state.
    pub planes: Vec<Plane>,
}

/// Where a plane lies in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plane {
    /// Its name.
    pub name: &'static str,
    /// Its first byte.
    pub offset: u64,
    /// Its bytes.
    pub bytes: u64,
    /// CRC-32 of its bytes.
    pub checksum: u32,
    /// Type of its numbers.
    pub plane_type: PlaneType,
    /// Where the zero bytes before it begin.
    pub(super) padding: u64,
}

impl Checkpoint<File> {
    /// Opens a file.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::NotAFile`], [`CheckpointError::NotACheckpoint`],
    /// [`CheckpointError::UnknownVersion`], [`CheckpointError::Damaged`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        Checkpoint::read(open(path)?, path)
    }
}

impl<R: Read + Seek + Send> Checkpoint<R> {
    /// Reads a checkpoint from anything; errors call it `path`.
    ///
    /// # Errors
    /// As [`open`](Checkpoint::open), but for [`CheckpointError::NotAFile`].
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
        let head: HeadRecord = source.decode(end)?;
        check_length("the length of the library's name", &head.library)
            .map_err(|damage| source.damaged(PREAMBLE, None, damage))?;
        if head.groups > MAX_GROUPS as u64 {
            let damage = value("the number of groups", head.groups, "4096 at most");
            return Err(source.damaged(source.position() - 8, None, damage));
        }
        let groups = groups(&mut source, head.groups, end)?;
        let tensors = source.decode(end)?;
        let mut checkpoint = Checkpoint {
            preamble,
            library: head.library,
            settings: OptimizerConfig::new(head.defaults.read(), groups),
            tensors,
            first: source.position(),
            source,
        };
        for tensor in checkpoint.tensors()? {
            tensor?;
        }
        Ok(checkpoint)
    }

    /// Version of the format.
    pub fn version(&self) -> u32 {
        self.preamble.version
    }

    /// Name and version of the library that wrote it.
    pub fn library(&self) -> &str {
        &self.library
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.preamble.file_bytes
    }

    /// Hyper-parameters and groups.
    pub fn settings(&self) -> &OptimizerConfig {
        &self.settings
    }

    /// Returns a copy of the settings for an optimizer that takes them over. It keeps the groups that only it has; more
    /// groups than a file can hold are refused here, as the optimizer could not be saved afterwards.
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

    /// The records of all tensors, in the order of their names, read one at a time.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; [`CheckpointError::Damaged`], too, for a record.
    pub fn tensors(&mut self) -> Result<Tensors<'_, R>, CheckpointError> {
        self.source.seek(self.first)?;
        let end = PREAMBLE + self.preamble.header_bytes;
        Ok(Tensors {
            end,
            left: Some(self.tensors),
            name: String::new(),
            offset: end,
            groups: self.settings.groups.len(),
            file_bytes: self.preamble.file_bytes,
            source: &mut self.source,
        })
    }

    /// Reads the planes of a tensor and checks their bytes.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Damaged`].
    pub fn verify(&mut self, tensor: &Tensor) -> Result<(), CheckpointError> {
        let mut buffer = Vec::new();
        let mut planes = tensor.planes.iter();
        planes.try_for_each(|plane| self.plane(&tensor.name, plane, &mut buffer, |_, _| Ok(())))
    }

    /// Reads a plane in parts, and checks them before and their checksum after.
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
            let damage = value("a byte between planes", zeros[at], 0);
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
                bad = not_a_number_of(plane, part).map(|(i, number)| (at + i, number));
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
                let wanted = "finite, and 0 or more in absmax";
                let damage = value("a number", number, wanted);
                Err(source.damaged(plane.offset + at as u64, Some(tensor), damage))
            }
        }
    }
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
        let damage = value("the name of a group", name, "one that no group before has");
        return Err(source.damaged(starts[repeated], None, damage));
    }
    Ok(groups)
}

/// Checks the length of a string.
fn check_length(field: &'static str, string: &str) -> Result<(), Damage> {
    if string.len() <= MAX_NAME {
        return Ok(());
    }
    Err(value(field, string.len(), "65535 bytes at most"))
}

/// Where in a part a float is that no step leaves behind.
fn not_a_number_of(plane: &Plane, part: &[u8]) -> Option<(usize, f32)> {
    let most = if plane.name == "absmax" {
        u32::MAX
    } else {
        u32::MAX >> 1
    };
    let (words, _) = part.as_chunks::<4>();
    // As integers: infinities and NaN have all bits of the exponent; with the sign kept in, a negative
    // absmax lies above them, but for -0.
    let is_bad = |word: &[u8; 4]| {
        let bits = u32::from_le_bytes(*word);
        (bits & most) >= 0x7F80_0000 && bits != 0x8000_0000
    };
    // The whole first: a search that stops at the first is not vectorized.
    if !words.iter().fold(false, |any, word| any | is_bad(word)) {
        return None;
    }
    let at = words.iter().position(is_bad)?;
    Some((4 * at, f32::from_le_bytes(words[at])))
}

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

/// Reads the preamble and holds it against the file.
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
    if preamble.version != VERSION {
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
        let wanted = format!("{} at most", given - PREAMBLE);
        let damage = value("the header's length", preamble.header_bytes, wanted);
        return Err(source.damaged(16, None, damage));
    }
    Ok(preamble)
}

/// The records of a checkpoint's tensors, one after the other. After an error there is no more.
#[derive(Debug)]
pub struct Tensors<'a, R> {
    source: &'a mut Source<R>,
    /// Where the header ends.
    end: u64,
    /// Records to come; `None` after an error or the last.
    left: Option<u64>,
    /// The name before.
    name: String,
    /// Where the planes so far end.
    offset: u64,
    groups: usize,
    file_bytes: u64,
}

impl<R: Read + Seek> Iterator for Tensors<'_, R> {
    type Item = Result<Tensor, CheckpointError>;

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.left.take()?;
        if left == 0 {
            return self.finish().err().map(Err);
        }
        let tensor = self.tensor();
        if tensor.is_ok() {
            self.left = Some(left - 1);
        }
        Some(tensor)
    }
}

impl<R: Read + Seek> Tensors<'_, R> {
    fn tensor(&mut self) -> Result<Tensor, CheckpointError> {
        let start = self.source.position();
        let record: TensorRecord = self.source.decode(self.end)?;
        let name = record.name.clone();
        let tensor = self.check(record).map_err(|damage| {
            let name = (!name.is_empty()).then_some(name.as_str());
            self.source.damaged(start, name, damage)
        })?;
        self.name.clone_from(&tensor.name);
        Ok(tensor)
    }

    fn check(&mut self, record: TensorRecord) -> Result<Tensor, Damage> {
        check_length("the length of a name", &record.name)?;
        let layout = record.state_layout()?;
        let dtype = dtype(record.dtype)?;
        let order = record.order()?;
        check_steps(record.steps)?;
        // Also refuses an empty name and two of the same.
        if record.name <= self.name {
            let wanted = format!("one after `{}`", self.name);
            return Err(value("a name", format!("`{}`", record.name), wanted));
        }
        let group = record.group.map(|group| group as usize);
        if let Some(group) = group.filter(|&group| group >= self.groups) {
            let wanted = format!("below {}", self.groups);
            return Err(value("the group", group, wanted));
        }
        let specs = layout.planes();
        if record.planes.len() != specs.len() {
            let (given, wanted) = (record.planes.len(), specs.len());
            return Err(value("the number of planes", given, wanted));
        }
        let mut planes = Vec::with_capacity(specs.len());
        for (spec, plane) in specs.iter().zip(&record.planes) {
            let padding = self.offset;
            let offset = align(padding).filter(|&offset| offset <= self.file_bytes);
            let Some(offset) = offset.filter(|&offset| offset == plane.offset) else {
                let wanted = match offset {
                    Some(offset) => offset.to_string(),
                    None => format!("{} at most", self.file_bytes),
                };
                return Err(value("the offset of a plane", plane.offset, wanted));
            };
            if plane.bytes > self.file_bytes - offset {
                let wanted = format!("{} at most", self.file_bytes - offset);
                return Err(value("the bytes of a plane", plane.bytes, wanted));
            }
            if Some(plane.bytes) != plane_bytes(spec, record.len) {
                let wanted = format!("those of {} elements", record.len);
                return Err(value("the bytes of a plane", plane.bytes, wanted));
            }
            self.offset = offset + plane.bytes;
            planes.push(Plane {
                name: spec.name,
                offset,
                bytes: plane.bytes,
                checksum: plane.checksum,
                plane_type: spec.plane_type,
                padding,
            });
        }
        Ok(Tensor {
            name: record.name,
            len: record.len,
            dtype,
            layout: layout.name(),
            bits: layout.bits(),
            block: record.block,
            codebook: record.codebook,
            group,
            overrides: record.overrides.read(),
            order,
            steps: record.steps,
            seed: record.seed,
            planes,
        })
    }

    /// Checks that header and file end where the records do.
    fn finish(&self) -> Result<(), CheckpointError> {
        let (given, wanted) = (self.source.position(), self.end);
        if given != wanted {
            let damage = value("the header's end", wanted, given);
            return Err(self.source.damaged(given, None, damage));
        }
        if self.offset != self.file_bytes {
            let (given, wanted) = (self.file_bytes, self.offset);
            let damage = Damage::TooLong { given, wanted };
            return Err(self.source.damaged(wanted, None, damage));
        }
        Ok(())
    }
}

/// Bytes of the plane of a parameter of `n` elements, if there can be as many.
fn plane_bytes(spec: &PlaneSpec, n: u64) -> Option<u64> {
    let numbers = n.div_ceil(spec.elements as u64);
    numbers.checked_mul(spec.plane_type.bytes() as u64)
}
