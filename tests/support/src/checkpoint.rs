//! Encodes a checkpoint as docs/format.md describes it. No code of the library is used, so that a
//! test can write files that the library never writes.

/// The parts of a checkpoint. Fields may have values that the format forbids.
#[derive(Clone, Debug)]
pub struct CheckpointFile {
    /// Version of the format, by default 2. A file of version 1 has the library, defaults, groups and tensors only.
    pub version: u32,
    /// Size of a chunk in bytes, by default 4096.
    pub chunk: u32,
    /// Name of the library.
    pub library: Vec<u8>,
    /// Version of the numbers, by default 2.
    pub numbers: u32,
    /// What a step does if a momentum is not finite.
    pub on_non_finite: u8,
    /// The layouts. `None` lists those that the tensors have.
    pub layouts: Option<Vec<(u8, u32, u32)>>,
    /// The defaults that are set.
    pub defaults: OverridesPart,
    /// The groups.
    pub groups: Vec<GroupPart>,
    /// The tensors, in the order of the file.
    pub tensors: Vec<TensorPart>,
    /// Bytes after the last tensor.
    pub rest: Vec<u8>,
    /// Sections after that of the optimizer.
    pub sections: Vec<SectionPart>,
}

impl Default for CheckpointFile {
    fn default() -> Self {
        CheckpointFile {
            version: 2,
            chunk: 4096,
            library: Vec::new(),
            numbers: 2,
            on_non_finite: 0,
            layouts: None,
            defaults: OverridesPart::default(),
            groups: Vec::new(),
            tensors: Vec::new(),
            rest: Vec::new(),
            sections: Vec::new(),
        }
    }
}

/// A section.
#[derive(Clone, Debug, Default)]
pub struct SectionPart {
    /// Its id.
    pub id: u32,
    /// Whether a reader that does not know it must refuse the file.
    pub required: u8,
    /// Its records.
    pub records: Vec<RecordPart>,
    /// Bytes after the last record.
    pub rest: Vec<u8>,
}

/// A record of a section other than that of the optimizer, with one plane.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum RecordPart {
    /// Values of a parameter.
    Param {
        name: Vec<u8>,
        len: u64,
        dtype: u8,
        order: Vec<(u64, i64)>,
        plane: Vec<u8>,
    },
    /// Named bytes.
    Entry {
        name: Vec<u8>,
        bytes: u64,
        plane: Vec<u8>,
    },
}

impl SectionPart {
    /// Returns a section with the values of one parameter.
    pub fn param(name: &str, values: &[f32]) -> Self {
        let param = RecordPart::Param {
            name: name.into(),
            len: values.len() as u64,
            dtype: 0,
            order: Vec::new(),
            plane: floats(values),
        };
        SectionPart {
            id: 2,
            records: vec![param],
            ..SectionPart::default()
        }
    }

    /// Returns a section with named bytes.
    pub fn entry(name: &str, plane: &[u8]) -> Self {
        let entry = RecordPart::Entry {
            name: name.into(),
            bytes: plane.len() as u64,
            plane: plane.to_vec(),
        };
        SectionPart {
            id: 3,
            records: vec![entry],
            ..SectionPart::default()
        }
    }
}

/// A group.
#[derive(Clone, Debug, Default)]
pub struct GroupPart {
    /// Its name.
    pub name: Vec<u8>,
    /// Its overrides.
    pub overrides: OverridesPart,
}

/// The hyper-parameters that are set. Booleans are bytes, so that they can have values other than 0
/// and 1.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct OverridesPart {
    pub lr: Option<f64>,
    pub lr_multiplier: Option<f64>,
    pub betas: Option<(f64, f64)>,
    pub weight_decay: Option<f64>,
    pub max_unorm: Option<f64>,
    pub skip_zeros: Option<u8>,
    pub stochastic_param: Option<u8>,
    pub stochastic_state: Option<u8>,
    pub seed: Option<u64>,
    pub optim_bits: Option<u32>,
    pub min_8bit_size: Option<u64>,
}

