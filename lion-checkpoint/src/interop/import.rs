//! Reading states by the names of bitsandbytes.

use super::header::{self, Header, MAX_HEADER, TensorInfo, Tensors};
use super::{InteropError, QMAP, STEP, planes};
use crate::{CheckpointError, LoadPolicy, LoadReport};
use crate::{Difference, MAX_STEPS, PART, Source, Take, open, transfer};
use lion_core::{BLOCK, Bits, MemoryOrder, Optimizer, ParamInfo, ParamRecord};
use lion_quant::CODEBOOK;
use safetensors::Dtype;
use std::collections::HashSet;
use std::io::{Read, Seek};
use std::path::Path;

/// A file open for reading.
struct Reader<'a, R> {
    source: Source<R>,
    path: &'a Path,
    /// Where the tensors begin.
    data: u64,
}

/// Reads states from a safetensors file. Steps come from the file; seeds and hyper-parameters are kept.
///
/// bitsandbytes has no state for a parameter before its first step: with [`LoadPolicy::NonStrict`] such a
/// parameter keeps the state it has.
///
/// The header may have 100,000,000 bytes, as safetensors allows, and a tensor 16 axes. Besides a buffer for the states,
/// reading takes memory for the tensors of the optimizer's parameters and for the names of other parameters, which is no
/// more than four times the bytes of the header.
///
/// # Errors
/// [`InteropError::NotSafetensors`]; [`InteropError::UnknownTensor`], [`InteropError::MissingTensor`],
/// [`InteropError::WrongTensor`]; [`InteropError::BlockSize`] and [`InteropError::Codebook`] for a state
/// that is quantized otherwise; [`InteropError::Number`]; [`InteropError::File`] for the file system, the
/// optimizer, and with [`LoadPolicy::Strict`] for parameters that differ, listed whole. The optimizer is
/// as it was, except as `Lion::load_with` says.
pub fn import(
    optimizer: &mut impl AsMut<Optimizer>,
    path: impl AsRef<Path>,
    policy: LoadPolicy,
) -> Result<LoadReport, InteropError> {
    let path = path.as_ref();
    import_from(optimizer, open(path)?, path, policy)
}

