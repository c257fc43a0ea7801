//! Reads and checks the preamble, and the settings in the header of version 1 or the index of version 2.

use super::error::{CheckpointError, Damage};
use super::format::{
    FIRST_VERSION, FIXED, GroupRecord, LayoutCode, MAGIC, MAX_GROUPS, PREAMBLE, Preamble, VERSION,
    check_length, layout_with, on_non_finite, value,
};
use super::records::Table;
use super::sharded::{ShardFile, check_file_name};
use super::source::Source;
use super::version2::{
    CHUNK_UNIT, Checksum, ENTRIES, FILES, FileRecord, IndexRecord, OPTIMIZER, OptimizerRecord,
    PARAMS, SCORE, SectionRecord,
};
use super::{version1, version2};
use bincode::config::Config;
use lion_core::{Group, NUMBERS_VERSION, OptimizerConfig};
use std::collections::HashSet;
use std::io::{Read, Seek};

/// What a file says before and between its records.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) library: String,
    pub(super) numbers: u32,
    pub(super) settings: OptimizerConfig,
    /// The layouts of the states. `None` in version 1, where the record of each state describes its layout.
    pub(super) layouts: Option<Vec<&'static LayoutCode>>,
    pub(super) tensors: Table,
    pub(super) params: Table,
    pub(super) entries: Table,
    pub(super) score: Option<f64>,
    /// The files that hold the states, if this is the index of a sharded checkpoint.
    pub(super) files: Vec<ShardFile>,
    /// The checksum of the header or the index.
    pub(super) checksum: u32,
}

/// Returns the version of the format, and the head.
pub(super) fn read<R: Read + Seek + Send>(
    source: &mut Source<R>,
) -> Result<(u32, Head), CheckpointError> {
    let preamble = preamble(source)?;
    let head = match preamble.version {
        FIRST_VERSION => version1(source, &preamble),
        _ => version2(source, &preamble),
    }?;
    Ok((preamble.version, head))
}

/// Reads a header of version 1, up to the records of the tensors.
fn version1<R: Read + Seek + Send>(
    source: &mut Source<R>,
    preamble: &Preamble,
) -> Result<Head, CheckpointError> {
    let end = PREAMBLE + preamble.records_bytes;
    let checksum = check_records(source, PREAMBLE, preamble.records_bytes, "header", |_| {
        Ok(preamble.word)
    })?;
    let start = source.position();
    let head: version1::HeadRecord = source.decode(end, version1::CONFIG)?;
    check_library(source, start, &head.library)?;
    let groups = groups(source, head.groups, end, version1::CONFIG)?;
    let tensors = Table {
        count: source.decode(end, version1::CONFIG)?,
        first: source.position(),
        end,
        data: end,
        data_end: preamble.file_bytes,
        chunk: None,
    };
    Ok(Head {
        library: head.library,
        // These files were written before the numbers had a version.
        numbers: 1,
        settings: OptimizerConfig::new(head.defaults.read(), groups),
        layouts: None,
        tensors,
        params: Table::default(),
        entries: Table::default(),
        score: None,
        files: Vec::new(),
        checksum,
    })
}

