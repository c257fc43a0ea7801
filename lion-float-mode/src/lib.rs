//! Runs code in the default floating-point mode of a thread: rounding to nearest, and subnormal numbers kept.
//!
//! The specification of the Lion optimizer assumes this mode, and so does the Rust compiler. A thread of a host
//! in another language may round otherwise, flush subnormal results to zero or read subnormal operands as
//! zero; threads that it starts inherit that. So the mode is set on every thread that computes, for as
//! long as it does.
//!
//! On x86 with SSE this is the register MXCSR, on aarch64 FPCR. On other targets, and under Miri, nothing is
//! set.

use std::marker::PhantomData;

/// MXCSR, which holds the mode of SSE, AVX and AVX-512.
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

    /// Nearest, no flush to zero, subnormal operands kept, exceptions masked.
    pub(super) const DEFAULT: Word = 0x1F80;

    /// Without the flags of exceptions that have happened.
    pub(super) fn mode(word: Word) -> Word {
        word & 0xFFC0
    }

    pub(super) fn read() -> Word {
        let mut word: Word = 0;
        // SAFETY: stores the register into `word`.
        unsafe {
            asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack, preserves_flags));
        }
        word
    }

    /// # Safety
    /// `word` is [`DEFAULT`] or was read on this thread.
    pub(super) unsafe fn write(word: Word) {
        // SAFETY: the compiler assumes the default mode. A word that was read puts back the mode that the
        // thread had before, with no bit set that the processor does not have.
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack));
        }
    }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
mod register {
    use std::arch::asm;

    pub(super) type Word = u64;

    /// Nearest, no flush to zero, IEEE half precision, no traps.
    pub(super) const DEFAULT: Word = 0;

    /// All of it: the flags of exceptions are in another register.
    pub(super) fn mode(word: Word) -> Word {
        word
    }

    pub(super) fn read() -> Word {
        let word: Word;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, fpcr", out(reg) word, options(nostack, preserves_flags)) };
        word
    }

    /// # Safety
    /// `word` is [`DEFAULT`] or was read on this thread.
    pub(super) unsafe fn write(word: Word) {
        // SAFETY: the compiler assumes the default mode. A word that was read puts back the mode that the
        // thread had before.
        unsafe { asm!("msr fpcr, {}", in(reg) word, options(nostack)) };
    }
}

/// A target without a mode, or one whose mode nothing here can set.
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
    /// As elsewhere. It does nothing.
    pub(super) unsafe fn write(_: Word) {}
}

/// The default mode on this thread. Dropped, it restores the mode that was there before.
struct DefaultMode {
    before: register::Word,
    /// It stays on its thread.
    _thread: PhantomData<*const ()>,
}

impl DefaultMode {
    /// Sets the default mode; `None` where the thread has it already.
    fn set() -> Option<Self> {
        let before = register::read();
        if register::mode(before) == register::mode(register::DEFAULT) {
            return None;
        }
        // SAFETY: it is the default.
        unsafe { register::write(register::DEFAULT) };
        Some(DefaultMode {
            before,
            _thread: PhantomData,
        })
    }
}

impl Drop for DefaultMode {
    fn drop(&mut self) {
        // SAFETY: `set` has read it on this thread, which the value cannot leave.
        unsafe { register::write(self.before) };
    }
}

/// Returns what `work` returns in the default mode. Afterwards, also where `work` panics, the thread has the
/// mode that it had before.
///
/// ```
/// let third = lion_float_mode::in_default_mode(|| 1.0f32 / 3.0);
/// assert_eq!(third, 0.333_333_34);
/// ```
pub fn in_default_mode<R>(work: impl FnOnce() -> R) -> R {
    // The compiler may move arithmetic past a change of the mode, but not out of a call.
    #[inline(never)]
    fn call<R>(work: impl FnOnce() -> R) -> R {
        work()
    }

    let _mode = DefaultMode::set();
    call(work)
}
