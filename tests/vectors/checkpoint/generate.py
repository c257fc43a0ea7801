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
CHUNK = 4096
DTYPES = {"f32": 0, "f16": 1, "bf16": 2}

def read(path):
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8:start])
    part = lambda name: raw[start + head[name]["data_offsets"][0] : start + head[name]["data_offsets"][1]]
    return head.pop("__metadata__", {}), head, part

def integer(x):
    if x < 251:
        return struct.pack("<B", x)
    width, kind = (251, "H") if x < 1 << 16 else (252, "I") if x < 1 << 32 else (253, "Q")
    return struct.pack("<B" + kind, width, x)

def string(text):
    return integer(len(text.encode())) + text.encode()

def option(kind, *values):
    if values[0] is None:
        return b"\x00"
    return b"\x01" + b"".join(integer(x) if kind == "integer" else struct.pack("<" + kind, x) for x in values)

def overrides(lr=None, lr_multiplier=None, betas=(None,), weight_decay=None, max_unorm=None, skip_zeros=None,
              stochastic_param=None, stochastic_state=None, seed=None, optim_bits=None, min_8bit_size=None):
    return (option("d", lr) + option("d", lr_multiplier) + option("d", *betas) + option("d", weight_decay)
            + option("d", max_unorm) + option("?", skip_zeros) + option("?", stochastic_param)
            + option("?", stochastic_state) + option("integer", seed)
            + option("integer", optim_bits) + option("integer", min_8bit_size))

_, _, codebook = read(HERE / "../spec/qmap_signed.safetensors")
CODEBOOK = zlib.crc32(codebook("qmap"))

tensors = []                                          # name, record up to the planes, planes
for name in sorted(NAMES):
    meta, head, part = read(HERE / f"../spec/{name}.safetensors")
    half, eight = int(meta["steps"]) // 2, meta["state"] == "8"
    n = head["p.0"]["shape"][0]
    yes = lambda key: meta[key] == "true"
    record = string(name) + integer(n) + option("integer", None)           # not a shard
    record += struct.pack("<BB", DTYPES[meta["param"]], eight)
    record += option("integer", 0 if eight else None)                      # the group
    record += overrides(
        lr=float(meta["lr"]), betas=(float(meta["beta1"]), float(meta["beta2"])),
        weight_decay=float(meta["weight_decay"]), max_unorm=float(meta["max_unorm"]),
        skip_zeros=yes("skip_zeros"), stochastic_param=yes("stochastic_param"),
        stochastic_state=yes("stochastic_state"), seed=int(meta["seed"]))
    record += option("integer", 0)                    # row-major: no axes
    record += integer(half) + integer(int(meta["seed"]))
    tensors.append((record, [part(f"{plane}.{half}") for plane in ("ca" if eight else "m")]))

body = integer(NUMBERS) + struct.pack("<B", 0)        # skip blocks
body += integer(2) + struct.pack("<B", 0) + integer(0) + integer(0)
body += struct.pack("<B", 1) + integer(256) + integer(CODEBOOK)
body += overrides(lr=1.0, optim_bits=32) + integer(1)
body += string("eight") + overrides(optim_bits=8, min_8bit_size=0) + integer(len(tensors))
data = b""
for record, planes in tensors:
    body += record + integer(len(planes))
    for plane in planes:
        data += bytes(-(36 + len(data)) % 64) + plane
        chunks = [plane[i : i + CHUNK] for i in range(0, len(plane), CHUNK)]
        body += integer(len(chunks)) + b"".join(struct.pack("<I", zlib.crc32(chunk)) for chunk in chunks)

index = string("generate.py") + integer(1)
index += integer(1) + struct.pack("<?", True) + integer(len(data)) + integer(len(body)) + body
size = 36 + len(data) + len(index) + 4
preamble = b"\x89LION\r\n\x1a" + struct.pack("<IIQQ", 2, CHUNK, len(index), size)
preamble += struct.pack("<I", zlib.crc32(preamble))
file = preamble + data + index + struct.pack("<I", zlib.crc32(index))
(Path(sys.argv[1]) / "v2.lion").write_bytes(file)
