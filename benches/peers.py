"""Steps optimizers of other projects for `cargo xtask bench --peers PYTHON`, which times its own beside them.

Reads one JSON request per line from standard input, and answers each with one line:

    {"do": "list"}                                            -> {"peers": [{"name", "version"}], "skipped": [..]}
    {"do": "open", "peer": NAME, "dtype": "f32", "n": N}      -> {"id": ID, "state_bytes": BYTES}
    {"do": "step", "id": ID, "steps": K}                      -> {"seconds": SECONDS}
    {"do": "close", "id": ID}                                 -> {}

A request that fails is answered with {"error": REASON}. Usage: peers.py FOLDER THREADS. The C++ source of DeepSpeed is
downloaded to FOLDER and compiled there, with the flags of DeepSpeed.
"""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time

FOLDER, THREADS = pathlib.Path(sys.argv[1]), int(sys.argv[2])
LR, WEIGHT_DECAY = 1e-4, 0.1


def tensors(dtype, n):
    """A parameter and a gradient, in the ranges of the tensors of the benchmark."""
    import torch

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    torch.manual_seed(1)
    pattern = torch.rand(min(n, 1 << 20)) * 2 - 1
    pattern = pattern.repeat(-(-n // len(pattern)))[:n]
    p = torch.nn.Parameter((pattern * 0.05).to(dtype))
    p.grad = (pattern.flip(0) * 1e-2).to(dtype)
    return p


def of_torch(make):
    """A peer with the interface of torch.optim."""

    def open_(dtype, n):
        p = tensors(dtype, n)
        optimizer = make(p)
        optimizer.step()
        state = optimizer.state[p].values()
        return optimizer.step, sum(x.nbytes for x in state if hasattr(x, "nbytes") and x.ndim > 0)

    return open_


def bitsandbytes(name):
    def find():
        import bitsandbytes

        cls = getattr(bitsandbytes.optim, name)
        return of_torch(lambda p: cls([p], lr=LR, weight_decay=WEIGHT_DECAY))

    return find


def lion_pytorch():
    import lion_pytorch

    return of_torch(lambda p: lion_pytorch.Lion([p], lr=LR, weight_decay=WEIGHT_DECAY))


def adamw():
    import torch

    return of_torch(lambda p: torch.optim.AdamW([p], lr=LR, weight_decay=WEIGHT_DECAY, fused=True))


def deepspeed_source():
    """Returns the folder of DeepSpeed's source, which is downloaded from PyPI once."""
    folder = FOLDER / "deepspeed"
    if not any(folder.glob("deepspeed-*/csrc")):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--no-binary", ":all:", "--dest", str(folder), "deepspeed"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        with tarfile.open(next(folder.glob("deepspeed-*.tar.gz"))) as archive, tempfile.TemporaryDirectory(dir=folder) as new:
            archive.extractall(new, filter="data")
            # Renamed when it is complete, because an interrupted run leaves a part.
            source = next(pathlib.Path(new).glob("deepspeed-*"))
            source.rename(folder / source.name)
    return next(folder.glob("deepspeed-*/csrc")).parent


def deepspeed():
    import torch
    import torch.utils.cpp_extension

    source = deepspeed_source()
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    simd = "-D__AVX512__" if " avx512f " in flags else "-D__AVX256__" if " avx2 " in flags else "-D__SCALAR__"
    extension = torch.utils.cpp_extension.load(
        name="cpu_lion",
        sources=[str(source / "csrc" / "lion" / file) for file in ("cpu_lion.cpp", "cpu_lion_impl.cpp")],
        extra_include_paths=[str(source / "csrc" / "includes")],
        extra_cflags=["-O3", "-std=c++20", "-g", "-Wno-reorder", "-fopenmp", "-march=native", simd],
        extra_ldflags=["-fopenmp"],
        build_directory=str(source),
    )

    def open_(dtype, n):
        p = tensors(dtype, n)
        # The state has the type of the parameter, which is its form with the least traffic.
        param, state, count = p.data, torch.zeros_like(p.data), 0
        extension.create_lion(0, LR, 0.9, 0.99, WEIGHT_DECAY, False)

        def step():
            nonlocal count
            count += 1
            extension.lion_update(0, count, LR, 0.9, 0.99, WEIGHT_DECAY, param, p.grad, state)

        return step, state.nbytes

    return open_


# The names, the package that gives the version, and the function that finds the peer.
PEERS = {
    "bitsandbytes Lion8bit": ("bitsandbytes", bitsandbytes("Lion8bit")),
    "bitsandbytes Lion32bit": ("bitsandbytes", bitsandbytes("Lion32bit")),
    "lion-pytorch Lion": ("lion-pytorch", lion_pytorch),
    "torch AdamW, fused": ("torch", adamw),
    "DeepSpeed cpu_lion": ("deepspeed", deepspeed),
}


def version(package):
    if package == "deepspeed":
        return deepspeed_source().name.removeprefix("deepspeed-")
    return importlib.metadata.version(package)


def list_peers(opened):
    peers, skipped = [], []
    for name, (package, find) in PEERS.items():
        try:
            opened[name] = find()
            peers.append({"name": name, "version": version(package)})
        except Exception as error:
            skipped.append({"name": name, "reason": reason(error)})
    return {"peers": peers, "skipped": skipped}


def reason(error):
    text = error.stderr.decode() if isinstance(error, subprocess.CalledProcessError) else str(error)
    return f"{type(error).__name__}: {text.strip().splitlines()[-1] if text.strip() else ''}"


def main():
    # torch finds ninja there, which compiles the source of DeepSpeed.
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        import torch

        torch.set_num_threads(THREADS)
    except ImportError:
        pass  # Each peer reports it.
    found, models, ids = {}, {}, 0
    # What a library prints must not mix with the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "list":
                answer = list_peers(found)
            elif request["do"] == "open":
                step, state_bytes = found[request["peer"]](request["dtype"], request["n"])
                ids += 1
                models[ids] = step
                step()
                answer = {"id": ids, "state_bytes": state_bytes}
            elif request["do"] == "step":
                step = models[request["id"]]
                start = time.perf_counter()
                for _ in range(request["steps"]):
                    step()
                answer = {"seconds": time.perf_counter() - start}
            else:
                del models[request["id"]]
                answer = {}
        except Exception as error:
            answer = {"error": reason(error)}
        print(json.dumps(answer), file=answers, flush=True)


main()
