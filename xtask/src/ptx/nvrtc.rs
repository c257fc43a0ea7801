//! Bindings to NVRTC, NVIDIA's run-time compiler.
#![allow(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use libloading::{Library, Symbol};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;

/// The loaded library.
pub(super) struct Nvrtc {
    library: Library,
}

impl Nvrtc {
    pub(super) fn open(path: &Path) -> Result<Self> {
        // SAFETY: loading runs the initializers of NVIDIA's compiler, which have no preconditions.
        let library = unsafe { Library::new(path) }
            .with_context(|| format!("cannot load {}", path.display()))?;
        Ok(Nvrtc { library })
    }

    /// Compiles a source to PTX. `headers` are the name and the text of its includes.
    pub(super) fn compile(
        &self,
        name: &str,
        source: &str,
        headers: &[(String, String)],
        options: &[&str],
    ) -> Result<String> {
        let (name_c, source) = (CString::new(name)?, CString::new(source)?);
        let names = c_strings(headers.iter().map(|(name, _)| name.as_str()))?;
        let texts = c_strings(headers.iter().map(|(_, text)| text.as_str()))?;
        let options = c_strings(options.iter().copied())?;
        let (names, texts, options) = (pointers(&names), pointers(&texts), pointers(&options));

        let create: Symbol<'_, Create> = self.symbol("nvrtcCreateProgram")?;
        let compile: Symbol<'_, Compile> = self.symbol("nvrtcCompileProgram")?;
        let destroy: Symbol<'_, Destroy> = self.symbol("nvrtcDestroyProgram")?;
        let mut program = ptr::null_mut();
        // SAFETY: the strings and the two arrays of `names.len()` pointers to strings outlive the
        // call, which copies them. `program` is valid for writing the handle.
        let code = unsafe {
            create(
                &mut program,
                source.as_ptr(),
                name_c.as_ptr(),
                c_int::try_from(names.len())?,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        self.check(code, "nvrtcCreateProgram")?;
        let compiled = (|| {
            // SAFETY: `program` is the handle created above. The options are an array of strings
            // that outlives the call.
            let code =
                unsafe { compile(program, c_int::try_from(options.len())?, options.as_ptr()) };
            let log = self.text(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")?;
            if code != 0 {
                bail!("{name} does not compile ({}):\n{log}", self.message(code)?);
            }
            // A warning indicates a mistake in the kernels.
            ensure!(
                log.trim().is_empty(),
                "{name} compiles with warnings:\n{log}"
            );
            self.text(program, "nvrtcGetPTXSize", "nvrtcGetPTX")
        })();
        // SAFETY: the handle is not used again.
        let code = unsafe { destroy(&mut program) };
        let compiled = compiled?;
        self.check(code, "nvrtcDestroyProgram")?;
        Ok(compiled)
    }

    /// Returns one of the texts of a program, given the functions that return its size and its
    /// content.
    fn text(&self, program: Program, size_of: &str, get: &str) -> Result<String> {
        let size: Symbol<'_, Size> = self.symbol(size_of)?;
        let text: Symbol<'_, Text> = self.symbol(get)?;
        let mut bytes = 0;
        // SAFETY: `program` is a live handle, and `bytes` is valid for writing the size.
        self.check(unsafe { size(program, &mut bytes) }, size_of)?;
        let mut buffer = vec![0u8; bytes];
        // SAFETY: `buffer` has the size that the library requires.
        self.check(unsafe { text(program, buffer.as_mut_ptr().cast()) }, get)?;
        let text =
            CStr::from_bytes_until_nul(&buffer).with_context(|| format!("{get} gave no text"))?;
        Ok(text.to_str()?.to_string())
    }

    fn check(&self, code: c_int, function: &str) -> Result<()> {
        if code != 0 {
            bail!("{function} failed: {}", self.message(code)?);
        }
        Ok(())
    }

    fn message(&self, code: c_int) -> Result<String> {
        let error_string: Symbol<'_, ErrorString> = self.symbol("nvrtcGetErrorString")?;
        // SAFETY: every code has a string, which is static.
        let text = unsafe { CStr::from_ptr(error_string(code)) };
        Ok(text.to_string_lossy().into_owned())
    }

    /// Returns a function of the library. `T` is its type in nvrtc.h, one of the aliases above.
    fn symbol<T>(&self, name: &str) -> Result<Symbol<'_, T>> {
        // SAFETY: each call names a function together with the alias that has its declaration in nvrtc.h.
        unsafe { self.library.get(name.as_bytes()) }
            .with_context(|| format!("the compiler has no {name}"))
    }
}

fn c_strings<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<CString>> {
    Ok(texts.map(CString::new).collect::<Result<_, _>>()?)
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}
