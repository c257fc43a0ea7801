"""Executable specification of a Lion step by majority vote, bit for bit.  Needs numpy only.

A proposal for lion_spec.py, whose functions it uses. Method: Liu et al. 2024, "Communication Efficient
Distributed Training with Distributed Lion", arXiv:2404.00438.

    python vote_spec.py          writes the replay vectors beside this file (format: `write_case`)
    python vote_spec.py --check  makes them again and compares
"""
from __future__ import annotations
import sys
from pathlib import Path
import numpy as np

HERE = Path(__file__).resolve().parent
VECTORS = HERE.parents[2] / "tests" / "vectors"
sys.path.insert(0, str(VECTORS))
from lion_spec import (BLOCK, PARAM, ZERO_CODE, Hyper, bad_blocks, dequantize, draws, f32, lion, load_codebook,
                       narrow, philox, step8, step32, u32, u64, widen)

# ---------------------------------------------------------------- random bits

TIES = 0                         # number of the coins that decide ties; rank r has number r + 1

def coins(n, seed, step, number):
    """+1 or -1 per element, fair. Stochastic rounding uses no counter of these: bits 61 and 62 are 0 in its counters.

    The key is the first two words for counter (number, 3 << 29, step lo, step hi) and key (seed lo, seed hi).
    Element i takes bit i % 128, from the lowest of the first word on, of the words for counter
    (lo, hi | 1 << 30, step lo, step hi), where lo and hi are the halves of i // 128.
    """
    lo, hi = step & 0xFFFFFFFF, step >> 32
    key = philox(np.array([[number, 3 << 29, lo, hi]], u32), (seed & 0xFFFFFFFF, seed >> 32))[0]
    group = np.arange((n + 127) // 128, dtype=u64)
    ctr = np.stack([group & u64(0xFFFFFFFF), (group >> u64(32)) | u64(1 << 30),
                    np.full_like(group, lo), np.full_like(group, hi)], axis=1)
    words = philox(ctr, (key[0], key[1])).astype("<u4")
    bits = np.unpackbits(words.view(np.uint8).reshape(-1), bitorder="little")[:n]
    return np.where(bits == 1, 1, -1)

# ---------------------------------------------------------------- the step

def blocks_of(x, fill=False):    # bool[n] as bool[blocks, 256], the last one filled up
    return np.concatenate([x, np.full((-len(x)) % BLOCK, fill)]).reshape(-1, BLOCK)

def direction(g, m, h):
    """sign(c) of one rank: 0 where the gradient is exactly 0 with skip_zeros, and in blocks that are skipped.
    Also the elements that a Lion step of this rank would leave as they are."""
    _, m2 = lion(np.zeros_like(m), g, m, h, 0.0)
    with np.errstate(all="ignore"):
        c = (f32(h.beta1) * m) + (f32(1.0 - h.beta1) * (g * f32(h.grad_scale)))
    kept = np.repeat(bad_blocks(m2), BLOCK)[: len(m)]
    if h.skip_zeros:
        kept = kept | (g == 0)
    return np.where(kept, 0, np.where(c > 0, 1, np.where(c < 0, -1, 0))), kept

def vote(directions, kept, seed, step):
    """v in {-1, 0, +1} per element, and the elements that are kept.

    A rank takes part in the vote on a block if its direction is not 0 in at least one element of it. Where the
    direction of a rank that takes part is 0, it votes with its own coin. The sign of the sum of the votes wins;
    the coin of ties decides a sum of 0. Where no rank takes part, v is 0. A block that every rank keeps as it is
    (all of its elements) is kept.
    """
    n = len(directions[0])
    total, voters = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for r, d in enumerate(directions):
        part = np.repeat(blocks_of(d != 0).any(axis=1), BLOCK)[:n]
        total += np.where(part, np.where(d == 0, coins(n, seed, step, r + 1), d), 0)
        voters += part
    v = np.where(total == 0, coins(n, seed, step, TIES), np.sign(total))
    all_kept = np.logical_and.reduce([blocks_of(k, True).all(axis=1) for k in kept])
    return np.where(voters == 0, 0, v), np.repeat(all_kept, BLOCK)[:n]

def vote_step(p, grads, states, q, h, pdt, gdt, t):
    """One step of all ranks. grads and states have one entry per rank: a state is m (32 bits) or (codes, absmax).

    Returns (p', states', skipped blocks summed over the ranks). h.lr, h.weight_decay, h.seed and the rounding of the
    parameter are those of all ranks. m' of each rank is that of its own Lion step.
    """
    n, directions, kept, new, skipped = len(p), [], [], [], 0
    for g, state in zip(grads, states):
        if isinstance(state, tuple):
            m = dequantize(*state, q)
            _, codes, absmax, k = step8(p, g, *state, q, h, pdt, gdt, t)
            new.append((codes, absmax))
        else:
            m = state
            _, m2, k = step32(p, g, m, h, pdt, gdt, t)
            new.append(m2)
        d, keep = direction(widen(g, gdt), m, h)
        directions.append(d), kept.append(keep)
        skipped += k
    v, keep = vote(directions, kept, h.seed, t)
    lr, decay = f32(h.lr), f32(1.0 - h.lr * h.weight_decay)
    p2 = ((widen(p, pdt) * decay) - np.where(v > 0, lr, np.where(v < 0, -lr, f32(0)))).astype(f32)
    draw = draws(n, h.seed, t, PARAM) if h.stochastic_param and pdt == "bf16" else None
    return np.where(keep, p, narrow(p2, pdt, draw)), new, skipped

# ---------------------------------------------------------------- replay vectors

STEPS = 3

def write_case(ranks, bits, pdt, h, n, seed):
    """One case, little-endian, without padding:

    u32: ranks, bits of the state, 1 if parameters are bf16 else 0 (f32), skip_zeros, stochastic_param, n, STEPS
    f64: lr, beta1, beta2, weight_decay;  u64: seed
    the parameter p[n], f32 or bf16
    per step: the gradients f32[ranks, n]; then after the step p[n]; the states, rank by rank: f32[n], or
    u8[n] and f32[blocks]; u64: skipped blocks, summed over the ranks
    """
    rng = np.random.default_rng(seed)
    q = load_codebook(VECTORS / "spec" / "qmap_signed.safetensors")
    p = narrow((rng.standard_normal(n) * 0.05).astype(f32), pdt)
    blocks = (n + BLOCK - 1) // BLOCK
    states = [np.zeros(n, f32) if bits == 32 else (np.full(n, ZERO_CODE, np.uint8), np.zeros(blocks, f32))
              for _ in range(ranks)]
    head = np.array([ranks, bits, pdt == "bf16", h.skip_zeros, h.stochastic_param, n, STEPS], "<u4").tobytes()
    head += np.array([h.lr, h.beta1, h.beta2, h.weight_decay], "<f8").tobytes() + np.uint64(h.seed).tobytes()
    out = [head, p.tobytes()]
    for t in range(1, STEPS + 1):
        grads = rng.standard_normal((ranks, n)).astype(f32)
        grads[rng.random((ranks, n)) < 0.2] = 0.0            # no direction yet, on some ranks
        grads[:, 256:512] = 0.0                              # no direction on any rank in the first steps
        grads[:, 300] = 1.0 if t == 3 else -0.0
        grads[0, 512:768] = 0.0
        if t == 2:
            grads[0, 3] = np.nan                             # one rank skips block 0
            grads[:, 800] = np.inf                           # all ranks skip block 3
        p, states, skipped = vote_step(p, list(grads), states, q, h, pdt, "f32", t)
        out += [grads.tobytes(), p.tobytes()]
        for state in states:
            out += [a.tobytes() for a in (state if bits == 8 else (state,))]
        out.append(np.uint64(skipped).tobytes())
    return b"".join(out)

def cases():
    k = 0
    for ranks in (1, 2, 3, 4):
        for bits in (32, 8):
            for pdt in ("f32", "bf16"):
                k += 1
                h = Hyper(lr=1e-3 * k, weight_decay=0.1, beta1=0.9, beta2=0.98, skip_zeros=ranks == 3 and bits == 32,
                          stochastic_param=ranks == 2 and pdt == "bf16", seed=0x0123456789ABCDEF + k)
                yield f"vote{ranks}_{bits}_{pdt}.bin", write_case(ranks, bits, pdt, h, 1100 + k, k)

def main(check):
    for name, data in cases():
        if not check:
            (HERE / name).write_bytes(data)
        elif (HERE / name).read_bytes() != data:
            sys.exit(f"{name} differs")

if __name__ == "__main__":
    main("--check" in sys.argv[1:])
