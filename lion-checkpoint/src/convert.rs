//! Converts states of a file while they are loaded: to another width, or to blocks of another size.

use lion_core::{BLOCK, Bits};
use lion_quant::{dequantize, quantize};

/// The conversion of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conversion {
    /// The number of elements that share one absmax in the file, a multiple of 256. `None` for a state of 32 bits.
    pub(crate) block: Option<usize>,
    /// The width of the state of the optimizer.
    pub(crate) to: Bits,
}

/// Receives a part of a plane of the file: the byte offset in the plane, and the bytes.
pub(crate) type Part<'a, E> = dyn FnMut(usize, &[u8]) -> Result<(), E> + 'a;

/// Reads the plane with an index and passes it in parts. Each part but the last has a multiple of 8 KiB.
pub(crate) type ReadPlane<'a, E> = dyn FnMut(usize, &mut Part<'_, E>) -> Result<(), E> + 'a;

/// Receives a part of a plane of the optimizer's state: the index of the plane, the byte offset in it, and the bytes.
pub(crate) type WritePart<'a, E> = dyn FnMut(usize, usize, &[u8]) -> Result<(), E> + 'a;

/// The elements that are converted at a time, a multiple of the size of every block.
const ELEMENTS: usize = 1 << 18;

impl Conversion {
    /// Reads a state and passes the converted state to `write`.
    ///
    /// The numbers of an 8-bit state are read first, because each belongs to many codes: they need one byte of
    /// memory per 64 elements. Everything else passes through buffers of a fixed size.
    pub(crate) fn run<E>(
        self,
        read: &mut ReadPlane<'_, E>,
        write: &mut WritePart<'_, E>,
    ) -> Result<(), E> {
        let mut buffers = Buffers::default();
        let Some(block) = self.block else {
            return read(0, &mut |at, part| {
                buffers.momentum.clear();
                buffers.momentum.extend(floats(part));
                buffers.write(self.to, at / 4, write)
            });
        };
        let mut absmax = Vec::new();
        read(1, &mut |_, part| {
            absmax.extend(floats(part));
            Ok(())
        })?;
        read(0, &mut |at, part| {
            for (i, codes) in part.chunks(ELEMENTS).enumerate() {
                let first = at + i * ELEMENTS;
                buffers.dequantize(codes, first, &absmax, block);
                buffers.write(self.to, first, write)?;
            }
            Ok(())
        })
    }
}

/// The buffers of a conversion.
#[derive(Default)]
struct Buffers {
    momentum: Vec<f32>,
    codes: Vec<u8>,
    absmax: Vec<f32>,
    bytes: Vec<u8>,
}

impl Buffers {
    /// Sets `momentum` to the elements of `codes`, whose first element has the index `first`.
    fn dequantize(&mut self, codes: &[u8], first: usize, absmax: &[f32], block: usize) {
        // One absmax per block of 256 elements, so that blocks of any size have one definition.
        let blocks = first / BLOCK..(first + codes.len()).div_ceil(BLOCK);
        self.absmax.clear();
        self.absmax
            .extend(blocks.map(|it| absmax[it / (block / BLOCK)]));
        self.momentum.resize(codes.len(), 0.0);
        let done = dequantize(codes, &self.absmax, &mut self.momentum);
        debug_assert!(done.is_ok(), "the buffers have the lengths of the codes");
    }

    /// Passes `momentum`, whose first element has the index `first`, to `write` as a state of a width.
    fn write<E>(&mut self, to: Bits, first: usize, write: &mut WritePart<'_, E>) -> Result<(), E> {
        let momentum = &self.momentum;
        if to != Bits::Eight {
            to_bytes(momentum, &mut self.bytes);
            return write(0, 4 * first, &self.bytes);
        }
        self.codes.resize(momentum.len(), 0);
        self.absmax.resize(momentum.len().div_ceil(BLOCK), 0.0);
        if quantize(momentum, &mut self.codes, &mut self.absmax, None).is_err() {
            // A number is not finite. The reader of the plane returns the error, after the last part: a wrong
            // checksum says more about the damage than the number does.
            return Ok(());
        }
        write(0, first, &self.codes)?;
        to_bytes(&self.absmax, &mut self.bytes);
        write(1, first / BLOCK * 4, &self.bytes)
    }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|&word| f32::from_le_bytes(word))
}

fn to_bytes(floats: &[f32], bytes: &mut Vec<u8>) {
    bytes.resize(4 * floats.len(), 0);
    let (words, _) = bytes.as_chunks_mut::<4>();
    for (word, x) in words.iter_mut().zip(floats) {
        *word = x.to_le_bytes();
    }
}

/// Reads all planes of a state, and passes them to `write` as they are or converted.
pub(crate) fn read_state<E>(
    conversion: Option<Conversion>,
    planes: usize,
    read: &mut ReadPlane<'_, E>,
    write: &mut WritePart<'_, E>,
) -> Result<(), E> {
    match conversion {
        Some(conversion) => conversion.run(read, write),
        None => {
            (0..planes).try_for_each(|plane| read(plane, &mut |at, part| write(plane, at, part)))
        }
    }
}