/// A tensor.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct TensorPart {
    pub name: Vec<u8>,
    pub len: u64,
    /// Offset and whole length of a shard. Version 1 has none.
    pub shard: Option<(u64, u64)>,
    pub dtype: u8,
    pub layout: u8,
    pub block: u32,
    pub codebook: u32,
    pub group: Option<u32>,
    pub overrides: OverridesPart,
    pub order: Option<Vec<(u64, i64)>>,
    pub steps: u64,
    pub seed: u64,
    pub planes: Vec<Vec<u8>>,
}

impl TensorPart {
    /// Returns a tensor with a 32-bit state.
    pub fn momentum32(name: &str, momentum: &[f32]) -> Self {
        TensorPart {
            name: name.into(),
            len: momentum.len() as u64,
            order: Some(Vec::new()),
            steps: 1,
            planes: vec![floats(momentum)],
            ..TensorPart::default()
        }
    }

    /// Returns a tensor with an 8-bit state.
    pub fn blockwise8(name: &str, codes: &[u8], absmax: &[f32]) -> Self {
        TensorPart {
            name: name.into(),
            len: codes.len() as u64,
            layout: 1,
            block: 256,
            codebook: 0x1B13_7AEB,
            order: Some(Vec::new()),
            steps: 1,
            planes: vec![codes.to_vec(), floats(absmax)],
            ..TensorPart::default()
        }
    }
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Encodes fields with integers of full width (version 1) or of variable width.
struct Encoder {
    version: u32,
    bytes: Vec<u8>,
}

impl Encoder {
    fn new(version: u32) -> Self {
        Encoder {
            version,
            bytes: Vec::new(),
        }
    }

    fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    /// An integer that has `width` bytes in version 1.
    fn integer(&mut self, x: u64, width: usize) {
        if self.version == 1 {
            self.bytes.extend(&x.to_le_bytes()[..width]);
            return;
        }
        let (tag, bytes) = match x {
            0..=250 => (x as u8, 0),
            251..=0xFFFF => (251, 2),
            0x1_0000..=0xFFFF_FFFF => (252, 4),
            _ => (253, 8),
        };
        self.bytes.push(tag);
        self.bytes.extend(&x.to_le_bytes()[..bytes]);
    }

    fn u32(&mut self, x: u32) {
        self.integer(x.into(), 4);
    }

    fn u64(&mut self, x: u64) {
        self.integer(x, 8);
    }

    fn i64(&mut self, x: i64) {
        let zigzag = (x << 1) ^ (x >> 63);
        self.u64(if self.version == 1 { x } else { zigzag } as u64);
    }

    fn f64(&mut self, x: f64) {
        self.bytes.extend(x.to_le_bytes());
    }

    fn string(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.bytes.extend(bytes);
    }

    fn option<T>(&mut self, x: Option<T>, encode: impl FnOnce(&mut Self, T)) {
        self.byte(x.is_some().into());
        if let Some(x) = x {
            encode(self, x);
        }
    }

    fn axes(&mut self, axes: &[(u64, i64)]) {
        self.u64(axes.len() as u64);
        for &(len, stride) in axes {
            self.u64(len);
            self.i64(stride);
        }
    }

    fn overrides(&mut self, o: &OverridesPart) {
        self.option(o.lr, Self::f64);
        self.option(o.lr_multiplier, Self::f64);
        self.option(o.betas, |to, (beta1, beta2)| {
            to.f64(beta1);
            to.f64(beta2);
        });
        self.option(o.weight_decay, Self::f64);
        self.option(o.max_unorm, Self::f64);
        self.option(o.skip_zeros, Self::byte);
        self.option(o.stochastic_param, Self::byte);
        self.option(o.stochastic_state, Self::byte);
        self.option(o.seed, Self::u64);
        self.option(o.optim_bits, Self::u32);
        self.option(o.min_8bit_size, Self::u64);
    }

