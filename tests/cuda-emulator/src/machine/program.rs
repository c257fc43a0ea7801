//! A module that is loaded into the memory of a device: variables with addresses, and decoded kernels.

use super::decode::decode;
use super::memory::{Kind, Memory, MemoryError};
use super::op::Code;
use crate::ptx;
use std::fmt;

/// Why a parsed module cannot be loaded.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// An unknown instruction, or one with unsupported operands.
    Instruction {
        kernel: String,
        line: u32,
        opcode: String,
        why: String,
    },
    /// There is not enough memory for the variables.
    Memory { name: String, source: MemoryError },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instruction {
                kernel,
                line,
                opcode,
                why,
            } => write!(f, "kernel {kernel}, line {line}: {opcode}: {why}"),
            Self::Memory { name, source } => write!(f, "variable {name}: {source}"),
        }
    }
}

/// The position of a kernel's parameter in the parameter buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Param {
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
}

/// A kernel that can be launched.
pub(crate) struct Kernel {
    name: String,
    params: Vec<Param>,
    max_threads: u32,
    required_threads: Option<[u32; 3]>,
    pub(super) code: Code,
}

impl Kernel {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn params(&self) -> &[Param] {
        &self.params
    }

    /// Returns the bytes of static shared memory.
    pub(crate) fn static_shared(&self) -> u32 {
        self.code.shared_bytes as u32
    }

    /// Returns the maximum number of threads per CTA.
    pub(crate) fn max_threads(&self) -> u32 {
        self.max_threads
    }

    /// Returns the required size of a CTA, if the kernel declares one.
    pub(crate) fn required_threads(&self) -> Option<[u32; 3]> {
        self.required_threads
    }
}

struct Variable {
    name: String,
    address: u64,
    bytes: u64,
}

/// A loaded module.
pub(crate) struct Program {
    kernels: Vec<Kernel>,
    variables: Vec<Variable>,
}

impl Program {
    /// Allocates the variables and decodes the kernels.
    ///
    /// # Errors
    ///
    /// [`LoadError`]; no variable stays allocated.
    pub(crate) fn load(module: ptx::Module, memory: &Memory) -> Result<Self, LoadError> {
        let mut program = Self {
            kernels: Vec::new(),
            variables: Vec::new(),
        };
        let loaded = program.fill(&module, memory);
        match loaded {
            Ok(()) => Ok(program),
            Err(error) => {
                program.unload(memory);
                Err(error)
            }
        }
    }

    fn fill(&mut self, module: &ptx::Module, memory: &Memory) -> Result<(), LoadError> {
        for global in module.globals() {
            let failed = |source| LoadError::Memory {
                name: global.name.to_string(),
                source,
            };
            let address = memory
                .allocate_as(global.bytes.max(1), Kind::Device, global.constant)
                .map_err(failed)?;
            self.variables.push(Variable {
                name: global.name.to_string(),
                address,
                bytes: global.bytes,
            });
            memory.fill(address, &[0], global.bytes).map_err(failed)?;
            memory.write(address, &global.initial).map_err(failed)?;
        }
        let addresses: Vec<u64> = self.variables.iter().map(|v| v.address).collect();
        for kernel in module.bodies() {
            let params = kernel.params.iter().map(|param| Param {
                offset: param.offset,
                bytes: param.bytes,
            });
            self.kernels.push(Kernel {
                name: kernel.name.to_string(),
                params: params.collect(),
                max_threads: kernel.max_threads.unwrap_or(1024),
                required_threads: kernel.required_threads,
                code: decode(kernel, &addresses)?,
            });
        }
        Ok(())
    }

    pub(crate) fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// Returns the address and size of a variable.
    pub(crate) fn global(&self, name: &str) -> Option<(u64, u64)> {
        let found = self.variables.iter().find(|v| v.name == name)?;
        Some((found.address, found.bytes))
    }

    /// Frees the variables.
    pub(crate) fn unload(self, memory: &Memory) {
        for variable in self.variables {
            // Cannot fail: every variable of the program is a live allocation.
            let _ = memory.free(variable.address);
        }
    }
}
