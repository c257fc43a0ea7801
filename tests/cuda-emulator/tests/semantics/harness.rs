//! Writes a kernel of one instruction, runs it over the cases of a table and compares bits.

use crate::api::*;
use std::ffi::CString;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An expected result that may be any NaN, because the manual does not specify the bits.
pub(crate) const ANY_NAN: u64 = 0xdead_beef_0bad_f00d;

/// Threads per block in the kernels of tables: two warps, of which the last may be partial.
const BLOCK: usize = 64;

/// Locks the driver from a launch until the text of its fault is read, because the emulator keeps only the last fault of all
/// contexts.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `body` in a kernel with the arrays `in` and `out` of 64-bit words. `out` has `outputs` zeros. The body can use their
/// addresses `%in` and `%out`, the thread's number in its block `%tid` and in the grid `%i`, and 16 registers of each kind,
/// numbered from 0: `%a` to `%d` (32 bits), `%x` to `%z` (64 bits), `%h` (16 bits), and the predicates `%p` and `%q`.
pub(crate) fn run(
    body: &str,
    grid: usize,
    block: usize,
    input: &[u64],
    outputs: usize,
) -> Vec<u64> {
    match try_run(body, grid, block, input, outputs) {
        Ok(output) => output,
        Err(text) => panic!("{text}\n{body}"),
    }
}

/// Does the same as [`run`], but returns the code and the text of a fault.
pub(crate) fn try_run(
    body: &str,
    grid: usize,
    block: usize,
    input: &[u64],
    outputs: usize,
) -> Result<Vec<u64>, String> {
    let text = format!(
        "{HEAD}.visible .entry test(.param .u64 in, .param .u64 out) {{\n{REGISTERS}{body}\nret;\n}}\n"
    );
    launch_test(&text, grid, block, input, outputs)
}

pub(crate) const HEAD: &str = ".version 6.0\n.target sm_70\n.address_size 64\n";

const REGISTERS: &str = "\
.reg .b16 %h<16>;
.reg .b32 %a<16>, %b<16>, %c<16>, %d<16>, %tid, %i;
.reg .f32 %f<16>;
.reg .b64 %x<16>, %y<16>, %z<16>, %in, %out;
.reg .pred %p<16>, %q<16>;
ld.param.u64 %in, [in];
ld.param.u64 %out, [out];
mov.u32 %tid, %tid.x;
mov.u32 %i, %ctaid.x;
mov.u32 %a0, %ntid.x;
mul.lo.u32 %i, %i, %a0;
add.u32 %i, %i, %tid;
";

/// Runs the kernel `test` of a PTX text, which takes the addresses of `in` and `out`.
pub(crate) fn launch_test(
    text: &str,
    grid: usize,
    block: usize,
    input: &[u64],
    outputs: usize,
) -> Result<Vec<u64>, String> {
    let _alone = alone();
    let context = Context::new();
    let image = CString::new(text).expect("no NUL");
    let (mut module, mut function) = (null_mut(), null_mut());
    let mut log = vec![0_u8; 500];
    let mut options = [
        log.as_mut_ptr().cast(),
        std::ptr::without_provenance_mut(500),
    ];
    // CU_JIT_ERROR_LOG_BUFFER and its size.
    let numbers = [5, 6];
    // SAFETY: there are two options with two values, and the text ends with NUL.
    let code = unsafe {
        let (numbers, options) = (numbers.as_ptr(), options.as_mut_ptr());
        cuModuleLoadDataEx(&mut module, image.as_ptr().cast(), 2, numbers, options)
    };
    if code != 0 {
        let written = options[1].addr().saturating_sub(1);
        return Err(String::from_utf8_lossy(&log[..written]).into_owned());
    }
    ok!(cuModuleGetFunction(&mut function, module, c"test".as_ptr()));
    let mut in_address = context.alloc(8 * input.len().max(1));
    let mut out_address = context.alloc(8 * outputs.max(1));
    if !input.is_empty() {
        ok!(cuMemcpyHtoD_v2(
            in_address,
            input.as_ptr().cast(),
            8 * input.len()
        ));
    }
    ok!(cuMemsetD8_v2(out_address, 0, 8 * outputs.max(1)));
    let mut params = [(&raw mut in_address).cast(), (&raw mut out_address).cast()];
    let (grid, block) = (grid as u32, block as u32);
    ok!(cuLaunchKernel(
        function,
        grid,
        1,
        1,
        block,
        1,
        1,
        0,
        DEFAULT_STREAM,
        params.as_mut_ptr(),
        null_mut()
    ));
    // SAFETY: the function has no parameters.
    let code = unsafe { cuCtxSynchronize() };
    if code != 0 {
        return Err(format!("{code}: {}", text_of(lionEmulatorLastFault)));
    }
    let mut output = vec![0_u64; outputs];
    if outputs > 0 {
        ok!(cuMemcpyDtoH_v2(
            output.as_mut_ptr().cast(),
            out_address,
            8 * outputs
        ));
    }
    Ok(output)
}