    /// The checksums of the chunks of a plane.
    fn checksums(&mut self, plane: &[u8], chunk: u32) {
        let chunks = plane.chunks(chunk.max(1) as usize);
        self.u64(chunks.len() as u64);
        for chunk in chunks {
            self.bytes.extend(crc32fast::hash(chunk).to_le_bytes());
        }
    }
}

/// Adds a plane to the planes of a file, which begin at the offset `start`. Returns its offset.
fn add_plane(planes: &mut Vec<u8>, start: usize, plane: &[u8]) -> usize {
    let offset = (start + planes.len()).next_multiple_of(64);
    planes.resize(offset - start, 0);
    planes.extend(plane);
    offset
}

impl CheckpointFile {
    /// Returns the bytes of the file, with correct checksums, offsets and lengths.
    pub fn bytes(&self) -> Vec<u8> {
        match self.version {
            1 => self.version1(),
            _ => self.version2(),
        }
    }

    /// Preamble, header, planes.
    fn version1(&self) -> Vec<u8> {
        let planes: usize = self.tensors.iter().map(|tensor| tensor.planes.len()).sum();
        let mut header = Encoder::new(1);
        header.string(&self.library);
        self.scopes(&mut header);
        header.u64(self.tensors.len() as u64);
        // The records of planes are inserted into each tensor's record when the length of the
        // header is known.
        let tensors = self.tensors.iter();
        let records: Vec<_> = tensors.map(TensorPart::version1).collect();
        let sizes: usize = records.iter().map(Vec::len).sum();
        let end = 36 + header.bytes.len() + sizes + 20 * planes + self.rest.len();
        let mut body = Vec::new();
        for (tensor, record) in self.tensors.iter().zip(records) {
            header.bytes.extend(record);
            for plane in &tensor.planes {
                let offset = add_plane(&mut body, end, plane);
                header.u64(offset as u64);
                header.u64(plane.len() as u64);
                header.u32(crc32fast::hash(plane));
            }
        }
        header.bytes.extend(&self.rest);
        let mut bytes = self.preamble(0, header.bytes.len());
        bytes.append(&mut header.bytes);
        bytes.append(&mut body);
        seal(&mut bytes);
        bytes
    }

    /// Preamble, planes, index, checksum of the index.
    fn version2(&self) -> Vec<u8> {
        let mut index = Encoder::new(self.version);
        index.string(&self.library);
        index.u64(1 + self.sections.len() as u64);
        let mut planes = Vec::new();
        let mut body = Encoder::new(self.version);
        body.u32(self.numbers);
        body.byte(self.on_non_finite);
        let layouts = self.layouts.clone().unwrap_or_else(|| {
            let tensors = self.tensors.iter();
            let layouts = tensors.map(|it| (it.layout, (it.layout, it.block, it.codebook)));
            let layouts = std::collections::BTreeMap::from_iter(layouts);
            layouts.into_values().collect()
        });
        body.u64(layouts.len() as u64);
        for (code, block, codebook) in layouts {
            body.byte(code);
            body.u32(block);
            body.u32(codebook);
        }
        self.scopes(&mut body);
        body.u64(self.tensors.len() as u64);
        for tensor in &self.tensors {
            tensor.version2(&mut body, self.chunk);
            for plane in &tensor.planes {
                add_plane(&mut planes, 36, plane);
            }
        }
        body.bytes.extend(&self.rest);
        let mut section = |id: u32, required: u8, data: usize, body: &[u8]| {
            index.u32(id);
            index.byte(required);
            index.u64(data as u64);
            index.string(body);
        };
        section(1, 1, planes.len(), &body.bytes);
        for SectionPart {
            id,
            required,
            records,
            rest,
        } in &self.sections
        {
            let before = planes.len();
            let mut body = Encoder::new(self.version);
            body.u64(records.len() as u64);
            for record in records {
                let plane = record.encode(&mut body);
                body.checksums(plane, self.chunk);
                add_plane(&mut planes, 36, plane);
            }
            body.bytes.extend(rest);
            section(*id, *required, planes.len() - before, &body.bytes);
        }
        let mut bytes = self.preamble(self.chunk, index.bytes.len());
        bytes.append(&mut planes);
        bytes.append(&mut index.bytes);
        bytes.extend([0; 4]);
        seal(&mut bytes);
        bytes
    }

