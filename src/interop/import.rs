//! Reading states by the names of bitsandbytes.

use super::{InteropError, QMAP, STEP, planes};
use crate::checkpoint::{Difference, PART, Source, Take, open, transfer};
use crate::{CheckpointError, LoadPolicy, LoadReport};
use lion_core::{BLOCK, Bits, Layout, Optimizer, ParamInfo, ParamRecord};
use lion_quant::CODEBOOK;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;

/// Longest header that safetensors allows.
const MAX_HEADER: u64 = 100_000_000;

/// The tensors of one parameter by what follows its name.
type Tensors = BTreeMap<&'static str, TensorInfo>;

/// A file open for reading.
struct Reader<'a> {
    source: Source<File>,
    path: &'a Path,
    /// Where the tensors begin.
    data: u64,
}

/// Reads states from a safetensors file. Steps come from the file; seeds and hyper-parameters are kept.
///
/// bitsandbytes has no state for a parameter before its first step: with [`LoadPolicy::Subset`] such a
/// parameter keeps the state it has.
///
/// # Errors
/// [`InteropError::NotSafetensors`]; [`InteropError::UnknownTensor`], [`InteropError::MissingTensor`],
/// [`InteropError::WrongTensor`]; [`InteropError::BlockSize`] and [`InteropError::Codebook`] for a state
/// that is quantized otherwise; [`InteropError::Number`]; [`InteropError::File`] for the file system, the
/// optimizer, and with [`LoadPolicy::Exact`] for parameters that differ, listed whole. The optimizer is
/// as it was, except as [`Lion::load_with`](crate::Lion::load_with) says.
pub fn import(
    optimizer: &mut Optimizer,
    path: impl AsRef<Path>,
    policy: LoadPolicy,
) -> Result<LoadReport, InteropError> {
    let path = path.as_ref();
    let mut reader = Reader {
        source: Source::new(open(path)?, path.to_owned())?,
        path,
        data: 0,
    };
    let parameters = reader.parameters()?;
    let mut report = LoadReport::default();
    let (mut records, mut sources) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for (name, tensors) in parameters {
        let known = optimizer.handle(&name).and_then(|h| optimizer.info(h));
        let Ok(info) = known else {
            report.left.push(name);
            continue;
        };
        seen.insert(info.name);
        let bits = reader.bits(&name, &tensors)?;
        if let Some(difference) = difference(&tensors, bits, &info) {
            report.different.push(difference);
            continue;
        }
        reader.check(&info, &tensors)?;
        let steps = reader.steps(&name, &tensors)?;
        records.push(ParamRecord {
            handle: info.handle,
            group: None,
            overrides: info.overrides,
            steps,
            seed: info.hyper.seed,
            order: (steps > 0).then_some(Layout::RowMajor),
        });
        sources.push(tensors);
        report.loaded.push(name);
    }
    let missing = optimizer.parameters();
    let missing = missing.filter(|info| !seen.contains(info.name));
    report.fresh = missing.map(|info| info.name.to_owned()).collect();
    report.refuse(policy, path)?;
    let restore = optimizer.restore(None, records);
    let restore = restore.map_err(|source| CheckpointError::Optimizer {
        path: path.to_owned(),
        source,
    })?;
    transfer(restore, &report.loaded, path, |take| {
        reader.read(&report.loaded, &sources, take)
    })?;
    Ok(report)
}

/// Length or width of a state that are not those of the optimizer.
fn difference(tensors: &Tensors, bits: Bits, info: &ParamInfo<'_>) -> Option<Difference> {
    let given = elements(&tensors["state1"]);
    if given != info.len {
        return Some(Difference::of(info.name, "length", given, info.len));
    }
    (bits != info.bits).then(|| Difference::of(info.name, "state", bits, info.bits))
}

/// Elements of a tensor, whose shape has been checked against its bytes.
fn elements(info: &TensorInfo) -> usize {
    info.shape.iter().product()
}

