//! Imports states under the names of bitsandbytes.

use super::error::check_whole;
use super::header::{self, Header, MAX_HEADER, TensorInfo, Tensors};
use super::{Import, InteropError, QMAP, STEP, planes};
use crate::{CheckpointError, LoadReport};
use crate::{Conversion, Difference, MAX_STEPS, Names, PART, Part, Source, Take};
use crate::{open, read_state, renamed, transfer};
use lion_core::{BLOCK, Bits, MemoryOrder, Optimizer, ParamRecord};
use lion_quant::CODEBOOK;
use safetensors::Dtype;
use std::collections::HashSet;
use std::io::{Read, Seek};
use std::path::Path;

/// The number of elements per block before version 0.44 of bitsandbytes.
const OLD_BLOCK: usize = 2048;

/// A state of the file that is imported.
struct SavedState {
    /// The name of the parameter in the file.
    name: String,
    tensors: Tensors,
    /// The width in the file.
    bits: Bits,
    conversion: Option<Conversion>,
}

/// A file open for reading.
struct Reader<'a, R> {
    source: Source<R>,
    path: &'a Path,
    /// The offset of the tensor data.
    data: u64,
}

/// Reads states from a safetensors file. The step counts are set to those of the file. The seeds and
/// hyper-parameters of the optimizer are kept. The documentation of [`interop`](super) has an example.
///
/// bitsandbytes does not save a state for a parameter that has not been stepped. With
/// [`LoadPolicy::NonStrict`], such a parameter keeps its current state; with [`LoadPolicy::Strict`] it is
/// an error. `how` is a [`LoadPolicy`], or an [`Import`] with more options.
///
/// The header may have at most 100,000,000 bytes, the limit of safetensors, and a tensor at most 16 axes.
/// Besides a buffer for the states, the import needs memory for the header entries of the optimizer's
/// parameters and for the names of other parameters. This is at most four times the size of the header.
/// The conversion of an 8-bit state needs at most one byte per 64 elements of the parameter.
///
/// # Errors
/// - [`InteropError::NotSafetensors`]
/// - [`InteropError::UnknownTensor`], [`InteropError::MissingTensor`], [`InteropError::WrongTensor`]
/// - [`InteropError::BlockSize`] and [`InteropError::Codebook`] for a state that is quantized differently
/// - [`InteropError::Number`], [`InteropError::Shard`]
/// - [`InteropError::File`] with [`CheckpointError::Mismatch`] if the policy is [`LoadPolicy::Strict`] and
///   the parameters differ; the error lists all differences
/// - [`InteropError::File`] with [`CheckpointError::NameCollision`] if [`Import::rename`] gives two parameters one name
/// - [`InteropError::File`] for errors of the file system and of the optimizer
///
/// The optimizer is unchanged, except after [`CheckpointError::PartlyLoaded`].
///
/// [`LoadPolicy::Strict`]: crate::LoadPolicy::Strict
/// [`LoadPolicy::NonStrict`]: crate::LoadPolicy::NonStrict
/// [`LoadPolicy`]: crate::LoadPolicy
pub fn import<'a>(
    optimizer: &mut impl AsMut<Optimizer>,
    path: impl AsRef<Path>,
    how: impl Into<Import<'a>>,
) -> Result<LoadReport, InteropError> {
    let path = path.as_ref();
    import_from(optimizer, open(path)?, path, how)
}