    fn preamble(&self, word: u32, records: usize) -> Vec<u8> {
        let mut bytes = b"\x89LION\r\n\x1A".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(word.to_le_bytes());
        bytes.extend((records as u64).to_le_bytes());
        bytes.extend([0; 12]);
        bytes
    }

    fn scopes(&self, to: &mut Encoder) {
        to.overrides(&self.defaults);
        to.u64(self.groups.len() as u64);
        for group in &self.groups {
            to.string(&group.name);
            to.overrides(&group.overrides);
        }
    }
}

impl TensorPart {
    /// The record of version 1 without those of the planes.
    fn version1(&self) -> Vec<u8> {
        let mut to = Encoder::new(1);
        to.string(&self.name);
        to.u64(self.len);
        to.byte(self.dtype);
        to.byte(self.layout);
        to.u32(self.block);
        to.u32(self.codebook);
        self.rest(&mut to);
        to.bytes
    }

    fn version2(&self, to: &mut Encoder, chunk: u32) {
        to.string(&self.name);
        to.u64(self.len);
        to.option(self.shard, |to, (offset, whole_len)| {
            to.u64(offset);
            to.u64(whole_len);
        });
        to.byte(self.dtype);
        to.byte(self.layout);
        self.rest(to);
        for plane in &self.planes {
            to.checksums(plane, chunk);
        }
    }

    /// The fields that both versions have.
    fn rest(&self, to: &mut Encoder) {
        to.option(self.group, Encoder::u32);
        to.overrides(&self.overrides);
        to.option(self.order.as_deref(), Encoder::axes);
        to.u64(self.steps);
        to.u64(self.seed);
        to.u64(self.planes.len() as u64);
    }
}

impl RecordPart {
    /// Encodes the record up to the checksums, and returns the plane.
    fn encode(&self, to: &mut Encoder) -> &[u8] {
        match self {
            RecordPart::Param {
                name,
                len,
                dtype,
                order,
                plane,
            } => {
                to.string(name);
                to.u64(*len);
                to.byte(*dtype);
                to.axes(order);
                plane
            }
            RecordPart::Entry { name, bytes, plane } => {
                to.string(name);
                to.u64(*bytes);
                plane
            }
        }
    }
}

/// Corrects the length of the file and the checksums of the preamble and of the header or index, as an attacker would.
pub fn seal(bytes: &mut [u8]) {
    if bytes.len() < 36 {
        return;
    }
    let len = bytes.len();
    bytes[24..32].copy_from_slice(&(len as u64).to_le_bytes());
    let mut records = [0; 8];
    records.copy_from_slice(&bytes[16..24]);
    let records = usize::try_from(u64::from_le_bytes(records)).unwrap_or(usize::MAX);
    if bytes[8..12] == [1, 0, 0, 0] {
        let end = records.saturating_add(36).min(len);
        let checksum = crc32fast::hash(&bytes[36..end]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    } else if len >= 40 {
        let end = len - 4;
        let start = end.saturating_sub(records).max(36);
        let checksum = crc32fast::hash(&bytes[start..end]);
        bytes[end..].copy_from_slice(&checksum.to_le_bytes());
    }
    let checksum = crc32fast::hash(&bytes[..32]);
    bytes[32..36].copy_from_slice(&checksum.to_le_bytes());
}
