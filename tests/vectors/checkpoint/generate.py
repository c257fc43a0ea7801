"""A checkpoint written from docs/format.md alone, with states of the specification's trajectories.

    python generate.py OUT        writes OUT/v2.lion; needs nothing but Python

Each parameter is one trajectory of ../spec after half of its steps, with its hyper-parameters as
overrides. Whoever loads the file and takes the other half must end where the trajectory does.

v1.lion is kept from version 1 of the format and of the numbers, and cannot be written again: its states of
stochastic rounding have the draws of version 1.
"""
import json, struct, sys, zlib
from pathlib import Path

HERE = Path(__file__).parent
KINDS = ["decay", "stochastic", "unorm", "zeros"]
NAMES = [f"spec{bits}_{t}_{t}_{kind}" for bits in (8, 32) for t in ("f32", "f16", "bf16") for kind in KINDS
         if kind != "zeros" or t == "f32"]
NUMBERS = 2
DTYPES = {"f32": 0, "f16": 1, "bf16": 2}

def read(path):
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8:start])
    part = lambda name: raw[start + head[name]["data_offsets"][0] : start + head[name]["data_offsets"][1]]
    return head.pop("__metadata__", {}), head, part

def string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()

def option(kind, *values):
    return struct.pack("<B", 0) if values[0] is None else struct.pack("<B" + kind, 1, *values)

def overrides(lr=None, lr_multiplier=None, betas=(None,), weight_decay=None, max_unorm=None, skip_zeros=None,
              stochastic_param=None, stochastic_state=None, seed=None, optim_bits=None, min_8bit_size=None):
    return (option("d", lr) + option("d", lr_multiplier) + option("dd", *betas) + option("d", weight_decay)
            + option("d", max_unorm) + option("?", skip_zeros) + option("?", stochastic_param)
            + option("?", stochastic_state) + option("Q", seed) + option("I", optim_bits) + option("Q", min_8bit_size))

_, _, codebook = read(HERE / "../spec/qmap_signed.safetensors")
CODEBOOK = zlib.crc32(codebook("qmap"))

tensors = []                                          # name, record up to the planes, planes
for name in sorted(NAMES):
    meta, head, part = read(HERE / f"../spec/{name}.safetensors")
    half, eight = int(meta["steps"]) // 2, meta["state"] == "8"
    n = head["p.0"]["shape"][0]
    yes = lambda key: meta[key] == "true"
    record = string(name) + struct.pack("<QQQ", n, 0, n)                   # all of a whole tensor
    record += struct.pack("<BBII", DTYPES[meta["param"]], eight, 256 * eight, CODEBOOK * eight)
    record += option("I", 0 if eight else None)       # the group
    record += overrides(
        lr=float(meta["lr"]), betas=(float(meta["beta1"]), float(meta["beta2"])),
        weight_decay=float(meta["weight_decay"]), max_unorm=float(meta["max_unorm"]),
        skip_zeros=yes("skip_zeros"), stochastic_param=yes("stochastic_param"),
        stochastic_state=yes("stochastic_state"), seed=int(meta["seed"]))
    record += struct.pack("<BQ", 1, 0)                # row-major
    record += struct.pack("<QQ", half, int(meta["seed"]))
    planes = [part(f"{plane}.{half}") for plane in ("ca" if eight else "m")]
    tensors.append((record, planes))

head = string("generate.py") + struct.pack("<I", NUMBERS) + overrides(lr=1.0, optim_bits=32) + struct.pack("<Q", 1)
head += string("eight") + overrides(optim_bits=8, min_8bit_size=0) + struct.pack("<Q", len(tensors))
header_bytes = len(head) + sum(len(record) + 8 + 20 * len(planes) for record, planes in tensors)

body, end = b"", 36 + header_bytes
for record, planes in tensors:
    head += record + struct.pack("<Q", len(planes))
    for plane in planes:
        offset = (end + 63) // 64 * 64
        head += struct.pack("<QQI", offset, len(plane), zlib.crc32(plane))
        body += bytes(offset - end) + plane
        end = offset + len(plane)

preamble = b"\x89LION\r\n\x1a" + struct.pack("<IIQQ", 2, zlib.crc32(head), header_bytes, end)
preamble += struct.pack("<I", zlib.crc32(preamble))
(Path(sys.argv[1]) / "v2.lion").write_bytes(preamble + head + body)