/// Does what [`import`] does, with any reader, such as a `Cursor` over bytes in memory. Error messages name
/// it `path`.
///
/// ```
/// use lion::{Dtype, Lion, ParamSpec, interop::{self, Import}};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("states.safetensors");
/// let mut lion = Lion::builder().build()?;
/// lion.register(ParamSpec::new("w", 4, Dtype::F32))?;
/// interop::export(&lion, &path)?;
///
/// let bytes = std::io::Cursor::new(std::fs::read(&path)?);
/// let report = interop::import_from(&mut lion, bytes, "in memory", Import::new())?;
/// assert_eq!(report.loaded, ["w"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The errors of [`import`].
pub fn import_from<'a, R: Read + Seek>(
    optimizer: &mut impl AsMut<Optimizer>,
    reader: R,
    path: impl AsRef<Path>,
    how: impl Into<Import<'a>>,
) -> Result<LoadReport, InteropError> {
    let (optimizer, path, how) = (optimizer.as_mut(), path.as_ref(), how.into());
    let mut reader = Reader {
        source: Source::new(reader, path.to_owned())?,
        path,
        data: 0,
    };
    let mut header = reader.header(|name| {
        let name = renamed(how.rename, name);
        optimizer.handle(&name).is_ok()
    })?;
    let mut names = Names::new(how.rename);
    for name in header.names() {
        names.next(name, path)?;
    }
    let mut report = LoadReport::default();
    let (mut records, mut states) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for (name, tensors) in std::mem::take(&mut header.known) {
        let new = renamed(how.rename, &name);
        let info = optimizer.handle(&new).and_then(|h| optimizer.info(h));
        let info = info.map_err(|source| CheckpointError::Optimizer {
            path: path.to_owned(),
            source,
        })?;
        check_whole(&info)?;
        seen.insert(info.name);
        let (bits, elements) = reader.bits(&name, &tensors)?;
        if elements != info.len as u64 {
            let difference = Difference::of(info.name, "length", elements, info.len);
            report.different.push(difference);
            continue;
        }
        if bits != info.bits {
            let difference = Difference::of(info.name, "state", bits, info.bits);
            if !how.convert_states {
                report.different.push(difference);
                continue;
            }
            report.converted.push(difference);
        }
        let block = reader.check(&name, info.len, bits, &tensors)?;
        let requantized = block == Some(OLD_BLOCK) && info.bits == Bits::Eight;
        if requantized && !how.requantize {
            return Err(InteropError::BlockSize {
                path: path.to_owned(),
                parameter: name,
                given: OLD_BLOCK,
                wanted: BLOCK,
            });
        }
        if requantized {
            report.requantized.push(info.name.to_owned());
        }
        let conversion = (requantized || bits != info.bits).then_some(Conversion {
            block,
            to: info.bits,
        });
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
        report.loaded.push(info.name.to_owned());
        if name != info.name {
            report.renamed.push((name.clone(), info.name.to_owned()));
        }
        states.push(SavedState {
            name,
            tensors,
            bits,
            conversion,
        });
    }
    report.unexpected = header.into_unknown().collect();
    let missing = optimizer.parameters();
    let missing = missing.filter(|info| !seen.contains(info.name));
    report.missing = missing.map(|info| info.name.to_owned()).collect();
    report.refuse(how.policy, path)?;
    let restore = optimizer.restore(None, records);
    let restore = restore.map_err(|source| CheckpointError::Optimizer {
        path: path.to_owned(),
        source,
    })?;
    transfer(restore, &report.loaded, path, |take| {
        reader.read(&states, take)
    })?;
    Ok(report)
}

