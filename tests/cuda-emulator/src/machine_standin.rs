//! Stand-in.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::all,
    clippy::unwrap_used
)]
use std::{collections::BTreeMap, fmt, sync::Mutex};
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Device,
    Managed,
    Pinned,
}
#[derive(Clone, Copy)]
pub struct Allocation {
    pub start: u64,
    pub bytes: u64,
    pub kind: Kind,
}
struct Block {
    kind: Kind,
    data: Vec<u8>,
}
pub struct Memory {
    blocks: Mutex<(u64, BTreeMap<u64, Block>)>,
    capacity: u64,
}
#[derive(Debug)]
pub struct MemoryError;
impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}
impl Memory {
    pub fn new(capacity: u64) -> Self {
        Memory {
            blocks: Mutex::new((0x7100_0000_0000_0000 >> 8, BTreeMap::new())),
            capacity,
        }
    }
    pub fn allocate(&self, bytes: u64, kind: Kind) -> Result<u64, MemoryError> {
        if self.used() + bytes > self.capacity {
            return Err(MemoryError);
        }
        let mut b = self.blocks.lock().unwrap();
        let data = vec![0xA5; bytes as usize];
        let at = if kind == Kind::Device {
            b.0 += (bytes + 1023) / 512 * 512;
            b.0 - (bytes + 1023) / 512 * 512
        } else {
            data.as_ptr() as u64
        };
        b.1.insert(at, Block { kind, data });
        Ok(at)
    }
    pub fn free(&self, a: u64) -> Result<(), MemoryError> {
        self.blocks
            .lock()
            .unwrap()
            .1
            .remove(&a)
            .map(drop)
            .ok_or(MemoryError)
    }
    pub fn find(&self, a: u64) -> Option<Allocation> {
        let b = self.blocks.lock().unwrap();
        let (s, k) = b.1.range(..=a).next_back()?;
        (a < s + k.data.len() as u64).then(|| Allocation {
            start: *s,
            bytes: k.data.len() as u64,
            kind: k.kind,
        })
    }
    fn with<T>(&self, a: u64, n: u64, f: impl FnOnce(&mut [u8]) -> T) -> Result<T, MemoryError> {
        let mut b = self.blocks.lock().unwrap();
        let (s, k) = b.1.range_mut(..=a).next_back().ok_or(MemoryError)?;
        let o = (a - s) as usize;
        Ok(f(k.data.get_mut(o..o + n as usize).ok_or(MemoryError)?))
    }
    pub fn write(&self, a: u64, d: &[u8]) -> Result<(), MemoryError> {
        self.with(a, d.len() as u64, |t| t.copy_from_slice(d))
    }
    pub fn read(&self, a: u64, d: &mut [u8]) -> Result<(), MemoryError> {
        self.with(a, d.len() as u64, |t| d.copy_from_slice(t))
    }
    pub fn fill(&self, a: u64, p: &[u8], n: u64) -> Result<(), MemoryError> {
        self.write(a, &p.repeat(n as usize))
    }
    pub fn copy(&self, to: u64, from: u64, n: u64) -> Result<(), MemoryError> {
        let mut v = vec![0; n as usize];
        self.read(from, &mut v)?;
        self.write(to, &v)
    }
    pub fn used(&self) -> u64 {
        self.blocks
            .lock()
            .unwrap()
            .1
            .values()
            .map(|b| b.data.len() as u64)
            .sum()
    }
    pub fn capacity(&self) -> u64 {
        self.capacity
    }
}
pub struct Param {
    pub offset: u32,
    pub bytes: u32,
}
pub struct Kernel {
    name: String,
    params: Vec<Param>,
}
impl Kernel {
    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn params(&self) -> &[Param] {
        &self.params
    }
    pub fn static_shared(&self) -> u32 {
        0
    }
    pub fn max_threads(&self) -> u32 {
        1024
    }
}
pub struct Program {
    kernels: Vec<Kernel>,
    globals: Vec<(String, u64, u64)>,
}
#[derive(Debug)]
pub struct LoadError;
impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("load")
    }
}
impl Program {
    pub fn load(m: crate::ptx::Module, memory: &Memory) -> Result<Program, LoadError> {
        let kernels = m
            .kernels
            .iter()
            .map(|(n, c)| Kernel {
                name: n.clone(),
                params: (0..*c as u32)
                    .map(|i| Param {
                        offset: 8 * i,
                        bytes: 8,
                    })
                    .collect(),
            })
            .collect();
        let globals = m
            .globals
            .iter()
            .map(|g| {
                let a = memory.allocate(g.bytes, Kind::Device).unwrap();
                memory.fill(a, &[7, 0, 0, 0], 1).unwrap();
                (g.name.clone(), a, g.bytes)
            })
            .collect();
        Ok(Program { kernels, globals })
    }
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.globals
            .iter()
            .find(|g| g.0 == name)
            .map(|g| (g.1, g.2))
    }
    pub fn unload(self, memory: &Memory) {
        for g in self.globals {
            memory.free(g.1).unwrap();
        }
    }
}
pub struct Launch<'a> {
    pub kernel: &'a Kernel,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    pub params: Vec<u8>,
}
#[derive(Default)]
pub struct Counts {
    pub instructions: u64,
    pub warp_instructions: u64,
    pub by_kind: BTreeMap<&'static str, u64>,
    pub loaded_bytes: u64,
    pub stored_bytes: u64,
    pub sectors_touched: u64,
    pub sectors_needed: u64,
    pub threads: u64,
}
pub struct Fault(String);
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl Fault {
    pub fn code(&self) -> u32 {
        700
    }
}
pub fn run(l: &Launch<'_>, memory: &Memory, _threads: usize) -> Result<Counts, Fault> {
    let word = |i: usize| u64::from_le_bytes(l.params[8 * i..8 * i + 8].try_into().unwrap());
    let n = l
        .grid
        .iter()
        .chain(&l.block)
        .map(|v| u64::from(*v))
        .product::<u64>();
    for i in 0..n {
        let mut b = [0; 4];
        if l.kernel.name() == "increment" {
            memory
                .read(word(1) + 4 * i, &mut b)
                .map_err(|_| Fault(format!("{}: load", l.kernel.name())))?;
            b = (u32::from_le_bytes(b) + 1).to_le_bytes();
        } else {
            b = (word(1) as u32).to_le_bytes();
        }
        memory.write(word(0) + 4 * i, &b).map_err(|_| {
            Fault(format!(
                "{}: store at {:#x}",
                l.kernel.name(),
                word(0) + 4 * i
            ))
        })?;
    }
    Ok(Counts {
        stored_bytes: 4 * n,
        threads: n,
        by_kind: [("st.global.u32", n)].into(),
        ..Counts::default()
    })
}