/// Reads states as [`import`] does, from anything; errors call it `path`.
///
/// # Errors
/// As [`import`].
pub fn import_from<R: Read + Seek>(
    optimizer: &mut impl AsMut<Optimizer>,
    reader: R,
    path: impl AsRef<Path>,
    policy: LoadPolicy,
) -> Result<LoadReport, InteropError> {
    let (optimizer, path) = (optimizer.as_mut(), path.as_ref());
    let mut reader = Reader {
        source: Source::new(reader, path.to_owned())?,
        path,
        data: 0,
    };
    let mut header = reader.header(optimizer)?;
    let mut report = LoadReport::default();
    let (mut records, mut sources) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for (name, tensors) in std::mem::take(&mut header.known) {
        let info = optimizer.handle(&name).and_then(|h| optimizer.info(h));
        let info = info.map_err(|source| CheckpointError::Optimizer {
            path: path.to_owned(),
            source,
        })?;
        seen.insert(info.name);
        let (bits, elements) = reader.bits(&name, &tensors)?;
        if let Some(difference) = difference(elements, bits, &info) {
            report.different.push(difference);
            continue;
        }
        reader.check(&info, &tensors)?;
        let steps = reader.steps(&name, &tensors)?;
        records.push({
            let mut record = ParamRecord::new(info.handle);
            record.group = None;
            record.overrides = info.overrides;
            record.steps = steps;
            record.seed = info.hyper.seed;
            record.order = (steps > 0).then_some(MemoryOrder::RowMajor);
            record
        });
        sources.push(tensors);
        report.loaded.push(name);
    }
    report.unexpected = header.into_unknown().collect();
    let missing = optimizer.parameters();
    let missing = missing.filter(|info| !seen.contains(info.name));
    report.missing = missing.map(|info| info.name.to_owned()).collect();
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
fn difference(elements: u64, bits: Bits, info: &ParamInfo<'_>) -> Option<Difference> {
    if elements != info.len as u64 {
        return Some(Difference::of(info.name, "length", elements, info.len));
    }
    (bits != info.bits).then(|| Difference::of(info.name, "state", bits, info.bits))
}

impl<R: Read + Seek> Reader<'_, R> {
    /// Reads the header.
    fn header(&mut self, optimizer: &Optimizer) -> Result<Header, InteropError> {
        let not_safetensors = |message: String| InteropError::NotSafetensors {
            path: self.path.to_owned(),
            source: message.into(),
        };
        let len = self.source.len();
        if len < 8 {
            let message = format!("it has {len} bytes, wanted 8 at least");
            return Err(not_safetensors(message));
        }
        let mut bytes = [0; 8];
        self.source.fill(&mut bytes)?;
        let bytes = u64::from_le_bytes(bytes);
        let most = MAX_HEADER.min(len - 8);
        if bytes > most {
            let why = match most {
                MAX_HEADER => String::new(),
                _ => format!(", as the file has {len}"),
            };
            let message = format!("its header has {bytes} bytes, wanted {most} at most{why}");
            return Err(not_safetensors(message));
        }
        self.data = 8 + bytes;
        let registered = |name: &str| optimizer.handle(name).is_ok();
        let json = (&mut self.source).take(bytes);
        let header = match header::read(json, len - self.data, registered) {
            Ok(header) => header,
            Err(error) if error.is_io() => return Err(self.source.io(error.into()).into()),
            Err(error) => return Err(not_safetensors(header::message(&error))),
        };
        if let Some(tensor) = header.unrecognized {
            return Err(InteropError::UnknownTensor {
                path: self.path.to_owned(),
                tensor,
            });
        }
        for key in ["state1", STEP] {
            if let Some(tensor) = header.missing(key) {
                return Err(InteropError::MissingTensor {
                    path: self.path.to_owned(),
                    tensor,
                });
            }
        }
        Ok(header)
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
        let given = format!("{:?} of shape {:?}", info.dtype, info.shape);
        self.wrong_value(name, key, given, wanted)
    }

    fn wrong_value(&self, name: &str, key: &str, given: String, wanted: String) -> InteropError {
        InteropError::WrongTensor {
            path: self.path.to_owned(),
            tensor: format!("{name}.{key}"),
            given,
            wanted,
        }
    }

    /// Width and elements of a state.
    fn bits(&self, name: &str, tensors: &Tensors) -> Result<(Bits, u64), InteropError> {
        let info = self.tensor(name, tensors, "state1")?;
        match info.dtype {
            Dtype::U8 => Ok((Bits::Eight, info.elements)),
            Dtype::F32 => Ok((Bits::ThirtyTwo, info.elements)),
            _ => Err(self.wrong(name, "state1", info, "U8 or F32".to_owned())),
        }
    }

    /// Checks what an 8-bit state has beside its codes.
    fn check(&mut self, param: &ParamInfo<'_>, tensors: &Tensors) -> Result<(), InteropError> {
        let name = param.name;
        if param.bits == Bits::ThirtyTwo {
            let mut all = tensors.iter();
            return match all.find(|(key, _)| ![STEP, "state1"].contains(key)) {
                None => Ok(()),
                Some((key, info)) => {
                    Err(self.wrong(name, key, info, "none, as state1 is F32".to_owned()))
                }
            };
        }
        let absmax = self.tensor(name, tensors, "absmax1")?;
        let (given, wanted) = (absmax.elements, param.len.div_ceil(BLOCK));
        if absmax.dtype != Dtype::F32 || given != wanted as u64 {
            const BEFORE: usize = 2048;
            let before = param.len.div_ceil(BEFORE) as u64;
            // A tensor of another type is told as one, however many numbers it has.
            if absmax.dtype == Dtype::F32 && given == before {
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
        if qmap.dtype != Dtype::F32 || qmap.elements != CODEBOOK.len() as u64 {
            return Err(self.wrong(name, QMAP, qmap, "256 numbers of F32".to_owned()));
        }
        let mut bytes = [0; 4 * CODEBOOK.len()];
        self.source.seek(self.data + qmap.start)?;
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
        if info.dtype != Dtype::I64 || info.elements != 1 {
            return Err(self.wrong(name, STEP, info, "one number of I64".to_owned()));
        }
        let mut bytes = [0; 8];
        self.source.seek(self.data + info.start)?;
        self.source.fill(&mut bytes)?;
        let steps = i64::from_le_bytes(bytes);
        match u64::try_from(steps) {
            Ok(steps) if steps <= MAX_STEPS => Ok(steps),
            _ => {
                let wanted = format!("a number from 0 to {MAX_STEPS}");
                Err(self.wrong_value(name, STEP, steps.to_string(), wanted))
            }
        }
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
            let (bits, _) = self.bits(name, tensors)?;
            for (plane, &(key, dtype)) in planes(bits).iter().enumerate() {
                let &TensorInfo { start, end, .. } = self.tensor(name, tensors, key)?;
                // No more than the state has, which is in memory.
                let bytes = (end - start) as usize;
                buffer.resize(bytes.min(PART), 0);
                self.source.seek(self.data + start)?;
                for at in (0..bytes).step_by(PART) {
                    let part = &mut buffer[..PART.min(bytes - at)];
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
