//! Encodes a checkpoint as docs/format.md describes it. No code of the library is used, so that a
//! test can write files that the library never writes.

/// The parts of a checkpoint. Fields may have values that the format forbids.
#[derive(Clone, Debug)]
pub struct CheckpointFile {
    /// Version of the format, by default 2. A file of version 1 has no `numbers` and no `shard`.
    pub version: u32,
    /// Name of the library.
    pub library: Vec<u8>,
    /// Version of the numbers, by default 2.
    pub numbers: u32,
    /// The defaults that are set.
    pub defaults: OverridesPart,
    /// The groups.
    pub groups: Vec<GroupPart>,
    /// The tensors, in the order of the file.
    pub tensors: Vec<TensorPart>,
    /// Bytes of the header after the last record.
    pub rest: Vec<u8>,
}

impl Default for CheckpointFile {
    fn default() -> Self {
        CheckpointFile {
            version: 2,
            library: Vec::new(),
            numbers: 2,
            defaults: OverridesPart::default(),
            groups: Vec::new(),
            tensors: Vec::new(),
            rest: Vec::new(),
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
    /// Offset and whole length of a shard. `None` writes 0 and `len`.
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

impl CheckpointFile {
    /// Returns the bytes of the file, with correct checksums, offsets and lengths.
    pub fn bytes(&self) -> Vec<u8> {
        let planes: usize = self.tensors.iter().map(|tensor| tensor.planes.len()).sum();
        let mut header = Vec::new();
        string(&mut header, &self.library);
        if self.version > 1 {
            header.extend(self.numbers.to_le_bytes());
        }
        self.defaults.encode(&mut header);
        header.extend((self.groups.len() as u64).to_le_bytes());
        for group in &self.groups {
            string(&mut header, &group.name);
            group.overrides.encode(&mut header);
        }
        header.extend((self.tensors.len() as u64).to_le_bytes());
        // The records of planes are inserted into each tensor's record when the length of the
        // header is known.
        let tensors = self.tensors.iter();
        let records: Vec<_> = tensors.map(|tensor| tensor.record(self.version)).collect();
        let sizes: usize = records.iter().map(Vec::len).sum();
        let end = 36 + header.len() + sizes + 20 * planes + self.rest.len();
        let (mut body, mut at) = (Vec::new(), end);
        for (tensor, record) in self.tensors.iter().zip(records) {
            header.extend(record);
            for plane in &tensor.planes {
                let offset = at.next_multiple_of(64);
                header.extend((offset as u64).to_le_bytes());
                header.extend((plane.len() as u64).to_le_bytes());
                header.extend(crc32fast::hash(plane).to_le_bytes());
                body.resize(offset - end, 0);
                body.extend(plane);
                at = offset + plane.len();
            }
        }
        header.extend(&self.rest);
        let mut bytes = b"\x89LION\r\n\x1A".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend((header.len() as u64).to_le_bytes());
        bytes.extend([0; 12]);
        bytes.append(&mut header);
        bytes.append(&mut body);
        seal(&mut bytes);
        bytes
    }
}

impl TensorPart {
    fn record(&self, version: u32) -> Vec<u8> {
        let mut to = Vec::new();
        string(&mut to, &self.name);
        to.extend(self.len.to_le_bytes());
        if version > 1 {
            let (offset, whole_len) = self.shard.unwrap_or((0, self.len));
            to.extend(offset.to_le_bytes());
            to.extend(whole_len.to_le_bytes());
        }
        to.extend([self.dtype, self.layout]);
        to.extend(self.block.to_le_bytes());
        to.extend(self.codebook.to_le_bytes());
        option(&mut to, self.group.map(u32::to_le_bytes));
        self.overrides.encode(&mut to);
        to.push(self.order.is_some().into());
        if let Some(axes) = &self.order {
            to.extend((axes.len() as u64).to_le_bytes());
            for (len, stride) in axes {
                to.extend(len.to_le_bytes());
                to.extend(stride.to_le_bytes());
            }
        }
        to.extend(self.steps.to_le_bytes());
        to.extend(self.seed.to_le_bytes());
        to.extend((self.planes.len() as u64).to_le_bytes());
        to
    }
}

impl OverridesPart {
    fn encode(&self, to: &mut Vec<u8>) {
        option(to, self.lr.map(f64::to_le_bytes));
        option(to, self.lr_multiplier.map(f64::to_le_bytes));
        let betas = self.betas.map(|(a, b)| [a.to_le_bytes(), b.to_le_bytes()]);
        option(to, betas.map(|betas| betas.concat()));
        option(to, self.weight_decay.map(f64::to_le_bytes));
        option(to, self.max_unorm.map(f64::to_le_bytes));
        option(to, self.skip_zeros.map(|byte| [byte]));
        option(to, self.stochastic_param.map(|byte| [byte]));
        option(to, self.stochastic_state.map(|byte| [byte]));
        option(to, self.seed.map(u64::to_le_bytes));
        option(to, self.optim_bits.map(u32::to_le_bytes));
        option(to, self.min_8bit_size.map(u64::to_le_bytes));
    }
}

fn string(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend((bytes.len() as u64).to_le_bytes());
    to.extend(bytes);
}

fn option(to: &mut Vec<u8>, bytes: Option<impl AsRef<[u8]>>) {
    to.push(bytes.is_some().into());
    to.extend(bytes.iter().flat_map(AsRef::as_ref));
}

/// Corrects the length of the file and the checksums of header and preamble, as an attacker would.
pub fn seal(bytes: &mut [u8]) {
    if bytes.len() < 36 {
        return;
    }
    let len = bytes.len() as u64;
    bytes[24..32].copy_from_slice(&len.to_le_bytes());
    let mut header = [0; 8];
    header.copy_from_slice(&bytes[16..24]);
    let end = u64::from_le_bytes(header).saturating_add(36).min(len) as usize;
    let checksum = crc32fast::hash(&bytes[36..end]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[..32]);
    bytes[32..36].copy_from_slice(&checksum.to_le_bytes());
}
