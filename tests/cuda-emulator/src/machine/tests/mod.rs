//! Runs whole kernels on the machine: checks that invalid kernels are faults, and that valid ones are not.

mod barriers;
mod counts;
mod divergence;
mod memory;
mod races;

use super::{Counts, Kind, Launch, Memory, Program, launch::run_with, run};
use crate::ptx;

/// A device and one kernel, `k`, whose parameters are addresses and 64-bit numbers, loaded into %rd0, %rd1 and so on.
struct Device {
    memory: Memory,
    program: Program,
    text: String,
}

/// The result of a launch: its counts, or the code and the text of its fault.
type Outcome = Result<Counts, (u32, String)>;

impl Device {
    /// Creates a kernel with this body, predicates %p, and registers %r (32 bits), %rd (64 bits), %f and %h (16 bits).
    fn new(params: usize, body: &str) -> Self {
        Self::with("", params, body)
    }

    /// Creates a kernel in a module that declares variables.
    fn with(variables: &str, params: usize, body: &str) -> Self {
        let listed: Vec<String> = (0..params).map(|i| format!(".param .u64 p{i}")).collect();
        let loads: String = (0..params)
            .map(|i| format!("ld.param.u64 %rd{i}, [p{i}];\n"))
            .collect();
        let text = format!(
            ".version 6.0\n.target sm_70\n.address_size 64\n{variables}\n\
             .visible .entry k({})\n{{\n.reg .pred %p<9>;\n.reg .b16 %h<9>;\n.reg .b32 %r<32>;\n\
             .reg .f32 %f<9>;\n.reg .b64 %rd<32>;\n{loads}\n{body}\n}}\n",
            listed.join(", ")
        );
        let memory = Memory::new(1 << 24);
        let module = ptx::Module::parse(&text).expect("PTX");
        let program = Program::load(module, &memory).expect("known instructions");
        Self {
            memory,
            program,
            text,
        }
    }

    /// Returns "line N" for the last line with this text.
    fn line(&self, of: &str) -> String {
        let before = self.text.lines().count();
        let behind = self.text.lines().rev().position(|line| line.contains(of));
        format!("line {}", before - behind.expect("a line with the text"))
    }

    /// Allocates unwritten device memory.
    fn raw(&self, bytes: u64) -> u64 {
        self.memory
            .allocate(bytes, Kind::Device)
            .expect("enough memory")
    }

    /// Allocates device memory with these 32-bit words.
    fn words(&self, words: &[u32]) -> u64 {
        let address = self.raw(4 * words.len() as u64);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory.write(address, &bytes).expect("a valid range");
        address
    }

    fn read(&self, address: u64, words: usize) -> Vec<u32> {
        let mut bytes = vec![0; 4 * words];
        self.memory
            .read(address, &mut bytes)
            .expect("a valid range");
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().map(|word| u32::from_le_bytes(*word)).collect()
    }

    fn launch(&self, grid: u32, block: u32, params: &[u64]) -> Outcome {
        self.launch_on(1, grid, block, params)
    }

    fn launch_on(&self, threads: usize, grid: u32, block: u32, params: &[u64]) -> Outcome {
        self.outcome(grid, block, params, |launch, memory| {
            run(launch, memory, threads)
        })
    }

    /// Launches with a limit on the number of instructions per warp.
    fn launch_within(&self, steps: u64, block: u32) -> Outcome {
        self.outcome(1, block, &[], |launch, memory| {
            run_with(launch, memory, 1, steps)
        })
    }

    fn outcome(
        &self,
        grid: u32,
        block: u32,
        params: &[u64],
        run: impl Fn(&Launch<'_>, &Memory) -> Result<Counts, super::fault::Fault>,
    ) -> Outcome {
        let launch = Launch {
            kernel: self.program.kernel("k").expect("the kernel"),
            grid: [grid, 1, 1],
            block: [block, 1, 1],
            dynamic_shared: 0,
            params: params
                .iter()
                .flat_map(|param| param.to_le_bytes())
                .collect(),
        };
        run(&launch, &self.memory).map_err(|fault| (fault.code(), fault.to_string()))
    }
}

/// Asserts the code of a fault and that its text has all of these parts.
#[track_caller]
fn faults(outcome: Outcome, code: u32, parts: &[impl AsRef<str>]) {
    let (given, text) = outcome.expect_err("a fault");
    assert_eq!(given, code, "{text}");
    for part in parts {
        let part = part.as_ref();
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

/// Sets %r0 to the thread's number in the grid, %r1 to its number in the CTA, and %rd8 to %rd0 + 4 * %r0.
const PLACE: &str = "mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mad.lo.u32 %r0, %r2, %r3, %r1;
    mul.wide.u32 %rd9, %r0, 4;
    add.u64 %rd8, %rd0, %rd9;
";
