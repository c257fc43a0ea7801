//! Saves that are written by a thread while the training goes on.
//!
//! Everything that a save writes is copied before [`save_async`] returns, so that no later step changes it: to memory, or,
//! for paged states, which may not fit in memory, to the new file.

use super::contents::Save;
use super::disk::{Disk, Os};
use super::error::CheckpointError;
use super::plan::{Origin, Plan};
use super::replace::{Replacement, failed};
use super::source::PART;
use super::write::{failed_at, read, write_index, write_plane, write_planes};
use lion_core::{Handle, Optimizer};
use std::fmt;
use std::io::{self, Seek, SeekFrom};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

/// What [`save_async`] does if the save before it is still running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenSaving {
    /// Waits until the running save has ended. Its result goes to its own handle.
    #[default]
    Wait,
    /// Returns [`CheckpointError::StillSaving`].
    Refuse,
}

/// The place of one save at a time that is written by a thread. `Lion` has one; whoever uses an
/// [`Optimizer`] directly keeps one beside it.
#[derive(Default)]
pub struct Background(Mutex<Weak<Shared>>);

impl Background {
    /// Waits until the running save, if there is one, has ended. Its result goes to its own handle.
    pub fn wait(&self) {
        let running = lock(&self.0).upgrade();
        if let Some(running) = running {
            running.wait();
        }
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let saving = lock(&self.0).upgrade().is_some_and(|it| !it.has_ended());
        f.debug_struct("Background")
            .field("saving", &saving)
            .finish()
    }
}

/// A save that a thread writes. Dropping it waits until the save has ended, and discards its result.
#[derive(Debug)]
#[must_use = "dropping it waits until the save has ended, and discards its error; keep it and call `wait`"]
pub struct SaveHandle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<u64, CheckpointError>>>,
}

/// The progress of a save.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// The number of bytes written.
    written: AtomicU64,
    /// The size of the file in bytes, or 0 before it is known.
    total: AtomicU64,
    ended: Mutex<bool>,
    end: Condvar,
}

impl Shared {
    fn has_ended(&self) -> bool {
        *lock(&self.ended)
    }

    fn wait(&self) {
        let ended = self.end.wait_while(lock(&self.ended), |ended| !*ended);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Tells all who wait that a save has ended, also if its thread panics.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        *lock(&self.0.ended) = true;
        self.0.end.notify_all();
    }
}

/// Locks a mutex. What it guards is consistent even if a thread has panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SaveHandle {
    /// Waits until the save has ended, and returns the size of the file in bytes.
    ///
    /// # Errors
    /// The errors of [`save`](super::save). The previous file is kept, except after [`CheckpointError::NotDurable`]. A
    /// save by a [`Rotation`](crate::Rotation) may also return [`CheckpointError::Io`] because another checkpoint could
    /// not be removed; then the new one is saved.
    pub fn wait(mut self) -> Result<u64, CheckpointError> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            // `thread` is taken only here and by the drop.
            Some(Err(_)) | None => {
                let source = io::Error::other("the thread that writes it has panicked");
                Err(failed("write", &self.shared.path, source))
            }
        }
    }

    /// Returns whether the save has ended, with or without an error.
    pub fn has_ended(&self) -> bool {
        self.shared.has_ended()
    }

    /// Returns the number of bytes written, and the size of the file in bytes. When all bytes are written, the file is
    /// still to be synced.
    pub fn progress(&self) -> (u64, u64) {
        let Shared { written, total, .. } = &*self.shared;
        (
            written.load(Ordering::Relaxed),
            total.load(Ordering::Relaxed),
        )
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }
}

