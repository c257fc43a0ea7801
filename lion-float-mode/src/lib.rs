//! Runs code in the default floating-point mode: round to nearest, without flushing subnormal numbers to
//! zero.
//!
//! The specification of the Lion optimizer and the Rust compiler both assume this mode. A host program in
//! another language may use a different one. It may set another rounding mode, flush subnormal results to
//! zero, or treat subnormal operands as zero, and the threads that it starts inherit its mode. Therefore
//! [`in_default_mode`] sets the mode on each thread that computes, and restores the previous mode
//! afterwards.
//!
//! The mode is in the register MXCSR on x86 with SSE, and in FPCR on aarch64. On other targets, and under
//! Miri, the functions of this crate change nothing.

use std::marker::PhantomData;

/// Access to MXCSR, the register with the mode of SSE, AVX and AVX-512.
#[cfg(all(
    any(
        target_arch = "x86_64",
        all(target_arch = "x86", target_feature = "sse")
    ),
    not(miri)
))]
mod register {
    use std::arch::asm;

    pub(super) type Word = u32;

    /// Round to nearest, no flush to zero, no denormals-are-zero, all exceptions masked.
    pub(super) const DEFAULT: Word = 0x1F80;

    /// Returns the mode bits, without the sticky exception flags.
    pub(super) fn mode(word: Word) -> Word {
        word & 0xFFC0
    }

    pub(super) fn read() -> Word {
        let mut word: Word = 0;
        // SAFETY: This only writes the register to `word`.
        unsafe {
            asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack, preserves_flags));
        }
        word
    }

    /// # Safety
    /// `word` is [`DEFAULT`] or was read on this thread.
    pub(super) unsafe fn write(word: Word) {
        // SAFETY: The compiler assumes the default mode, so setting it is sound. A word that was read on
        // this thread restores the mode that the thread had, and sets no bit that the processor reserves.
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack));
        }
    }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
mod register {
    use std::arch::asm;

    pub(super) type Word = u64;

    /// Round to nearest, no flush to zero, IEEE half precision, no traps.
    pub(super) const DEFAULT: Word = 0;

    /// Returns the mode bits, which are all bits. The exception flags are in another register.
    pub(super) fn mode(word: Word) -> Word {
        word
    }

    pub(super) fn read() -> Word {
        let word: Word;
        // SAFETY: This only reads a register.
        unsafe { asm!("mrs {}, fpcr", out(reg) word, options(nostack, preserves_flags)) };
        word
    }

    /// # Safety
    /// `word` is [`DEFAULT`] or was read on this thread.
    pub(super) unsafe fn write(word: Word) {
        // SAFETY: The compiler assumes the default mode, so setting it is sound. A word that was read on
        // this thread restores the mode that the thread had.
        unsafe { asm!("msr fpcr, {}", in(reg) word, options(nostack)) };
    }
}

/// Stand-in for targets on which this crate does not set the mode.
#[cfg(not(all(
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        all(target_arch = "x86", target_feature = "sse")
    ),
    not(miri)
)))]
mod register {
    pub(super) type Word = u32;
    pub(super) const DEFAULT: Word = 0;

    pub(super) fn mode(word: Word) -> Word {
        word
    }

    pub(super) fn read() -> Word {
        DEFAULT
    }

    /// # Safety
    /// None: it does nothing. It is unsafe because it is on the other targets.
    pub(super) unsafe fn write(_: Word) {}
}

/// A guard that restores the thread's previous mode when dropped.
struct DefaultMode {
    before: register::Word,
    /// Makes the guard neither `Send` nor `Sync`: it must be dropped on its thread.
    _thread: PhantomData<*const ()>,
}

impl DefaultMode {
    /// Sets the default mode. Returns `None` if the thread is already in it.
    fn set() -> Option<Self> {
        let before = register::read();
        if register::mode(before) == register::mode(register::DEFAULT) {
            return None;
        }
        // SAFETY: This is the default.
        unsafe { register::write(register::DEFAULT) };
        Some(DefaultMode {
            before,
            _thread: PhantomData,
        })
    }
}

impl Drop for DefaultMode {
    fn drop(&mut self) {
        // SAFETY: `set` read the word on this thread, and the guard cannot move to another thread.
        unsafe { register::write(self.before) };
    }
}

/// Calls `work` in the default floating-point mode and returns its result. Restores the previous mode of
/// the thread afterwards, even if `work` panics.
///
/// ```
/// let third = lion_float_mode::in_default_mode(|| 1.0f32 / 3.0);
/// assert_eq!(third, 0.333_333_34);
/// ```
pub fn in_default_mode<R>(work: impl FnOnce() -> R) -> R {
    // The compiler may move arithmetic across a change of the mode. It does not move it out of a call that
    // is not inlined.
    #[inline(never)]
    fn call<R>(work: impl FnOnce() -> R) -> R {
        work()
    }

    let _mode = DefaultMode::set();
    call(work)
}