/// Reads an index of version 2, up to the records of each section.
fn version2<R: Read + Seek + Send>(
    source: &mut Source<R>,
    preamble: &Preamble,
) -> Result<Head, CheckpointError> {
    let (chunk, bytes) = (preamble.word, preamble.records_bytes);
    if chunk == 0 || !chunk.is_multiple_of(CHUNK_UNIT) {
        let wanted = format!("a multiple of {CHUNK_UNIT}");
        let damage = value("the size of a chunk in bytes", chunk, wanted);
        return Err(source.damaged(12, None, damage));
    }
    let end = preamble.file_bytes - size_of::<Checksum>() as u64;
    let start = end - bytes;
    let checksum = check_records(source, start, bytes, "index", |source| {
        let mut checksum = Checksum::default();
        source.fill(&mut checksum)?;
        Ok(u32::from_le_bytes(checksum))
    })?;
    let head: IndexRecord = source.decode(end, version2::CONFIG)?;
    check_library(source, start, &head.library)?;
    let (mut optimizer, mut score, mut files) = (None, None, Vec::new());
    let (mut params, mut entries) = (Table::default(), Table::default());
    let (mut data, mut before) = (PREAMBLE, 0);
    for _ in 0..head.sections {
        let at = source.position();
        let section: SectionRecord = source.decode(end, version2::CONFIG)?;
        let first = source.position();
        let table = section_table(&section, before, first, end, data, start)
            .map_err(|damage| source.damaged(at, None, damage))?;
        let table = Table {
            chunk: Some(chunk.into()),
            ..table
        };
        (before, data) = (section.id, table.data_end);
        match section.id {
            OPTIMIZER => optimizer = Some(OptimizerSection::read(source, table)?),
            PARAMS => params = counted(source, table)?,
            ENTRIES => entries = counted(source, table)?,
            SCORE => score = Some(read_score(source, table)?),
            FILES => files = read_files(source, table)?,
            given if section.required => {
                return Err(CheckpointError::UnknownSection {
                    path: source.path.clone(),
                    given,
                    library: head.library,
                });
            }
            _ => {}
        }
        source.seek(table.end)?;
    }
    let (given, wanted) = (end, source.position());
    if given != wanted {
        let damage = value("the end of the index", given, wanted);
        return Err(source.damaged(wanted, None, damage));
    }
    if data != start {
        let damage = value("the end of the planes", start, data);
        return Err(source.damaged(data, None, damage));
    }
    let Some(optimizer) = optimizer else {
        let damage = value("the number of sections of an optimizer", 0, 1);
        return Err(source.damaged(start, None, damage));
    };
    let tensors = optimizer.tensors.count;
    if !files.is_empty() && tensors > 0 {
        let wanted = "0 in an index of files that hold the tensors";
        let damage = value("the number of tensors", tensors, wanted);
        return Err(source.damaged(start, None, damage));
    }
    Ok(Head {
        library: head.library,
        numbers: optimizer.numbers,
        settings: optimizer.settings,
        layouts: Some(optimizer.layouts),
        tensors: optimizer.tensors,
        params,
        entries,
        score,
        files,
        checksum,
    })
}

/// Checks a section whose body begins at `first`, and returns where its records and planes are. Its number of records
/// is not known yet. `before` is the id of the section before, `data` the end of the planes before, and `index` the
/// offset of the index.
fn section_table(
    section: &SectionRecord,
    before: u32,
    first: u64,
    end: u64,
    data: u64,
    index: u64,
) -> Result<Table, Damage> {
    if section.id <= before {
        let wanted = format!("above {before}");
        return Err(value("the id of a section", section.id, wanted));
    }
    if section.body > end - first {
        let wanted = format!("at most {}", end - first);
        return Err(value("the size of a section's body", section.body, wanted));
    }
    if section.data > index - data {
        let wanted = format!("at most {}", index - data);
        return Err(value(
            "the size of a section's planes",
            section.data,
            wanted,
        ));
    }
    Ok(Table {
        first,
        end: first + section.body,
        data,
        data_end: data + section.data,
        ..Table::default()
    })
}

/// Reads the number of records at the beginning of a body.
fn counted<R: Read + Seek>(source: &mut Source<R>, table: Table) -> Result<Table, CheckpointError> {
    let count = source.decode(table.end, version2::CONFIG)?;
    Ok(Table {
        count,
        first: source.position(),
        ..table
    })
}

/// Reads the section of the score, which has no planes.
fn read_score<R: Read + Seek>(
    source: &mut Source<R>,
    table: Table,
) -> Result<f64, CheckpointError> {
    let score = source.decode(table.end, version2::CONFIG)?;
    check_end(source, table)?;
    Ok(score)
}

/// Reads the section of the files that hold the states, which has no planes.
fn read_files<R: Read + Seek>(
    source: &mut Source<R>,
    table: Table,
) -> Result<Vec<ShardFile>, CheckpointError> {
    let (mut files, mut names) = (Vec::new(), HashSet::new());
    let table = counted(source, table)?;
    if table.count == 0 {
        let damage = value("the number of files", 0, "at least 1");
        return Err(source.damaged(table.first, None, damage));
    }
    for _ in 0..table.count {
        let start = source.position();
        let record: FileRecord = source.decode(table.end, version2::CONFIG)?;
        let checked = check_file_name(&record.name).and_then(|()| {
            if names.insert(record.name.clone()) {
                return Ok(());
            }
            let name = format!("`{}`", record.name);
            Err(value("the name of a file", name, "a unique name"))
        });
        checked.map_err(|damage| source.damaged(start, None, damage))?;
        files.push(ShardFile {
            name: record.name,
            bytes: record.bytes,
            checksum: u32::from_le_bytes(record.records),
        });
    }
    check_end(source, table)?;
    Ok(files)
}