impl Drop for SaveHandle {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Saves an optimizer, and what `save` adds to it, to a file as [`save_with`](super::save_with) does, with a thread that
/// writes the file. Returns when everything that is to be written is copied, so that the next steps do not change it.
///
/// States, values and sections are copied to memory. Paged states, which may not fit in memory, are copied to the new
/// file. The copies are freed when they are written.
///
/// Only one save at a time runs in a [`Background`]. If one is running, `when` decides what happens. A save to the same
/// path that does not go through this `background` must wait for the handle first, because the older copy would replace
/// the newer file. `Lion::save` and `Lion::save_with` wait.
///
/// ```
/// use lion::{Dtype, Lion8bit, ParamSpec, checkpoint::{Save, WhenSaving}};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("run.lion");
/// let (mut weight, grad) = (vec![1.0f32; 8192], vec![0.5f32; 8192]);
/// let mut lion = Lion8bit::builder().build()?;
/// let w = lion.register(ParamSpec::new("weight", 8192, Dtype::F32))?;
/// lion.step([(w, &mut weight, &grad)])?;
///
/// let saving = lion.save_async(&path, &Save::new().param("weight", &weight), WhenSaving::Wait)?;
/// lion.step([(w, &mut weight, &grad)])?; // does not change what is written
/// let bytes = saving.wait()?;
/// assert_eq!(std::fs::metadata(&path)?.len(), bytes);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// - [`CheckpointError::StillSaving`], if `when` is [`WhenSaving::Refuse`].
/// - Those of [`save_with`](super::save_with) that are found before the thread begins: for values that the format cannot
///   hold, a state that cannot be read, and a file that cannot be created. The others are returned by
///   [`SaveHandle::wait`].
pub fn save_async(
    optimizer: &impl AsRef<Optimizer>,
    background: &Background,
    path: impl AsRef<Path>,
    save: &Save<'_>,
    when: WhenSaving,
) -> Result<SaveHandle, CheckpointError> {
    let path = path.as_ref();
    let own = path.file_name().unwrap_or_default().as_encoded_bytes();
    let is_own = |name: &[u8]| name == own;
    start(
        optimizer.as_ref(),
        background,
        path,
        save,
        when,
        is_own,
        || Ok(()),
    )
}

/// Does what [`save_async`] does. `is_own` accepts the names of files whose leftovers are removed, and `then` is called
/// when the file is in place.
pub(super) fn start(
    optimizer: &Optimizer,
    background: &Background,
    path: &Path,
    save: &Save<'_>,
    when: WhenSaving,
    is_own: impl Fn(&[u8]) -> bool,
    then: impl FnOnce() -> Result<(), CheckpointError> + Send + 'static,
) -> Result<SaveHandle, CheckpointError> {
    let shared = reserve(background, path, when)?;
    // Also if the rest fails, others need not wait.
    let end = End(shared.clone());
    let prepared = Prepared::of(&Os, optimizer, save, path, is_own, is_paged)?;
    let total = prepared.plan.file_bytes();
    shared.total.store(total, Ordering::Relaxed);
    let thread = thread::Builder::new().name("lion save".to_owned());
    let thread = thread.spawn(move || {
        let written = prepared.write(&end.0.written)?;
        then()?;
        Ok(written)
    });
    let thread = thread.map_err(|source| failed("start a thread to write", path, source))?;
    Ok(SaveHandle {
        shared,
        thread: Some(thread),
    })
}

/// Waits for the running save or refuses, and takes the place of a save. The lock is held only for a moment.
fn reserve(
    background: &Background,
    path: &Path,
    when: WhenSaving,
) -> Result<Arc<Shared>, CheckpointError> {
    loop {
        let running = {
            let mut place = lock(&background.0);
            match place.upgrade().filter(|running| !running.has_ended()) {
                Some(running) => running,
                None => {
                    let shared = Arc::new(Shared {
                        path: path.to_owned(),
                        written: AtomicU64::new(0),
                        total: AtomicU64::new(0),
                        ended: Mutex::new(false),
                        end: Condvar::new(),
                    });
                    *place = Arc::downgrade(&shared);
                    return Ok(shared);
                }
            }
        };
        if when == WhenSaving::Refuse {
            let path = running.path.clone();
            return Err(CheckpointError::StillSaving { path });
        }
        running.wait();
    }
}

/// Returns whether the state of a parameter is paged.
fn is_paged(optimizer: &Optimizer, handle: Handle) -> bool {
    optimizer.info(handle).is_ok_and(|info| info.paged)
}

/// A save of which everything is copied.
pub(super) struct Prepared<D: Disk> {
    plan: Plan,
    planes: Vec<Copied>,
    replacement: Replacement<D>,
    path: PathBuf,
}

/// The copy of a plane.
enum Copied {
    /// In memory.
    Bytes(Vec<u8>),
    /// In the new file, with its checksums in the plan.
    Written,
}

impl<D: Disk> Prepared<D> {
    /// Copies everything. The states of the parameters that `is_large` accepts are copied to the new file.
    pub(super) fn of(
        disk: &D,
        optimizer: &Optimizer,
        save: &Save<'_>,
        path: &Path,
        is_own: impl Fn(&[u8]) -> bool,
        is_large: impl Fn(&Optimizer, Handle) -> bool,
    ) -> Result<Self, CheckpointError> {
        let (mut plan, origins) = Plan::of(optimizer, save, path)?;
        let mut replacement = Replacement::begin(disk, path, is_own)?;
        let places = plan.planes.clone();
        let mut planes: Vec<_> = places.iter().map(|_| Copied::Written).collect();
        let all = places.iter().zip(&origins).zip(plan.checksums());
        replacement.write(|writer| {
            let mut buffer = Vec::new();
            for (i, ((place, origin), checksums)) in all.enumerate() {
                let Origin::State { handle, .. } = origin else {
                    planes[i] = Copied::Bytes(Vec::new());
                    continue;
                };
                if !is_large(optimizer, *handle) {
                    planes[i] = Copied::Bytes(Vec::new());
                    continue;
                }
                let moved = writer.seek(SeekFrom::Start(place.offset));
                moved.map_err(failed_at(path))?;
                let read = |offset, part: &mut [u8]| read(optimizer, origin, offset, part, path);
                write_plane(writer, path, place.bytes, checksums, &mut buffer, read)?;
            }
            let rewound = writer.rewind();
            rewound.map_err(failed_at(path))
        })?;
        for ((plane, place), origin) in planes.iter_mut().zip(&places).zip(&origins) {
            if let Copied::Bytes(bytes) = plane {
                *bytes = copy(optimizer, origin, place.bytes as usize, path)?;
            }
        }
        Ok(Prepared {
            plan,
            planes,
            replacement,
            path: path.to_owned(),
        })
    }