/// The types of the results and operands of an instruction.
struct Signature<'a> {
    results: Vec<&'a str>,
    operands: Vec<&'a str>,
}

impl<'a> Signature<'a> {
    /// Parses a signature such as `"f32 = f32 f32"` or `"pred|pred = s32 s32"`.
    fn of(text: &'a str) -> Self {
        let (results, operands) = text.split_once('=').expect("results = operands");
        Self {
            results: results.trim().split('|').collect(),
            operands: operands.split_whitespace().collect(),
        }
    }

    fn declarations(&self) -> String {
        let mut text = String::new();
        for (place, types) in [("r", &self.results), ("o", &self.operands)] {
            for (index, ty) in types.iter().enumerate() {
                text += &format!(".reg .{} %{place}{index};\n", register_type(ty));
            }
        }
        text
    }

    /// Returns the instruction. Its last operand is `last`, if given. Text after the opcode follows the operands.
    fn instruction(&self, opcode: &str, last: Option<&str>) -> String {
        let (opcode, tail) = opcode.split_once(' ').unwrap_or((opcode, ""));
        let results: Vec<_> = (0..self.results.len()).map(|r| format!("%r{r}")).collect();
        let mut operands: Vec<_> = (0..self.operands.len()).map(|o| format!("%o{o}")).collect();
        if let (Some(last), Some(place)) = (last, operands.last_mut()) {
            last.clone_into(place);
        }
        operands.insert(0, results.join("|"));
        if !tail.is_empty() {
            operands.push(tail.to_owned());
        }
        format!("{opcode} {};\n", operands.join(", "))
    }
}

/// Returns the register type for a type. Registers have at least 16 bits, and half-precision floats are untyped bits.
fn register_type(ty: &str) -> &str {
    match ty {
        "b8" | "u8" | "s8" | "f16" => "b16",
        other => other,
    }
}

fn bits_of(ty: &str) -> usize {
    match ty {
        "pred" => 1,
        _ => ty[1..].parse::<usize>().expect("a type").max(16),
    }
}

fn load(register: &str, ty: &str, address: &str) -> String {
    match bits_of(ty) {
        1 => format!("ld.global.u32 %word, [{address}];\nsetp.ne.u32 {register}, %word, 0;\n"),
        bits => format!("ld.global.b{bits} {register}, [{address}];\n"),
    }
}

fn store(register: &str, ty: &str, address: &str) -> String {
    match bits_of(ty) {
        1 => format!("selp.u32 %word, 1, 0, {register};\nst.global.u32 [{address}], %word;\n"),
        bits => format!("st.global.b{bits} [{address}], {register};\n"),
    }
}

/// Returns a number of this type as a PTX literal, or `None` if PTX has no such literals.
fn literal(ty: &str, bits: u64) -> Option<String> {
    match ty {
        "f32" => Some(format!("0f{bits:08X}")),
        "f64" => Some(format!("0d{bits:016X}")),
        "s16" => Some((bits as i16).to_string()),
        "s32" => Some((bits as i32).to_string()),
        "s64" => Some((bits as i64).to_string()),
        "u16" | "b16" | "u32" | "b32" | "u64" | "b64" => Some(format!("{bits:#x}")),
        _ => None,
    }
}

/// Checks every case in a separate thread, with all operands in registers. Then checks the first cases again with the last of two
/// or more operands as a literal in the instruction.
#[track_caller]
pub(crate) fn check<const N: usize, const M: usize>(
    opcode: &str,
    signature: &str,
    cases: &[([u64; N], [u64; M])],
) {
    let signature = Signature::of(signature);
    assert_eq!(
        (signature.operands.len(), signature.results.len()),
        (N, M),
        "{opcode}"
    );
    in_registers(opcode, &signature, cases);
    let last = signature.operands[N - 1];
    if N > 1 && literal(last, 0).is_some() {
        let first = &cases[..cases.len().min(100)];
        with_literals(opcode, &signature, first);
    }
}

