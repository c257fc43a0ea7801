"""Records written from docs/records.md alone: the bytes of bincode, and the JSON of serde.

    python generate.py OUT        writes OUT/*.bin and OUT/*.json; needs nothing but Python

tests/tests/encode compares the files with what the library writes, and reads them back.
"""
import json, struct, sys
from pathlib import Path

u8, u32, u64, i64 = (lambda x, kind=kind: struct.pack("<" + kind, x) for kind in "BIQq")
f64, boolean = (lambda x, kind=kind: struct.pack("<" + kind, x) for kind in "d?")
bits = u8
pair = lambda x: f64(x[0]) + f64(x[1])
listed = lambda kind, values: u64(len(values)) + b"".join(map(kind, values))
floats = lambda values: struct.pack(f"<{len(values)}f", *values)

def option(kind, value):
    return u8(0) if value is None else u8(1) + kind(value)

def string(text):
    return u64(len(text.encode())) + text.encode()

def order(axes):
    return u8(0) if axes == "row_major" else u8(1) + listed(lambda a: u64(a[0]) + i64(a[1]), axes["permuted"])

def shard(s):
    return u8(1) + u64(s["offset"]) + u64(s["whole_len"])

def planes(p):
    if "momentum32" in p:
        return u8(0) + u64(len(p["momentum32"])) + floats(p["momentum32"])
    p = p["blockwise8"]
    return u8(1) + u64(len(p["codes"])) + bytes(p["codes"]) + floats(p["absmax"])

def state(s):
    return (u8(1) + u32(s["numbers"]) + u64(s["steps"]) + u64(s["seed"]) + option(order, s.get("order"))
            + shard(s["shard"]) + planes(s["planes"]))

SETTINGS = [("lr", f64), ("lr_multiplier", f64), ("betas", pair), ("weight_decay", f64), ("max_unorm", f64),
            ("skip_zeros", boolean), ("stochastic_param", boolean), ("stochastic_state", boolean), ("seed", u64),
            ("optim_bits", u32), ("min_8bit_size", u64), ("is_paged", boolean), ("min_paged_size", u64)]
HYPER = [("beta1", f64), ("beta2", f64)]

def overrides(o):
    return u8(1) + b"".join(option(kind, o.get(name)) for name, kind in SETTINGS)

def hyper(h):
    kinds = [*SETTINGS[:2], *HYPER, *SETTINGS[3:]]
    return u8(1) + b"".join((bits if name == "optim_bits" else kind)(h[name]) for name, kind in kinds)

def group(g):
    return u8(1) + string(g["name"]) + overrides(g["overrides"])

def settings(s):
    return (u8(1) + overrides(s["defaults"]) + listed(group, s["groups"])
            + option(lambda name: u8(ON_NON_FINITE.index(name)), s.get("on_non_finite")))

ON_NON_FINITE = ["skip_block", "reject_step"]
one = {"version": 1}
every = one | {"lr": 0.25, "lr_multiplier": 0.5, "betas": [0.75, 0.875], "weight_decay": 0.125, "max_unorm": 2.0,
               "skip_zeros": True, "stochastic_param": False, "stochastic_state": True, "seed": 2**64 - 1,
               "optim_bits": 8, "min_8bit_size": 1000, "is_paged": True, "min_paged_size": 2**40}
records = {
    # 2 x 3, in column-major order, after the largest number of steps.
    "state32": (state, one | {
        "numbers": 2, "steps": 2**62, "seed": 2**64 - 2, "order": {"permuted": [[2, 1], [3, 2]]},
        "shard": one | {"offset": 0, "whole_len": 6},
        "planes": {"momentum32": [0.0, -0.0, 1.0, -2.5, 2.0**-149, 65504.0]}}),
    # Two blocks, the second of which is not full.
    "state8": (state, one | {
        "numbers": 2, "steps": 3, "seed": 7, "order": "row_major",
        "shard": one | {"offset": 512, "whole_len": 812},
        "planes": {"blockwise8": {"codes": [i * 7 % 256 for i in range(300)], "absmax": [1.5, 0.0]}}}),
    "fresh": (state, one | {
        "numbers": 2, "steps": 0, "seed": 0, "shard": one | {"offset": 0, "whole_len": 0},
        "planes": {"momentum32": []}}),
    "settings": (settings, one | {
        "defaults": every,
        "groups": [one | {"name": "norms", "overrides": one | {"weight_decay": 0.0}},
                   one | {"name": "größe", "overrides": one | {"seed": 0, "optim_bits": 32}}],
        "on_non_finite": "reject_step"}),
    "hyper": (hyper, one | {"lr": 0.5, "lr_multiplier": 0.25, "beta1": 0.5, "beta2": 0.75, "weight_decay": 0.0,
                            "max_unorm": 0.5, "skip_zeros": False, "stochastic_param": True,
                            "stochastic_state": False, "seed": 9, "optim_bits": 32, "min_8bit_size": 0,
                            "is_paged": False, "min_paged_size": 5}),
}
out = Path(sys.argv[1])
for name, (kind, record) in records.items():
    (out / f"{name}.bin").write_bytes(kind(record))
    (out / f"{name}.json").write_text(json.dumps(record) + "\n")

# Dtype, Bits and OnNonFinite.
(out / "enums.bin").write_bytes(bytes([0, 1, 2]) + bytes([8, 32]) + bytes([0, 1]))
(out / "enums.json").write_text(json.dumps([["f32", "f16", "bf16"], [8, 32], ON_NON_FINITE]) + "\n")