    /// Writes what is not yet in the new file, and puts the file in place. Adds to `written` while it writes.
    pub(super) fn write(self, written: &AtomicU64) -> Result<u64, CheckpointError> {
        let Prepared {
            mut plan,
            mut planes,
            mut replacement,
            path,
        } = self;
        let places = plan.planes.clone();
        let mut buffer = Vec::new();
        let total = replacement.write(|writer| {
            write_planes(
                &mut plan,
                writer,
                &path,
                |writer, plane, bytes, checksums| {
                    match std::mem::replace(&mut planes[plane], Copied::Written) {
                        Copied::Written => {
                            let end = SeekFrom::Start(places[plane].offset + bytes);
                            let moved = writer.seek(end);
                            moved.map_err(failed_at(&path))?;
                            written.fetch_add(bytes, Ordering::Relaxed);
                            Ok(())
                        }
                        // Freed when it is written.
                        Copied::Bytes(copy) => {
                            let read = |offset: usize, part: &mut [u8]| {
                                part.copy_from_slice(&copy[offset..offset + part.len()]);
                                written.fetch_add(part.len() as u64, Ordering::Relaxed);
                                Ok(())
                            };
                            write_plane(writer, &path, bytes, checksums, &mut buffer, read)
                        }
                    }
                },
            )?;
            write_index(&plan, writer, &path)
        })?;
        written.store(total, Ordering::Relaxed);
        replacement.finish(total)
    }
}

/// Copies a plane to memory. The time of a large copy is that of the first writes to new memory, so that several threads
/// share it.
fn copy(
    optimizer: &Optimizer,
    origin: &Origin<'_>,
    bytes: usize,
    path: &Path,
) -> Result<Vec<u8>, CheckpointError> {
    /// The smallest number of bytes for a thread.
    const SHARE: usize = 4 * PART;

    let mut copy = vec![0; bytes];
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = threads.min(4).min(bytes / SHARE);
    if threads < 2 {
        read(optimizer, origin, 0, &mut copy, path)?;
        return Ok(copy);
    }
    // Parts of whole numbers.
    let share = bytes.div_ceil(threads).next_multiple_of(PART);
    thread::scope(|scope| {
        let parts = copy.chunks_mut(share).enumerate();
        let threads: Vec<_> = parts
            .map(|(i, part)| scope.spawn(move || read(optimizer, origin, i * share, part, path)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            let panicked = |_| {
                let source = io::Error::other("a thread that copies a state has panicked");
                Err(failed("save", path, source))
            };
            thread.join().unwrap_or_else(panicked)
        })
    })?;
    Ok(copy)
}