/// Checks a table for instructions with one result.
#[track_caller]
pub(crate) fn table<const N: usize>(opcode: &str, signature: &str, cases: &[([u64; N], u64)]) {
    let cases: Vec<_> = cases
        .iter()
        .map(|(operands, result)| (*operands, [*result]))
        .collect();
    check(opcode, signature, &cases);
}

/// Checks a table for instructions with one operand and one result.
#[track_caller]
pub(crate) fn unary(opcode: &str, signature: &str, cases: &[(u64, u64)]) {
    let cases: Vec<_> = cases
        .iter()
        .map(|(operand, result)| ([*operand], [*result]))
        .collect();
    check(opcode, signature, &cases);
}

fn in_registers<const N: usize, const M: usize>(
    opcode: &str,
    signature: &Signature<'_>,
    cases: &[([u64; N], [u64; M])],
) {
    let (count, stride_in, stride_out) = (cases.len(), 8 * N, 8 * M);
    let mut body = signature.declarations();
    body += &format!(
        ".reg .b32 %word;
         setp.ge.u32 %p0, %i, {count};
         @%p0 ret;
         mul.wide.u32 %x0, %i, {stride_in};
         add.u64 %in, %in, %x0;
         mul.wide.u32 %x0, %i, {stride_out};
         add.u64 %out, %out, %x0;
"
    );
    for (index, ty) in signature.operands.iter().enumerate() {
        body += &load(&format!("%o{index}"), ty, &format!("%in+{}", 8 * index));
    }
    body += &signature.instruction(opcode, None);
    for (index, ty) in signature.results.iter().enumerate() {
        body += &store(&format!("%r{index}"), ty, &format!("%out+{}", 8 * index));
    }
    let input: Vec<_> = cases.iter().flat_map(|(operands, _)| *operands).collect();
    let output = run(&body, count.div_ceil(BLOCK), BLOCK, &input, M * count);
    compare(opcode, signature, cases, &output);
}

fn with_literals<const N: usize, const M: usize>(
    opcode: &str,
    signature: &Signature<'_>,
    cases: &[([u64; N], [u64; M])],
) {
    let mut body = signature.declarations() + ".reg .b32 %word;\n";
    for (case, (operands, _)) in cases.iter().enumerate() {
        for (index, ty) in signature.operands[..N - 1].iter().enumerate() {
            let address = format!("%in+{}", 8 * (N * case + index));
            body += &load(&format!("%o{index}"), ty, &address);
        }
        let last = literal(signature.operands[N - 1], operands[N - 1]);
        body += &signature.instruction(opcode, last.as_deref());
        for (index, ty) in signature.results.iter().enumerate() {
            let address = format!("%out+{}", 8 * (M * case + index));
            body += &store(&format!("%r{index}"), ty, &address);
        }
    }
    let input: Vec<_> = cases.iter().flat_map(|(operands, _)| *operands).collect();
    let output = run(&body, 1, 1, &input, M * cases.len());
    compare(opcode, signature, cases, &output);
}

fn compare<const N: usize, const M: usize>(
    opcode: &str,
    signature: &Signature<'_>,
    cases: &[([u64; N], [u64; M])],
    output: &[u64],
) {
    let mut wrong = Vec::new();
    for (case, (operands, expected)) in cases.iter().enumerate() {
        for (index, expected) in expected.iter().enumerate() {
            let found = output[M * case + index];
            let same = match *expected {
                ANY_NAN => is_nan(signature.results[index], found),
                expected => expected == found,
            };
            if !same {
                wrong.push(format!(
                    "{opcode} of {operands:#x?}: result {index} is {found:#x}, not {expected:#x}"
                ));
            }
        }
    }
    let first = wrong.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        wrong.is_empty(),
        "{} of {} differ\n{first}",
        wrong.len(),
        cases.len()
    );
}

fn is_nan(ty: &str, bits: u64) -> bool {
    match ty {
        "f32" => f32::from_bits(bits as u32).is_nan(),
        "f64" => f64::from_bits(bits).is_nan(),
        _ => panic!("{ty} has no NaN"),
    }
}
