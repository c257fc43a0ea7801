#!/usr/bin/env python3
"""Computes the cycles per element of the aarch64 kernels with llvm-mca, without a CPU to measure on.

Traces the instructions of a step in qemu, cuts out four consecutive blocks of 256 elements, and gives them to llvm-mca. Needs
qemu-aarch64-static, a cross compiler, and llvm-mca 17 or later, which LLVM_MCA may name. First build the program:

    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    cargo build --release --target aarch64-unknown-linux-gnu --package lion-targets --bin step
    python3 tests/targets/cycles.py
"""

import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict

PROGRAM = "target/aarch64-unknown-linux-gnu/release/step"
QEMU = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"]
MCA = os.environ.get("LLVM_MCA", "llvm-mca")
BLOCK, BLOCKS, ELEMENTS, ITERATIONS = 256, 4, 4096, 8
CASES = [
    ("8", "f32", "nearest"),
    ("8", "bf16", "nearest"),
    ("32", "f32", "nearest"),
    ("8", "f32", "stochastic"),
]


def output(command, **options):
    return subprocess.run(command, check=True, capture_output=True, text=True, **options).stdout


def disassembly(program):
    """Returns the instructions of the program by address."""
    text = output(["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", program])
    found = re.findall(r"^ +([0-9a-f]+):\t(.*)$", text, re.MULTILINE)
    return {int(at, 16): line.split("//")[0].strip() for at, line in found}


def trace(isa, case, code):
    """Returns the addresses that a run executes, in order."""
    bits, dtype, rounding = case
    with tempfile.NamedTemporaryFile("r") as log:
        trace_to = ["-singlestep", "-d", "exec,nochain", "-D", log.name]
        arguments = [PROGRAM, bits, dtype, str(ELEMENTS), rounding]
        output(QEMU + trace_to + arguments, env={**os.environ, "LION_CPU_ISA": isa})
        addresses = [int(at, 16) for at in re.findall(r"^Trace .*?/([0-9a-f]+)/", log.read(), re.MULTILINE)]
    # qemu loads position-independent programs here.
    addresses = [at - 0x5500000000 if at >= 0x5500000000 else at for at in addresses]
    return [at for at in addresses if at in code]


def blocks(addresses):
    """Returns the instructions of some blocks: between those that run once per block."""
    places = defaultdict(list)
    for place, address in enumerate(addresses):
        places[address].append(place)
    wanted = ELEMENTS // BLOCK
    best = (0, [])
    for found in places.values():
        if wanted - 4 <= len(found) <= 2 * wanted + 8:
            found = found[-(wanted - 2) :]
            gaps = sorted(b - a for a, b in zip(found[3:10], found[4:11]))
            middle = gaps[len(gaps) // 2]
            if middle > BLOCK and gaps[-1] < 1.2 * middle and gaps[0] > 0.8 * middle:
                best = max(best, (middle, found))
    found = best[1]
    return addresses[found[3] : found[3 + BLOCKS]]


def without_targets(line):
    """Replaces addresses in branches and the like, which have no meaning for llvm-mca."""
    line = re.sub(r" *<.*>", "", line)
    operation = line.split()[0]
    if operation.startswith("b."):
        return f"{operation} #8"
    if operation in ("b", "bl", "br", "blr", "ret"):
        return "b #8"
    if operation in ("cbz", "cbnz", "tbz", "tbnz", "adr", "adrp"):
        return re.sub(r", [^,]*$", ", #4096" if operation == "adrp" else ", #8", line)
    return line


def cycles(lines, cpu):
    command = [MCA, "-mtriple=aarch64", f"-mcpu={cpu}", f"-iterations={ITERATIONS}"]
    text = output(command + ["-instruction-info=0", "-resource-pressure=0"], input="\n".join(lines))
    return int(re.search(r"Total Cycles: +(\d+)", text)[1]) / (ITERATIONS * BLOCKS * BLOCK)


def main():
    code = disassembly(PROGRAM)
    print("state  types  rounding    isa     instructions  neoverse-v2  apple-m1")
    for case in CASES:
        for isa in ("scalar", "neon"):
            lines = [without_targets(code[at]) for at in blocks(trace(isa, case, code))]
            of_cpus = [cycles(lines, cpu) for cpu in ("neoverse-v2", "apple-m1")]
            count = len(lines) / (BLOCKS * BLOCK)
            bits, dtype, rounding = case
            print(f"{bits:5}  {dtype:5}  {rounding:10}  {isa:6}  {count:12.1f}  {of_cpus[0]:11.2f}  {of_cpus[1]:8.2f}")


if __name__ == "__main__":
    sys.exit(main())