/// Checks that a section without planes ends at the position of the source.
fn check_end<R: Read + Seek>(source: &Source<R>, table: Table) -> Result<(), CheckpointError> {
    let (given, wanted) = (source.position(), table.end);
    if given != wanted {
        let damage = value("the end of the records", wanted, given);
        return Err(source.damaged(given, None, damage));
    }
    if table.data != table.data_end {
        let damage = value("the end of the planes", table.data_end, table.data);
        return Err(source.damaged(table.data, None, damage));
    }
    Ok(())
}

/// The section of the optimizer.
struct OptimizerSection {
    numbers: u32,
    settings: OptimizerConfig,
    layouts: Vec<&'static LayoutCode>,
    tensors: Table,
}

impl OptimizerSection {
    /// Reads the body, up to the records of the tensors.
    fn read<R: Read + Seek>(source: &mut Source<R>, table: Table) -> Result<Self, CheckpointError> {
        let start = source.position();
        let record: OptimizerRecord = source.decode(table.end, version2::CONFIG)?;
        check_numbers(source, start, record.numbers)?;
        let fields = || {
            let on_non_finite = on_non_finite(record.on_non_finite)?;
            let mut layouts: Vec<&LayoutCode> = Vec::new();
            for layout in &record.layouts {
                let layout = layout_with(layout.code, layout.block, layout.codebook)?;
                if let Some(before) = layouts.last().filter(|before| before.code >= layout.code) {
                    let wanted = format!("above {}", before.code);
                    return Err(value("the layout of states", layout.code, wanted));
                }
                layouts.push(layout);
            }
            Ok((on_non_finite, layouts))
        };
        let (on_non_finite, layouts) =
            fields().map_err(|damage| source.damaged(start, None, damage))?;
        let groups = groups(source, record.groups, table.end, version2::CONFIG)?;
        let settings = OptimizerConfig::new(record.defaults.read(), groups);
        Ok(OptimizerSection {
            numbers: record.numbers,
            settings: settings.on_non_finite(on_non_finite),
            layouts,
            tensors: counted(source, table)?,
        })
    }
}

/// Checks the length of the library's name, whose record begins at `offset`.
fn check_library<R: Read + Seek>(
    source: &Source<R>,
    offset: u64,
    library: &str,
) -> Result<(), CheckpointError> {
    check_length("the length of the library's name", library)
        .map_err(|damage| source.damaged(offset, None, damage))
}

/// Compares the checksum of the records from `start` on with the one that `wanted` returns, which is called with the
/// source at their end. Then goes back to their start. Returns the checksum.
fn check_records<R: Read + Seek + Send>(
    source: &mut Source<R>,
    start: u64,
    bytes: u64,
    part: &'static str,
    wanted: impl FnOnce(&mut Source<R>) -> Result<u32, CheckpointError>,
) -> Result<u32, CheckpointError> {
    source.seek(start)?;
    let given = source.checksum(bytes)?;
    let wanted = wanted(source)?;
    check_sum(source, start, part, given, wanted)?;
    source.seek(start)?;
    Ok(given)
}

/// Checks the version of the numbers, which is at `offset`.
fn check_numbers<R: Read + Seek>(
    source: &Source<R>,
    offset: u64,
    given: u32,
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
        return Err(source.damaged(offset, None, damage));
    }
    Ok(())
}

/// Reads the groups.
fn groups<R: Read + Seek>(
    source: &mut Source<R>,
    count: u64,
    end: u64,
    config: impl Config,
) -> Result<Vec<Group>, CheckpointError> {
    if count > MAX_GROUPS as u64 {
        let damage = value("the number of groups", count, "at most 4096");
        return Err(source.damaged(source.position(), None, damage));
    }
    let (mut groups, mut starts) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let start = source.position();
        let GroupRecord { name, overrides } = source.decode(end, config)?;
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
    let preamble: Preamble = source.decode(PREAMBLE, FIXED)?;
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
    let (name, trailer) = match preamble.version {
        FIRST_VERSION => ("the header's length", 0),
        _ => ("the index's length", size_of::<Checksum>() as u64),
    };
    let most = given.saturating_sub(PREAMBLE + trailer);
    if preamble.records_bytes > most || given < PREAMBLE + trailer {
        let wanted = format!("at most {most}");
        let damage = value(name, preamble.records_bytes, wanted);
        return Err(source.damaged(16, None, damage));
    }
    Ok(preamble)
}