impl<R: Read + Seek> Reader<'_, R> {
    /// Reads and checks the header.
    /// `registered` returns whether a parameter of the file is registered with the optimizer.
    fn header(&mut self, registered: impl Fn(&str) -> bool) -> Result<Header, InteropError> {
        let not_safetensors = |message: String| InteropError::NotSafetensors {
            path: self.path.to_owned(),
            source: message.into(),
        };
        let len = self.source.len();
        if len < 8 {
            let message = format!("it has {len} bytes, wanted at least 8");
            return Err(not_safetensors(message));
        }
        let mut bytes = [0; 8];
        self.source.fill(&mut bytes)?;
        let bytes = u64::from_le_bytes(bytes);
        let most = MAX_HEADER.min(len - 8);
        if bytes > most {
            let why = match most {
                MAX_HEADER => String::new(),
                _ => format!(", because the file has {len}"),
            };
            let message = format!("its header has {bytes} bytes, wanted at most {most}{why}");
            return Err(not_safetensors(message));
        }
        self.data = 8 + bytes;
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

    /// Returns a tensor of a parameter, or [`InteropError::MissingTensor`].
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

    /// Returns [`InteropError::WrongTensor`] for a wrong type or shape.
    fn wrong(&self, name: &str, key: &str, info: &TensorInfo, wanted: String) -> InteropError {
        let given = format!("{:?} of shape {:?}", info.dtype, info.shape);
        self.wrong_value(name, key, given, wanted)
    }

    /// Returns [`InteropError::WrongTensor`].
    fn wrong_value(&self, name: &str, key: &str, given: String, wanted: String) -> InteropError {
        InteropError::WrongTensor {
            path: self.path.to_owned(),
            tensor: format!("{name}.{key}"),
            given,
            wanted,
        }
    }

    /// Returns the width and the number of elements of a state.
    fn bits(&self, name: &str, tensors: &Tensors) -> Result<(Bits, u64), InteropError> {
        let info = self.tensor(name, tensors, "state1")?;
        match info.dtype {
            Dtype::U8 => Ok((Bits::Eight, info.elements)),
            Dtype::F32 => Ok((Bits::ThirtyTwo, info.elements)),
            _ => Err(self.wrong(name, "state1", info, "U8 or F32".to_owned())),
        }
    }

    /// Checks the absmax and the codebook of an 8-bit state of `len` elements, and returns the size of its blocks. A
    /// 32-bit state must have neither.
    fn check(
        &mut self,
        name: &str,
        len: usize,
        bits: Bits,
        tensors: &Tensors,
    ) -> Result<Option<usize>, InteropError> {
        if bits == Bits::ThirtyTwo {
            let mut all = tensors.iter();
            return match all.find(|(key, _)| ![STEP, "state1"].contains(key)) {
                None => Ok(None),
                Some((key, info)) => Err(self.wrong(
                    name,
                    key,
                    info,
                    "no such tensor, because state1 is F32".to_owned(),
                )),
            };
        }
        let absmax = self.tensor(name, tensors, "absmax1")?;
        let blocks = [BLOCK, OLD_BLOCK];
        let block = blocks
            .into_iter()
            .find(|&block| absmax.elements == len.div_ceil(block) as u64);
        let (Dtype::F32, Some(block)) = (absmax.dtype, block) else {
            return Err(self.wrong(
                name,
                "absmax1",
                absmax,
                format!("F32 with {} elements", len.div_ceil(BLOCK)),
            ));
        };
        let qmap = self.tensor(name, tensors, QMAP)?;
        if qmap.dtype != Dtype::F32 || qmap.elements != CODEBOOK.len() as u64 {
            return Err(self.wrong(name, QMAP, qmap, "F32 with 256 elements".to_owned()));
        }
        let mut bytes = [0; 4 * CODEBOOK.len()];
        self.source.seek(self.data + qmap.start)?;
        self.source.fill(&mut bytes)?;
        let (words, _) = bytes.as_chunks::<4>();
        let given = words.iter().map(|&word| f32::from_le_bytes(word));
        let mut pairs = given.zip(CODEBOOK).enumerate();
        match pairs.find(|(_, (given, wanted))| given.to_bits() != wanted.to_bits()) {
            None => Ok(Some(block)),
            Some((index, (given, wanted))) => Err(InteropError::Codebook {
                path: self.path.to_owned(),
                tensor: format!("{name}.{QMAP}"),
                index,
                given,
                wanted,
            }),
        }
    }

    /// Reads the step count of a parameter.
    fn steps(&mut self, name: &str, tensors: &Tensors) -> Result<u64, InteropError> {
        let info = self.tensor(name, tensors, STEP)?;
        if info.dtype != Dtype::I64 || info.elements != 1 {
            return Err(self.wrong(name, STEP, info, "I64 with one element".to_owned()));
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

    /// Reads the states of all parameters, checks their numbers, and passes them to `take` in parts.
    fn read(
        &mut self,
        states: &[SavedState],
        take: &mut Take<'_, InteropError>,
    ) -> Result<(), InteropError> {
        let mut buffer = Vec::new();
        for (i, state) in states.iter().enumerate() {
            let planes = planes(state.bits);
            read_state(
                state.conversion,
                planes.len(),
                &mut |plane, part| self.plane(state, planes[plane], &mut buffer, part),
                &mut |plane, at, part| take(i, plane, at, part),
            )?;
        }
        Ok(())
    }

    /// Reads a plane, checks its numbers, and passes it to `take` in parts.
    fn plane(
        &mut self,
        state: &SavedState,
        (key, dtype): (&str, Dtype),
        buffer: &mut Vec<u8>,
        take: &mut Part<'_, InteropError>,
    ) -> Result<(), InteropError> {
        let &TensorInfo { start, end, .. } = self.tensor(&state.name, &state.tensors, key)?;
        // Fits in usize: it is at most four times the number of elements of the parameter, which has at most isize::MAX
        // bytes and at least two per element.
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
                    tensor: format!("{}.{key}", state.name),
                    index: at / 4 + index,
                    given,
                });
            }
            take(at, part)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoadPolicy;
    use lion::{Device, Dtype as ParamType, Lion, ParamSpec};
    use lion_core::Planes;
    use std::io::Cursor;

    const CODES: [u8; 3] = [255, 0, 9];
    const ABSMAX: f32 = 2.5;

    fn header() -> String {
        // The tensors lie in the order step, codebook, absmax, codes, with those of `other` last.
        r#"{"__metadata__":{"format":"pt"},
            "w.state1":{"dtype":"U8","shape":[3],"data_offsets":[1036,1039]},
            "other.step":{"dtype":"I64","shape":[],"data_offsets":[1039,1047]},
            "w.absmax1":{"dtype":"F32","shape":[1],"data_offsets":[1032,1036]},
            "w.qmap1":{"dtype":"F32","shape":[256],"data_offsets":[8,1032]},
            "other.state1":{"dtype":"F32","shape":[0,2],"data_offsets":[1047,1047]},
            "w.step":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}"#
            .to_owned()
    }

    fn file(header: &str) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(&7i64.to_le_bytes());
        file.extend_from_slice(CODEBOOK.map(f32::to_le_bytes).as_flattened());
        file.extend_from_slice(&ABSMAX.to_le_bytes());
        file.extend_from_slice(&CODES);
        file.extend_from_slice(&1i64.to_le_bytes());
        file
    }

    /// Imports a file from memory, without a file system: Miri runs this too.
    fn imported(header: &str) -> Result<(LoadReport, u64, Planes), InteropError> {
        // The default device may load the CUDA driver, which Miri cannot call.
        let builder = Lion::builder().device(Device::Cpu);
        let mut lion = builder.optim_bits(8).min_8bit_size(0).build().unwrap();
        let w = lion
            .register(ParamSpec::new("w", 3, ParamType::F32))
            .unwrap();
        let report = import_from(
            &mut lion,
            Cursor::new(file(header)),
            "memory",
            LoadPolicy::NonStrict,
        )?;
        let state = lion.export_state(w).unwrap();
        Ok((report, state.steps, state.planes))
    }

    #[test]
    fn a_state_is_imported_from_memory() {
        let (report, steps, planes) = imported(&header()).unwrap();
        assert_eq!(
            (report.loaded, report.unexpected),
            (vec!["w".into()], vec!["other".into()])
        );
        assert_eq!(steps, 7);
        let (codes, absmax) = (CODES.to_vec(), vec![ABSMAX]);
        assert_eq!(planes, Planes::Blockwise8 { codes, absmax });
    }

    #[test]
    fn headers_that_do_not_fit_the_data_are_refused() {
        for (from, to, wanted) in [
            (
                "[1036,1039]",
                "[1035,1038]",
                "bytes 1035 to 1036 after the header belong to two tensors",
            ),
            ("[1047,1047]", "[1047,1048]", "wanted start <= end <= 1047"),
            ("other.step", "w.absmax1", "tensor `w.absmax1` occurs twice"),
            (
                "\"U8\"",
                "{\"U8\":0}",
                "invalid type: map, expected the name of a type",
            ),
            ("}}", "}", "EOF"),
        ] {
            let header = header().replace(from, to);
            let error = imported(&header).unwrap_err();
            assert!(
                matches!(error, InteropError::NotSafetensors { .. }),
                "{error:?}"
            );
            assert!(
                error.to_string().contains(wanted),
                "{error}\nwanted: {wanted}"
            );
        }
    }
}
