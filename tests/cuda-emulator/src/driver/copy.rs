//! Copies and memsets, asynchronous and synchronous.
//!
//! As on a real driver, copies between device memories and memsets of device memory are asynchronous even by the functions
//! without "Async". For pageable memory NVIDIA's page "API synchronization behavior" permits two behaviours, which the
//! configuration selects. A copy to the device by the function without "Async" may return as soon as the bytes are staged. A copy
//! by a function with "Async" may be synchronous, or access the pageable memory when the copy runs.

use super::queue::{DEFAULT_STREAM, HostBytes, Place, Work};
use super::state::State;
use super::status::{Outcome, Status};
use super::{Handle, in_context};
use crate::machine::Kind;
use std::ffi::c_void;
use std::slice;

impl State {
    /// Returns the pinned or managed allocation that contains host memory, or `None` for pageable memory.
    fn mapped(&self, host: u64, bytes: usize) -> Outcome<Option<Place>> {
        for (device, known) in self.devices.iter().enumerate() {
            if let Some(around) = known.memory.find(host) {
                let whole = bytes as u64 <= around.bytes - (host - around.start);
                return if around.kind == Kind::Device || !whole {
                    Err(Status::INVALID_VALUE)
                } else {
                    Ok(Some(Place {
                        device,
                        address: host,
                    }))
                };
            }
        }
        Ok(None)
    }

    /// Queues a copy to the device. With `late`, pageable memory is read when the copy runs, otherwise now.
    ///
    /// # Safety
    ///
    /// `from` is null or valid for reads of `bytes` bytes, with `late` until the copy has run.
    unsafe fn upload(
        &mut self,
        context: u64,
        (to, from, bytes): (u64, *const c_void, usize),
        stream: u64,
        late: bool,
    ) -> Outcome<u64> {
        if from.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        let (device, _) = self.range(context, to, bytes)?;
        let to = Place {
            device,
            address: to,
        };
        let work = match self.mapped(from.addr() as u64, bytes)? {
            Some(from) => Work::Copy {
                to,
                from,
                bytes: bytes as u64,
            },
            None if late => Work::LateUpload {
                to,
                from: HostBytes {
                    start: from.cast_mut().cast(),
                    bytes,
                },
            },
            None => Work::Upload {
                to,
                // SAFETY: not null, so valid for the read.
                bytes: unsafe { slice::from_raw_parts(from.cast(), bytes) }.to_vec(),
            },
        };
        self.enqueue(context, stream, work, None)
    }

    /// Copies to the host. Returns the queued operation, or `None` if the copy is complete. Without `late`, a copy to pageable
    /// memory is complete.
    ///
    /// # Safety
    ///
    /// `to` is null or valid for writes of `bytes` bytes, with `late` until the copy has run.
    unsafe fn download(
        &mut self,
        context: u64,
        (to, from, bytes): (*mut c_void, u64, usize),
        stream: u64,
        late: bool,
    ) -> Outcome<Option<u64>> {
        if to.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        let (device, _) = self.range(context, from, bytes)?;
        let place = Place {
            device,
            address: from,
        };
        let queued = match self.mapped(to.addr() as u64, bytes)? {
            Some(to) => Some(Work::Copy {
                to,
                from: place,
                bytes: bytes as u64,
            }),
            None if late => Some(Work::LateDownload {
                to: HostBytes {
                    start: to.cast(),
                    bytes,
                },
                from: place,
            }),
            None => None,
        };
        if let Some(work) = queued {
            return self.enqueue(context, stream, work, None).map(Some);
        }
        self.drain(context, stream)?;
        // Queued work may have freed the range.
        self.range(context, from, bytes)?;
        let (_, memory) = self.memory(context)?;
        // SAFETY: not null, so valid for writes; the bytes of a Vec<u8> or the like, which are initialized.
        let to = unsafe { slice::from_raw_parts_mut(to.cast(), bytes) };
        memory.read(from, to).map_err(|_| Status::INVALID_VALUE)?;
        Ok(None)
    }

    fn between(
        &mut self,
        context: u64,
        (to, from, bytes): (u64, u64, usize),
        stream: u64,
    ) -> Outcome {
        let (device, _) = self.range(context, to, bytes)?;
        self.range(context, from, bytes)?;
        let work = Work::Copy {
            to: Place {
                device,
                address: to,
            },
            from: Place {
                device,
                address: from,
            },
            bytes: bytes as u64,
        };
        self.enqueue(context, stream, work, None)?;
        Ok(())
    }