impl Reader<'_> {
    /// The tensors of each parameter by name.
    fn parameters(&mut self) -> Result<BTreeMap<String, Tensors>, InteropError> {
        let header = self.header()?;
        let mut parameters: BTreeMap<String, Tensors> = BTreeMap::new();
        let mut names = header.offset_keys();
        names.sort_unstable();
        for tensor in names {
            let keys = ["state1", "absmax1", QMAP, STEP].into_iter();
            let mut split = keys.filter_map(|key| {
                let name = tensor.strip_suffix(key)?.strip_suffix('.')?;
                (!name.is_empty()).then_some((name, key))
            });
            let (Some((name, key)), Some(info)) = (split.next(), header.info(&tensor)) else {
                return Err(InteropError::UnknownTensor {
                    path: self.path.to_owned(),
                    tensor,
                });
            };
            let tensors = parameters.entry(name.to_owned()).or_default();
            tensors.insert(key, info.clone());
        }
        for (name, tensors) in &parameters {
            for key in ["state1", STEP] {
                self.tensor(name, tensors, key)?;
            }
        }
        Ok(parameters)
    }

    fn header(&mut self) -> Result<Metadata, InteropError> {
        let broken = |source| InteropError::NotSafetensors {
            path: self.path.to_owned(),
            source,
        };
        let len = self.source.len();
        let mut bytes = [0; 8];
        if len < 8 {
            return Err(broken(
                format!("it has {len} bytes, wanted 8 at least").into(),
            ));
        }
        self.source.fill(&mut bytes)?;
        let header = u64::from_le_bytes(bytes);
        if header > (len - 8).min(MAX_HEADER) {
            let message = format!("its header has {header} bytes, and the file {len}");
            return Err(broken(message.into()));
        }
        let mut json = vec![0; header as usize];
        self.source.fill(&mut json)?;
        let metadata = serde_json::from_slice::<Metadata>(&json);
        let metadata = metadata.map_err(|error| broken(error.into()))?;
        self.data = 8 + header;
        let wanted = self.data + metadata.data_len() as u64;
        if len != wanted {
            return Err(broken(
                format!("it has {len} bytes, wanted {wanted}").into(),
            ));
        }
        Ok(metadata)
    }

    fn tensor<'t>(
        &self,
        name: &str,
        tensors: &'t Tensors,
        key: &str,
    ) -> Result<&'t TensorInfo, InteropError> {
        tensors.get(key).ok_or_else(|| InteropError::MissingTensor {
            path: self.path.to_owned(),
            tensor: format!("{name}.{key}"),
        })
    }

    fn wrong(&self, name: &str, key: &str, info: &TensorInfo, wanted: String) -> InteropError {
        InteropError::WrongTensor {
            path: self.path.to_owned(),
            tensor: format!("{name}.{key}"),
            given: format!("{:?} of shape {:?}", info.dtype, info.shape),
            wanted,
        }
    }

    fn bits(&self, name: &str, tensors: &Tensors) -> Result<Bits, InteropError> {
        let info = self.tensor(name, tensors, "state1")?;
        match info.dtype {
            Dtype::U8 => Ok(Bits::Eight),
            Dtype::F32 => Ok(Bits::ThirtyTwo),
            _ => Err(self.wrong(name, "state1", info, "U8 or F32".to_owned())),
        }
    }

    /// Checks what an 8-bit state has beside its codes.
    fn check(&mut self, param: &ParamInfo<'_>, tensors: &Tensors) -> Result<(), InteropError> {
        let name = param.name;
        if param.bits == Bits::ThirtyTwo {
            return match tensors.keys().find(|key| ![STEP, "state1"].contains(key)) {
                None => Ok(()),
                Some(key) => Err(self.wrong(
                    name,
                    key,
                    &tensors[key],
                    "none, as state1 is F32".to_owned(),
                )),
            };
        }
        let absmax = self.tensor(name, tensors, "absmax1")?;
        let (given, wanted) = (elements(absmax), param.len.div_ceil(BLOCK));
        if absmax.dtype != Dtype::F32 || given != wanted {
            const BEFORE: usize = 2048;
            if given == param.len.div_ceil(BEFORE) {
                return Err(InteropError::BlockSize {
                    path: self.path.to_owned(),
                    parameter: name.to_owned(),
                    given: BEFORE,
                    wanted: BLOCK,
                });
            }
            return Err(self.wrong(name, "absmax1", absmax, format!("{wanted} numbers of F32")));
        }
        let qmap = self.tensor(name, tensors, QMAP)?;
        if qmap.dtype != Dtype::F32 || elements(qmap) != CODEBOOK.len() {
            return Err(self.wrong(name, QMAP, qmap, "256 numbers of F32".to_owned()));
        }
        let mut bytes = [0; 4 * CODEBOOK.len()];
        self.source.seek(self.data + qmap.data_offsets.0 as u64)?;
        self.source.fill(&mut bytes)?;
        let (words, _) = bytes.as_chunks::<4>();
        let given = words.iter().map(|&word| f32::from_le_bytes(word));
        let mut pairs = given.zip(CODEBOOK).enumerate();
        match pairs.find(|(_, (given, wanted))| given.to_bits() != wanted.to_bits()) {
            None => Ok(()),
            Some((index, (given, wanted))) => Err(InteropError::Codebook {
                path: self.path.to_owned(),
                tensor: format!("{name}.{QMAP}"),
                index,
                given,
                wanted,
            }),
        }
    }

    fn steps(&mut self, name: &str, tensors: &Tensors) -> Result<u64, InteropError> {
        let info = self.tensor(name, tensors, STEP)?;
        if info.dtype != Dtype::I64 || elements(info) != 1 {
            return Err(self.wrong(name, STEP, info, "one number of I64".to_owned()));
        }
        let mut bytes = [0; 8];
        self.source.seek(self.data + info.data_offsets.0 as u64)?;
        self.source.fill(&mut bytes)?;
        // A negative one is beyond any count of steps, which the optimizer refuses.
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads the planes of all parameters, and checks their numbers.
    fn read(
        &mut self,
        names: &[String],
        sources: &[Tensors],
        take: &mut Take<'_, InteropError>,
    ) -> Result<(), InteropError> {
        let mut buffer = Vec::new();
        for (i, (name, tensors)) in names.iter().zip(sources).enumerate() {
            let bits = self.bits(name, tensors)?;
            for (plane, &(key, dtype)) in planes(bits).iter().enumerate() {
                let (start, end) = self.tensor(name, tensors, key)?.data_offsets;
                buffer.resize((end - start).min(PART), 0);
                self.source.seek(self.data + start as u64)?;
                for at in (0..end - start).step_by(PART) {
                    let part = &mut buffer[..PART.min(end - start - at)];
                    self.source.fill(part)?;
                    let (words, _) = part.as_chunks::<4>();
                    let numbers = words.iter().map(|&word| f32::from_le_bytes(word));
                    let bad = |x: &f32| !x.is_finite() || (key == "absmax1" && *x < 0.0);
                    let mut numbers = numbers.enumerate();
                    let found = match dtype {
                        Dtype::F32 => numbers.find(|(_, x)| bad(x)),
                        _ => None,
                    };
                    if let Some((index, given)) = found {
                        return Err(InteropError::Number {
                            path: self.path.to_owned(),
                            tensor: format!("{name}.{key}"),
                            index: at / 4 + index,
                            given,
                        });
                    }
                    take(i, plane, at, part)?;
                }
            }
        }
        Ok(())
    }
}