    fn fill(
        &mut self,
        context: u64,
        to: u64,
        pattern: &[u8],
        count: usize,
        stream: u64,
    ) -> Outcome<Kind> {
        if !to.is_multiple_of(pattern.len() as u64) {
            return Err(Status::INVALID_VALUE);
        }
        let bytes = count
            .checked_mul(pattern.len())
            .ok_or(Status::INVALID_VALUE)?;
        let (device, around) = self.range(context, to, bytes)?;
        let work = Work::Fill {
            to: Place {
                device,
                address: to,
            },
            pattern: pattern.to_vec(),
            count: count as u64,
        };
        self.enqueue(context, stream, work, None)?;
        Ok(around.kind)
    }

    /// A memset of memory that the host can access waits for its completion.
    fn fill_now(&mut self, context: u64, to: u64, pattern: &[u8], count: usize) -> Outcome {
        if count == 0 {
            return Ok(());
        }
        match self.fill(context, to, pattern, count, DEFAULT_STREAM)? {
            Kind::Device => Ok(()),
            Kind::Managed | Kind::Pinned => self.drain(context, DEFAULT_STREAM),
        }
    }

    fn fill_queued(
        &mut self,
        context: u64,
        to: u64,
        pattern: &[u8],
        count: usize,
        stream: Handle,
    ) -> Outcome {
        let stream = self.stream(context, stream)?;
        if count > 0 {
            self.fill(context, to, pattern, count, stream)?;
        }
        Ok(())
    }

    fn finish(&mut self, context: u64, operation: u64) -> Outcome {
        self.run_until(operation);
        self.check(context)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> u32 {
    in_context(|state, context| {
        if bytes == 0 {
            return Ok(());
        }
        let staged = state.config.late_copies && state.mapped(from.addr() as u64, bytes)?.is_none();
        if staged {
            // Waits for the earlier work of the stream, but not for the copy.
            state.drain(context, DEFAULT_STREAM)?;
        }
        // SAFETY: the caller's contract.
        let copy = unsafe { state.upload(context, (to, from, bytes), DEFAULT_STREAM, false) }?;
        if staged {
            return Ok(());
        }
        state.finish(context, copy)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: Handle,
) -> u32 {
    in_context(|state, context| {
        let stream = state.stream(context, stream)?;
        if bytes > 0 {
            // SAFETY: the caller's contract.
            unsafe { state.upload(context, (to, from, bytes), stream, state.config.late_copies) }?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> u32 {
    in_context(|state, context| {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's contract.
        match unsafe { state.download(context, (to, from, bytes), DEFAULT_STREAM, false) }? {
            Some(copy) => state.finish(context, copy),
            None => Ok(()),
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    stream: Handle,
) -> u32 {
    in_context(|state, context| {
        let stream = state.stream(context, stream)?;
        if bytes > 0 {
            // SAFETY: the caller's contract.
            unsafe {
                state.download(context, (to, from, bytes), stream, state.config.late_copies)
            }?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> u32 {
    in_context(|state, context| {
        if bytes == 0 {
            return Ok(());
        }
        state.between(context, (to, from, bytes), DEFAULT_STREAM)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) -> u32 {
    in_context(|state, context| {
        let stream = state.stream(context, stream)?;
        if bytes == 0 {
            return Ok(());
        }
        state.between(context, (to, from, bytes), stream)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> u32 {
    in_context(|state, context| state.fill_now(context, to, &[value], count))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16_v2(to: u64, value: u16, count: usize) -> u32 {
    in_context(|state, context| state.fill_now(context, to, &value.to_le_bytes(), count))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32_v2(to: u64, value: u32, count: usize) -> u32 {
    in_context(|state, context| state.fill_now(context, to, &value.to_le_bytes(), count))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Handle) -> u32 {
    in_context(|state, context| state.fill_queued(context, to, &[value], count, stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: Handle) -> u32 {
    in_context(|state, context| state.fill_queued(context, to, &value.to_le_bytes(), count, stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: Handle) -> u32 {
    in_context(|state, context| state.fill_queued(context, to, &value.to_le_bytes(), count, stream))
}
